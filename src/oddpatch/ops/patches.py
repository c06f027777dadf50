"""From feature maps of several layers to one embedding per patch."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from oddpatch.errors import ConfigError

ALIGNMENTS = ("nearest", "bilinear", "unfold")
#: Patches from which on layers are brought to one grid a few channels at a time, so that little lies beside the result.
MANY_PATCHES = 2**18


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


class Patches(NamedTuple):
    """The patches of one layer by position, without the copies that a finer grid repeats."""

    values: Tensor  # (P_l, B, C)
    source: Tensor | None  # (P,) which of them lies at each position of the finer grid; None if each at its own

    def at(self, positions: slice) -> Tensor:
        """Patches (p, B, C) at some positions of the finer grid."""
        return self.values[positions] if self.source is None else self.values.index_select(0, self.source[positions])


def by_position(feature: Tensor, size: tuple[int, int], mode: str = "nearest") -> Patches:
    """Bring a feature map to another grid as `align` does, repeating nothing.

    Args:
        feature: (B, C, h, w).
        size: (H, W) of the grid wanted.
        mode: see `align`.
    """
    height, width = feature.shape[-2:]
    if (height, width) == tuple(size) or mode == "bilinear":
        return Patches(align(feature, size, mode).permute(2, 3, 0, 1).flatten(0, 1), None)
    numbered = torch.arange(height * width, device=feature.device, dtype=torch.float32).view(1, 1, height, width)
    return Patches(feature.permute(2, 3, 0, 1).flatten(0, 1), align(numbered, size, mode).flatten().long())


def join(features: Sequence[Tensor], mode: str = "nearest") -> Tensor:
    """Align all maps to the finest grid and join their channels: [(B, C_l, h_l, w_l)] -> (B, sum C_l, h_0, w_0)."""
    size = (features[0].shape[-2], features[0].shape[-1])
    return torch.cat([align(feature, size, mode) for feature in features], dim=1)


def join_patches(features: Sequence[Tensor], patch_size: int, stride: int, mode: str) -> Tensor:
    """Locally aware patches, each layer averaged over its neighbourhood and joined with the others.

    Args:
        features: [(B, C_l, h_l, w_l)], finest first.
        patch_size: odd side of the neighbourhood; positions beyond the border count as zero, as in the published code.
        stride: only every stride-th position of the finest map becomes a patch.
        mode: see `align`.

    Returns:
        (B, h, w, sum C_l), contiguous.
    """
    size = ((features[0].shape[-2] - 1) // stride + 1, (features[0].shape[-1] - 1) // stride + 1)

    def locally_aware(part: Tensor) -> Tensor:
        """Some channels of a layer, (B, h, w, c)."""
        pooled = F.avg_pool2d(part, patch_size, stride=1, padding=patch_size // 2)
        if part.shape[-2:] == features[0].shape[-2:]:
            pooled = pooled[..., ::stride, ::stride]
        return align(pooled, size, mode).permute(0, 2, 3, 1)

    if not _is_large(features[0].shape[0], size):
        return torch.cat([locally_aware(feature) for feature in features], dim=3)
    # All aligned layers beside the result would be twice its memory.
    channels = [feature.shape[1] for feature in features]
    joined = features[0].new_empty(features[0].shape[0], *size, sum(channels))
    for layer, room in zip(features, joined.split(channels, dim=3), strict=True):
        count = _channels_at_once(layer, size)
        for part, into in zip(layer.split(count, dim=1), room.split(count, dim=3), strict=True):
            into.copy_(locally_aware(part))
    return joined


def _is_large(batch: int, size: tuple[int, int]) -> bool:
    # A graph that is exported is for batches of any size, so it must not depend on this one's.
    return not torch.compiler.is_exporting() and batch * math.prod(size) >= MANY_PATCHES


def _channels_at_once(layer: Tensor, size: tuple[int, int]) -> int:
    """How many channels of a layer (B, C, h, w) are brought to a grid of `size` at a time."""
    # With channels last it is all of them: torch would round those of a part in another way.
    return 16 if _is_large(layer.shape[0], size) and layer.is_contiguous() else layer.shape[1]


def pool_patches(
    features: Sequence[Tensor], patch_size: int, stride: int, dim: int, mode: str, layer_dim: int | None = None
) -> Tensor:
    """Locally aware patches as in the PatchCore authors' code.

    The C_l * patch_size^2 values of each neighbourhood are averaged in runs to `layer_dim` values, brought to the
    finest grid, and those of all layers together are averaged in runs to `dim`.

    Args:
        features: [(B, C_l, h_l, w_l)], finest first.
        patch_size: odd side of the neighbourhood; beyond the border are zeros.
        stride: of the neighbourhoods, in each layer's own positions.
        dim: of the embedding.
        mode: see `align`; the authors use "bilinear".
        layer_dim: values of each layer; None for as many as `dim`.

    Returns:
        (B, h, w, dim), contiguous.
    """
    size = ((features[0].shape[-2] - 1) // stride + 1, (features[0].shape[-1] - 1) // stride + 1)
    embedding = features[0].new_zeros(features[0].shape[0], *size, dim)  # (B, h, w, dim)
    kernels = _pooling_kernels(tuple(feature.shape[1] for feature in features), patch_size, dim, layer_dim or dim)
    for feature, (first, kernel) in zip(features, kernels, strict=True):
        part = F.conv2d(feature, kernel.to(feature), stride=stride, padding=patch_size // 2)  # (B, n, h_l, w_l)
        for some in part.split(_channels_at_once(part, size), dim=1):
            aligned = align(some, size, mode).permute(0, 2, 3, 1)
            embedding[..., first : first + some.shape[1]] += aligned
            first += some.shape[1]
    return embedding


@lru_cache(maxsize=8)
def _pooling_kernels(channels: tuple[int, ...], patch_size: int, dim: int, layer_dim: int) -> list[tuple[int, Tensor]]:
    """For each layer, the first dimension of the embedding it enters, and the convolution (n, C_l, p, p) that enters.

    Unfolding, averaging runs of values, and averaging runs of these over all layers are linear, so together they are
    one convolution per layer; each layer enters but a few dimensions.
    """
    over_layers = _run_averages(len(channels) * layer_dim, dim).unflatten(1, (len(channels), layer_dim))
    # (dim, L, layer_dim)
    kernels = []
    for layer, count in enumerate(channels):
        enters = over_layers[:, layer].any(dim=1).nonzero()[:, 0]
        first, last = int(enters[0]), int(enters[-1]) + 1
        kernel = over_layers[first:last, layer] @ _run_averages(count * patch_size**2, layer_dim)  # (n, C_l*p*p)
        kernels.append((first, kernel.float().unflatten(1, (count, patch_size, patch_size))))
    return kernels


def _run_averages(length: int, bins: int) -> Tensor:
    """The (bins, length) matrix of `adaptive_avg_pool1d`: each bin is the mean of a run of values."""
    number = torch.arange(bins)
    start, stop = number * length // bins, -(-(number + 1) * length // bins)
    place = torch.arange(length)
    inside = (place >= start[:, None]) & (place < stop[:, None])
    return inside / (stop - start)[:, None].double()
