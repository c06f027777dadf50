"""Rows of every method in the three engines: how far scores are off, latency, rate, start-up and size.

    python benchmarks/exports.py                       # as Markdown, the table of docs/export.md
    python benchmarks/exports.py padim patchcore       # these methods
    python benchmarks/run.py --only export

Each method is fitted to a few good images of a category and exported, which compares it with torch on test images. An
engine is a process of its own on one thread, whose CPU time is counted: that of other programs is not. What a method or
engine refuses is the row's note.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import ROOT, BenchmarkError, Options, Row, add_options, read_options, run

#: Those with a network that is not the benchmark's are left out.
METHODS = ("padim", "patchcore", "mh_patchcore", "spade", "dfm", "gaussian", "lunar", "subspacead", "anomalydino",
           "superadd", "procon", "rad", "musc", "cam", "pyod")  # fmt: skip
ENGINES = {"onnx": ("ONNX Runtime", "model.onnx"), "openvino": ("OpenVINO", "model.xml")}
#: Good images to fit to, and of each kind to test on.
FITTED, TESTED = 40, 4
#: What a method cannot do without: SPADE retrieves 50 from its gallery of so few images; docs/methods/procon.md.
NEEDED = {"spade": ("model.k=5",), "procon": ("model.fade=0.03",)}
#: Batches that are timed, of one image and of eight.
REPEATS = {1: 30, 8: 6}


class Found(NamedTuple):
    """Of one method in one engine."""

    method: str
    engine: str
    figures: dict[str, Any]  # see `measure`, and "score" and "map", by which the artifact is off; empty if refused
    refused: str = ""


def each(options: Options, methods: Sequence[str]) -> Iterator[Found]:
    """Every method in torch, ONNX Runtime and OpenVINO."""
    for method in methods:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / method
            try:
                fit(options, method, folder)
            except BenchmarkError as error:
                yield Found(method, "torch", {}, str(error))
                continue
            yield Found(method, "torch", measured(folder))
            parities = run([sys.executable, __file__, "--export", folder]).facts
            for kind, (engine, file) in ENGINES.items():
                if refused := parities[kind].get("refused"):
                    yield Found(method, engine, {}, refused)
                else:
                    yield Found(method, engine, measured(folder / file) | parities[kind])


def fit(options: Options, method: str, folder: Path) -> None:
    """Fit a method to few images, at the settings of its YAML and those of `NEEDED`."""
    run([sys.executable, ROOT / "train.py", f"model={method}", *NEEDED.get(method, ()), "data=mvtec",
         f"data.root={options.root}", f"data.category={options.category}", "data._target_=oddpatch.data.few.FewImages",
         f"+data.train_images={12 if options.quick else FITTED}", f"+data.test_images={1 if options.quick else TESTED}",
         f"backbone={options.backbone}", "data.num_workers=0", f"hydra.run.dir={folder}", "logger=none",
         "callbacks.pictures=null", "callbacks.report=null", "callbacks.progress=null"])  # fmt: skip


def measured(path: Path) -> dict[str, Any]:
    """What `measure` finds in a process of its own."""
    return dict(run([sys.executable, __file__, "--measure", path]).facts)


def measure(path: Path) -> dict[str, Any]:
    """Of this process: CPU seconds from its start to the first score, milliseconds of a batch of one image, images per
    second in batches of eight, and bytes on disk."""
    from oddpatch import AnomalyDetector
    from oddpatch.inference.bench import size_on_disk
    from oddpatch.inference.scorer import Preparing

    scorer = AnomalyDetector.load(path).scorer
    assert isinstance(scorer, Preparing)
    image = scorer.example()
    scorer.score([image])
    found: dict[str, Any] = {"start": time.process_time(), "size": size_on_disk(path)}
    for batch, repeats in REPEATS.items():
        scorer.score([image] * batch)  # an engine prepares itself for the size of a batch
        taken = []
        for _ in range(repeats):
            start = time.process_time()
            scorer.score([image] * batch)
            taken.append(time.process_time() - start)
        found[f"p50 of {batch}"] = statistics.median(taken)
    return found


def export_all(folder: Path) -> dict[str, dict[str, Any]]:
    """Export a run in both formats: by how much each is off, or why it is refused."""
    from oddpatch.errors import OddpatchError
    from oddpatch.export.exporting import export

    found: dict[str, dict[str, Any]] = {}
    for kind in ENGINES:
        try:
            parity = export(folder, kind).parity
            found[kind] = {"score": parity.score, "map": parity.map, "images": parity.images}
        except OddpatchError as error:
            found[kind] = {"refused": str(error).removeprefix(f"{folder}: ")}
    return found


def rows(options: Options) -> Iterator[Row]:
    """Each artifact against torch, by the CPU time of one image."""
    torch: dict[str, Any] = {}
    for method, engine, figures, refused in each(options, METHODS[:1] if options.quick else METHODS):
        if engine == "torch":
            torch = figures
        if refused:
            yield Row(f"{method}, {engine}", "torch", note=f"refused: {refused}")
        elif engine != "torch":
            ours, theirs = (1000 * side["p50 of 1"] for side in (figures, torch))
            note = (
                f"scores differ by {figures['score']:.1e}, maps by {figures['map']:.1e}; {_rate(figures):.0f} and "
                f"{_rate(torch):.0f} images per CPU s in batches of 8; start {figures['start']:.1f} and "
                f"{torch['start']:.1f} CPU s; {figures['size'] / 1e6:.0f} and {torch['size'] / 1e6:.0f} MB"
                + "".join(f"; {setting}" for setting in NEEDED.get(method, ()))
            )
            yield Row(f"{method}, {engine}", "torch", ours, theirs, "CPU ms", ours / theirs, note=note, rounds=1)


def _rate(figures: dict[str, Any]) -> float:
    return float(8 / figures["p50 of 8"])


def print_table(options: Options, methods: Sequence[str]) -> None:
    """Markdown, a line as soon as it is there."""
    print("| method | engine | score differs by | map differs by | p50, CPU ms | images per CPU s | start-up, CPU s "
          "| size, MB |\n|---|---|---|---|---|---|---|---|", flush=True)  # fmt: skip
    for method, engine, figures, refused in each(options, methods):
        if refused:
            print(f"| {method} | {engine} | refused: {refused} |", flush=True)
            continue
        off = [f"{figures[name]:.1e}" if name in figures else "" for name in ("score", "map")]
        cells = [*off, f"{1000 * figures['p50 of 1']:.1f}", f"{_rate(figures):.0f}", f"{figures['start']:.1f}",
                 f"{figures['size'] / 1e6:.1f}"]  # fmt: skip
        print(f"| {method} | {engine} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """The table, or a step of it in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    add_options(parser)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
    elif args.export:
        print(json.dumps(export_all(args.export)))
    else:
        os.environ.update({"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"})
        print_table(read_options(args), args.methods)


if __name__ == "__main__":
    main()
