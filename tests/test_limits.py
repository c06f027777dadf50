"""What a process may use: the machine's, a container's and a shell's limits, whichever is least."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from oddpatch import limits
from oddpatch.data import loading
from oddpatch.data.datamodule import MVTecDataModule

GIB = 2**30


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Write control groups: {path: {file: content}}, and the groups this process is in."""

    def write(own, files):
        (tmp_path / "own").write_text(own)
        for path, content in files.items():
            (tmp_path / "fs" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "fs" / path).write_text(content)
        monkeypatch.setattr(limits, "CGROUPS", tmp_path / "fs")
        monkeypatch.setattr(limits, "OWN_CGROUPS", tmp_path / "own")
        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 64 * GIB}))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)

    return write


def test_without_groups_the_machine_counts(groups):
    groups("", {})
    assert limits.free_memory() == 64 * GIB
    assert limits.cores() == 64


@pytest.mark.parametrize("place", ["", "docker/abc/", "docker/"])
def test_version_2_limits_of_the_own_group_and_those_around_it(groups, place):
    groups(
        "0::/docker/abc\n",
        {
            f"{place}memory.max": str(2 * GIB),
            f"{place}memory.current": str(GIB),
            f"{place}memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
            f"{place}cpu.max": "250000 100000\n",
        },
    )
    assert limits.free_memory() == 1.5 * GIB
    assert limits.cores() == 3


def test_version_1_limits(groups):
    groups(
        "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n",
        {
            "memory/docker/abc/memory.limit_in_bytes": str(GIB),
            "memory/docker/abc/memory.usage_in_bytes": str(GIB // 4),
            "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "150000",
            "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
        },
    )
    assert limits.free_memory() == 0.75 * GIB
    assert limits.cores() == 2


def test_no_limit_is_none(groups):
    groups(
        "0::/\n",
        {"memory.max": "max\n", "memory.current": "5\n", "cpu.max": "max 100000\n"},
    )
    assert limits.free_memory() == 64 * GIB
    assert limits.cores() == 64


def test_limit_of_the_shell():
    code = "from oddpatch.limits import free_memory; import resource as r; r.setrlimit(r.RLIMIT_AS, (2**30, 2**30)); \
print(free_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 2**30


@pytest.mark.slow
def test_a_real_group(tmp_path):
    root = Path("/sys/fs/cgroup/memory")
    group = root / f"oddpatch-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(900 * 2**20))
        join = f"import os; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
        code = f"{join}; from oddpatch.limits import free_memory; print(free_memory())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert 600 * 2**20 < int(done.stdout) <= 900 * 2**20
    finally:
        group.rmdir()


def test_as_many_workers_as_shared_memory_holds(tmp_path, monkeypatch, caplog):
    data = MVTecDataModule(tmp_path, "part", [0.5] * 3, [0.5] * 3, resize=[100, 100], batch_size=10, num_workers=4)
    batch = 10 * 100 * 100 * 13
    for free, workers in ((None, 4), (100 * batch, 4), (3.4 * 2 * batch, 2), (batch, 0)):
        monkeypatch.setattr(loading, "free_shared_memory", lambda free=free: free)
        assert data.test_dataloader().num_workers == workers
    warned = [record.message for record in caplog.records]
    assert len(warned) == 1  # said once
    assert "--shm-size=1g" in warned[0]
