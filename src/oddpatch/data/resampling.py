"""Antialiased resizing, one axis at a time, as weighted sums of rows: a third of `F.interpolate`'s time on a CPU."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from oddpatch.data.filters import Axis, taps


class _Taps(NamedTuple):
    """The K weighted rows that the n rows wanted are made of, those of one after those of another."""

    row: Tensor  # (K,) int64
    weight: Tensor  # (K,) float32
    start: Tensor  # (n,) int64, where those of each begin


def resample(images: Tensor, rows: Axis, columns: Axis, interpolation: str, part: int = 2**20) -> Tensor:
    """Resize images and cut a part out: the same sums as `F.interpolate(..., antialias=True)` of the whole.

    Args:
        images: (B, C, H, W) floating point, or uint8, whose values are divided by 255; channels last is fastest.
        rows: of H.
        columns: of W.
        interpolation: "bilinear" or "bicubic".
        part: so many pixels are resized along H at a time: floats of more would take long to get memory for.

    Returns:
        (B, C, h, w) float32.
    """
    batch, _, height, width = images.shape
    used = _used(rows, interpolation)
    images = images[..., used, :]
    # Whole vectors, so that sums do not depend on the part. Of what keeps its size the floats are the result.
    step = width if rows.size_in == rows.size_out else max(part // (batch * height) // 16 * 16, 16)
    parts = [
        _resize_first(to_unit(images[..., start : start + step]).float().permute(2, 0, 3, 1), rows, interpolation, used)
        for start in range(0, width, step)
    ]  # (h, B, part of W, C) each
    moved = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)  # (h, B, W, C)
    moved = _resize_first(moved.permute(2, 1, 3, 0), columns, interpolation, slice(0, width))  # (w, B, C, h)
    return moved.permute(1, 2, 3, 0)


def to_unit(image: Tensor) -> Tensor:
    """A uint8 image as float32 in [0, 1]; one of floats as it is."""
    return image if image.is_floating_point() else image.float().div_(255)


def _used(axis: Axis, interpolation: str) -> slice:
    """Those of the `size_in` positions that the positions wanted are made of."""
    if axis.size_in == axis.size_out:
        return slice(axis.first, axis.last)
    row = _taps(axis, interpolation).row
    return slice(int(row.min()), int(row.max()) + 1)


def _resize_first(array: Tensor, axis: Axis, interpolation: str, used: slice) -> Tensor:
    """Resize the first axis of (size_in, ...), of which `used` is given."""
    if axis.size_in == axis.size_out:
        return array[axis.first - used.start : axis.last - used.start]
    row, weight, start = (part.to(array.device) for part in _taps(axis, interpolation))
    sums = F.embedding_bag(
        row - used.start, array.reshape(len(array), -1), start, mode="sum", per_sample_weights=weight
    )
    return sums.view(len(start), *array.shape[1:])


@lru_cache(maxsize=64)
def _taps(axis: Axis, interpolation: str) -> _Taps:
    row, weight, used = taps(axis, interpolation)
    start = np.concatenate([[0], np.cumsum(used.sum(axis=1))[:-1]])
    return _Taps(torch.from_numpy(row[used]), torch.from_numpy(weight[used]).float(), torch.from_numpy(start))
