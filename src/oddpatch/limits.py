"""What this process may use of the machine: a container, a batch system or a shell may allow it less than there is."""

import math
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
SHARED_MEMORY = Path("/dev/shm")


def cores() -> int:
    """Cores that this process may use: those it is bound to, or what the quota of its container comes to if less."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    bound = len(affinity(0)) if affinity else os.cpu_count() or 1
    quotas = [math.ceil(share) for folder in _own_groups("cpu") if (share := _quota(folder)) is not None]
    return max(min([bound, *quotas]), 1)


def free_memory() -> int:
    """Bytes of main memory that this process can still take: of the machine, its control groups and its limits."""
    import psutil

    free = [psutil.virtual_memory().available]
    free += [room for folder in _own_groups("memory") if (room := _room(folder)) is not None]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        free.append(limit - psutil.Process().memory_info().vms)
    return max(min(free), 0)


def free_shared_memory() -> int | None:
    """Bytes that processes can still share by /dev/shm, 64 MiB in a container by default; None without it."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None


def _own_groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that limit this process, its own and those around it, of version 2 and 1."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:  # no Linux, or hidden
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            roots = [CGROUPS, CGROUPS / "unified"]
        elif controller in controllers.split(","):
            roots = [CGROUPS / controllers, CGROUPS / controller]
        else:
            continue
        # Inside a container the path may be that of the host, of which only the root is to be seen.
        inner = Path(path.lstrip("/"))
        for root in roots:
            for part in (inner, *inner.parents):
                if (root / part).is_dir():
                    yield root / part


def _room(folder: Path) -> int | None:
    """Bytes left of a memory limit; None where there is no limit."""
    for limit_name, used_name, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None:
            # Pages of files that nobody uses count as used, and go as soon as memory is wanted.
            return limit - used + _statistic(folder / "memory.stat", cached)
    return None


def _quota(folder: Path) -> float | None:
    """Cores that a quota comes to; None where there is none."""
    try:
        quota, _, period = (folder / "cpu.max").read_text().partition(" ")
        return int(quota) / int(period) if quota != "max" else None
    except (OSError, ValueError):
        limit, span = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        return limit / span if limit is not None and limit > 0 and span else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None


def _statistic(path: Path, name: str) -> int:
    try:
        rows = dict(line.split() for line in path.read_text().splitlines())
        return int(rows.get(name, 0))
    except (OSError, ValueError):
        return 0
