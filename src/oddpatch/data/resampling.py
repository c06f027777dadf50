"""Antialiased resizing as matrix products in NumPy: the sums of Pillow's and torchvision's filters, in floating point.

The filter is a triangle ("bilinear") or a cubic, as wide as the step where the image shrinks.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.geometry import Geometry

Floats = NDArray[np.float32]
#: Multiplications of one product at most: for so few OpenBLAS starts no threads, and what they need stays in the cache.
_PRODUCT = 2**18
#: Positions of one product. From 8 on, some of OpenBLAS's kernels (Haswell's, which most of AMD's processors use, too)
#: take sums in another order for other numbers of rows; and more have more zeros among their weights.
_BLOCK = 4
#: Values that the first pass gives at a time: of a large image all of them would be another copy of it, in floats.
_BAND = 2**20


class Axis(NamedTuple):
    """How one axis is resized, and which part of it is wanted."""

    size_in: int
    size_out: int
    first: int  # of the positions wanted,
    last: int  # and the one after them


class _Product(NamedTuple):
    """Some of the positions wanted, and the rows that they are made of."""

    wanted: slice
    rows: slice  # from the first that is used
    weights: Floats  # (rows, wanted), each column 1 in sum


class _Products(NamedTuple):
    """All of the positions wanted, and the rows that are used for them."""

    used: slice
    parts: list[_Product]


def framed(image: NDArray[Any], place: Geometry, interpolation: str) -> Floats:
    """Resize an image and lay it into its frame, mirrored where that shows more.

    Args:
        image: (3, H, W) floating point, or uint8, whose values are divided by 255; channels last is fastest.
        place: where it comes to lie.
        interpolation: "bilinear" or "bicubic".

    Returns:
        (3, h, w).
    """
    rows, columns = (
        Axis(size, resized, part.start + offset, part.stop + offset)
        for size, resized, part, offset in zip(image.shape[1:], place.resized, place.inside, place.offset, strict=True)
    )
    resized = resample(image, rows, columns, interpolation)
    if interpolation == "bicubic":
        np.clip(resized, 0, 1, out=resized)  # as Pillow does
    if place.padded:  # so that padding looks like the part itself wherever it goes on as it ends
        above, left = (_mirrored(part, size) for part, size in zip(place.inside, place.size, strict=True))
        resized = resized[:, above[:, None], left]
    return resized


def resample(image: NDArray[Any], rows: Axis, columns: Axis, interpolation: str) -> Floats:
    """Resize an image (3, H, W), see `framed`, and cut a part out: (3, h, w), the same sums as
    `F.interpolate(..., antialias=True)` of the whole, to the last bit whatever the part, of two positions or more."""
    planes = image[:1] if image.strides[0] == 0 else image  # of grey there is one
    count, _, width = planes.shape
    if rows.size_in == rows.size_out and columns.size_in == columns.size_out:
        cut = planes[:, rows.first : rows.last, columns.first : columns.last]
        resized = _to_unit(np.array(cut, order="C"))
    else:
        down, across = _products(rows, interpolation), _products(columns, interpolation)
        flat = planes[:, down.used].transpose(1, 2, 0).reshape(-1, width * count)  # a view, of channels last
        flat = flat[:, across.used.start * count : across.used.stop * count]
        resized = np.empty((count, rows.last - rows.first, columns.last - columns.first), np.float32)
        step = max(_BAND // flat.shape[1] // down.parts[0].weights.shape[1], 1)
        for start in range(0, len(down.parts), step):
            parts = down.parts[start : start + step]
            band = slice(parts[0].wanted.start, parts[-1].wanted.stop)
            # Each pass turns what it gives, so that nothing has to be turned for the other.
            moved = _resize_first(flat, parts).reshape(-1, count * (band.stop - band.start))  # (part of W, C * band)
            resized[:, band] = _resize_first(moved, across.parts).reshape(count, -1, resized.shape[2])
    return resized if count == len(image) else resized.repeat(len(image), axis=0)


def _resize_first(array: NDArray[Any], products: list[_Product]) -> Floats:
    """Resize the first axis of (size_in, m) to the n positions of some products, and make it the last: (m, n)."""
    first = products[0].wanted.start
    out = np.empty((array.shape[1], products[-1].wanted.stop - first), np.float32)
    for wanted, rows, weights in products:
        step = max(_PRODUCT // weights.size, 16)
        for start in range(0, len(out), step):
            part = slice(start, start + step)
            given = _to_unit(array[rows, part]).T
            np.matmul(given, weights, out=out[part, wanted.start - first : wanted.stop - first])
    return out


def _to_unit(pixels: NDArray[Any]) -> Floats:
    """Floats in [0, 1] of some pixels, of which there are few: all at once they would leave the cache."""
    floats = pixels.astype(np.float32, copy=False)
    if pixels.dtype == np.uint8:
        floats /= 255
    return floats


@lru_cache(maxsize=64)
def _products(axis: Axis, interpolation: str) -> _Products:
    """Of the positions wanted; "bilinear" or "bicubic"."""
    step = axis.size_in / axis.size_out
    stretch = max(step, 1.0)
    radius = stretch * (1 if interpolation == "bilinear" else 2)
    centre = step * (np.arange(axis.first, axis.last) + 0.5)  # (n,)
    begin = np.maximum((centre - radius + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + radius + 0.5).astype(np.int64), axis.size_in)
    parts = []
    for stop in range(_BLOCK, len(centre) + _BLOCK, _BLOCK):
        stop = min(stop, len(centre))
        # The last are as many, though some were given before: the sums of one alone are taken in another order.
        wanted = slice(max(stop - _BLOCK, 0), stop)
        row = np.arange(begin[wanted][0], end[wanted][-1])[:, None]  # both rise
        weights = (_triangle if interpolation == "bilinear" else _cubic)(np.abs(row + 0.5 - centre[wanted]) / stretch)
        weights = np.where((row >= begin[wanted]) & (row < end[wanted]), weights, 0)
        weights /= weights.sum(axis=0)
        rows = slice(int(row[0, 0] - begin[0]), int(row[-1, 0] + 1 - begin[0]))
        parts.append(_Product(wanted, rows, weights.astype(np.float32)))
    return _Products(slice(int(begin[0]), int(end[-1])), parts)


def _triangle(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1 - distance, 0)


def _cubic(distance: NDArray[np.float64], a: float = -0.5) -> NDArray[np.float64]:
    """Keys' cubic convolution (1981) with the parameter that Pillow has."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.select([distance < 1, distance < 2], [near, far], 0.0)


def _mirrored(part: slice, size: int) -> NDArray[np.int64]:
    """Of the positions of an axis that show `part` of an image in a frame of `size`, the one that each shows.

    Counted from the beginning of `part`; where the image ends it is mirrored.
    """
    length = part.stop - part.start
    position = (np.arange(size) - part.start) % (2 * length)
    return np.where(position < length, position, 2 * length - 1 - position)
