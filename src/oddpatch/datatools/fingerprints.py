"""What one image looks like in a few numbers, and which images are nearly the same."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from oddpatch.data.decoding import read_image
from oddpatch.errors import DataError

THUMBNAIL = 32  # pixels a side
_SAMPLE = 500  # images whose nearest neighbours tell how far apart images lie


@dataclass(frozen=True)
class Fingerprint:
    """An image, or why it cannot be read."""

    error: str = ""
    size: tuple[int, int] = (0, 0)  # height, width
    mode: str = ""  # grey, colour
    pixels: str = ""  # hash of the decoded pixels
    thumbnail: NDArray[np.float32] | None = None  # (THUMBNAIL, THUMBNAIL) grey, 0..1
    mean: float = 0.0
    colour: tuple[float, float, float] = (0.0, 0.0, 0.0)  # mean of each channel, 0..1
    focus: float = 0.0  # standard deviation of the Laplacian, as a multiple of the grey values'


def fingerprint(path: Path, full_scale: int | None = None) -> Fingerprint:
    """Decode one image as training does and describe it; `full_scale` as in `read_image`."""
    try:
        image = read_image(path, full_scale)  # (3, H, W)
    except DataError as error:
        return Fingerprint(error=str(error))
    array = image.permute(1, 2, 0).numpy()  # (H, W, 3)
    same = bool((array[..., 0] == array[..., 1]).all() and (array[..., 0] == array[..., 2]).all())
    grey = np.ascontiguousarray(array[..., 0] if same else array.mean(axis=-1))  # (H, W)
    digest = hashlib.blake2b(np.ascontiguousarray(array[..., :1] if same else array).data, digest_size=16)
    digest.update(repr(array.shape).encode())
    thumbnail = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).astype(np.float32)
    mean, contrast = (value.item() for value in cv2.meanStdDev(grey))
    focus = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_32F))[1].item() / max(contrast, 1e-6)
    size = (array.shape[0], array.shape[1])
    kind = "grey" if same else "colour"
    r, g, b, _ = cv2.mean(array)
    return Fingerprint("", size, kind, digest.hexdigest(), thumbnail, mean, (r, g, b), focus)


def distances(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """How far each of the thumbnails `second` (N, S, S) lies from each of `first` (M, S, S).

    What is left of the second after it is fitted by brightness, contrast and small shifts of the first, as a share of
    its own contrast: a tangent distance (Simard et al., 1993). Re-encoding, exposure and a few pixels of
    shift leave next to nothing, however dark the images are.

    Returns:
        (M, N) in [0, 1]; infinite where the second is of one value throughout.
    """
    others = _smooth(second)[:, ::2, ::2].reshape(len(second), -1)  # (N, P); every other pixel says it all
    others = others - others.mean(axis=1, keepdims=True)
    contrast = np.linalg.norm(others, axis=1)  # (N,)
    flat = contrast < 1e-6
    others = others / np.where(flat, 1, contrast)[:, None]
    found = np.empty((len(first), len(second)))
    for start in range(0, len(first), 256):  # blocks bound the memory: 1024 x N
        own = _smooth(first[start : start + 256])  # (B, S, S)
        vertical, horizontal = np.gradient(own, axis=(1, 2))
        span = np.stack([np.ones_like(own), own, vertical, horizontal], axis=-1)  # (B, S, S, 4)
        basis = np.linalg.qr(span[:, ::2, ::2].reshape(len(own), -1, 4))[0]  # (B, P, 4)
        fitted = np.square(basis.mT @ others.T).sum(axis=1)  # (B, N)
        found[start : start + 256] = np.sqrt(np.clip(1 - fitted, 0, 1))
    found[:, flat] = np.inf
    return found


def spacing(thumbnails: NDArray[np.float32]) -> float:
    """Median distance of a thumbnail (N, S, S) to its nearest neighbour among the others; infinite for N < 2.

    Of more than 500 images, evenly spread ones are measured against all.
    """
    if len(thumbnails) < 2:
        return np.inf
    rows = np.arange(0, len(thumbnails), -(-len(thumbnails) // _SAMPLE))
    found = distances(thumbnails[rows], thumbnails)  # (R, N)
    found[np.arange(len(rows)), rows] = np.inf
    return float(np.median(found.min(axis=1)))


def near_pairs(first: NDArray[np.float32], second: NDArray[np.float32], limit: float) -> list[tuple[int, int, float]]:
    """Pairs of thumbnails (M, S, S) and (N, S, S) at a distance of at most `limit`.

    Returns:
        (position in `first`, position in `second`, distance), nearest first.
    """
    pairs: list[tuple[int, int, float]] = []
    for start in range(0, len(first) if len(second) else 0, 1024):  # blocks bound the memory: 1024 x N
        found = distances(first[start : start + 1024], second)
        pairs += [(int(start + i), int(j), float(found[i, j])) for i, j in np.argwhere(found <= limit)]
    return sorted(pairs, key=lambda pair: (pair[2], pair[0], pair[1]))


def _smooth(thumbnails: NDArray[np.float32]) -> NDArray[np.float64]:
    # A shift by part of a pixel is linear in the gradient only if there are no edges sharper than a pixel.
    smooth = [cv2.GaussianBlur(image, (0, 0), 1, borderType=cv2.BORDER_REFLECT) for image in thumbnails]
    return np.stack(smooth).astype(np.float64)


def robust_z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from the median in units of a standard deviation that outliers do not widen.

    It is estimated from the median absolute deviation; where that is 0, as more than half of the values are equal,
    from the mean absolute deviation (Iglewicz and Hoaglin, 1993). 0 everywhere if all values are equal.
    """
    centre = float(np.median(values))
    deviations = np.abs(values - centre)
    spread = 1.4826 * np.median(deviations) or 1.2533 * deviations.mean()  # of a normal distribution
    spread = max(spread, 1e-3 * abs(centre))  # rounding is no spread
    return np.asarray((values - centre) / spread if spread else np.zeros_like(values))


def oddness(thumbnails: NDArray[np.float32], components: int = 8) -> NDArray[np.float64]:
    """How far each thumbnail (N, S, S) lies from what the others have in common.

    The residual norm after the leading principal components, each image being left out of the components it is
    measured against in one of five parts: otherwise a single anomalous image makes a component of its own.

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
