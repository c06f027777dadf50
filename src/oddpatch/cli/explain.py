"""`oddpatch explain`: which normal patches an image's most anomalous patches were compared with."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oddpatch.cli.common import Trust
from oddpatch.errors import CheckpointError, ConfigError
from oddpatch.wording import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from oddpatch.figures.explanation import Match
    from oddpatch.models.base import AnomalyModel
    from oddpatch.models.patchcore import PatchCore


def explain(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of PatchCore.")],
    image: Annotated[Path, typer.Argument(help="Image to explain.")],
    out: Annotated[
        Path | None, typer.Option(help="Picture to write. (default: IMAGE's name-explained.png, .gif)")
    ] = None,
    top: Annotated[int, typer.Option(help="How many patches to show, the worst first, none beside another.")] = 3,
    gif: Annotated[bool, typer.Option("--gif", help="Every patch in turn, as an animation.")] = False,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the folder of the categories is now, if it was moved.")
    ] = None,
    trust: Trust = None,
) -> None:
    """Show the training patches that an image's most anomalous patches were measured against."""
    from oddpatch.factory import restore
    from oddpatch.figures.explanation import draw_explanation, write_animation

    if top < 1:
        raise ConfigError(f"--top={top}: choose at least 1")
    model, about = restore(run, trust or ())
    detector = memory_bank_of(model, run, "explain")
    names = train_images_of(about, run)
    preprocessed = model.preprocess.load(image)  # (3, H, W)
    matches = find_matches(model, detector, preprocessed, names)
    shown = matches if gif else most_anomalous(matches, top, detector.patch_size * matches[0].patch.width)
    root = data_root or Path(about["config"]["data"]["root"])
    pictures = _pictures(model, root)
    path = out or Path(f"{image.stem}-explained{'.gif' if gif else '.png'}")
    picture = _to_uint8(model, preprocessed)
    if gif:
        write_animation(path, picture, shown, pictures)
    else:
        draw_explanation(picture, image.name, shown, pictures).save(path)
        for number, match in enumerate(shown, start=1):
            typer.echo(f"{number}  distance {match.distance:.6g}  nearest normal patch in {match.train_image}")
    absent = sorted({match.train_image for match in shown if pictures(match.train_image) is None})
    if absent:
        typer.echo(
            f"{counted(len(absent), 'training image')} not in {root}, such as {absent[0]}: set --data-root", err=True
        )
    typer.echo(f"written: {path}")


def memory_bank_of(model: "AnomalyModel", run: Path, command: str) -> "PatchCore":
    """The detector of a run if it keeps a memory bank of patches.

    Raises:
        ConfigError: it is of another method.
        CheckpointError: the memory bank does not say which image each patch comes from.
    """
    import torch

    from oddpatch.models.patchcore import PatchCore

    if not isinstance(model.detector, PatchCore):
        method = type(model.detector).__name__
        raise ConfigError(
            f"{run} was fitted with {method}, which keeps no memory bank of patches: {command} takes a run of PatchCore"
        )
    detector = model.detector
    if detector.source.shape != (len(detector.memory_bank), 2) or detector.source.dtype != torch.int64:
        raise CheckpointError(f"{run}: the memory bank does not say where its patches come from: train again")
    return detector


def train_images_of(about: dict[str, Any], run: Path) -> list[str]:
    """Paths of the training images, by index, as the checkpoint's description names them.

    Raises:
        CheckpointError: it names none.
    """
    if not about["train_images"]:
        raise CheckpointError(f"{run} does not name its training images: train again")
    return list(about["train_images"])


def find_matches(model: "AnomalyModel", detector: "PatchCore", image: "Tensor", names: list[str]) -> list["Match"]:
    """Every patch of a preprocessed image (3, H, W), row by row, with its nearest normal patch.

    Raises:
        CheckpointError: the memory bank comes from an image that the checkpoint does not name.
    """
    import torch

    from oddpatch.figures.explanation import Match

    with torch.inference_mode():
        distances, source = detector.nearest_normal(model.backbone(image[None]))  # (1, h, w), (1, h, w, 2)
    grid = (distances.shape[1], distances.shape[2])
    size = (image.shape[1], image.shape[2])
    rows = source.flatten(0, 2).tolist()
    for index in (min(rows)[0], max(rows)[0]):
        if not 0 <= index < len(names):
            raise CheckpointError(
                f"the memory bank holds patches of training image {index}, but the checkpoint names only {len(names)} "
                "images: train again"
            )
    return [
        Match(patch_box(place, grid, size), patch_box(there, grid, size), names[index], distance)
        for place, (distance, (index, there)) in enumerate(zip(distances.flatten().tolist(), rows, strict=True))
    ]


def patch_box(place: int, grid: tuple[int, int], size: tuple[int, int]) -> Any:
    """Pixels of the patch at a position, counted row by row, of a grid (h, w) over an image of size (H, W)."""
    from oddpatch.figures.explanation import Box

    height, width = size[0] / grid[0], size[1] / grid[1]
    return Box(place % grid[1] * width, place // grid[1] * height, width, height)


def most_anomalous(matches: list["Match"], count: int, apart: float) -> list["Match"]:
    """The `count` farthest patches, none of them less than `apart` pixels, in both directions, from a farther one."""
    chosen: list[Match] = []
    for match in sorted(matches, key=lambda match: -match.distance):
        across = [(abs(match.patch.left - c.patch.left), abs(match.patch.top - c.patch.top)) for c in chosen]
        if len(chosen) < count and all(max(pair) >= apart for pair in across):
            chosen.append(match)
    return chosen


def _pictures(model: "AnomalyModel", root: Path) -> "Callable[[str], NDArray[np.uint8] | None]":

    @lru_cache(maxsize=256)
    def picture(name: str) -> "NDArray[np.uint8] | None":
        path = root / name
        return _to_uint8(model, model.preprocess.load(path)) if path.is_file() else None

    return picture


def _to_uint8(model: "AnomalyModel", image: "Tensor") -> "NDArray[np.uint8]":
    """(H, W, 3) for showing, of a preprocessed image (3, H, W)."""
    return (model.preprocess.to_image(image).permute(1, 2, 0) * 255).round().byte().numpy()
