"""From feature maps of several layers to one embedding per patch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from oddpatch.errors import ConfigError

ALIGNMENTS = ("nearest", "bilinear", "unfold")


def align(feature: Tensor, size: tuple[int, int], mode: str = "nearest") -> Tensor:
    """Bring a feature map to another grid.

    Args:
        feature: (B, C, h, w).
        size: (H, W) of the grid wanted.
        mode: "nearest", "bilinear", or "unfold": the concatenation by unfold and fold that PaDiM ports use, which
            gives every position of a fine patch the coarse feature above it, and so wants H and W to be multiples of
            h and w.

    Returns:
        (B, C, H, W).
    """
    height, width = feature.shape[-2:]
    if (height, width) == tuple(size):
        return feature
    if mode == "unfold":
        if size[0] % height or size[1] % width:
            raise ConfigError(
                f"alignment='unfold' wants grids that divide: {size[0]}x{size[1]} is no multiple of "
                f"{height}x{width}: choose an image size that is a multiple of 32, or alignment='nearest'"
            )
        return feature.repeat_interleave(size[0] // height, dim=-2).repeat_interleave(size[1] // width, dim=-1)
    if mode == "nearest":
        return F.interpolate(feature, size=size, mode="nearest")
    if mode == "bilinear":
        return F.interpolate(feature, size=size, mode="bilinear", align_corners=False)
    raise ConfigError(f"alignment={mode!r}: choose one of {', '.join(ALIGNMENTS)}")


def join(features: Sequence[Tensor], mode: str = "nearest") -> Tensor:
    """Align all maps to the finest grid and join their channels: [(B, C_l, h_l, w_l)] -> (B, sum C_l, h_0, w_0)."""
    size = (features[0].shape[-2], features[0].shape[-1])
    return torch.cat([align(feature, size, mode) for feature in features], dim=1)

