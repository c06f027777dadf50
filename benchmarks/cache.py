"""What the feature cache saves in a sweep of 6 jobs (3 methods x 2 settings), in CPU seconds, and whether it shows.

    python benchmarks/cache.py --root ../shared/data/mvtec --category bottle
    python benchmarks/cache.py --root ... --backbone effnet_lite0 --layers [1,2,3] --weights pretrained

Both sweeps are `python train.py -m ...` with all that a run does, start-up and pictures included; the second fills its
cache in the first of its jobs. CPU time counts all processes. Every metric and score has to be the same to the last
bit. The weights may be random: they do not change what anything costs.
"""

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common import ROOT, BenchmarkError, Options, Row, Used, adopt_orphans, compare, descendants_cpu, run

#: About a run, not about its results.
OF_THE_RUN = {"timing", "peak_memory_bytes", "operating", "git_commit", "run", "settings"}


def sweep(args: argparse.Namespace, folder: Path, *overrides: str) -> Used:
    """Run the sweep into `folder`."""
    before, start = descendants_cpu(), time.perf_counter()
    chosen = {
        "model": args.models, "calibration.target_fpr": args.target_fpr, "backbone": args.backbone,
        "backbone.layers": args.layers, "backbone.weights": args.weights, "data": "mvtec", "data.root": args.root,
        "data.category": args.category, "trainer.accelerator": "cpu", "hydra.sweep.dir": folder,
    }  # fmt: skip
    command: list[str | Path] = [
        sys.executable,
        ROOT / "train.py",
        "-m",
        *(f"{key}={value}" for key, value in chosen.items()),
    ]
    run([*command, *args.overrides, *overrides])
    used = Used(descendants_cpu() - before, time.perf_counter() - start)
    print(f"{' '.join(overrides) or 'without':40} {used.cpu:7.0f} s CPU, {used.wall:7.0f} s", flush=True)
    return used


def results(folder: Path) -> dict[str, tuple[dict, list]]:
    """Metrics and scores of each job, by its model and setting."""
    found = {}
    for path in sorted(folder.rglob("metrics.json")):
        metrics = json.loads(path.read_text())
        with (path.parent / "predictions.csv").open() as file:
            scores = list(csv.DictReader(file))
        kept = {name: value for name, value in metrics.items() if name not in OF_THE_RUN}
        found[f"{metrics['run']['model']} {metrics['thresholds']['target_fpr']}"] = (kept, scores)
    return found


def rows(options: Options) -> Iterator[Row]:
    """A sweep of 12 jobs on the packaged network, start-up and pictures included."""
    adopt_orphans()
    args = argparse.Namespace(
        models="padim,patchcore,gaussian", backbone=options.backbone,
        target_fpr="0.05" if options.quick else "0.01,0.02,0.05,0.1",
        layers="[1,2,3]", weights="pretrained", root=options.images().parent, category=options.category,
        overrides=["debug=smoke", "callbacks.pictures=null"] if options.quick else [],
    )  # fmt: skip
    without, cached = [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            without.append(sweep(args, folder / "without"))
            cached.append(sweep(args, folder / "with", "cache=features", f"cache.folder={folder / 'cache'}"))
            first, second = results(folder / "without"), results(folder / "with")
        if unlike := [name for name in {**first, **second} if first.get(name) != second.get(name)]:
            raise BenchmarkError(f"scores or metrics differ with cache=features: {', '.join(unlike)}")
    what = f"sweep of {len(first)} jobs with cache=features"
    yield compare(what, "without", cached, without, 1 / 2, note="scores and metrics are the same to the last bit")


def main() -> None:
    """Run both sweeps, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="../shared/data/mvtec")
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--backbone", default="effnet_b4")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--layers", default="[6,10,22]")
    parser.add_argument("--models", default="padim,patchcore,gaussian")
    parser.add_argument("overrides", nargs="*", help="of both sweeps")
    args = parser.parse_args()
    args.root = Path(args.root).resolve()
    args.target_fpr = "0.01,0.05"
    adopt_orphans()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        without = sweep(args, folder / "without")
        cached = sweep(args, folder / "with", "cache=features", f"cache.folder={folder / 'cache'}")
        size = sum(path.stat().st_size for path in (folder / "cache").rglob("*.safetensors"))
        first, second = results(folder / "without"), results(folder / "with")
    same = {name: first[name] == second.get(name) for name in first}
    print(f"with the cache {cached.cpu / without.cpu:.0%} of the CPU time; the cache takes {size / 2**20:.0f} MiB")
    print(f"{sum(same.values())} of {len(same)} jobs are the same to the last bit")
    if len(same) != 6 or not all(same.values()):
        sys.exit(f"differing: {[name for name, equal in same.items() if not equal]}")


if __name__ == "__main__":
    main()
