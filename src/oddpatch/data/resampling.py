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
#: Positions of one product. More have more zeros among their weights, fewer leave OpenBLAS less to do at a time.
_POSITIONS = 4
#: What the values beside them are a multiple of. For all of a block, OpenBLAS takes the same sums in the same order
#: whatever lies beside it; for the rest of one, some kernels take another (Haswell's, which most of AMD's processors
#: use, too).
_LANES = 16
#: Values that the first pass gives at a time: of a large image all of them would be another copy of it, in floats, and
#: malloc takes memory for more of them from the system, page by page, each time.
_BAND = 2**18


class Axis(NamedTuple):
    """How one axis is resized, and which part of it is wanted."""

    size_in: int
    size_out: int
    first: int  # of the positions wanted,
    last: int  # and the one after them


class _Product(NamedTuple):
    """Some of the positions wanted, as sums of rows."""

    rows: slice  # from the first that is used for any product
    weights: Floats  # (_POSITIONS, rows), each 1 in sum; zeros beyond the axis


class _Products(NamedTuple):
    """All of the positions wanted, one after the other."""

    used: slice  # rows
    skip: int  # positions of the first product that are not wanted
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
    `F.interpolate(..., antialias=True)` of the whole, to the last bit whatever the part."""
    planes = image[:1] if image.strides[0] == 0 else image  # of grey there is one
    count, _, width = planes.shape
    size = rows.last - rows.first, columns.last - columns.first
    if rows.size_in == rows.size_out and columns.size_in == columns.size_out:
        cut = planes[:, rows.first : rows.last, columns.first : columns.last]
        resized = np.array(cut, np.float32, order="C")
    else:
        import cv2  # slow to import

        down, across = _products(rows, interpolation), _products(columns, interpolation)
        flat = planes[:, down.used].transpose(1, 2, 0).reshape(-1, width * count)  # a view, of channels last
        flat = flat[:, across.used.start * count : across.used.stop * count]
        resized = np.empty((count, *size), np.float32)
        step = _LANES // _POSITIONS * max(_BAND // (_LANES * flat.shape[1]), 1)
        for start in range(0, len(down.parts), step):
            first = start * _POSITIONS - down.skip
            lines = _resize_rows(flat, down.parts[start : start + step])[max(-first, 0) : size[0] - first]
            turned = cv2.transpose(lines).reshape(-1, count * len(lines))  # (part of W, C * band)
            found = _resize_rows(turned, across.parts)[across.skip : across.skip + size[1]]  # (w, C * band)
            band = slice(max(first, 0), max(first, 0) + len(lines))
            resized[:, band] = found.T.reshape(count, len(lines), size[1])
    if image.dtype == np.uint8:
        resized /= 255
    return resized if count == len(image) else resized.repeat(len(image), axis=0)


def _resize_rows(array: NDArray[Any], products: list[_Product]) -> Floats:
    """Resize the first axis of (size_in, m) to the positions of some products: (n, m)."""
    longest, beside = max(product.weights.shape[1] for product in products), array.shape[1]
    padded = -(-beside // _LANES) * _LANES
    step = max(_PRODUCT // (longest * _POSITIONS) // _LANES, 1) * _LANES
    out = np.empty((len(products), _POSITIONS, padded), np.float32)
    ready = array.dtype == np.float32 and padded == beside
    given = np.zeros((0 if ready else longest, min(step, padded)), np.float32)
    for start in range(0, padded, step):
        part = slice(start, min(start + step, padded))
        for (rows, weights), positions in zip(products, out, strict=True):
            if ready:
                some = array[rows, part]
            else:
                some = given[: weights.shape[1], : part.stop - start]
                some[:, : beside - start] = array[rows, part]
            np.matmul(weights, some, out=positions[:, part])
    return out.reshape(-1, padded)[:, :beside]


@lru_cache(maxsize=64)
def _products(axis: Axis, interpolation: str) -> _Products:
    """Of the positions wanted; "bilinear" or "bicubic".

    Each product has the positions that it has of the whole axis, so that sums are the same for any part of it.
    """
    step = axis.size_in / axis.size_out
    stretch = max(step, 1.0)
    radius = stretch * (1 if interpolation == "bilinear" else 2)
    skip = axis.first % _POSITIONS
    last = min(-(-axis.last // _POSITIONS) * _POSITIONS, axis.size_out)
    centre = step * (np.arange(axis.first - skip, last) + 0.5)  # (n,)
    begin = np.maximum((centre - radius + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + radius + 0.5).astype(np.int64), axis.size_in)
    parts = []
    for start in range(0, len(centre), _POSITIONS):
        wanted = slice(start, start + _POSITIONS)
        row = np.arange(begin[wanted][0], end[wanted][-1])  # both rise
        distance = np.abs(row + 0.5 - centre[wanted, None]) / stretch
        weights = _triangle(distance) if interpolation == "bilinear" else _cubic(distance)
        weights = np.where((row >= begin[wanted, None]) & (row < end[wanted, None]), weights, 0)
        weights /= weights.sum(axis=1, keepdims=True)
        filled = np.zeros((_POSITIONS, len(row)), np.float32)
        filled[: len(weights)] = weights
        parts.append(_Product(slice(int(row[0] - begin[0]), int(row[-1] + 1 - begin[0])), filled))
    return _Products(slice(int(begin[0]), int(end[-1])), skip, parts)


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
