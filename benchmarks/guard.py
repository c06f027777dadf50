"""A guard against code that becomes slower: core operations in units of a plain reference beside them.

    python benchmarks/guard.py             # the ratios now, those of guard.json, and whether one is above its limit
    python benchmarks/guard.py --write     # takes the ratios of now as the ones to keep: after a change made for speed

An operation and its reference are called in turns in one process on one thread, and the ratio is that of the least CPU
times: another program can only add to a time, never take away from it. The reference is the plain way to do the same or
its dearest step, so that it depends on the processor much as the operation does. What is left of that is between vector
units, so that ratios are kept for each kind. Seconds would belong to one machine, and counts of instructions to the
vector units that the libraries choose.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from oddpatch.data.alignment import from_image
from oddpatch.data.transforms import Preprocess
from oddpatch.inference.regions import find_regions
from oddpatch.metrics import pixel_metrics
from oddpatch.models.padim import PaDiM
from oddpatch.ops.coreset import k_center_greedy
from oddpatch.ops.maps import anomaly_map
from oddpatch.ops.neighbours import NearestIndex

KEPT = Path(__file__).parent / "guard.json"
#: How far above its kept value a ratio may be. Beside busy neighbours runs differed by up to 1.35.
MARGIN = 1.5
Pair = tuple[Callable[[], object], Callable[[], object]]


def operations() -> dict[str, Pair]:
    """Each operation, and what it is measured in."""
    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (600, 600, 3), dtype=torch.uint8, generator=random).permute(2, 0, 1)
    preprocess = Preprocess(256, 224, (0.5,) * 3, (0.5,) * 3)
    small_map = torch.rand(1, 1, 224, 224, generator=random)
    scores = torch.rand(16, 28, 28, generator=random)
    points = torch.randn(6000, 64, generator=random) * torch.linspace(0, -4, 64).exp()
    bank, queries = points[:4000], points[4000:]
    index = NearestIndex(bank, num_queries=len(queries))
    maps = scores.repeat_interleave(8, 1).repeat_interleave(8, 2).numpy() + np.random.default_rng(0).random(
        (16, 224, 224)
    )
    masks = (maps > np.quantile(maps, 0.95)).astype(np.uint8)
    laid = small_map[0, 0].numpy()
    found = laid.copy()
    found[100:140, 60:100] = 2
    features = [torch.randn(64, 100, 14, 14, generator=random)]
    fine = [torch.randn(24, 100, 40, 40, generator=random)]
    detector = PaDiM([100], [8], num_features=100)
    detector.update(fine, torch.arange(24))
    detector.fit()
    whitening = detector.whitening  # 64 MB, of which 42 are held: no cache holds them, a busy neighbour changes little
    some = [fine[0][:8]]
    one = [fine[0][:1]]
    patches = some[0].flatten(2).permute(2, 0, 1).contiguous()  # (1600, 8, 100)
    patch = patches[:, :1].contiguous()
    scene = cv2.resize(
        np.random.default_rng(0).random((24, 24, 3), np.float32), (320, 320), interpolation=cv2.INTER_CUBIC
    )
    scene = scene.clip(0, 1).transpose(2, 0, 1)
    alignment = from_image(scene)
    grey = (scene.mean(0) * 255).astype(np.uint8)
    sift = cv2.SIFT.create(nfeatures=600)

    def update() -> None:
        PaDiM([100], [8], num_features=100).update(features, torch.arange(64))

    return {
        "prepare an image": (lambda: preprocess(image), lambda: F.interpolate(
                image[None].float(), (256, 256), mode="bilinear", antialias=True
            )),
        "map on the original": (
            lambda: preprocess.to_original(laid, (600, 600)),
            lambda: F.interpolate(small_map, (600, 600), mode="bilinear"),
        ),
        "anomaly maps": (
            lambda: anomaly_map(scores, (224, 224)),
            lambda: F.interpolate(scores[:, None], (224, 224), mode="bilinear"),
        ),
        "coreset of 10 %": (
            lambda: k_center_greedy(points, 600, start=0),
            lambda: [points @ points[row] for row in range(600)],
        ),
        "search": (lambda: index.search(queries), lambda: (queries @ bank.T).min(dim=1)),
        "pixel metrics": (lambda: pixel_metrics(maps, masks), lambda: np.sort(maps, axis=None)),
        "regions": (lambda: find_regions(found, 1.0), lambda: cv2.connectedComponents((found > 1).astype(np.uint8))),
        "PaDiM, update": (update, lambda: torch.bmm(whitening[:196], whitening[:196])),
        "PaDiM, one image": (
            lambda: detector(one, (224, 224)), lambda: torch.bmm(whitening, patch.mT)
        ),
        "PaDiM, 8 images": (
            lambda: detector(some, (224, 224)), lambda: torch.bmm(patches, whitening.mT)
        ),
        "register an image": (lambda: alignment.register(scene), lambda: sift.detectAndCompute(grey, None)),
    }  # fmt: skip


@torch.inference_mode()
def measure(rounds: int = 15) -> dict[str, float]:
    """The ratio of each operation."""
    threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        return {name: _ratio(*pair, rounds) for name, pair in operations().items()}
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv_threads)


def _ratio(operation: Callable[[], object], reference: Callable[[], object], rounds: int) -> float:
    # A clock of CPU time may tick in milliseconds: repeat what is shorter.
    calls = [(call, 1 + int(0.01 / max(_seconds(call, 3), 1e-6))) for call in (operation, reference)]
    least = [float("inf")] * 2
    for _ in range(rounds):
        for side, (call, times) in enumerate(calls):
            least[side] = min(least[side], _seconds(call, times))
    return least[0] / least[1]


def _seconds(call: Callable[[], object], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


def slower(kept: dict[str, float], now: dict[str, float], margin: float = MARGIN) -> list[str]:
    """A line for each operation whose ratio is too far above the kept one."""
    return [
        f"{name}: {now[name]:.2f} of its reference, it was {ratio:.2f} and may be {ratio * margin:.2f}"
        for name, ratio in kept.items()
        if now[name] > margin * ratio
    ]


def kept() -> dict[str, float]:
    """The ratios to keep on a processor with vector units of this kind; empty where none are kept yet."""
    found: dict[str, dict[str, float]] = json.loads(KEPT.read_text())
    return found.get(torch.backends.cpu.get_cpu_capability(), {})


def keep(ratios: dict[str, float]) -> None:
    """Make these the ones for vector units of this kind; those of others stay."""
    found = json.loads(KEPT.read_text())
    found[torch.backends.cpu.get_cpu_capability()] = {name: round(ratio, 3) for name, ratio in ratios.items()}
    KEPT.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Compare, or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    now = measure()
    if args.write:
        return keep(now)
    before = kept()
    if not before:
        sys.exit(
            f"no ratios are kept for {torch.backends.cpu.get_cpu_capability()}: python benchmarks/guard.py --write"
        )
    for name, ratio in now.items():
        print(f"{name:24} {ratio:8.3f}  kept {before[name]:8.3f}  x {ratio / before[name]:.2f}")
    sys.exit("\n".join(slower(before, now)) or 0)


if __name__ == "__main__":
    main()
