"""Jobs on Ray: each with GPUs and cores of its own, run again when its machine is lost, given up when none is left."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from oddpatch.cluster import ClusterEndedError, Need, machines, nodes, ray
from oddpatch.sweep.job import JobError
from oddpatch.sweep.process import explain
from oddpatch.sweep.remote import RemoteJob, failure
from oddpatch.wording import counted

log = logging.getLogger(__name__)

#: Seconds between looks at the cluster while jobs wait.
LOOK = 5.0


def run_jobs(jobs: Sequence[RemoteJob], need: Need, max_retries: int, patience: float) -> list[JobReturn]:
    """Run all jobs and wait for them; one that is lost for good is a failed `JobReturn`."""
    # Ray sets CUDA_VISIBLE_DEVICES for each task. Its process may stay for the next: the job's own uses the GPU.
    task = ray.remote(num_gpus=need.gpus, num_cpus=need.cpus, max_retries=max_retries, max_calls=0)(_call)
    threads = max(int(need.cpus), 1)
    waiting = {task.remote(replace(job, threads=threads)): i for i, job in enumerate(jobs)}
    returns: dict[int, JobReturn] = {}
    there, address = _addresses(), ray.get_runtime_context().gcs_address
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=LOOK)
            for reference in ready:  # before anything else is asked of the cluster
                number, returned = waiting[reference], _result(reference)
                del waiting[reference]
                returns[number] = returned
                name, ended = jobs[number].name, returned.status == JobStatus.COMPLETED
                told = "ended" if ended else explain(returned._return_value)[1].removeprefix(f"{name}: ")
                log.info("%d/%d %s: %s", len(returns), len(jobs), name, told)
            known, there = there, _addresses()
            for machine in known.keys() - there.keys():
                log.warning("Ray: the machine at %s was lost; its jobs run again on others", known[machine])
            if not ready and not _appears(need, patience):
                lost = JobError(f"no machine with {need} is left in the Ray cluster")
                returns.update({i: failure(lost) for i in waiting.values()})
                break
    except (ClusterEndedError, ray.exceptions.LocalRayletDiedError):
        log.error("Ray: the cluster at %s has ended; %s not done", address, counted(len(waiting), "job"))
        lost = JobError("the Ray cluster has ended: start one, or set hydra.launcher.address=local")
        returns.update({i: failure(lost) for i in waiting.values()})
        waiting.clear()
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
    except ray.exceptions.LocalRayletDiedError:  # of this machine, by which all others are reached
        raise
    except ray.exceptions.RayError as error:
        return failure(JobError(f"its process or machine was lost ({type(error).__name__})"))


def _addresses() -> dict[str, str]:
    """Where each machine of the cluster is, by Ray's name for it."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in nodes()}


def _appears(need: Need, patience: float) -> bool:
    """Whether there is a machine that a job fits on, or comes to be one while we wait."""
    deadline = time.monotonic() + patience
    while not any(need.fits(machine) for machine in machines()):
        if time.monotonic() > deadline:
            return False
        time.sleep(1.0)
    return True
