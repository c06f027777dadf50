"""`export`: a finished run as an artifact that was compared with it on real images, or nothing at all."""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from oddpatch.checkpoint import written_by
from oddpatch.data.host import HostPreprocess
from oddpatch.errors import ConfigError, ParityError
from oddpatch.export.graph import Inspection, to_onnx, to_openvino, to_program
from oddpatch.export.parity import Parity, compare, real_images, spread
from oddpatch.export.precision import PRECISIONS, to_float16, to_int8
from oddpatch.factory import restore
from oddpatch.inference.artifact import Artifact, ArtifactScorer, load_artifact
from oddpatch.inference.container import FORMAT, KEY, metadata_text, seal_onnx, seal_openvino
from oddpatch.inference.torch_scorer import TorchScorer
from oddpatch.models.anomaly_model import AnomalyModel
from oddpatch.temporary import drafting

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
#: Packages that each format is written and compared with.
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino"), "torch": ()}
#: Good images that the ranges of 8-bit activations are found on.
CALIBRATING = 64


class Exported(NamedTuple):
    """What `export` has written."""

    path: Path
    size: int  # bytes of all its files
    parity: Parity


def export(
    run: Path,
    kind: str = "onnx",
    out: Path | None = None,
    precision: str = "float32",
    max_changed_decisions: int = 0,
    root: Path | None = None,
    trust: Sequence[str] = (),
) -> Exported:
    """Write a finished run as an artifact, if it gives the run's scores, maps and decisions on the run's own images.

    >>> export(Path("housing"), "onnx").path
    PosixPath('housing/model.onnx')

    Args:
        run: its folder, or its checkpoint.
        kind: "onnx", "openvino" or "torch".
        out: file to write; None for `model.onnx`, `.xml` or `.pt2` in the run's folder, or `model-float16.onnx` ...
        precision: of the weights: "float32", "float16" or "int8".
        max_changed_decisions: of images that a lower precision may judge otherwise.
        root: where the folder of the categories is now, if it was moved.
        trust: see `oddpatch.factory.restore`.

    Raises:
        ConfigError: a setting cannot work, a package is missing, or the method cannot be exported.
        CheckpointError: the run cannot be read.
        DataError: none of its images is there, or one cannot be read.
        ParityError: the artifact gives other numbers; nothing is written.
        ResourceError: it cannot be written; nothing is left of it.
    """
    target = _target(run, kind, out, precision)
    model, about = restore(run, trust)
    if model.tiling is not None:
        raise ConfigError(f"{run} looks at images in tiles (data.fit=tiles), which cannot be exported: load the run")
    if (transform := model.preprocess.transform) is not None:
        raise ConfigError(
            f"{run} changes the pixels of images by {transform.name} (data.transform), which an artifact does not: "
            "load the run, or train again with data.transform=null"
        )
    if max_changed_decisions < 0:
        raise ConfigError(f"--max-changed-decisions={max_changed_decisions}: choose 0 or more")
    images = real_images(run, about, root)
    scores = model.good_scores
    threshold = next(iter(scores.thresholds(scores.target_fpr).values()), None)
    product = scores.product_at(scores.target_fpr)
    inspection = Inspection(model, threshold, None if product is None else product.value)
    program = to_program(inspection)
    metadata = describe(model, about, precision, threshold)
    with drafting(target) as scratch:
        draft = scratch / target.name
        if kind == "torch":
            torch.export.save(program, draft, extra_files={f"{KEY}.json": metadata_text(metadata)})
            artifact = _program_scorer(draft, inspection.outputs, metadata)
        else:
            onnx_model = to_onnx(program, inspection.outputs)
            if precision == "float16":
                to_float16(onnx_model)
            elif precision == "int8":
                good = spread(images.good or images.tested, CALIBRATING)
                host = HostPreprocess(**model.preprocess.settings())
                onnx_model = to_int8(onnx_model, (host(host.read(path))[None] for path in good))
            _write(onnx_model.SerializeToString(), metadata, draft)
            artifact = load_artifact(draft)
        parity = compare(TorchScorer(model, own=True), artifact, images.compared, threshold)
        _require(parity, precision, max_changed_decisions, run, model.detector.parity_remedy)
        files = sorted(scratch.iterdir(), key=lambda file: file == draft)  # the description last
        size = sum(file.stat().st_size for file in files)
        for file in files:
            file.replace(target.with_name(file.name))
    return Exported(target, size, parity)


def _target(run: Path, kind: str, out: Path | None, precision: str) -> Path:
    if kind not in SUFFIXES:
        raise ConfigError(f"--format={kind}: choose {', '.join(SUFFIXES)}")
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision={precision}: choose {', '.join(PRECISIONS)}")
    if kind == "torch" and precision != "float32":
        raise ConfigError(f"--precision={precision} is for --format onnx or openvino: choose one of them, or float32")
    needed = (*NEEDED[kind], *(["onnxruntime"] if precision == "int8" else []))
    for package in needed:
        if importlib.util.find_spec(package) is None:
            extra = "onnx,openvino" if kind == "openvino" else "onnx"
            raise ConfigError(
                f"--format={kind} needs {package}, which is not installed: pip install 'oddpatch[{extra}]'"
            )
    folder = run if run.is_dir() else run.absolute().parent.parent
    name = "model" if precision == "float32" else f"model-{precision}"
    target = out or folder / f"{name}{SUFFIXES[kind]}"
    if target.suffix != SUFFIXES[kind] or target.is_dir():
        raise ConfigError(f"--out={target}: an artifact of --format {kind} is a file that ends with {SUFFIXES[kind]}")
    return target


def describe(model: AnomalyModel, about: dict[str, Any], precision: str, threshold: float | None) -> dict[str, Any]:
    """The metadata of an artifact: plain values."""
    scores, preprocess = model.good_scores, model.preprocess
    pixel = scores.pixel_at(scores.target_fpr)
    config = {
        name: part for name, part in about["config"].items() if name in ("model", "backbone", "calibration", "run")
    }
    return {
        **written_by(),
        "format": FORMAT,
        "precision": precision,
        "config": config,
        "weights": about["weights"],
        "num_fitted": about["num_fitted"],
        "image_size": list(preprocess.image_size),
        "localizes": model.detector.localizes,
        "host": ["decode", "align", "resize", "frame"],
        "graph": ["normalise", "region", "features", "score", "smooth", "image score", "decision"],
        "preprocess": preprocess.settings(),
        "calibrations": about.get("calibrations", []),
        "thresholds": {"image": threshold, "pixel": None if pixel is None else pixel.value},
        "calibration": {
            "image_scores": scores.image_scores.tolist(),
            "pixel_scores": scores.pixel_scores.tolist(),
            "f1_threshold": None if math.isnan(scores.f1_threshold) else scores.f1_threshold,
            "target_fpr": float(scores.target_fpr),
            "promise": scores.promise,
            "absent": scores.absent,
            "statistics": {name: values.tolist() for name, values in scores.statistics.items()},
            "products": list(scores.products),
            "product_ratios": scores.product_ratios.tolist(),
        },
    }


def _write(onnx_model: bytes, metadata: dict[str, Any], draft: Path) -> None:
    if draft.suffix == ".onnx":
        draft.write_bytes(seal_onnx(onnx_model, metadata))
        return
    import openvino

    network = to_openvino(onnx_model)
    network.set_rt_info(metadata_text(metadata), [KEY])
    openvino.save_model(network, draft, compress_to_fp16=False)
    draft.write_bytes(seal_openvino(draft.read_bytes(), draft.with_suffix(".bin").read_bytes()))


def _program_scorer(path: Path, outputs: list[str], metadata: dict[str, Any]) -> ArtifactScorer:
    """The scorer of a program that was written just now, read again."""
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(images: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, Any]:
        found = module(torch.from_numpy(images))
        return {name: tensor.numpy() for name, tensor in zip(outputs, found, strict=True)}

    return ArtifactScorer(Artifact(metadata, "torch", run), path)


def _require(parity: Parity, precision: str, max_changed: int, run: Path, remedy: str) -> None:
    if precision == "float32" and not parity.agrees:
        raise ParityError(
            f"{run}: nothing is written, as the artifact would give other numbers than the run: {parity}; the worst is "
            f"{parity.worst} ({parity.told}): {remedy}"
        )
    if len(parity.changed) > max_changed:
        raise ParityError(
            f"{run}: nothing is written, as {precision} changes more decisions than --max-changed-decisions="
            f"{max_changed}: {parity}, first that of {parity.changed[0]}; the worst is {parity.worst} ({parity.told}): "
            f"choose --precision float32, or --max-changed-decisions {len(parity.changed)}"
        )
