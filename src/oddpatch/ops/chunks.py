"""Many points a few at a time, so that what is made of them stays in the cache."""

from collections.abc import Iterator

import torch
from torch import Tensor


def chunks(total: int, row_bytes: int, device: torch.device, max_bytes: int | None = None) -> Iterator[slice]:
    """Slices of `total` rows that need at most `max_bytes` each; by default what a cache, or a GPU, is fast with."""
    max_bytes = max_bytes or (1 << 26 if device.type == "cuda" else 1 << 23)
    size = max(1, max_bytes // row_bytes)
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def lengths(points: Tensor) -> Tensor:
    """Euclidean norms (n,) float64 of points (n, D)."""
    norms = torch.empty(len(points), dtype=torch.float64, device=points.device)
    # torch makes a float64 copy of what it is given.
    for rows in chunks(len(points), 8 * points.shape[1], points.device):
        norms[rows] = torch.linalg.vector_norm(points[rows], dim=1, dtype=torch.float64)
    return norms
