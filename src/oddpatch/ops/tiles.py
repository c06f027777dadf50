"""Feature maps of images that are larger than what a network sees at once: tile by tile, put together without seams."""

import math
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from oddpatch.errors import ConfigError

Network = Callable[[Tensor], list[Tensor]]


class Bands(Protocol):
    """Images that are made a few rows at a time, so that they need not be in memory as a whole."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""

    def rows(self, first: int, last: int) -> Tensor:
        """Rows from `first` to before `last`: (B, 3, last - first, W)."""


class Tiling:
    """Square tiles that overlap; of each feature position the tile counts in whose interior it lies deepest.

    The border between two neighbours is the middle of their overlap, so that what a network makes of the edge of a tile
    is not used, but at the edge of the image.

    Args:
        side: of a tile, in pixels; a shorter side of the image is covered by one tile.
        overlap: least overlap of neighbours, in pixels, up to the rounding to the strides.
        strides: of the maps that the network gives; 0 of a class token, of which the mean over all tiles is taken.

    Raises:
        ConfigError: the sizes do not go together.
    """

    def __init__(self, side: int, overlap: int, strides: Sequence[int | float]) -> None:
        self.multiple = math.lcm(*(math.ceil(stride) for stride in strides if stride))
        if side < 1 or side % self.multiple:
            fitting = max(1, round(side / self.multiple)) * self.multiple
            raise ConfigError(
                f"tiles.side={side} must be a multiple of {self.multiple} with this backbone: choose {fitting}"
            )
        if not 0 <= overlap < side:
            raise ConfigError(f"tiles.overlap={overlap} must be 0 or more and less than tiles.side={side}")
        self.side, self.overlap, self.strides = side, overlap, list(strides)

    def spans(self, length: int) -> list[tuple[int, int, int]]:
        """Where tiles begin along a side of the image, and from where to where (exclusive) each of them counts."""
        if length <= self.side:
            return [(0, 0, length)]
        count = math.ceil((length - self.overlap) / (self.side - self.overlap))
        room = (length - self.side) // self.multiple
        starts = [round(i * room / (count - 1)) * self.multiple for i in range(count - 1)] + [length - self.side]
        middles = [(a + self.side + b) // 2 // self.multiple * self.multiple for a, b in pairwise(starts)]
        return list(zip(starts, [0, *middles], [*middles, length], strict=True))

    def run(self, network: Network, images: Tensor | Bands, wanted: Collection[int] | None = None) -> list[Tensor]:
        """Feature maps [(B, C_l, H / s_l, W / s_l)] of images (B, 3, H, W).

        Args:
            network: gives the maps of a tile.
            images: as a whole, or row by row.
            wanted: numbers of the maps that will be looked at; the others are empty. None for all.

        Raises:
            ConfigError: a side of the images is no multiple of the strides.
        """
        height, width = images.shape[-2:] if isinstance(images, Tensor) else images.size
        if height % self.multiple or width % self.multiple:
            raise ConfigError(f"images of {height}x{width} cannot be tiled: both sides must divide by {self.multiple}")
        rows, columns = self.spans(height), self.spans(width)
        whole: list[Tensor] = []
        for top, *own_rows in rows:
            bottom = min(top + self.side, height)
            band = images[..., top:bottom, :] if isinstance(images, Tensor) else images.rows(top, bottom)
            for left, *own_columns in columns:
                tile = band[..., left : left + self.side]
                maps = network(tile)
                if not whole:
                    kept = range(len(maps)) if wanted is None else wanted
                    whole = [
                        _room(found, tile, (height, width), stride) if place in kept else found.new_empty(0)
                        for place, (found, stride) in enumerate(zip(maps, self.strides, strict=True))
                    ]
                for target, found, stride in zip(whole, maps, self.strides, strict=True):
                    if not target.numel():
                        continue
                    if not stride:
                        target += found / (len(rows) * len(columns))
                        continue
                    # In positions of the map: those of the image that the tile gives, and its own first one.
                    y_scale, x_scale = (tile.shape[d] // found.shape[d] for d in (-2, -1))
                    (y, y_end), y_first = (at // y_scale for at in own_rows), top // y_scale
                    (x, x_end), x_first = (at // x_scale for at in own_columns), left // x_scale
                    part = found[..., y - y_first : y_end - y_first, x - x_first : x_end - x_first]
                    target[..., y:y_end, x:x_end] = part
        return whole


def _room(found: Tensor, tile: Tensor, size: tuple[int, int], stride: float) -> Tensor:
    """Room for the map of whole images of `size`, of which `found` is that of a tile."""
    if not stride:
        return torch.zeros_like(found)
    sides = [size[d] * found.shape[d] // tile.shape[d] for d in (-2, -1)]
    return found.new_empty(*found.shape[:2], *sides)
