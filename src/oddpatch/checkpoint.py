"""What a checkpoint holds, how it is written whole or not at all, and how it is read without executing anything."""

import pickle
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from oddpatch import __version__
from oddpatch.errors import CheckpointError, ResourceError
from oddpatch.files import replacing

if TYPE_CHECKING:
    from oddpatch.module import AnomalyModule

#: Raised when older code could no longer read what is written.
FORMAT = 1
LIBRARIES = ("torch", "torchvision", "lightning", "timm", "efficientnet-pytorch", "numpy", "scipy", "torchmetrics")


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint under a temporary name and move it into place, so that a half file never has its name.

    Raises:
        ResourceError: it could not be written; nothing is left of it.
    """
    try:
        with replacing(path, "wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its zip writer
        raise ResourceError(
            f"{path} could not be written ({error}): free disk space, or choose another folder by paths.output_dir"
        ) from error


def describe(module: "AnomalyModule") -> dict[str, Any]:
    """The part of a checkpoint that is not tensors: format, versions, config, preprocessing."""
    return {
        "format": FORMAT,
        "version": __version__,
        "versions": library_versions(),
        "git_commit": git_commit(),
        "config": module.config,
        "preprocess": module.model.preprocess.settings(),
        "weights": module.model.backbone.weights_origin,
        "train_images": (names := train_images(module.trainer.datamodule)),  # type: ignore[attr-defined]
        "held_out": [names[i] for i in module.trainer.datamodule.held_out],  # type: ignore[attr-defined]
    }


def train_images(data: Any) -> list[str]:
    """Paths of the images fitted to, in the order of their indices; relative to the folder of the categories."""
    root, paths = Path(data.root), [Path(sample.path) for sample in data.train_samples]
    return [(path.relative_to(root) if path.is_relative_to(root) else path.resolve()).as_posix() for path in paths]


def library_versions() -> dict[str, str]:
    """Versions of oddpatch, Python and the libraries that decide the numbers."""
    found = {"oddpatch": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """The commit of the source tree that runs, with "+changes" if it was edited since; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, every tensor on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, not oddpatch's, or of a newer format.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give the folder of a finished run")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}): it is truncated or not a checkpoint: train again"
        ) from error
    if not isinstance(content, Mapping) or "oddpatch" not in content or "state_dict" not in content:
        raise CheckpointError(f"{path} was not written by oddpatch: give the folder of an oddpatch run")
    about = content["oddpatch"]
    if about["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has format {about['format']}, written by oddpatch {about['version']}; this is {__version__}, "
            f"which reads formats up to {FORMAT}: update oddpatch"
        )
    return dict(content)
