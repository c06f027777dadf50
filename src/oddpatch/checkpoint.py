"""What a checkpoint holds, how it is written whole or not at all, and how it is read without executing anything."""

import warnings
from pathlib import Path
from typing import Any

import torch

from oddpatch.environment import git_commit, library_versions
from oddpatch.errors import CheckpointError, ResourceError
from oddpatch.files import replacing
from oddpatch.known import check_plain
from oddpatch.temporary import unwritable

#: Raised when older code could no longer read what is written.
FORMAT = 3
#: What is used of a checkpoint's description beside its config's parts, which `oddpatch.known` reads, and its type.
FIELDS: dict[str, Any] = {
    "format": int,
    "version": str,
    "versions": dict,
    "git_commit": (str, type(None)),
    "config": {"model": dict, "backbone": dict, "data": dict, "calibration": dict, "run": dict},
    "preprocess": dict,
    "weights": str,
    "train_images": [str],
    "num_fitted": int,
    "held_out": [str],
    "no_threshold": (str, type(None)),
}
LISTS = ("train_images", "held_out", "updates", "calibrations")
#: Of a step by which the calibration was renewed.
CALIBRATION_STEP: dict[str, Any] = {
    "when": str, "run": str, "folder": str, "images": int, "left_out": [str], "before": (float, type(None)),
    "after": float,
}  # fmt: skip
#: The one number of a model that is not there until it is measured.
MAY_BE_NAN = "calibration.f1_threshold"


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint under a temporary name and move it into place, so that a half file never has its name.

    Raises:
        ResourceError: it could not be written; nothing is left of it.
    """
    try:
        with replacing(path, "wb") as file:
            torch.save(content, file)
    except ResourceError:
        raise
    except RuntimeError as error:  # of torch's zip writer, while the system's own is handled
        raise unwritable(path, OSError(*getattr(error.__context__, "args", ()))) from error


def written_by() -> dict[str, Any]:
    """The part of a checkpoint that says what wrote it: format, versions, commit."""
    versions = library_versions()
    return {"format": FORMAT, "version": versions["oddpatch"], "versions": versions, "git_commit": git_commit()}


def relative_name(path: str | Path, root: str | Path) -> str:
    """A path as it is written down: below `root` if it lies there, else in full."""
    path = Path(path)
    return (path.relative_to(root) if path.is_relative_to(root) else path.resolve()).as_posix()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, every tensor on the CPU; all that is used of it later is there and of the right type.

    Raises:
        CheckpointError: the file is missing, truncated, not oddpatch's, of another format, or was changed.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give the folder of a finished run")
    try:
        with warnings.catch_warnings(action="ignore"):  # what is anomalous in the file is an error below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # damaged bytes are met with errors of nearly any type
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}): it is truncated or not a checkpoint: train again"
        ) from error
    if type(content) is not dict or not {"oddpatch", "state_dict"} <= content.keys():
        raise CheckpointError(f"{path} was not written by oddpatch: give the folder of an oddpatch run")
    about = content["oddpatch"]
    if type(about) is dict:  # lists of files are as long as a dataset
        check_plain({key: value for key, value in about.items() if key not in LISTS}, "oddpatch", path)
    _check_fields(about, FIELDS, "oddpatch", path)
    _check_fields(about.get("products", []), [str], "oddpatch.products", path)
    _check_fields(about.get("updates", []), [dict], "oddpatch.updates", path)
    _check_fields(about.get("calibrations", []), [CALIBRATION_STEP], "oddpatch.calibrations", path)
    if about["format"] != FORMAT:
        ours = library_versions()["oddpatch"]
        raise CheckpointError(
            f"{path} has format {about['format']}, written by oddpatch {about['version']}; this is {ours}, "
            f"which reads format {FORMAT}: {'update oddpatch' if about['format'] > FORMAT else 'train again'}"
        )
    unknown = set(about["held_out"]) - set(about["train_images"])
    if unknown:
        raise CheckpointError(f"{path}: {min(unknown)!r} was held out, but is no training image: train again")
    _check_tensors(content["state_dict"], path)
    return content


def _check_fields(value: Any, wanted: Any, place: str, path: Path) -> None:
    """Compare a value with what `FIELDS` says of it."""
    if isinstance(wanted, dict):
        _check_fields(value, dict, place, path)
        for name, inner in wanted.items():
            if name not in value:
                raise CheckpointError(f"{path} lacks {place}.{name}: it was damaged or changed: train again")
            _check_fields(value[name], inner, f"{place}.{name}", path)
    elif isinstance(wanted, list):
        _check_fields(value, list, place, path)
        for one in value:
            _check_fields(one, wanted[0], f"{place}[]", path)
    elif type(value) not in (wanted if isinstance(wanted, tuple) else (wanted,)):
        raise CheckpointError(
            f"{path}: {place} is of type {type(value).__name__}: it was damaged or changed: train again"
        )


def _check_tensors(state: Any, path: Path) -> None:
    """See that a state dict holds plain tensors of finite numbers, by name."""
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{path}: state_dict is of type {type(state).__name__}: it was damaged or changed: train again"
        )
    for name, tensor in state.items():
        plain = type(name) is str and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        if not plain or tensor.is_quantized or tensor.is_complex() or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{path}: state_dict holds {str(name)[:100]!r}, which is no plain tensor: train again"
            )
        if tensor.numel() > tensor.untyped_storage().nbytes() // tensor.element_size():  # an expanded one
            raise CheckpointError(f"{path}: {name[:100]!r} is larger than what the file holds of it: train again")
        if tensor.is_floating_point() and not name.endswith(MAY_BE_NAN) and not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name[:100]!r} holds values that are not finite: train again")
