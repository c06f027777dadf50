"""Launchers for Ray and for SLURM (submitit) that go on when a job, or the machine it ran on, is lost.

Each is its own schema: `hydra/launcher=oddpatch_ray` and `oddpatch_submitit` have the fields of the classes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from oddpatch.wording import counted

log = logging.getLogger(__name__)


class _RemoteLauncher(Launcher):
    """What launchers that run jobs in other processes have in common."""

    needs: str

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """As Hydra asks for it.

        Raises:
            ConfigError: the package that the jobs are launched with is not installed.
        """
        from oddpatch.hydra_entry.composition import need_extra

        need_extra(self.needs)
        self.hydra_context, self.config, self.task_function = hydra_context, config, task_function

    def _jobs(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Any]:
        from oddpatch.sweep.remote import remote_jobs

        return remote_jobs(self.hydra_context, self.config, self.task_function, job_overrides, first)


@dataclass
class RayLauncher(_RemoteLauncher):
    """Runs each job as a Ray task with GPUs and cores of its own, on one machine or on all of a cluster.

    Args:
        address: of a cluster; None for the one of RAY_ADDRESS or the one this machine belongs to, else a new one here.
        num_gpus: of a job, which may be a fraction; "auto" for 1 if there are GPUs, else 0.
        num_cpus: of a job; "auto" for its share of the GPUs' cores, or 4 where there are none.
        max_retries: how often a job is run again whose machine or process was lost.
        patience: seconds to wait for a machine that can run a job before those that are left are given up.
        init: further arguments of `ray.init`.
    """

    _target_: str = "hydra_plugins.oddpatch_sweep.launchers.RayLauncher"
    address: str | None = None
    num_gpus: Any = "auto"
    num_cpus: Any = "auto"
    max_retries: int = 2
    patience: float = 60.0
    init: dict[str, Any] = field(default_factory=dict)

    needs = "ray"

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run all jobs; one that is lost is a failed `JobReturn`."""
        from oddpatch.cluster import cluster, need_of
        from oddpatch.sweep.ray import run_jobs

        jobs = self._jobs(job_overrides, initial_job_idx)
        init: Any = OmegaConf.to_container(self.init, resolve=True) if OmegaConf.is_config(self.init) else self.init
        with cluster(self.address, init, "leave hydra.launcher.address null for one of this machine"):
            remedy = "lower hydra.launcher.num_gpus or hydra.launcher.num_cpus"
            return run_jobs(jobs, need_of(self.num_gpus, self.num_cpus, remedy), self.max_retries, self.patience)


@dataclass
class SubmititLauncher(_RemoteLauncher):
    """Submits the jobs as one array to SLURM, or runs them as processes of this machine (`cluster=local`).

    Args:
        cluster: slurm or local.
        folder: for submitit's own files.
        max_num_timeout: how often SLURM runs a job again that ran into its time limit.
        parameters: of submitit's executor, such as timeout_min, gpus_per_node, slurm_partition.
    """

    _target_: str = "hydra_plugins.oddpatch_sweep.launchers.SubmititLauncher"
    cluster: str = "slurm"
    folder: str = "${hydra.sweep.dir}/.submitit"
    max_num_timeout: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)

    needs = "submitit"

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Submit all jobs and wait for them; one that is lost is a failed `JobReturn`."""
        import submitit

        options = {"slurm_max_num_timeout": self.max_num_timeout} if self.cluster == "slurm" else {}
        executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster, **options)
        executor.update_parameters(**{key: value for key, value in self.parameters.items() if value is not None})
        submitted = executor.map_array(_run, self._jobs(job_overrides, initial_job_idx))
        log.info("%s submitted to %s; logs are in %s", counted(len(submitted), "job"), self.cluster, self.folder)
        try:
            return [_result(job) for job in submitted]
        except KeyboardInterrupt:
            for job in submitted:
                job.cancel()
            raise


class _Run:
    """What a submitted job calls; it can be submitted again after a time limit."""

    def __call__(self, job: Any) -> JobReturn:
        return job()

    def checkpoint(self, job: Any) -> Any:
        """Submit the job again: it takes care itself that nothing is half done."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


_run = _Run()


def _result(job: Any) -> JobReturn:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        return job.result()
    except (FailedJobError, UncompletedJobError) as error:
        from oddpatch.sweep.job import JobError
        from oddpatch.sweep.remote import failure

        log.warning("job %s was lost: %s", job.job_id, error)
        return failure(JobError(f"job {job.job_id} was lost in state {job.state}: see {job.paths.stderr}"))


store = ConfigStore.instance()
store.store(group="hydra/launcher", name="oddpatch_ray", node=RayLauncher, provider="oddpatch")
store.store(group="hydra/launcher", name="oddpatch_submitit", node=SubmititLauncher, provider="oddpatch")
