"""Which normal patches the patches of an image are nearest to: what `oddpatch explain` and the report show."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oddpatch.data.decoding import to_uint8
from oddpatch.data.transforms import Placement, Preprocess
from oddpatch.errors import CheckpointError, ConfigError
from oddpatch.factory import restore
from oddpatch.figures.explanation import draw_explanation, write_animation
from oddpatch.models.anomaly_model import AnomalyModel
from oddpatch.models.patchcore import PatchCore
from oddpatch.results.examples import Box, Match


class Explanation(NamedTuple):
    """What `explain` has drawn."""

    matches: list[Match]  # those shown, the most anomalous first, or all of them row by row
    absent: list[str]  # training images among them that are not below `root`, sorted
    root: Path  # folder of the categories
    picture: Path  # the file written


def explain(
    run: Path,
    image: Path,
    out: Path | None = None,
    top: int = 3,
    animate: bool = False,
    root: Path | None = None,
    trust: Sequence[str] = (),
    patch: tuple[int, int] | None = None,
) -> Explanation:
    """Draw an image's most anomalous patches, each beside the nearest normal patch and the image that it comes from.

    With `patch`, draw this one beside each of the normal patches that are nearest to it.

    >>> explain(Path("housing"), Path("part.png")).picture
    PosixPath('part-explained.png')

    Args:
        run: folder of a finished run of PatchCore.
        image: file to explain.
        out: picture to write; None for `IMAGE-explained.png` or `.gif` in the current folder.
        top: how many patches to draw, none beside another; with `patch` how many normal ones, the nearest first.
        animate: write a GIF of every patch in turn instead.
        root: where the folder of the categories is now, if it was moved.
        trust: see `oddpatch.factory.restore`.
        patch: x and y of a pixel of the file, counted from 0 at its upper left, that the patch to explain covers.

    Raises:
        ConfigError: `top` is below 1, the run is of another method, or nothing is inspected at `patch`.
        CheckpointError: the run cannot be read, or does not say where its patches come from.
        DataError: the image cannot be read.
        ResourceError: the picture cannot be written.
    """
    if top < 1:
        raise ConfigError(f"--top={top}: choose at least 1")
    if animate and patch is not None:
        raise ConfigError("--gif shows every patch and --patch one: leave one of them out")
    model, detector, about = restore_memory_bank(run, trust, "explain")
    preprocess = model.preprocess
    preprocessed, placement = preprocess.prepare(image)  # (3, H, W)
    names = about["train_images"]
    if patch is not None:
        pixel = pixel_of(patch, preprocess, placement)
        matches = nearest_to(pixel, model, detector, preprocessed, names, top)
    else:
        matches = find_matches(model, detector, preprocessed, names)
    if not animate and patch is None:
        matches = most_anomalous(matches, top, detector.patch_size * matches[0].patch.width)
    root = root or Path(about["config"]["data"]["root"])

    @lru_cache(maxsize=256)
    def picture(name: str) -> NDArray[np.uint8] | None:
        path = root / name
        return to_uint8(preprocess.to_image(preprocess.load(path))) if path.is_file() else None

    out = out or Path(f"{image.stem}-explained{'.gif' if animate else '.png'}")
    shown = to_uint8(preprocess.to_image(preprocessed))
    if animate:
        write_animation(out, shown, matches, picture)
    else:
        draw_explanation(shown, image.name, matches, picture).save(out)
    absent = sorted({match.train_image for match in matches if picture(match.train_image) is None})
    return Explanation(matches, absent, root, out)


def restore_memory_bank(
    run: Path, trust: Sequence[str], command: str
) -> tuple[AnomalyModel, PatchCore, dict[str, Any]]:
    """A run that keeps a memory bank of patches: its model, the detector of that, and the checkpoint's description.

    Raises:
        ConfigError: it is of another method.
        CheckpointError: it cannot be read, or does not say which image each patch comes from.
    """
    model, about = restore(run, trust)
    detector = model.detector
    if not isinstance(detector, PatchCore):
        method = type(detector).__name__
        raise ConfigError(
            f"{run} was fitted with {method}, which keeps no memory bank of patches: {command} takes a run of PatchCore"
        )
    if detector.source.shape != (len(detector.memory_bank), 2) or detector.source.dtype != torch.int64:
        raise CheckpointError(f"{run}: the memory bank does not say where its patches come from: train again")
    if about["config"]["data"].get("views"):
        raise ConfigError(
            f"{run} was fitted to altered views too, which {command} cannot show or add: train with data.views=null"
        )
    if not about["train_images"]:
        raise CheckpointError(f"{run} does not name its training images: train again")
    return model, detector, about


@torch.inference_mode()
def find_matches(model: AnomalyModel, detector: PatchCore, image: Tensor, names: list[str]) -> list[Match]:
    """Every patch of a preprocessed image (3, H, W), row by row, with its nearest normal patch.

    Args:
        model: whose backbone embeds the image.
        detector: its detector.
        image: on the model's device.
        names: paths of the training images, by index.

    Raises:
        CheckpointError: the memory bank comes from an image that the checkpoint does not name.
    """
    distances, source = detector.nearest_normal(model.features(image[None]))  # (1, h, w), (1, h, w, 2)
    grid = (distances.shape[1], distances.shape[2])
    return _matches(range(distances.numel()), distances.flatten(), source.flatten(0, 2), grid, image, names)


@torch.inference_mode()
def nearest_to(
    pixel: tuple[float, float], model: AnomalyModel, detector: PatchCore, image: Tensor, names: list[str], count: int
) -> list[Match]:
    """The patch that covers a pixel (x, y) of a preprocessed image (3, H, W), with each of its nearest normal patches.

    Args:
        pixel: counted from the image's corner.
        count: how many, nearest first; fewer where the memory bank holds fewer.
        model, detector, image, names: see `find_matches`, which raises the same.
    """
    embeddings = detector.embed(model.features(image[None]))  # (1, h, w, D)
    grid = (embeddings.shape[1], embeddings.shape[2])
    column, row = (
        min(int(at * cells / side), cells - 1)
        for at, cells, side in zip(pixel, grid[::-1], (image.shape[2], image.shape[1]), strict=True)
    )
    distances, found = detector.index.search(
        embeddings[:, row, column], min(count, len(detector.memory_bank))
    )  # (1, k)
    places = [row * grid[1] + column] * found.numel()
    return _matches(places, distances[0], detector.source[found[0]], grid, image, names)


def pixel_of(pixel: tuple[int, int], preprocess: Preprocess, placement: Placement) -> tuple[float, float]:
    """Where the middle of a pixel (x, y) of the file lies on the preprocessed image, counted from its corner.

    Raises:
        ConfigError: it is not in the file, or in no part of it that is inspected.
    """
    (height, width), registration = placement.size, placement.registration
    x, y = pixel
    if not (0 <= x < width and 0 <= y < height):
        raise ConfigError(
            f"--patch={x},{y}: the image has {width}x{height} pixels: choose 0,0 to {width - 1},{height - 1}"
        )
    rows, columns = preprocess.image_size
    ramps = np.mgrid[:rows, :columns].astype(np.float32) + np.float32(0.5)  # (2, h, w)
    down, across = (
        float(preprocess.to_original(ramp, (height, width), registration=registration)[y, x]) for ramp in ramps
    )
    region = preprocess.roi_mask  # (1, h, w)
    if math.isnan(down + across) or (region is not None and not region[0, int(down), int(across)]):
        raise ConfigError(f"--patch={x},{y}: the run inspects nothing there: choose a pixel inside its crop and region")
    return across, down


def _matches(
    places: Sequence[int], distances: Tensor, source: Tensor, grid: tuple[int, int], image: Tensor, names: list[str]
) -> list[Match]:
    """Of patches at places of a grid (h, w), distances (n,) and sources (n, 2)."""
    size = (image.shape[1], image.shape[2])
    rows = source.tolist()
    for index in (min(rows)[0], max(rows)[0]):
        if not 0 <= index < len(names):
            raise CheckpointError(
                f"the memory bank holds patches of training image {index}, but the checkpoint names only {len(names)} "
                "images: train again"
            )
    return [
        Match(patch_box(place, grid, size), patch_box(there, grid, size), names[index], distance)
        for place, distance, (index, there) in zip(places, distances.tolist(), rows, strict=True)
    ]


def patch_box(place: int, grid: tuple[int, int], size: tuple[int, int]) -> Box:
    """Pixels of the patch at a position, counted row by row, of a grid (h, w) over an image of size (H, W)."""
    height, width = size[0] / grid[0], size[1] / grid[1]
    return Box(place % grid[1] * width, place // grid[1] * height, width, height)


def most_anomalous(matches: list[Match], count: int, apart: float) -> list[Match]:
    """The `count` farthest patches, none of them less than `apart` pixels, in both directions, from a farther one."""
    chosen: list[Match] = []
    for match in sorted(matches, key=lambda match: -match.distance):
        across = [(abs(match.patch.left - c.patch.left), abs(match.patch.top - c.patch.top)) for c in chosen]
        if len(chosen) < count and all(max(pair) >= apart for pair in across):
            chosen.append(match)
    return chosen
