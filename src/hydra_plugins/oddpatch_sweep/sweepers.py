"""Sweepers that plan jobs with folders of their own, go on after a failed job, and end with a table.

Each is its own schema: `hydra/sweeper=oddpatch_grid` and `oddpatch_search` have the fields of the classes.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from oddpatch.hydra_entry.overrides import as_typed, folder_name

log = logging.getLogger(__name__)


def _job_hash(*, _root_: DictConfig) -> str:
    from oddpatch.sweep.identity import config_hash

    return config_hash(_root_)[:8]


OmegaConf.register_new_resolver("job_hash", _job_hash, replace=True)
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


class _OddpatchSweeper(Sweeper):
    """What a grid and a search have in common."""

    hydra_context: HydraContext
    config: DictConfig
    params: dict[str, str] | None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """As Hydra asks for it."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run all jobs and end with the table; the exit code is 1 if a job has failed, 130 after Ctrl-C.

        Raises:
            ConfigError: the sweep's folder cannot be written, or a job cannot be composed.
        """
        from oddpatch.errors import ConfigError
        from oddpatch.sweep.outcome import Outcome
        from oddpatch.sweep.table import conclude

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        params = as_typed(["-m", *(f"{key}={value}" for key, value in (self.params or {}).items())], self.config)[1:]
        overrides = parser.parse_overrides([*params, *arguments])
        # The last one of a setting stands, as everywhere in Hydra.
        last = {override.get_key_element(): override for override in overrides}
        folder = Path(str(self.config.hydra.sweep.dir)).resolve()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written ({error.strerror}): set hydra.sweep.dir to another folder"
            ) from error
        outcomes: list[Outcome] = []
        try:
            self._run(list(last.values()), folder, outcomes)
        except KeyboardInterrupt:
            if outcomes:  # else nothing was launched
                conclude(outcomes, folder, str(self.config.objective))
            raise
        conclude(outcomes, folder, str(self.config.objective))
        if any(outcome.status == "failed" for outcome in outcomes):
            sys.exit(1)

    def _run(self, overrides: list[Override], folder: Path, outcomes: list[Any]) -> None:
        """Run the jobs and add what became of them to `outcomes`."""
        raise NotImplementedError

    def _plan(self, combinations: Sequence[Sequence[str]]) -> list[Any]:
        from oddpatch.sweep.plan import plan

        return plan(self.hydra_context.config_loader, self.config, combinations)

    def _save_config(self, folder: Path) -> None:
        from oddpatch.files import write_whole

        write_whole(folder / "multirun.yaml", OmegaConf.to_yaml(self.config))


@dataclass
class GridSweeper(_OddpatchSweeper):
    """Every combination of the values given.

    Args:
        max_batch_size: jobs that the launcher gets at a time; None for all.
        params: overrides of a config file; the command line's stand before them.
    """

    _target_: str = "hydra_plugins.oddpatch_sweep.sweepers.GridSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None

    def _run(self, overrides: list[Override], folder: Path, outcomes: list[Any]) -> None:
        from oddpatch.sweep.outcome import run_all
        from oddpatch.sweep.plan import grid

        jobs = self._plan(grid(overrides))
        self._save_config(folder)
        size = self.max_batch_size or len(jobs)
        for start in range(0, len(jobs), size):
            run_all(self.launcher, jobs[start : start + size], outcomes)


@dataclass
class SearchSweeper(_OddpatchSweeper):
    """A search with Optuna: settings with several values or an interval are drawn for each trial.

    Its study lies in the sweep's folder: the same sweep run again goes on with it, two at once share it. A trial over
    several categories is worth the mean of their objectives.

    Args:
        n_trials: trials of the study, those of earlier runs included.
        n_jobs: trials that are run at a time.
        direction: maximize or minimize.
        sampler: an Optuna sampler, as a config with a `_target_`.
        params: overrides of a config file; the command line's stand before them.
    """

    _target_: str = "hydra_plugins.oddpatch_sweep.sweepers.SearchSweeper"
    _recursive_: bool = False  # the sampler is made once it is known that Optuna is there
    n_trials: int = 20
    n_jobs: int = 1
    direction: str = "maximize"
    sampler: Any = field(default_factory=lambda: {"_target_": "optuna.samplers.TPESampler", "seed": 0})
    params: dict[str, str] | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """As Hydra asks for it.

        Raises:
            ConfigError: Optuna is not installed, or a number cannot work.
        """
        from oddpatch.errors import ConfigError
        from oddpatch.hydra_entry.composition import need_extra

        need_extra("optuna")
        if self.n_trials < 1 or self.n_jobs < 1 or self.direction not in ("maximize", "minimize"):
            raise ConfigError(
                f"hydra.sweeper: n_trials={self.n_trials} and n_jobs={self.n_jobs} must be at least 1, and "
                f"direction={self.direction} maximize or minimize"
            )
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def _run(self, overrides: list[Override], folder: Path, outcomes: list[Any]) -> None:
        from oddpatch.sweep.plan import grid
        from oddpatch.sweep.search import Search
        from oddpatch.sweep.space import split

        space, others = split(overrides)
        self._save_config(folder)
        search = Search(folder / "study.log", space, self.direction, self.sampler)
        fixed = grid(others)
        while batch := search.ask(min(self.n_jobs, self.n_trials - search.finished)):
            search.run(batch, fixed, self._plan, self.launcher, outcomes)
        search.tell_best(folder / "best.yaml")


store = ConfigStore.instance()
store.store(group="hydra/sweeper", name="oddpatch_grid", node=GridSweeper, provider="oddpatch")
store.store(group="hydra/sweeper", name="oddpatch_search", node=SearchSweeper, provider="oddpatch")
