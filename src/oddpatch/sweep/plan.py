"""Which jobs a sweep has: every combination of the values that were given, `data.category=all` spelt out."""

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from oddpatch.errors import ConfigError, DataError
from oddpatch.hydra_entry.naming import names
from oddpatch.hydra_entry.overrides import ALL, CATEGORY, quoted
from oddpatch.sweep.identity import config_hash

log = logging.getLogger(__name__)


class Job(NamedTuple):
    """One job of a sweep."""

    overrides: list[str]  # as Hydra takes them, with the folder
    folder: Path
    names: Mapping[str, Any]  # of model, backbone, data and category

    @property
    def told(self) -> list[str]:
        """What was asked for, to print."""
        return [text for text in self.overrides if not text.startswith("hydra.")]


def grid(overrides: Iterable[Override]) -> list[list[str]]:
    """Every combination of the values of `overrides`.

    Raises:
        ConfigError: one gives an interval, which has no end of values.
    """
    choices = []
    for override in overrides:
        if not override.is_sweep_override():
            choices.append([str(override.input_line)])
        elif override.is_discrete_sweep():
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            raise ConfigError(
                f"{override.input_line}: a grid has no intervals: list values, or search with sweep=optuna"
            )
    return [list(combination) for combination in itertools.product(*choices)]


def plan(loader: Any, config: DictConfig, combinations: Iterable[Sequence[str]]) -> list[Job]:
    """The jobs of a sweep, each with a folder of its own; those asked for twice are left out.

    A job's folder follows from its config, so that a sweep that is run again, or grows, finds what is finished.

    Args:
        loader: Hydra's loader of configs.
        config: of the sweep.
        combinations: the overrides of each job.

    Raises:
        ConfigError: a job cannot be composed, or `hydra.sweep.subdir` gives two jobs one folder.
        DataError: there are no categories to be found for `data.category=all`.
    """
    # Hydra composes 5 to 10 configs a second: jobs that differ in more than the category share nothing here.
    jobs: dict[Path, Job] = {}
    hashes: dict[Path, str] = {}
    root = Path(str(config.hydra.sweep.dir)).resolve()
    for combination in combinations:
        for overrides in expand_categories(loader, config, combination):
            cfg = composed(loader, config, overrides, len(jobs))
            subdir = str(cfg.hydra.sweep.subdir)
            folder, found = root / subdir, config_hash(cfg)
            if hashes.setdefault(folder, found) != found:
                raise ConfigError(f"hydra.sweep.subdir gives {folder} to two jobs: add what differs between them to it")
            pinned = [f"hydra.sweep.dir={quoted(str(root))}", f"hydra.sweep.subdir={quoted(subdir)}"]
            # The job, which is a single run, leaves its config in its folder.
            jobs[folder] = Job([*overrides, *pinned, "hydra.output_subdir=null"], folder, names(cfg))
    return list(jobs.values())


def expand_categories(loader: Any, config: DictConfig, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides once for each category of the dataset they choose, if they ask for all; else as they are.

    Raises:
        ConfigError: the dataset has no root.
        DataError: its root is no folder, or holds no category.
    """
    wanted = f"{CATEGORY}={ALL}"
    if wanted not in overrides:
        return [list(overrides)]
    root = OmegaConf.select(composed(loader, config, overrides, 0), "data.root")
    if root is None:
        raise ConfigError(f"{wanted}: this dataset has no data.root to look for categories in: name them")
    from oddpatch.data.layout import categories

    found = categories(Path(root))
    if ALL in found:  # a folder that is really called so
        return [list(overrides)]
    if not found:
        raise DataError(f"{wanted}: {root} holds no folder with train/good in it: point data.root at the categories")
    return [[f"{CATEGORY}={quoted(name)}" if text == wanted else text for text in overrides] for name in found]


def composed(loader: Any, config: DictConfig, overrides: Sequence[str], number: int) -> DictConfig:
    """The config of a job of a sweep, which Hydra's references then refer to."""
    cfg: DictConfig = loader.load_sweep_config(config, list(overrides))
    with open_dict(cfg):
        cfg.hydra.job.id = cfg.hydra.job.num = number
    HydraConfig.instance().set_config(cfg)  # what `${hydra:...}` reads
    return cfg
