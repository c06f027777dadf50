"""Where the CPU time goes, by stage: of inspecting one image with a model that is loaded, or of a whole fit and test.

    python benchmarks/stages.py predict RUN IMAGES              # RUN: a run's folder or an artifact
    python benchmarks/stages.py predict RUN IMAGES --engine openvino
    python benchmarks/stages.py fit --root ../shared/data/mvtec --model patchcore model.coreset_ratio=0.01

The profiler of Python counts the CPU time of one process on one thread, so what runs in other threads or processes
does here run in this one. A stage that is indented is part of the one above it. What the profiler costs itself is
some 5 % of a fit and is counted where it arises; ratios belong to overhead.py and predict.py.
"""

import argparse
import cProfile
import inspect
import os
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")

Stage = tuple[str, list[Callable[..., Any]]]


def stages(detector: Any) -> list[Stage]:
    """Names, and the functions that each stage consists of."""
    from oddpatch.backbones.base import Backbone
    from oddpatch.callbacks.writers import HtmlReport, Results
    from oddpatch.data import alignment, decoding
    from oddpatch.data.dataset import MVTecDataset
    from oddpatch.data.host import HostPreprocess
    from oddpatch.data.transforms import Preprocess
    from oddpatch.inference.artifact import ArtifactScorer
    from oddpatch.inference.regions import find_regions
    from oddpatch.metrics.classes import PixelMetrics
    from oddpatch.metrics.thresholds import anomaly_score
    from oddpatch.metrics.uncertainty import bootstrap
    from oddpatch.ops.coreset import k_center_greedy
    from oddpatch.ops.maps import anomaly_map
    from oddpatch.ops.neighbours import NearestIndex
    from oddpatch.pipeline import Run

    align = alignment.Alignment
    found: list[Stage] = [
        ("decode images", [decoding.read_image, decoding.read_planes]),
        ("align", [Preprocess.register, HostPreprocess.register]),
        ("  points (SIFT)", [alignment._features]),
        ("  matches, homography", [align._homography]),
        ("  refine (ECC), quality", [align._refined]),
        ("resize, crop, normalise", [Preprocess.forward, HostPreprocess.__call__]),
        ("  moved to the reference", [align.warp]),
        ("masks", [MVTecDataset._mask]),
        ("backbone", [Backbone.__call__]),
    ]
    if detector is None:
        found.append(("backbone and method", [ArtifactScorer.run]))
    else:
        kind = type(detector)
        found += [
            ("method: update", [kind.update]),
            ("method: fit", [kind.fit]),
            ("  coreset", [k_center_greedy]),
            ("method: score", [kind.forward]),
            ("  search", [NearestIndex.search]),
            ("  map", [anomaly_map]),
        ]
    return [
        *found,
        ("map on the original", [Preprocess.to_original, HostPreprocess.to_original]),
        ("regions", [find_regions]),
        ("normalised scores and map", [anomaly_score]),
        ("metrics of pixels", [PixelMetrics.compute]),
        ("confidence intervals", [bootstrap.confidence_intervals]),
        ("checkpoint", [Run.save]),
        ("result files, report", [Results.write, HtmlReport.write]),
    ]


def table(profile: cProfile.Profile, listed: list[Stage], times: int, unit: float) -> str:
    """A line for each stage that took time: milliseconds or seconds, and the share of all."""
    taken = {key: (inner, whole) for key, (_, _, inner, whole, _) in pstats.Stats(profile).stats.items()}  # type: ignore[attr-defined]
    total = sum(inner for inner, _ in taken.values())
    lines, told = [], 0.0
    for name, functions in listed:
        codes = [inspect.unwrap(function).__code__ for function in functions]
        whole = sum(taken.get((code.co_filename, code.co_firstlineno, code.co_name), (0, 0))[1] for code in codes)
        if whole / total >= 0.001:
            lines.append((name, whole))
            told += 0 if name.startswith(" ") else whole
    lines += [("all else", total - told), ("all", total)]
    return "\n".join(f"{name:28} {unit * value / times:8.2f} {value / total:7.1%}" for name, value in lines)


def predict(run: Path, images: Path, engine: str | None) -> None:
    """Print milliseconds of each stage for an image, the mean over a folder of them."""
    from oddpatch import AnomalyDetector

    detector = AnomalyDetector.load(run, engine=engine)
    files = sorted(str(path) for path in images.iterdir())
    detector(files[0])
    profile = cProfile.Profile(time.process_time)
    for path in files:
        profile.runcall(detector, path)
    model = getattr(detector.scorer, "model", None)
    print(f"{run}, {len(files)} images, CPU milliseconds per image")
    print(table(profile, stages(model and model.detector), len(files), 1000))


def fit(args: argparse.Namespace) -> None:
    """Print seconds of each stage."""
    from overhead import prepare

    args.overrides.append("data.num_workers=0")
    with tempfile.TemporaryDirectory() as out:
        run = prepare(args, out)
        profile = cProfile.Profile(time.process_time)
        profile.runcall(run.fit)
        profile.runcall(run.test)
        print(f"{args.model}, fit and test of {args.category}, CPU seconds")
        print(table(profile, stages(run.module.model.detector), 1, 1))


def main() -> None:
    """Read the arguments and profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("predict")
    one.add_argument("run", type=Path)
    one.add_argument("images", type=Path, help="a folder of images")
    one.add_argument("--engine", choices=["torch", "openvino"])
    whole = kinds.add_parser("fit")
    whole.add_argument("--root", required=True)
    whole.add_argument("--category", default="bottle")
    whole.add_argument("--model", default="padim")
    whole.add_argument("--backbone", default="effnet_lite0")
    whole.add_argument("overrides", nargs="*", default=[])
    args = parser.parse_args()
    if args.kind == "predict":
        predict(args.run, args.images, args.engine)
    else:
        fit(args)


if __name__ == "__main__":
    main()
