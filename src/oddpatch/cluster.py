"""A connection to a Ray cluster, and what its machines have."""

import logging
import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from oddpatch.errors import ConfigError, ResourceError
from oddpatch.wording import counted

# Read by Ray as it is imported: a machine that is lost would print pages of its state, dozens of lines each.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
import ray

log = logging.getLogger(__name__)

#: Seconds in which a cluster answers, or has ended.
PATIENCE = 20.0
#: Cores of a job where there are no GPUs to share them out by.
CORES = 4


class ClusterEndedError(ResourceError):
    """A Ray cluster that was there is not there any more."""


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
def cluster(address: str | None, init: Mapping[str, Any], remedy: str) -> Iterator[None]:
    """A connection to a Ray cluster, or one of this machine that lasts as long as the block.

    Args:
        address: as `ray.init` takes it.
        init: further arguments of `ray.init`.
        remedy: what to do where there is none, besides starting one.

    Raises:
        ConfigError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported unasked
    quiet = {"include_dashboard": False} if address in (None, "local") else {}
    try:
        # What jobs print goes to their folders.
        ray.init(address=address, **{"log_to_driver": False, "logging_level": "warning", **quiet, **init})
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ConfigError(
            f"no Ray cluster can be reached at {address} ({type(error).__name__}: {first}): start one by "
            f"`ray start --head`, or {remedy}"
        ) from error
    found = machines()
    where = ray.get_runtime_context().gcs_address
    log.info("Ray: the cluster at %s has %s with %s", where, counted(len(found), "machine"), Need(*_sum(found)))
    try:
        yield
    finally:
        ray.shutdown()


def need_of(gpus: float | str, cpus: float | str, remedy: str) -> Need:
    """What a job takes, "auto" worked out from the cluster.

    Args:
        gpus: of a job; "auto" for one if there are any.
        cpus: of a job; "auto" for its share of those there are.
        remedy: what to do where no machine has as much.

    Raises:
        ConfigError: no machine has as much.
    """
    found = machines()
    total_gpus, total_cpus = _sum(found)
    wanted_gpus = float(total_gpus > 0) if gpus == "auto" else float(gpus)
    if cpus == "auto":
        most = max((machine.get("CPU", 0.0) for machine in found), default=0.0)
        share = total_cpus / total_gpus * wanted_gpus if wanted_gpus and total_gpus else CORES
        wanted_cpus = max(min(share, most) // 1, 1.0)
    else:
        wanted_cpus = float(cpus)
    need = Need(wanted_gpus, wanted_cpus)
    if not any(need.fits(machine) for machine in found):
        raise ConfigError(
            f"a job needs {need}, which no machine of the Ray cluster has (all together: "
            f"{Need(total_gpus, total_cpus)}): {remedy}"
        )
    log.info("each job has %s", need)
    return need


def machines() -> list[Mapping[str, float]]:
    """What each machine of the cluster has."""
    return [node["Resources"] for node in nodes()]


def nodes() -> list[dict[str, Any]]:
    """What Ray says of each machine of the cluster that is there.

    Raises:
        ClusterEndedError: it does not answer.
    """
    # Ray waits for an answer for a minute, and then ends this process without another word.
    answers: queue.SimpleQueue[list[dict[str, Any]]] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(ray.nodes()), daemon=True).start()
    try:
        return [node for node in answers.get(timeout=PATIENCE) if node["Alive"]]
    except queue.Empty:
        raise ClusterEndedError(f"the Ray cluster does not answer, {PATIENCE:g} s long: start one") from None


def _sum(found: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    return sum(m.get("GPU", 0.0) for m in found), sum(m.get("CPU", 0.0) for m in found)
