"""Time, memory and network of fitting as the number of images doubles, beside what docs/scaling.md predicts.

    python benchmarks/scaling.py              # about three minutes on one core
    python benchmarks/scaling.py --ranks 3    # bytes that cross between three processes, and how long that takes

Features are synthetic, on small grids, so that only the detectors are measured. Each point is a process of its own:
its peak is the most memory it held beyond what it held before the first image.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.distributed as dist

from oddpatch.learning import distributed
from oddpatch.models.base import Detector, no_progress
from oddpatch.models.gaussian import GaussianAD
from oddpatch.models.padim import PaDiM
from oddpatch.models.patchcore import PatchCore
from oddpatch.models.spade import SPADE
from oddpatch.ops.ranks import Ranks
from oddpatch.ops.statistics import empty_blocks

BATCH = 50
MIB = 2**20
BOUND, CORESET = 2 * MIB, 1000
#: Side of the grid and values of a patch: P = side^2, D. As small as shows what grows.
SIZES = {"PaDiM": (14, 100)}
SMALL = (6, 48)

MAKE: dict[str, Callable[[int], Detector]] = {
    "PaDiM": lambda d: PaDiM([d], [8], num_features=d),
    "PatchCore, bounded": lambda d: PatchCore([d], [8], coreset_size=CORESET, max_bank_memory=BOUND),
    "PatchCore, all held": lambda d: PatchCore([d], [8], coreset_size=CORESET),
    "Gaussian-AD": lambda d: GaussianAD([d], [8]),
    "SPADE": lambda d: SPADE([d], [8], k=5),
}


def row(d: int) -> int:
    """Bytes of a patch and of where it is from."""
    return 4 * d + 16


def kept(dim: int) -> int:
    """Numbers of a whitening matrix that PaDiM keeps."""
    return sum(block.numel() for block in empty_blocks(1, dim))


#: Predicted bytes at the peak for N images, P and D. Selecting a coreset adds some 40 MiB of buffers of a fixed size.
MEMORY: dict[str, Callable[[int, int, int], float]] = {
    "PaDiM": lambda n, p, d: 4 * p * (d**2 + kept(d)) + 8 * p * d + 16 * MIB,
    "PatchCore, bounded": lambda n, p, d: 1.5 * min(BOUND, n * p * row(d)),
    "PatchCore, all held": lambda n, p, d: 2 * n * p * row(d),
    "Gaussian-AD": lambda n, p, d: 2 * 4 * n * d + 8 * (4 * d**2 + 3 * n * d),
    "SPADE": lambda n, p, d: 8 * n * d,
}
#: Predicted bytes that all G ranks together send to rank zero, and that rank zero sends to each of them.
NETWORK: dict[str, Callable[[int, int, int, int], tuple[float, float]]] = {
    "PaDiM": lambda n, p, d, g: ((g - 1) * (4 * p * d**2 + 8 * p * d), 4 * p * (kept(d) + d)),
    "PatchCore, bounded": lambda n, p, d, g: ((g - 1) * BOUND, CORESET * row(d)),
    "PatchCore, all held": lambda n, p, d, g: ((1 - 1 / g) * n * p * row(d), CORESET * row(d)),
    "Gaussian-AD": lambda n, p, d, g: ((1 - 1 / g) * n * (4 * d + 8), 4 * (d**2 + d)),
    "SPADE": lambda n, p, d, g: ((1 - 1 / g) * n * 4 * (p + 1) * d, n * 4 * (p + 1) * d),
}


def batches(name: str, count: int, rank: int = 0, world: int = 1) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
    """Feature maps and indices of this rank's share of `count` images."""
    side, dim = SIZES.get(name, SMALL)
    for index in torch.arange(rank, count, world).split(BATCH):
        generator = torch.Generator().manual_seed(int(index[0]))
        yield [torch.randn(len(index), dim, side, side, generator=generator)], index


def status(name: str) -> int:
    """A line of /proc/self/status, in bytes: VmRSS is what is held now, VmHWM the most so far."""
    line = next(it for it in Path("/proc/self/status").read_text().splitlines() if it.startswith(name))
    return int(line.split()[1]) * 1024


def measure(name: str, detector: Detector, count: int) -> dict[str, Any]:
    """CPU seconds (on one thread) of taking in and fitting, and bytes at the peak."""
    held = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    start = time.process_time()
    drawing = 0.0
    stream = batches(name, count)
    while True:
        before = time.process_time()
        batch = next(stream, None)
        drawing += time.process_time() - before
        if batch is None:
            break
        detector.update(*batch)
    taken_in = time.process_time()
    detector.fit()
    done = time.process_time()
    return {"update": taken_in - start - drawing, "fit": done - taken_in, "peak": status("VmHWM") - held}


#: mallopt: blocks of this size and more go back to the system when they are freed, so that the peak is what was in use.
M_MMAP_THRESHOLD, THRESHOLD = -3, 65536


def apart(function: Any, *args: Any) -> Any:
    """What `function` gives in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, args)


def point(name: str, count: int) -> dict[str, Any]:
    """Measure one detector, after a small one has made torch take what it takes once."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, THRESHOLD)
    dim = SIZES.get(name, SMALL)[1]
    measure(name, MAKE[name](dim), BATCH)
    return measure(name, MAKE[name](dim), count)


def grow(counts: dict[str, list[int]]) -> None:
    """Print a table for each method."""
    for name, sizes in counts.items():
        side, dim = SIZES.get(name, SMALL)
        print(f"\n{name}: P = {side**2}, D = {dim}")
        print(f"{'images':>8} {'update':>9} {'fit':>9} {'per image':>11} {'peak':>11} {'predicted':>11}")
        found = []
        for count in sizes:
            it = apart(point, name, count)
            found.append(it)
            each = (it["update"] + it["fit"]) / count * 1e3
            print(
                f"{count:8} {it['update']:7.2f} s {it['fit']:7.2f} s {each:8.3f} ms "
                f"{it['peak'] / MIB:7.1f} MiB {MEMORY[name](count, side**2, dim) / MIB:7.1f} MiB",
                flush=True,
            )
        last, before = found[-1], found[-2]
        times = (last["update"] + last["fit"]) / (before["update"] + before["fit"])
        print(f"the last doubling: time x {times:.2f}, peak x {last['peak'] / before['peak']:.2f}")


def archive() -> None:
    """5,000 images take no more memory than 500 with a bound that both exceed."""
    few, many = (apart(point, "PatchCore, bounded", count)["peak"] for count in (500, 5000))
    print(f"\nPatchCore, bounded: 500 images {few / MIB:.1f} MiB, 5000 images {many / MIB:.1f} MiB: x {many / few:.3f}")
    assert many <= 1.1 * few, "more than 10 % above"


def work(rank: int, world: int, count: int, folder: Path) -> None:
    """One rank: fit each method, count the bytes that are sent."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    sent = {"send": 0, "broadcast": 0}
    send, broadcast = dist.send, dist.broadcast

    def counted(name: str, call: Any) -> Any:
        def wrapped(tensor: torch.Tensor, *args: Any) -> None:
            sent[name] += tensor.numel() * tensor.element_size()
            call(tensor, *args)

        return wrapped

    dist.send, dist.broadcast = counted("send", send), counted("broadcast", broadcast)
    found = {}
    for name, make in MAKE.items():
        sent |= {"send": 0, "broadcast": 0}
        detector = make(SIZES.get(name, SMALL)[1])
        for features, index in batches(name, count, rank, world):
            detector.update(features, index)
        Ranks().exchange(None)
        start = time.perf_counter()
        detector.merge(Ranks())
        merged = time.perf_counter()
        if rank == 0:
            detector.fit(no_progress)
        Ranks().exchange(None)
        fitted = time.perf_counter()
        detector.share(Ranks())
        found[name] = {**sent, "merge": merged - start, "share": time.perf_counter() - fitted}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.leave()


def spread(world: int, count: int) -> None:
    """Print the bytes that cross, and the seconds that takes on this machine."""
    with tempfile.TemporaryDirectory() as scratch:
        torch.multiprocessing.spawn(work, args=(world, count, Path(scratch)), nprocs=world)
        found = [json.loads((Path(scratch) / f"{rank}.json").read_text()) for rank in range(world)]
    print(f"\n{world} ranks, {count} images: MiB to rank zero, and from it to each other one (predicted)")
    for name in MAKE:
        side, dim = SIZES.get(name, SMALL)
        inward, outward = sum(it[name]["send"] for it in found), found[0][name]["broadcast"]
        numbers = zip((inward, outward), NETWORK[name](count, side**2, dim, world), strict=True)
        crossed = "".join(f"{bytes_ / MIB:9.2f} ({expected / MIB:8.2f})" for bytes_, expected in numbers)
        print(f"{name:20} {crossed}  merge {found[0][name]['merge']:.2f} s, share {found[0][name]['share']:.2f} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, help="measure what crosses between so many processes instead")
    parser.add_argument("--images", type=int, default=1000, help="with --ranks")
    args = parser.parse_args()
    if args.ranks:
        spread(args.ranks, args.images)
        return
    doubled = [500 * 2**i for i in range(6)]
    grow({"PaDiM": doubled, "PatchCore, bounded": doubled, "PatchCore, all held": doubled[:4], "Gaussian-AD": doubled})
    archive()


if __name__ == "__main__":
    main()
