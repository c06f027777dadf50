"""Images per second of backbones: torch as it comes, torch in channels_last, OpenVINO; in one run, turn by turn.

Every way takes its turn in each round, so that other work on the machine slows all of them alike; the table shows the
median of each, and its ratio to plain torch.

    python benchmarks/backbones.py --backbones effnet_lite0 resnet18 --batches 1 16
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from oddpatch.backbones.inspection import settings_of
from oddpatch.hydra_entry.building import make


def ways(name: str) -> dict[str, Callable[[Tensor], object]]:
    """The backbone with random weights, run in each way."""
    settings = {**settings_of(name), "weights": "random"}
    return {
        "torch": make({**settings, "channels_last": False}),
        "channels_last": make({**settings, "channels_last": True}),
        "openvino": make({**settings, "channels_last": False, "engine": "openvino"}),
    }


@torch.no_grad()
def measure(runs: dict[str, Callable[[Tensor], object]], images: Tensor, rounds: int) -> dict[str, float]:
    """Median images per second of each way."""
    times: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(rounds):
        for way, run in runs.items():
            run(images)  # threads of the way before are still spinning, and caches are its own
            start = time.perf_counter()
            run(images)
            times[way].append(time.perf_counter() - start)
    return {way: len(images) / statistics.median(taken) for way, taken in times.items()}


def main() -> None:
    """Print a row for each backbone and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["effnet_lite0", "resnet18"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.size} pixels, median of {args.rounds}")
    print("| backbone | batch | torch | channels_last | OpenVINO |\n|---|---|---|---|---|")
    for name in args.backbones:
        runs = ways(name)
        for batch in args.batches:
            images = torch.rand(batch, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
            speed = measure(runs, images, args.rounds)
            cells = [f"{rate:.1f} ({rate / speed['torch']:.1f}x)" for rate in speed.values()]
            print(f"| {name} | {batch} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
