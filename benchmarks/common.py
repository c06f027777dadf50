"""What all rows of RESULTS.md have in common: both sides take turns, and a row is the median of the rounds' ratios."""

import argparse
import contextlib
import ctypes
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
#: Environments of peers, weights both sides share, rows as they were measured.
BUILD = ROOT / "build"
#: prctl: processes whose parent has ended become children of this one.
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Used:
    """What one call or process took."""

    cpu: float  # seconds, user and system, of all threads and of processes that have ended
    wall: float  # seconds
    memory: int = 0  # bytes that its largest process held at the peak; 0 if it was not alone in its process
    facts: Mapping[str, Any] = field(default_factory=dict)  # metrics and whatever else it says


@dataclass(frozen=True)
class Row:
    """One comparison. A ratio is ours / theirs, so that less is better; `error` is set in place of the figures."""

    what: str
    against: str
    ours: float | None = None
    theirs: float | None = None
    unit: str = "CPU s"
    ratio: float | None = None
    target: float | None = None  # the largest ratio that will do; None where the row only states it
    wall: str = ""  # seconds of wall time of both, beside
    note: str = ""
    command: str = ""
    rounds: int = 0
    error: str = ""

    @property
    def met(self) -> str:
        """Yes, no, "-" where nothing was asked for, or that it failed."""
        if self.error:
            return "not measured"
        return "-" if self.target is None or self.ratio is None else "yes" if self.ratio <= self.target else "no"


class BenchmarkError(Exception):
    """Why a row could not be measured, in one line."""


@dataclass(frozen=True)
class Options:
    """What every part is given."""

    root: Path  # MVTec AD
    category: str = "bottle"
    backbone: str = "effnet_lite0"
    rounds: int = 3
    quick: bool = False  # everything small: whether it runs at all
    device: str = "cpu"

    def images(self) -> Path:
        """The category.

        Raises:
            BenchmarkError: it is not there.
        """
        folder = self.root / self.category
        if not folder.is_dir():
            raise BenchmarkError(f"{folder} is not there: get MVTec AD and give its folder by --root")
        return folder


def decode_with_opencv(path: str | Path) -> tuple[int, int]:
    """(H, W) of an image file that OpenCV decodes: what most programs do, where ours does it in another way."""
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise BenchmarkError(f"OpenCV does not decode {path}")
    return image.shape[0], image.shape[1]


def timed(call: Callable[[], Any]) -> Used:
    """What a call takes in this process; `facts` has its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return Used(time.process_time() - cpu, time.perf_counter() - wall, facts={"result": result})


def run(command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Used:
    """A program from its start to its end. JSON in its last line are its facts; "cpu" and "wall" there replace what was
    measured, for what is not counted.

    Raises:
        BenchmarkError: it failed.
    """
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    # One thread: threads that wait for each other count as work.
    env = {
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "PYTHONPATH": path,
        **(environment or {}),
    }
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen([str(part) for part in command], cwd=cwd, env=env, stdout=out, stderr=err)
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        told, failed = (_from_start(file) for file in (out, err))
    if process.returncode:
        last = next((line for line in reversed((failed or told).splitlines()) if line.strip()), "no message")
        raise BenchmarkError(f"exit code {process.returncode}: {last.strip()}")
    facts: dict[str, Any] = {}
    if told.strip():
        with contextlib.suppress(json.JSONDecodeError):
            facts = json.loads(told.strip().splitlines()[-1])
    facts = facts if isinstance(facts, dict) else {}
    scale = 1 if sys.platform == "darwin" else 1024
    return Used(facts.get("cpu", used.ru_utime + used.ru_stime), facts.get("wall", wall), used.ru_maxrss * scale, facts)


def _from_start(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def alternate(sides: Mapping[str, Callable[[], Used]], rounds: int) -> dict[str, list[Used]]:
    """Each side once in every round, in turns, so that both see the same machine."""
    used: dict[str, list[Used]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            used[name].append(side())
    return used


def compare(
    what: str,
    against: str,
    ours: Sequence[Used],
    theirs: Sequence[Used],
    target: float | None = None,
    *,
    take: Callable[[Used], float] = lambda used: used.cpu,
    unit: str = "CPU s",
    note: str = "",
    command: str = "",
) -> Row:
    """The row of two sides that took turns: medians of both, and the median ratio of the rounds."""
    mine, other = [take(used) for used in ours], [take(used) for used in theirs]
    ratio = statistics.median(a / b for a, b in zip(mine, other, strict=True))
    walls = [statistics.median(used.wall for used in side) for side in (ours, theirs)]
    wall = " / ".join(f"{seconds:.3g}" for seconds in walls) if unit.startswith("CPU") and all(walls) else ""
    return Row(
        what, against, statistics.median(mine), statistics.median(other), unit, ratio, target, wall, note, command,
        len(mine),
    )  # fmt: skip


def slope(what: str, sizes: Sequence[float], values: Sequence[float], order: float, unit: str = "CPU s") -> Row:
    """How a cost grows: the slope of its logarithm over that of the size, against the order that is stated.

    What is fixed makes a slope less than the order; a quarter more is allowed for caches and for other programs.
    """
    x, y = ([math.log2(value) for value in row] for row in (sizes, values))
    found = statistics.linear_regression(x, y).slope
    told = ", ".join(f"{size:,.0f}: {value:.3g}" for size, value in zip(sizes, values, strict=True))
    return Row(
        f"growth: {what}", f"order {order:g}", found, order, f"slope of log {unit}", found / order, 1.25, note=told,
        rounds=len(sizes),
    )  # fmt: skip


def memory(used: Used) -> float:
    """Peak in MiB, for `take`."""
    return used.memory / 2**20


def cpu_seconds() -> float:
    """User and system time of this process and of the workers that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def adopt_orphans() -> None:
    """Have `descendants_cpu` count processes whose parent has ended, too: jobs of a sweep are such.

    Raises:
        BenchmarkError: this is not Linux.
    """
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise BenchmarkError("CPU time of the processes of a sweep can be counted on Linux only")


def descendants_cpu() -> float:
    """User and system time of all processes started so far, after waiting for those that have yet to end."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def peak_memory() -> int:
    """Bytes that this process has held at the peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def metrics_of(used: Used, names: Mapping[str, str]) -> str:
    """The metrics that a side gave, as `image AUROC 0.998`, by their names there."""
    found = used.facts.get("metrics", {})
    return ", ".join(f"{label} {found[name]:.3f}" for label, name in names.items() if name in found)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments that make `Options`."""
    parser.add_argument("--root", type=Path, default=ROOT.parent / "shared/data/mvtec", help="MVTec AD")
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--backbone", default="effnet_lite0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small and once: whether it runs at all")
    parser.add_argument("--device", default="cpu")


def read_options(args: argparse.Namespace) -> Options:
    """`Options` of parsed arguments."""
    rounds = 1 if args.quick else args.rounds
    return Options(args.root.resolve(), args.category, args.backbone, rounds, args.quick, args.device)
