"""Which rows an antialiased resize takes, and how much of each: the filters of Pillow and torchvision.

A triangle ("bilinear") or a cubic, as wide as the step where the image shrinks.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Axis(NamedTuple):
    """How one axis is resized, and which part of it is wanted."""

    size_in: int
    size_out: int
    first: int  # of the positions wanted,
    last: int  # and the one after them


class Taps(NamedTuple):
    """The rows that each of the n positions wanted is made of, at most m of them."""

    row: NDArray[np.int64]  # (n, m), the rows one after the other
    weight: NDArray[np.float64]  # (n, m), 1 in sum, 0 where not used
    used: NDArray[np.bool_]  # (n, m), the first ones of each


@lru_cache(maxsize=64)
def taps(axis: Axis, interpolation: str) -> Taps:
    """Of the positions wanted; "bilinear" or "bicubic"."""
    step = axis.size_in / axis.size_out
    stretch = max(step, 1.0)
    radius = stretch * (1 if interpolation == "bilinear" else 2)
    centre = step * (np.arange(axis.first, axis.last) + 0.5)  # (n,)
    begin = np.maximum((centre - radius + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + radius + 0.5).astype(np.int64), axis.size_in)
    row = begin[:, None] + np.arange(int((end - begin).max()))  # (n, m)
    weight = (_triangle if interpolation == "bilinear" else _cubic)(np.abs(row + 0.5 - centre[:, None]) / stretch)
    used = row < end[:, None]
    weight = np.where(used, weight, 0)
    weight /= weight.sum(axis=1, keepdims=True)
    return Taps(row, weight, used)


def _triangle(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1 - distance, 0)


def _cubic(distance: NDArray[np.float64], a: float = -0.5) -> NDArray[np.float64]:
    """Keys' cubic convolution (1981) with the parameter that Pillow has."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.select([distance < 1, distance < 2], [near, far], 0.0)
