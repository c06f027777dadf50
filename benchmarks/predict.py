"""Rows of inspecting one image from its file, warm and from a cold start, with a fitted PaDiM.

    python benchmarks/run.py --only predict

Each side is a process of its own that inspects the same test images, one at a time; what is warm has inspected one
before. Ours decodes, prepares and scores the image, lays the map out on the original, finds the regions and gives
p-value and normalised map; anomalib's inferencer gives score, label and a map at the size of its input. The floor
decodes the image and runs the backbone by OpenVINO; there are two, as we decode and by OpenCV, as most programs do.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peers
from common import ROOT, BenchmarkError, Options, Row, Used, alternate, compare, decode_with_opencv, memory, run

ENGINES = {"OpenVINO artifact": "model.xml", "ONNX artifact": "model.onnx", "torch": "", "torch and OpenVINO": ""}
FLOORS = {"floor": "decode + backbone", "floor by OpenCV": "decode by OpenCV + backbone"}
ANOMALIB = f"anomalib {peers.ANOMALIB} OpenVINOInferencer"


class Fitted(NamedTuple):
    """The same model, fitted by both."""

    run: Path
    theirs: Path | None
    why_not: str
    images: list[str]
    metrics: str


def fit(options: Options, folder: Path) -> Fitted:
    """Fit PaDiM and export it, here and with anomalib."""
    images = sorted(str(path) for path in (options.images() / "test").rglob("*.png"))[: 6 if options.quick else 31]
    ours = folder / "ours"
    settings = ["model=padim", "data=mvtec", f"data.root={options.root}", f"data.category={options.category}",
                f"backbone={options.backbone}", f"hydra.run.dir={ours}", "logger=none", "callbacks.pictures=null",
                "callbacks.report=null", "callbacks.progress=null"]  # fmt: skip
    run([sys.executable, ROOT / "train.py", *settings])
    for kind in ("openvino", "onnx"):
        run([sys.executable, "-m", "oddpatch.cli.main", "export", ours, "--format", kind])
    found = json.loads((ours / "metrics.json").read_text())
    metrics = f"pixel AUROC ours {found['pixel_auroc']:.3f}"
    try:
        used = peers.fit_and_test(options, "padim", ["blocks.1", "blocks.2", "blocks.4"], {"n_features": 100}, folder)
        theirs = next(folder.rglob("weights/openvino/*.xml"))
        metrics += f", theirs {used.facts['metrics']['pixel_AUROC']:.3f}"
    except (BenchmarkError, StopIteration) as error:
        return Fitted(ours, None, str(error) or "it exported nothing", images, metrics)
    return Fitted(ours, theirs, "", images, metrics)


def sides(fitted: Fitted, images: list[str]) -> dict[str, Callable[[], Used]]:
    """A process for each engine of ours, the floor and the peer."""

    def own(engine: str) -> Callable[[], Used]:
        path = fitted.run / ENGINES[engine] if ENGINES.get(engine) else fitted.run
        spec = {"path": str(path), "engine": engine, "images": images}
        return lambda: run([sys.executable, __file__, json.dumps(spec)])

    found = {engine: own(engine) for engine in (*ENGINES, *FLOORS)}
    if fitted.theirs:
        spec = {"do": "predict", "path": str(fitted.theirs), "images": images, "threads": 1}
        command: list[str | Path] = [peers.anomalib(), Path(__file__).parent / "peer_anomalib.py", json.dumps(spec)]
        found["anomalib"] = lambda: run(command)
    return found


def per_image(used: Used) -> float:
    """CPU milliseconds per image."""
    return 1000 * used.cpu / used.facts["images"]


def rows(options: Options) -> Iterator[Row]:
    """One image, warm; and from the start of Python to the first decision."""
    with tempfile.TemporaryDirectory() as scratch:
        fitted = fit(options, Path(scratch))
        yield from _warm(fitted, options)
        yield from _cold(fitted, options)
    if fitted.why_not:
        yield Row("predict one image, warm and from a cold start", ANOMALIB, error=fitted.why_not)


def _warm(fitted: Fitted, options: Options) -> Iterator[Row]:
    used = alternate(sides(fitted, fitted.images), options.rounds)
    used = {name: [_counted(it, len(fitted.images) - 1) for it in found] for name, found in used.items()}
    best = min(ENGINES, key=lambda engine: min(map(per_image, used[engine])))
    for engine in [best, *(engine for engine in ENGINES if engine != best)]:
        name = f"predict one image, warm, {engine}" + (" (best)" if engine == best else "")
        aims = (1.4, 1 / 3, 1 / 2) if engine == best else (None, None, None)
        for side, floor in FLOORS.items():
            yield compare(name, floor, used[engine], used[side], aims[0], take=per_image, unit="CPU ms")
        if theirs := used.get("anomalib"):
            yield compare(
                name, ANOMALIB, used[engine], theirs, aims[1], take=per_image, unit="CPU ms", note=fitted.metrics
            )
            yield compare(f"{name}, peak memory", ANOMALIB, used[engine], theirs, aims[2], take=memory, unit="MiB")


def _cold(fitted: Fitted, options: Options) -> Iterator[Row]:
    used = alternate(sides(fitted, fitted.images[:1]), options.rounds)
    for engine, target in (("OpenVINO artifact", 1 / 5), ("ONNX artifact", None), ("torch", None)):
        name = f"cold start to the first decision, {engine}"
        if theirs := used.get("anomalib"):
            yield compare(name, ANOMALIB, used[engine], theirs, target, note=fitted.metrics)


def _counted(used: Used, images: int) -> Used:
    return Used(used.cpu, used.wall, used.memory, {**used.facts, "images": images})


def main() -> None:
    """One side, in this process: with several images the first is not counted, with one alone the whole process is."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    first, *images = spec["images"]
    floor = spec["engine"] in FLOORS
    inspect = _floor(spec["path"], spec["engine"]) if floor else _detector(spec["path"], spec["engine"])
    found: dict[str, Any] = {"score": inspect(first)}
    if images:
        start, wall = time.process_time(), time.perf_counter()
        for path in images:
            inspect(path)
        found |= {"cpu": time.process_time() - start, "wall": time.perf_counter() - wall}
    print(json.dumps(found))


def _detector(path: str, engine: str) -> Callable[[str], float]:
    from oddpatch import AnomalyDetector

    detector = AnomalyDetector.load(path, engine={"torch": "torch", "torch and OpenVINO": "openvino"}.get(engine))
    return lambda image: detector(image).score


def _floor(path: str, side: str) -> Callable[[str], float]:
    import torch

    from oddpatch.data.decoding import read_image
    from oddpatch.factory import restore

    model, _ = restore(Path(path), engine="openvino")
    pixels = torch.zeros(1, 3, *model.preprocess.image_size)

    @torch.inference_mode()
    def decode_and_run(image: str) -> float:
        model.backbone(pixels)
        by_opencv = "OpenCV" in side
        return float(decode_with_opencv(image)[0] if by_opencv else read_image(image, keep_uint8=True).shape[1])

    return decode_and_run


if __name__ == "__main__":
    main()
