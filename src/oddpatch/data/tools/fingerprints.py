"""What one image looks like in a few numbers, and which images are nearly the same.

A difference hash keeps whether brightness rises or falls between neighbours of a coarse grid: re-encoding, scaling
and exposure leave nearly all of its bits alone. Photographs of one part in one fixture share many bits too, so the
hash only proposes pairs; small pictures of both decide.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from oddpatch.data.decoding import read_image
from oddpatch.data.tools.pool import run_many
from oddpatch.data.tools.writing import Progress
from oddpatch.errors import DataError

HASH_SIDE = 16  # HASH_SIDE ** 2 bits
THUMBNAIL = 32  # pixels a side


@dataclass(frozen=True)
class Fingerprint:
    """An image, or why it cannot be read."""

    error: str = ""
    size: tuple[int, int] = (0, 0)  # height, width
    mode: str = ""  # grey, colour
    pixels: str = ""  # hash of the decoded pixels
    bits: NDArray[np.bool_] | None = None  # (HASH_SIDE ** 2,)
    thumbnail: NDArray[np.float32] | None = None  # (THUMBNAIL, THUMBNAIL) grey, 0..1
    mean: float = 0.0


def fingerprint(path: Path) -> Fingerprint:
    """Decode one image as training does and describe it."""
    try:
        image = read_image(path)  # (3, H, W)
    except DataError as error:
        return Fingerprint(error=str(error))
    array = image.permute(1, 2, 0).numpy()  # (H, W, 3)
    same = bool((array[..., 0] == array[..., 1]).all() and (array[..., 0] == array[..., 2]).all())
    grey = np.ascontiguousarray(array[..., 0] if same else array.mean(axis=-1))  # (H, W)
    digest = hashlib.blake2b(np.ascontiguousarray(array[..., :1] if same else array).data, digest_size=16)
    digest.update(repr(array.shape).encode())
    coarse = cv2.resize(grey, (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA)
    thumbnail = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).astype(np.float32)
    bits = np.diff(coarse, axis=1) > 0  # (HASH_SIDE, HASH_SIDE)
    size = (array.shape[0], array.shape[1])
    kind = "grey" if same else "colour"
    return Fingerprint("", size, kind, digest.hexdigest(), bits.ravel(), thumbnail, float(grey.mean()))


def fingerprints(
    paths: Sequence[Path], workers: int | None = None, progress: Progress | None = None
) -> list[Fingerprint]:
    """Describe many images, in order, in several processes where that pays."""
    return run_many(fingerprint, paths, workers, progress)


def near_pairs(
    first: Sequence[Fingerprint], second: Sequence[Fingerprint], hamming: int = 40, difference: float = 0.008
) -> list[tuple[int, int, int]]:
    """Pairs of nearly the same picture between two lists.

    Args:
        hamming: largest number of the 256 bits of the hash that may differ.
        difference: largest root mean square difference of the thumbnails, after their mean is taken off, as a share
            of the full scale.

    Returns:
        (position in `first`, position in `second`, Hamming distance), nearest first.
    """
    if not first or not second:
        return []
    a, b = _signs(first), _signs(second)  # (M, K), (N, K) of -1 and 1
    u, v = _contrasts(first), _contrasts(second)  # (M, S * S), (N, S * S)
    squares = (v**2).sum(axis=1)
    pairs: list[tuple[int, int, int]] = []
    for start in range(0, len(a), 1024):  # blocks bound the memory: 1024 x N
        rows = slice(start, start + 1024)
        distance = (a.shape[1] - a[rows] @ b.T) / 2  # (block, N); exact, as all terms are small integers
        squared = (u[rows] ** 2).sum(axis=1)[:, None] + squares - 2 * u[rows] @ v.T  # (block, N)
        close = (distance <= hamming) & (squared <= difference**2 * u.shape[1])
        pairs += [(int(start + i), int(j), int(distance[i, j])) for i, j in np.argwhere(close)]
    return sorted(pairs, key=lambda pair: (pair[2], pair[0], pair[1]))


def _signs(items: Sequence[Fingerprint]) -> NDArray[np.float32]:
    return np.stack([item.bits for item in items if item.bits is not None]).astype(np.float32) * 2 - 1


def _contrasts(items: Sequence[Fingerprint]) -> NDArray[np.float32]:
    rows = np.stack([item.thumbnail.ravel() for item in items if item.thumbnail is not None])  # (N, S * S)
    return np.asarray(rows - rows.mean(axis=1, keepdims=True))


def robust_z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from the median in units of the standard deviation that the median absolute deviation stands for."""
    centred = values - np.median(values)
    spread = 1.4826 * np.median(np.abs(centred))  # of a normal distribution
    return np.asarray(centred / max(spread, 1e-12 + 1e-3 * abs(float(np.median(values)))))


def oddness(thumbnails: NDArray[np.float32], components: int = 8) -> NDArray[np.float64]:
    """How far each thumbnail (N, S, S) lies from what the others have in common.

    The residual norm after the leading principal components, each image being left out of the components it is
    measured against in one of five parts: otherwise a single odd image makes a component of its own.

    Returns:
        (N,) robust z-scores of the logarithm of the residual.
    """
    rows = thumbnails.reshape(len(thumbnails), -1).astype(np.float64)  # (N, S * S)
    rows = rows - rows.mean(axis=1, keepdims=True)  # brightness is looked at on its own
    folds = np.arange(len(rows)) % 5
    residual = np.zeros(len(rows))
    for fold in range(5):
        others, own = rows[folds != fold], folds == fold
        centre = np.median(others, axis=0)
        kept = min(components, max(len(others) // 10, 1))
        axes = np.linalg.svd(others - centre, full_matrices=False)[2][:kept]  # (kept, S * S)
        centred = rows[own] - centre
        residual[own] = np.linalg.norm(centred - centred @ axes.T @ axes, axis=1)
    return robust_z(np.log(residual + 1e-6))
