"""Jobs on Ray: each with GPUs and cores of its own, run again when its machine is lost, given up when none is left."""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn, JobStatus

from oddpatch.errors import ConfigError
from oddpatch.sweep.job import JobError
from oddpatch.sweep.process import explain
from oddpatch.sweep.remote import RemoteJob, failure
from oddpatch.wording import counted

# Read by Ray as it is imported: a machine that is lost would print pages of its state, dozens of lines each.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
import ray

log = logging.getLogger(__name__)

#: Cores of a job where there are no GPUs to share them out by.
CORES = 4
#: Seconds between looks at the cluster while jobs wait.
LOOK = 5.0


class Need(NamedTuple):
    """What a job takes of a machine."""

    gpus: float
    cpus: float

    def __str__(self) -> str:
        return f"{counted(self.gpus, 'GPU')} and {counted(self.cpus, 'core')}"

    def fits(self, resources: Mapping[str, float]) -> bool:
        """Whether a machine has as much."""
        return resources.get("GPU", 0) >= self.gpus and resources.get("CPU", 0) >= self.cpus


@contextmanager
def cluster(address: str | None, init: Mapping[str, Any]) -> Iterator[None]:
    """A connection to a Ray cluster, or one of this machine that lasts as long as the block.

    Args:
        address: as `ray.init` takes it.
        init: further arguments of `ray.init`.

    Raises:
        ConfigError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported unasked
    quiet = {"include_dashboard": False} if address in (None, "local") else {}
    try:
        # What jobs print goes to their folders.
        ray.init(address=address, **{"log_to_driver": False, "logging_level": "warning", **quiet, **init})
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"no Ray cluster can be reached at {address} ({explain(error)[1]}): start one by "
            "`ray start --head`, or leave hydra.launcher.address null for one of this machine"
        ) from error
    machines = _machines()
    log.info("Ray: %s with %s", counted(len(machines), "machine"), Need(*_sum(machines)))
    try:
        yield
    finally:
        ray.shutdown()


def need_of(gpus: float | str, cpus: float | str) -> Need:
    """What a job takes, "auto" worked out from the cluster.

    Raises:
        ConfigError: no machine has as much.
    """
    machines = _machines()
    total_gpus, total_cpus = _sum(machines)
    wanted_gpus = float(total_gpus > 0) if gpus == "auto" else float(gpus)
    if cpus == "auto":
        most = max((machine.get("CPU", 0.0) for machine in machines), default=0.0)
        share = total_cpus / total_gpus * wanted_gpus if wanted_gpus else CORES
        wanted_cpus = max(min(share, most) // 1, 1.0)
    else:
        wanted_cpus = float(cpus)
    need = Need(wanted_gpus, wanted_cpus)
    if not any(need.fits(machine) for machine in machines):
        raise ConfigError(
            f"a job needs {need}, which no machine of the Ray cluster has (all together: "
            f"{Need(total_gpus, total_cpus)}): lower hydra.launcher.num_gpus or hydra.launcher.num_cpus"
        )
    log.info("each job has %s", need)
    return need


def run_jobs(jobs: Sequence[RemoteJob], need: Need, max_retries: int, patience: float) -> list[JobReturn]:
    """Run all jobs and wait for them; one that is lost for good is a failed `JobReturn`."""
    # Ray sets CUDA_VISIBLE_DEVICES for each task. Its process may stay for the next: the job's own uses the GPU.
    task = ray.remote(num_gpus=need.gpus, num_cpus=need.cpus, max_retries=max_retries, max_calls=0)(_call)
    threads = max(int(need.cpus), 1)
    waiting = {task.remote(replace(job, threads=threads)): i for i, job in enumerate(jobs)}
    returns: dict[int, JobReturn] = {}
    machines = _addresses()
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=LOOK)
            known, machines = machines, _addresses()
            for machine in known.keys() - machines.keys():
                log.warning("Ray: the machine at %s was lost; its jobs run again on others", known[machine])
            for reference in ready:
                number = waiting.pop(reference)
                returns[number] = _result(reference)
                name, ended = jobs[number].name, returns[number].status == JobStatus.COMPLETED
                told = "ended" if ended else explain(returns[number]._return_value)[1].removeprefix(f"{name}: ")
                log.info("%d/%d %s: %s", len(returns), len(jobs), name, told)
            if not ready and not _appears(need, patience):
                lost = JobError(f"no machine with {need} is left in the Ray cluster")
                returns.update({i: failure(lost) for i in waiting.values()})
                break
    finally:  # by Ctrl-C, or where no machine is left
        for reference in waiting:
            ray.cancel(reference, force=True)
    return [returns[i] for i in range(len(jobs))]


def _call(job: RemoteJob) -> JobReturn:
    return job()


def _result(reference: Any) -> JobReturn:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return failure(JobError(f"it could not be run there ({explain(error.cause or error)[1]})"))
    except ray.exceptions.RayError as error:
        return failure(JobError(f"its process or machine was lost ({type(error).__name__})"))


def _machines() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _addresses() -> dict[str, str]:
    """Where each machine of the cluster is, by Ray's name for it."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def _sum(machines: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    return sum(m.get("GPU", 0.0) for m in machines), sum(m.get("CPU", 0.0) for m in machines)


def _appears(need: Need, patience: float) -> bool:
    """Whether there is a machine that a job fits on, or comes to be one while we wait."""
    deadline = time.monotonic() + patience
    while not any(need.fits(machine) for machine in _machines()):
        if time.monotonic() > deadline:
            return False
        time.sleep(1.0)
    return True
