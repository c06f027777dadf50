"""Scoring with an artifact of `oddpatch export`, by ONNX Runtime or OpenVINO; torch is not loaded.

Nothing that an artifact holds is executed but the operators of the engine: metadata is JSON, whose every field is
checked, libraries of operators are not loaded, and weights in other files than its own are refused.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oddpatch.data.decoding import Array, to_rgb_planes
from oddpatch.data.host import HostPreprocess
from oddpatch.data.light import STATISTICS
from oddpatch.engines import openvino_core, threads
from oddpatch.errors import CheckpointError, ConfigError, OddpatchError, ResourceError
from oddpatch.inference.container import FORMAT, KEY, check_openvino, open_onnx, read_metadata
from oddpatch.inference.scorer import Prepared, Preparing, Scored
from oddpatch.limits import free_memory
from oddpatch.metrics.good_scores import GoodScores
from oddpatch.metrics.thresholds import PROMISES

Floats = NDArray[np.float32]
#: Scores a batch (B, 3, h, w) in [0, 1]: the outputs of the graph by name.
Run = Callable[[Floats], dict[str, NDArray[Any]]]

INPUT, SCORE, MAP, DECISION = "image", "score", "anomaly_map", "is_anomalous"
#: Of several products.
RATIO, PRODUCT = "product_ratio", "product"
ENGINES = {".onnx": "onnxruntime", ".xml": "openvino"}
#: Of torch: reading one can run code that it holds.
PROGRAM = ".pt2"
#: Type of each value of the metadata that is used.
_FIELDS: dict[str, Any] = {
    "format": int,
    "version": str,
    "precision": str,
    "image_size": list,
    "localizes": bool,
    "preprocess": dict,
    "calibration": dict,
    "calibrations": list,
}
_CALIBRATION: dict[str, Any] = {
    "image_scores": list,
    "pixel_scores": list,
    "f1_threshold": (float, type(None)),
    "target_fpr": float,
    "absent": (str, type(None)),
    "promise": str,
    "statistics": dict,
    "products": list,
    "product_ratios": list,
}


class Artifact(NamedTuple):
    """What a file holds."""

    metadata: dict[str, Any]
    engine: str
    run: Run


def is_artifact(path: Path) -> bool:
    """Whether a name is that of an artifact's file."""
    return path.suffix in (*ENGINES, PROGRAM) and not path.is_dir()


def load_artifact(path: Path, engine: str | None = None) -> "ArtifactScorer":
    """The scorer of an artifact.

    Args:
        path: of its file, .onnx or .xml; beside the latter lies its .bin.
        engine: "onnxruntime" for .onnx, "openvino" for .xml, or None.

    Raises:
        CheckpointError: it cannot be read, is no artifact of oddpatch, or was damaged or changed.
        ConfigError: the engine is not installed, or does not run such an artifact.
        ResourceError: it asks for larger images than this machine has memory for.
    """
    return ArtifactScorer(read_artifact(path, engine), path)


def read_artifact(path: Path, engine: str | None = None) -> Artifact:
    """See `load_artifact`."""
    if path.suffix == PROGRAM:
        raise ConfigError(
            f"{path} is a program of torch, and reading it can run code that it holds: load the run's folder, or "
            "export it with --format onnx"
        )
    chosen = ENGINES[path.suffix]
    if engine not in (None, chosen):
        raise ConfigError(f"engine={engine!r} does not run {path}: choose {chosen}")
    if importlib.util.find_spec(chosen) is None:
        extra = "openvino" if chosen == "openvino" else "onnx"
        raise ConfigError(f"{path} needs {chosen}, which is not installed: pip install 'oddpatch[{extra}]'")
    data = _read(path)
    try:
        if chosen == "onnxruntime":
            metadata = open_onnx(data, path)
            _check(metadata, path)
            run = onnxruntime_run(data, metadata)
        else:
            weights = _read(path.with_suffix(".bin"))
            check_openvino(data, weights, path)
            network = openvino_core().read_model(data, weights)
            metadata = read_metadata(network.get_rt_info([KEY]).astype(str), path)
            _check(metadata, path)
            run = openvino_run(network, metadata)
    except OddpatchError:
        raise
    except Exception as error:  # of an engine, which has its own for whatever it does not like
        raise CheckpointError(f"{path} is not read by {chosen}: {_reason(error)}: export the run again") from error
    return Artifact(metadata, chosen, run)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): give what oddpatch export wrote") from error


def onnxruntime_run(data: bytes, metadata: dict[str, Any]) -> Run:
    """What runs the graph of an ONNX file in ONNX Runtime.

    Raises:
        CheckpointError: its inputs and outputs are not those of its metadata.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = 4  # what goes wrong is raised, too
    # From bytes: an artifact is one file, and the engine is given no folder to look for others in.
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = _check_graph(
        {one.name: list(one.shape) for one in session.get_inputs()},
        {one.name for one in session.get_outputs()},
        metadata,
    )
    return lambda images: dict(zip(names, session.run(names, {INPUT: images}), strict=True))


def openvino_run(network: Any, metadata: dict[str, Any]) -> Run:
    """What runs a network of OpenVINO; see `onnxruntime_run`."""

    def shape(port: Any) -> list[int | None]:
        return [None if side.is_dynamic else side.get_length() for side in port.partial_shape]

    names = _check_graph(
        {port.any_name: shape(port) for port in network.inputs},
        {port.any_name for port in network.outputs},
        metadata,
    )
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # else bf16 where the CPU has it
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads(),
    }
    compiled = openvino_core().compile_model(network, "CPU", settings)

    def run(images: Floats) -> dict[str, NDArray[Any]]:
        outputs = compiled(images)
        return {name: outputs[name] for name in names}

    return run


def _check_graph(inputs: dict[str, list[Any]], outputs: set[str], metadata: dict[str, Any]) -> list[str]:
    """The names of the outputs, if the graph has the shape that its metadata says."""
    sides = inputs[INPUT][1:] if inputs.keys() == {INPUT} else None
    products = [RATIO, PRODUCT] if metadata["calibration"]["products"] else []
    names = [SCORE, *([MAP] if metadata["localizes"] else []), *products, DECISION]
    if sides != [3, *metadata["image_size"]] or not {*names} - {DECISION} <= outputs:
        raise ValueError("its graph does not take and give what its metadata says")
    return [name for name in names if name in outputs]


def _check(metadata: dict[str, Any], path: Path) -> None:
    """See that all that is used of the metadata is there and of its type."""

    def refuse(place: str) -> CheckpointError:
        return CheckpointError(f"{path}: {place} of its metadata is missing or cannot be used: export the run again")

    number = metadata.get("format")
    if type(number) is int and number != FORMAT:
        raise CheckpointError(
            f"{path} has format {number}, this version of oddpatch reads format {FORMAT}: "
            f"{'update oddpatch' if number > FORMAT else 'export the run again'}"
        )
    calibration = metadata.get("calibration")
    for within, fields in ((metadata, _FIELDS), (calibration, _CALIBRATION)):
        for name, kind in fields.items():
            kinds = kind if isinstance(kind, tuple) else (kind,)
            if not isinstance(within, dict) or name not in within or type(within[name]) not in kinds:
                raise refuse(name)
    assert isinstance(calibration, dict)
    for name in ("image_scores", "pixel_scores", "product_ratios"):
        values = calibration[name]
        if not all(type(value) is float and math.isfinite(value) for value in values) or values != sorted(values):
            raise refuse(name)
    if not all(type(name) is str for name in calibration["products"]):
        raise refuse("products")
    for name, values in calibration["statistics"].items():
        as_many = type(values) is list and len(values) == len(calibration["image_scores"])
        if name not in STATISTICS or not as_many or not all(type(v) is float and math.isfinite(v) for v in values):
            raise refuse("statistics")
    for step in metadata["calibrations"]:
        if not isinstance(step, dict) or not all(type(step.get(name)) is str for name in ("when", "folder")):
            raise refuse("calibrations")
    if not 0 < calibration["target_fpr"] < 1:
        raise refuse("target_fpr")
    if calibration["promise"] not in PROMISES:
        raise refuse("promise")
    size = metadata["image_size"]
    if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise refuse("image_size")
    needed, free = 4 * 3 * 2 * size[0] * size[1], free_memory()
    if needed > free:
        raise ResourceError(f"{path}: images of {size[0]}x{size[1]} pixels do not fit into memory: give more memory")


class ArtifactScorer(Preparing):
    """Scores with an artifact.

    Attributes:
        metadata: what the artifact says of itself.
        engine: what runs it.

    Raises:
        CheckpointError: its preprocessing cannot be made.
    """

    leaves_python = True

    def __init__(self, artifact: Artifact, path: Path) -> None:
        super().__init__()
        self.metadata, self.engine, self._run, self._path = *artifact, path
        self.settings = self.metadata["preprocess"]
        try:
            self._preprocess = HostPreprocess(**self.settings)
            same = list(self._preprocess.image_size) == self.metadata["image_size"]
        except Exception as error:  # whatever values do not go together
            raise CheckpointError(
                f"{path}: preprocess of its metadata cannot be used ({_reason(error)}): export the run again"
            ) from error
        if not same:
            raise CheckpointError(f"{path}: preprocess and image_size of its metadata differ: export the run again")
        known = self.metadata["calibration"]
        f1 = known["f1_threshold"]
        self.calibration = GoodScores(
            np.array(known["image_scores"], np.float64), np.array(known["pixel_scores"], np.float64),
            math.nan if f1 is None else f1, known["target_fpr"], known["absent"], known["promise"],
            {name: np.array(values, np.float64) for name, values in known["statistics"].items()},
            tuple(known["products"]), np.array(known["product_ratios"], np.float64),
        )  # fmt: skip

    def example(self) -> Prepared:
        """See `Preparing`."""
        pixels = np.full((3, *self._preprocess.image_size), 0.5, np.float32)
        return Prepared(pixels, pixels, None, 1.0)

    def _take(self, image: Image.Image | NDArray[Any]) -> Array:
        return to_rgb_planes(image, self._preprocess.full_scale)

    def _read(self, path: str | Path, max_pixels: int | None) -> Array:
        return self._preprocess.read(path, max_pixels)

    def _prepare(self, original: Array) -> Prepared:
        registration = self._preprocess.register(original)
        share = self._preprocess.share((original.shape[1], original.shape[2]), registration)
        return Prepared(original, self._preprocess(original, registration), registration, share)

    def run(self, images: Sequence[Prepared]) -> dict[str, NDArray[Any]]:
        """The outputs of the graph: "score" (B,), "anomaly_map" (B, 1, h, w) and "is_anomalous" (B,), as there are; of
        several products "product" and "product_ratio" (B,), too.

        Raises:
            CheckpointError: the engine fails, or does not give that.
        """
        try:
            found = self._run(np.stack([image.pixels for image in images]))
        except Exception as error:
            raise CheckpointError(
                f"{self._path}: {self.engine} fails: {_reason(error)}: export the run again"
            ) from error
        shapes = {MAP: (len(images), 1, *self.metadata["image_size"])}
        for name, values in found.items():
            if values.shape != shapes.get(name, (len(images),)):
                raise CheckpointError(f"{self._path} gives {name} of shape {values.shape}: export the run again")
        if PRODUCT in found and not np.isfinite(found[PRODUCT]).all():
            raise CheckpointError(f"{self._path} gives a {PRODUCT} that is no number: export the run again")
        return found

    def score(self, images: Sequence[Prepared]) -> list[Scored]:
        """See `Scorer`."""
        found = self.run(images)
        scores = found[SCORE].tolist()
        parts = [scores, found[MAP][:, 0] if MAP in found else [None] * len(scores)]
        if PRODUCT in found:
            last = len(self.calibration.products) - 1
            parts += [found[PRODUCT].clip(0, last).astype(int).tolist(), found[RATIO].tolist()]
        return [Scored(*values) for values in zip(*parts, strict=True)]

    def lay_out(self, anomaly_map: Floats, image: Prepared) -> Floats:
        """See `Scorer`."""
        size = (image.original.shape[1], image.original.shape[2])
        return self._preprocess.to_original(anomaly_map, size, registration=image.registration)


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
