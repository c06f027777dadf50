"""Anomaly maps laid on the images that they belong to, in NumPy: the same with torch as without."""

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.alignment import Alignment, Registration
from oddpatch.data.geometry import Frame, Geometry, Size
from oddpatch.errors import DataError

Floats = NDArray[np.float32]
#: Rows of the image that are laid at a time, which stay in the cache: all at once they take three times as long.
_ROWS = 32


def to_original(
    anomaly_map: Floats,
    frame: Frame,
    original_size: Size,
    fill: float,
    alignment: Alignment | None,
    registration: Registration | None,
) -> Floats:
    """Lay the map of a preprocessed image on its original.

    Args:
        anomaly_map: (h, w).
        frame: of the preprocessing.
        original_size: (H, W) of the original image.
        fill: value of pixels that the frame left out, or that lie outside the reference of `alignment`.
        alignment: of the preprocessing.
        registration: what `alignment` found for the image; needed if there is one.

    Returns:
        (H, W), sampled bilinearly.

    Raises:
        DataError: the registration is missing, or the image is smaller than the crop.
    """
    if alignment and registration is None:
        raise DataError("images are aligned, so where this one lies must be given: pass registration=register(image)")
    framed = alignment.size if alignment else original_size
    place = frame.place(framed)
    scale = [resized / side for resized, side in zip(place.resized, framed, strict=True)]
    laid = np.full(original_size, fill, np.float32)
    if registration is None:
        _lay_straight(anomaly_map, place, scale, laid)
    else:
        _lay_projected(anomaly_map, place, scale, registration.matrix, laid)
    return laid


def _lay_straight(anomaly_map: Floats, place: Geometry, scale: list[float], laid: Floats) -> None:
    """One axis after the other: along the columns there are only the rows of the map."""
    shown, axes = [], []
    for side in range(2):
        position = (np.arange(laid.shape[side], dtype=np.float64) + 0.5) * scale[side] - place.offset[side]
        part = place.inside[side]
        (found,) = np.nonzero((position >= part.start) & (position <= part.stop))
        shown.append(found)
        axes.append(_neighbours(position[found], place.size[side]))
    if not all(len(found) for found in shown):
        return  # the frame lies between the centres of two pixels
    (above, below, down), (left, right, across) = axes
    columns = slice(shown[1][0], shown[1][-1] + 1)
    for start in range(0, len(above), _ROWS):
        part = slice(start, start + _ROWS)
        rows = laid[shown[0][part][0] : shown[0][part][-1] + 1, columns]
        first = above[start]
        of_map = anomaly_map[first : below[part][-1] + 1]  # positions rise
        # `take` leaves rows contiguous, which an index array does not.
        moved = _between(of_map.take(left, axis=1), of_map.take(right, axis=1), across)
        step = np.diff(moved, axis=0, append=moved[-1:])  # to the row below
        np.multiply(step[above[part] - first], down[part, None], out=rows)
        rows += moved[above[part] - first]


def _lay_projected(
    anomaly_map: Floats, place: Geometry, scale: list[float], matrix: NDArray[np.float64], laid: Floats
) -> None:
    """Pixels of the image where `matrix` puts them on the reference."""
    flat, width = anomaly_map.ravel(), anomaly_map.shape[1]
    x = np.arange(laid.shape[1], dtype=np.float64)
    for start in range(0, len(laid), _ROWS):
        rows = laid[start : start + _ROWS]
        y = np.arange(start, start + len(rows), dtype=np.float64)
        # Of a projection each term depends on the row or the column alone.
        x_on, y_on, depth = (row[0] * x + (row[1] * y + row[2])[:, None] for row in matrix)
        inside, axes = np.True_, []
        for side, centre in enumerate((y_on, x_on)):
            position = (centre / depth + 0.5) * scale[side] - place.offset[side]
            part = place.inside[side]
            inside = inside & (position >= part.start) & (position <= part.stop)
            axes.append(_neighbours(position, place.size[side]))
        (above, below, down), (left, right, across) = axes
        upper, lower = (_between(flat[row + left], flat[row + right], across) for row in (above * width, below * width))
        np.copyto(rows, _between(upper, lower, down), where=inside)


def _neighbours(position: NDArray[np.float64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Of positions along an axis of the map, counted from its edge: the pixels before and after each, and how far it is
    from the centre of the one to that of the other."""
    position = (position - 0.5).clip(0, size - 1)
    before = position.astype(np.int64)
    return before, np.minimum(before + 1, size - 1), np.asarray(position - before, np.float32)


def _between(first: Floats, second: Floats, share: Floats) -> Floats:
    """`first` plus a share of the way to `second`, which is overwritten."""
    second -= first
    second *= share
    second += first
    return second
