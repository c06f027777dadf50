"""Feature maps of images that are larger than what a network sees at once: tile by tile, put together without seams."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from oddpatch.errors import ConfigError

Network = Callable[[Tensor], list[Tensor]]


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

    def run(self, network: Network, images: Tensor) -> list[Tensor]:
        """Feature maps [(B, C_l, H / s_l, W / s_l)] of images (B, 3, H, W).

        Raises:
            ConfigError: a side of the images is no multiple of the strides.
        """
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ConfigError(f"images of {height}x{width} cannot be tiled: both sides must divide by {self.multiple}")
        rows, columns = self.spans(height), self.spans(width)
        whole: list[Tensor] = []
        for top, *own_rows in rows:
            for left, *own_columns in columns:
                tile = images[..., top : top + self.side, left : left + self.side]
                maps = network(tile)
                whole = whole or [_room(m, tile, images, s) for m, s in zip(maps, self.strides, strict=True)]
                for target, found, stride in zip(whole, maps, self.strides, strict=True):
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


def _room(found: Tensor, tile: Tensor, images: Tensor, stride: float) -> Tensor:
    """Room for the map of whole images, of which `found` is that of a tile."""
    if not stride:
        return torch.zeros_like(found)
    sides = [images.shape[d] * found.shape[d] // tile.shape[d] for d in (-2, -1)]
    return found.new_empty(*found.shape[:2], *sides)
