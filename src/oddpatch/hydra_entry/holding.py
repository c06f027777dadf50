"""A run's folder is its own before Hydra writes there."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from oddpatch.errors import ConfigError, OddpatchError, in_one_line
from oddpatch.files import shown
from oddpatch.locking import hold
from oddpatch.temporary import unwritable


class HoldFolder(Callback):
    """A Hydra callback: a run's folder is held before Hydra writes the config and a log into it.

    Examples:
        >>> from pathlib import Path
        >>> from hydra.conf import HydraConf, RunDir
        >>> from omegaconf import OmegaConf
        >>> from oddpatch.hydra_entry.holding import HoldFolder
        >>> HoldFolder().on_run_start(OmegaConf.create({"hydra": HydraConf(run=RunDir("outputs/run"))}))
        >>> Path("outputs/run/.run.lock").is_file()  # held by this process until it ends
        True
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Of a single run, which a job of a sweep is, too."""
        with _in_one_line():
            folder = _folder(config, "run")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                hold(folder)
            except OSError as error:
                raise unwritable(folder, error) from error

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """A sweep's folder is its jobs' to hold; here it is only looked at."""
        with _in_one_line():
            _folder(config, "sweep")


def _folder(config: DictConfig, kind: str) -> Path:
    HydraConfig.instance().set_config(config)  # the folder's name refers to it; Hydra sets it a moment later
    folder = Path(str(config.hydra[kind].dir)).absolute()
    if "${" in str(folder):  # Hydra hands the name on as a text with references in it
        raise ConfigError(f"{folder}: has ${{ in its name: set hydra.{kind}.dir to another folder")
    return folder


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Exit with the error itself: Hydra turns what a callback raises into a warning."""
    try:
        yield
    except (OddpatchError, OmegaConfBaseException) as error:
        terminal = Console(stderr=True)
        told = shown(in_one_line(error) or error)
        terminal.print(f"error: {told}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
