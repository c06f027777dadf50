"""A job that can be sent to another process or machine."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from oddpatch.errors import ConfigError
from oddpatch.sweep.plan import composed


@dataclass
class RemoteJob:
    """Everything that Hydra needs to run a job elsewhere; pickled by cloudpickle, as a script's task needs."""

    context: HydraContext
    task: TaskFunction
    config: DictConfig
    state: dict[Any, Any]
    cwd: str
    threads: int | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return str(self.config.hydra.sweep.subdir)

    def __call__(self) -> JobReturn:
        """Run it here.

        Returns:
            What came of it; a job that cannot even start is a failed one.
        """
        try:
            self._enter()
        except ConfigError as error:
            return failure(error)
        if self.threads is not None:
            os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads)))
        setup_globals()
        Singleton.set_state(self.state)
        HydraConfig.instance().set_config(self.config)
        return run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=self.config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def _enter(self) -> None:
        folder = Path(str(self.config.hydra.sweep.dir))
        for path, remedy in ((Path(self.cwd), "the checkout"), (folder, "hydra.sweep.dir")):
            if not path.is_dir():
                raise ConfigError(
                    f"{path} does not exist on {socket.gethostname()}: {remedy} must lie at the same path on every "
                    "machine, on a file system that they share"
                )
        os.chdir(self.cwd)  # as for the sweep: relative paths mean the same


def remote_jobs(
    context: HydraContext,
    config: DictConfig,
    task: TaskFunction,
    job_overrides: Sequence[Sequence[str]],
    first: int,
) -> list[RemoteJob]:
    """Jobs ready to be sent, numbered from `first`."""
    setup_globals()
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    configs = [composed(context.config_loader, config, o, number) for number, o in enumerate(job_overrides, first)]
    return [RemoteJob(context, task, cfg, Singleton.get_state(), str(Path.cwd())) for cfg in configs]


def failure(error: Exception) -> JobReturn:
    """What a job returns that could not be run, or was lost."""
    return JobReturn(status=JobStatus.FAILED, _return_value=error)
