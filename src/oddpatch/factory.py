"""A fitted model from its checkpoint. Loads neither Lightning nor Hydra: predicting needs none."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from oddpatch.checkpoint import read_checkpoint
from oddpatch.data.light import STATISTICS
from oddpatch.data.transforms import Preprocess
from oddpatch.errors import CheckpointError, OddpatchError, ResourceError
from oddpatch.known import Kind, Spec, read_spec
from oddpatch.limits import free_memory
from oddpatch.models.anomaly_model import AnomalyModel
from oddpatch.models.calibration import Calibration
from oddpatch.models.products import Products
from oddpatch.resources import format_bytes

CHECKPOINT = Path("checkpoints/fitted.ckpt")


def make_known(spec: Spec, **kwargs: Any) -> Any:
    """The object that a file describes."""
    return spec.make(**kwargs)


def restore(folder: Path, trust: Sequence[str] = (), **runtime: Any) -> tuple[AnomalyModel, dict[str, Any]]:
    """The fitted model of a finished run, and its checkpoint's description (config, versions, ...).

    Args:
        folder: of the run, or its checkpoint file.
        trust: packages of your own whose classes and functions the checkpoint may name.
        runtime: how to run the backbone, where that differs from the run: `engine`, `precision`, `compile` or `fold`.

    Raises:
        CheckpointError: the run has no readable checkpoint, or one that asks for other code than oddpatch's.
        ConfigError: `trust` names no package.
        ResourceError: it asks for larger images than this machine has memory for.
    """
    path = checkpoint_of(folder)
    content = read_checkpoint(path)
    about = content["oddpatch"]
    data = about["config"]["data"]
    for key in {"root", "split"} & data.keys():  # what is in the run's folder is named from there
        if isinstance(data[key], str):
            data[key] = str(path.absolute().parent.parent / data[key])
    # All is read before anything is built.
    kinds: tuple[Kind, ...] = ("backbone", "model", "calibration", "data")
    specs = {kind: read_spec(about["config"][kind], kind, path, trust) for kind in kinds}
    state = {key.removeprefix("model."): v for key, v in content["state_dict"].items() if key.startswith("model.")}
    with _fitting(path):
        model = _build(specs, about, runtime)
        model.load_state_dict(state)
        _check_calibration(model.calibration, about)
        _try(model.eval())
    return model, about


def restore_calibration(folder: Path, trust: Sequence[str] = ()) -> tuple[Calibration, dict[str, Any]]:
    """As `restore`, but of the model its calibration alone: no network is built."""
    path = checkpoint_of(folder)
    content = read_checkpoint(path)
    about, place = content["oddpatch"], "model.calibration."
    spec = read_spec(about["config"]["calibration"], "calibration", path, trust)
    state = {key.removeprefix(place): v for key, v in content["state_dict"].items() if key.startswith(place)}
    with _fitting(path):
        calibration = make_known(spec)
        calibration.absent = about["no_threshold"]
        calibration.load_state_dict(state)
        _check_calibration(calibration, about)
    return calibration, about


def checkpoint_of(run: Path) -> Path:
    """The checkpoint of a run's folder, or the one that is given itself."""
    return run / CHECKPOINT if run.is_dir() else run


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Name the file in errors of what does not go together."""
    try:
        yield
    except OddpatchError as error:
        raise type(error)(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except Exception as error:  # whatever does not go together fails somewhere in a class or a network
        raise CheckpointError(f"{path} does not fit this version of oddpatch: {_reason(error)}: train again") from error


def _build(specs: dict[Kind, Spec], about: dict[str, Any], runtime: dict[str, Any]) -> AnomalyModel:
    # The weights come from the checkpoint: none are looked for, and none need to be on this machine.
    backbone = make_known(specs["backbone"], weights="random", **runtime)
    backbone.weights_origin = about["weights"]
    _check_room(about["preprocess"], backbone)
    detector = make_known(specs["model"], channels=backbone.info.channels, strides=backbone.info.strides)
    calibration = make_known(specs["calibration"])
    calibration.absent = about["no_threshold"]
    names, info = about.get("products"), backbone.info
    products = Products(info.channels, info.strides, names) if names else None
    return AnomalyModel(Preprocess(**about["preprocess"]), backbone, detector, calibration, products)


def _check_room(preprocess: dict[str, Any], backbone: Any) -> None:
    """Refuse a size of images that this machine has no memory for, before anything of that size is made."""
    height, width = Preprocess(**{**preprocess, "align": None, "roi": None}).image_size
    # The image, its feature maps, and the anomaly map with what it is made of; twice that while the network computes.
    floats = 3 + 2 + sum(c / s**2 for c, s in zip(backbone.info.channels, backbone.info.strides, strict=True) if s)
    needed, free = 2 * 4 * height * width * floats, free_memory()
    if needed > free:
        raise ResourceError(
            f"inspecting one image at {height}x{width} pixels needs {format_bytes(needed)} of memory but only "
            f"{format_bytes(free)} is available: give more memory, or train again with a smaller data.resize"
        )


def _reason(error: Exception) -> str:
    """The line that says most: torch's first one only names the module."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 else lines[0])[:300] if lines else type(error).__name__


def _check_calibration(calibration: Calibration, about: dict[str, Any]) -> None:
    scores, index = calibration.image_scores, calibration.image_index
    statistics = calibration.image_statistics
    measured = scores, calibration.pixel_scores, calibration.f1_threshold, statistics
    if [one.ndim for one in measured] != [1, 1, 0, 2] or not all(one.is_floating_point() for one in measured):
        raise ValueError("its calibration holds no list of scores")
    if index.shape != scores.shape or index.dtype != torch.int64 or (len(scores) and not about["held_out"]):
        raise ValueError("its calibration does not say which images it is of")
    if len(statistics) != len(scores) or statistics.shape[1] not in (0, 2, len(STATISTICS)):
        raise ValueError("its calibration does not say how its images were taken")
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(about["train_images"]):
        raise ValueError("its calibration is of images that it does not name")


def _check_products(products: Products) -> None:
    count, names = len(products.tokens), len(products.names)
    shapes = products.product.shape, products.source.shape, products.tokens.ndim, products.good.ndim
    if names < 2 or not count or shapes != ((count,), (count,), 2, 1) or products.product.dtype != torch.int64:
        raise ValueError("its products do not go together")
    if not 0 <= int(products.product.min()) <= int(products.product.max()) < names:
        raise ValueError("it holds images of products that it does not name")


@torch.inference_mode()
def _try(model: AnomalyModel) -> None:
    """Score one grey image, so that fitted state that does not go together fails here and not later."""
    height, width = model.preprocess.image_size
    image = torch.zeros(1, 3, height, width)
    # Not through the engine: it would prepare itself for a batch that never comes again.
    features = model.features(image, model.backbone.forward)
    score, maps = model.detector(features, (height, width))
    if (products := model.products) is not None:
        _check_products(products)
        products.match(features)
    if score.shape != (1,) or (maps is not None and maps.shape != (1, 1, height, width)):
        raise ValueError("it does not score one image")
