"""A fitted model from its checkpoint. Loads neither Lightning nor Hydra: predicting needs none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from oddpatch.checkpoint import read_checkpoint
from oddpatch.data.transforms import Preprocess
from oddpatch.errors import CheckpointError, OddpatchError, ResourceError
from oddpatch.known import Kind, Spec, read_spec
from oddpatch.limits import free_memory
from oddpatch.models.base import AnomalyModel
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
        runtime: how to run the backbone, where that differs from the run: `engine`, `precision` or `compile`.

    Raises:
        CheckpointError: the run has no readable checkpoint, or one that asks for other code than oddpatch's.
        ConfigError: `trust` names no package.
        ResourceError: it asks for larger images than this machine has memory for.
    """
    path = folder / CHECKPOINT if folder.is_dir() else folder
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
    try:
        model = _build(specs, about, runtime)
        model.load_state_dict(state)
        _try(model.eval(), about)
    except OddpatchError as error:
        raise type(error)(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except Exception as error:  # whatever does not go together fails somewhere in a class or a network
        raise CheckpointError(f"{path} does not fit this version of oddpatch: {_reason(error)}: train again") from error
    return model, about


def _build(specs: dict[Kind, Spec], about: dict[str, Any], runtime: dict[str, Any]) -> AnomalyModel:
    # The weights come from the checkpoint: none are looked for, and none need to be on this machine.
    backbone = make_known(specs["backbone"], weights="random", **runtime)
    backbone.weights_origin = about["weights"]
    _check_room(about["preprocess"], backbone)
    detector = make_known(specs["model"], channels=backbone.info.channels, strides=backbone.info.strides)
    calibration = make_known(specs["calibration"])
    calibration.absent = about["no_threshold"]
    return AnomalyModel(Preprocess(**about["preprocess"]), backbone, detector, calibration)


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


@torch.inference_mode()
def _try(model: AnomalyModel, about: dict[str, Any]) -> None:
    """Score one grey image, so that fitted state that does not go together fails here and not later."""
    calibration = model.calibration
    scores, index = calibration.image_scores, calibration.image_index
    measured = scores, calibration.pixel_scores, calibration.f1_threshold
    if [one.ndim for one in measured] != [1, 1, 0] or not all(one.is_floating_point() for one in measured):
        raise ValueError("its calibration holds no list of scores")
    if index.shape != scores.shape or index.dtype != torch.int64 or (len(scores) and not about["held_out"]):
        raise ValueError("its calibration does not say which images it is of")
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(about["train_images"]):
        raise ValueError("its calibration is of images that it does not name")
    height, width = model.preprocess.image_size
    image = torch.zeros(1, 3, height, width)
    # Not through the engine: it would prepare itself for a batch that never comes again.
    score, maps = model.detector(model.features(image, model.backbone.forward), (height, width))
    if score.shape != (1,) or (maps is not None and maps.shape != (1, 1, height, width)):
        raise ValueError("it does not score one image")
