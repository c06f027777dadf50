"""The region of interest on the grids of feature maps: what lies outside is neither fitted to nor scored."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RegionOfInterest(nn.Module):
    """Which part of the images is inspected. A patch lies inside if any of the pixels it stands for does.

    Nothing of it is saved with a state dict: it belongs to the preprocessing, which brings it back.

    Args:
        mask: (H, W) bool at the size of preprocessed images; None for all of it, which leaves everything as it is.
    """

    mask: Tensor | None

    def __init__(self, mask: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)
        self._grids: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}

    def _grid(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """For a grid of patches: positions (P',) inside, and of each patch (P,) the number of the nearest inside."""
        assert self.mask is not None
        key = (height, width, self.mask.device)
        if key not in self._grids:
            from scipy.ndimage import distance_transform_edt  # it takes half a second, and most runs have no region

            covered = F.adaptive_max_pool2d(self.mask[None].float(), (height, width))[0]  # (h, w)
            inside = covered.cpu().numpy() > 0
            # Distances in pixels: patches need not be square.
            sides = (self.mask.shape[0] / height, self.mask.shape[1] / width)
            rows, columns = distance_transform_edt(~inside, sides, return_distances=False, return_indices=True)
            number = np.cumsum(inside).reshape(inside.shape) - 1
            nearest = torch.from_numpy(number[rows, columns].ravel()).to(key[2])
            self._grids[key] = (torch.from_numpy(np.flatnonzero(inside)).to(key[2]), nearest)
        return self._grids[key]

    def positions(self, grid: Sequence[int]) -> Tensor:
        """Positions (P',) of the patches inside, in a grid (h, w) counted row by row."""
        return torch.arange(math.prod(grid)) if self.mask is None else self._grid(*grid)[0]

    def take(self, patches: Tensor, grid: Sequence[int], dim: int = 0) -> Tensor:
        """Of patches (..., P, ...) along `dim`, row by row of a `grid` (h, w), those inside: (..., P', ...)."""
        return patches if self.mask is None else patches.index_select(dim, self._grid(*grid)[0])

    def spread(self, scores: Tensor, grid: Sequence[int]) -> Tensor:
        """Scores (..., P') of the patches inside as a grid (..., h, w); one outside takes that of the nearest inside.

        So nothing from outside comes in when the scores are resized and smoothed, and the largest is one from inside.
        """
        if self.mask is not None:
            scores = scores[..., self._grid(*grid)[1]]
        return scores.unflatten(-1, tuple(grid))

    def average(self, feature: Tensor) -> Tensor:
        """Mean (B, C) in float64 over the patches inside of a map (B, C, h, w)."""
        # float64, so that the order in which a memory layout is summed does not show.
        if self.mask is None:
            return feature.mean(dim=(2, 3), dtype=torch.float64)
        return self.take(feature.flatten(2), feature.shape[-2:], dim=2).mean(dim=2, dtype=torch.float64)

    def values(self, anomaly_map: Tensor) -> Tensor:
        """Values (n,) of the pixels inside, of a map (B, 1, H, W)."""
        return self.take(anomaly_map.flatten(1), anomaly_map.shape[-2:], dim=1).flatten()

    def cut(self, anomaly_map: Tensor) -> Tensor:
        """A map (B, 1, H, W) with the pixels outside at zero, or at the smallest value inside if that is below."""
        if self.mask is None:
            return anomaly_map
        inside = self._pixels(anomaly_map)
        lowest = anomaly_map.masked_fill(~inside, torch.inf).amin(dim=(2, 3), keepdim=True).clamp(max=0)
        return torch.where(inside, anomaly_map, lowest)

    def _pixels(self, anomaly_map: Tensor) -> Tensor:
        """The mask (H, W) at the size of a map."""
        assert self.mask is not None
        size = anomaly_map.shape[-2:]
        if self.mask.shape == size:
            return self.mask
        return F.adaptive_max_pool2d(self.mask[None].float(), size)[0] > 0
