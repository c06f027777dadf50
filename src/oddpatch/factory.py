"""Objects from a config, and a fitted model from its checkpoint. Loads no Lightning: predicting needs none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from oddpatch.checkpoint import read_checkpoint
from oddpatch.data.transforms import Preprocess
from oddpatch.errors import CheckpointError, OddpatchError
from oddpatch.models.base import AnomalyModel

CHECKPOINT = Path("checkpoints/fitted.ckpt")


def make(part: Any, **kwargs: Any) -> Any:
    """The object that a part of a config describes; an error the user can mend comes as it was raised."""
    try:
        return instantiate(part, **kwargs)
    except InstantiationException as error:
        if isinstance(error.__cause__, OddpatchError):
            raise error.__cause__ from None
        raise


def restore(folder: Path, **runtime: Any) -> tuple[AnomalyModel, dict[str, Any]]:
    """The fitted model of a finished run, and its checkpoint's description (config, versions, ...).

    Args:
        folder: of the run, or its checkpoint file.
        runtime: how to run the backbone, where that differs from the run: `engine`, `precision` or `compile`.

    Raises:
        CheckpointError: the run has no readable checkpoint, or one that asks for code outside oddpatch.
    """
    path = folder / CHECKPOINT if folder.is_dir() else folder
    content = read_checkpoint(path)
    about = content["oddpatch"]
    config = about["config"]
    for key in ("model", "backbone", "calibration"):
        refuse_foreign_targets(config.get(key), path)
    # The weights come from the checkpoint: none are looked for, and none need to be on this machine.
    backbone = make({**config["backbone"], "weights": "random", **runtime})
    backbone.weights_origin = about["weights"]
    detector = make(config["model"], channels=backbone.channels, strides=backbone.strides)
    calibration = make(config["calibration"]) if "calibration" in config else None
    model = AnomalyModel(Preprocess(**about["preprocess"]), backbone, detector, calibration)
    state = {key.removeprefix("model."): v for key, v in content["state_dict"].items() if key.startswith("model.")}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"{path} does not fit this version of oddpatch: {reason}: train again") from error
    return model.eval(), about


def refuse_foreign_targets(config: Any, path: Path) -> None:
    """A config read from a file may name oddpatch's own classes and nothing else: loading must not run others' code."""
    if isinstance(config, Mapping):
        target = str(config.get("_target_", "oddpatch."))
        if not target.startswith("oddpatch."):
            raise CheckpointError(f"{path} asks to call {target}: only oddpatch's own classes are built from a file")
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            refuse_foreign_targets(part, path)
