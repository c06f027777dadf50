"""Random and principal projections: to select or search in fewer dimensions than the embedding has."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from oddpatch.errors import ConfigError
from oddpatch.settings import require_at_least

#: Rows of the sample that a sketch is fitted to, and the numbers of principal directions it may have.
SAMPLE_ROWS = 1024
SKETCH_DIMS = (7, 15, 31, 47, 63, 95, 127)
#: A distance summed over one pair, per dimension, costs about as much as this many multiply-adds of a matrix product.
DIRECT_COST = 80


def random_projection(points: Tensor, dim: int, generator: torch.Generator) -> Tensor:
    """Gaussian random projection (N, D) -> (N, dim) that keeps squared distances in expectation.

    Returns `points` as they are where `dim` does not reduce the dimension.
    """
    require_at_least(1, dim=dim)
    if dim >= points.shape[1]:
        return points
    matrix = torch.randn(points.shape[1], dim, generator=generator, device=generator.device) / math.sqrt(dim)
    return points @ matrix.to(points)  # (N, dim)


def semi_orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A random matrix (rows, columns) of float32 with orthonormal columns, uniform over all such matrices.

    The Q factor of a Gaussian matrix, with the signs that make R's diagonal positive: without that the result would
    depend on the QR routine and not be uniform (Mezzadri, 2007). For the semi-orthogonal embedding of
    Kim et al., "Semi-orthogonal embedding for efficient unsupervised anomaly segmentation", 2021.
    """
    if not 1 <= columns <= rows:
        raise ConfigError(f"{columns} orthonormal columns of {rows} rows do not exist: choose 1..{rows}")
    gaussian = torch.randn(rows, columns, generator=generator, device=generator.device, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    return (q * torch.where(r.diagonal() < 0, -1.0, 1.0)).float()


class DistanceSketch(NamedTuple):
    """A map to few dimensions in which no distance is larger than the true one (up to rounding).

    A point becomes its coordinates along the principal directions and, as one more coordinate, the length of what they
    leave over. By the reverse triangle inequality the distance of two sketches is a lower bound of the distance of
    the points, and a close one where the directions hold most of the variance. Without a basis the sketch is the
    centred point itself. Centring keeps `|x|² + |y|² - 2xy` from cancelling where the data lie far from the origin.
    """

    mean: Tensor  # (D,) float64
    basis: Tensor | None  # (D, k) float64, orthonormal columns

    @property
    def dim(self) -> int:
        """Dimensions of a sketch."""
        return len(self.mean) if self.basis is None else self.basis.shape[1] + 1

    def __call__(self, points: Tensor) -> Tensor:
        """Sketch points (n, D) -> (n, dim) float32."""
        centred = points.to(torch.float64, copy=True).sub_(self.mean)
        if self.basis is None:
            return centred.float()
        inside = centred @ self.basis  # (n, k)
        left_over = (centred.square_().sum(1) - inside.square().sum(1)).clamp_(min=0).sqrt_()
        return torch.cat([inside, left_over[:, None]], 1).float()

    def tolerance(self, norms: Tensor, largest: Tensor) -> Tensor:
        """Bound on the rounding error of `|a|² + |b|² - 2ab` over float32 sketches (Higham, 2002, section 3.5).

        Args:
            norms: (n,) lengths of the sketches a.
            largest: the greatest length of the sketches b, a scalar tensor.
        """
        # Twice the worst case of a dot product of `dim` terms, whatever the order in which they are added.
        limits = torch.finfo(torch.float32)
        rounded = (2 * (self.dim + 8) * limits.eps / 2) * (norms + largest).square()
        return rounded + 2 * (self.dim + 8) * limits.tiny  # squares below it keep fewer digits, or are 0


def fit_sketch(points: Tensor, distances_per_point: int) -> DistanceSketch:
    """The sketch that makes finding near points of (N, D) cheapest, judged on a sample of them.

    Args:
        points: (N, D), more than one row.
        distances_per_point: how many distances will be wanted of each: where all of it is little work, so is centring.
    """
    sample = points[:: max(1, len(points) // SAMPLE_ROWS)][:SAMPLE_ROWS].double()
    mean = sample.mean(0)
    num_points, dim = points.shape
    candidates = [k for k in SKETCH_DIMS if k < min(dim // 2, len(sample) // 2)]
    if not candidates or num_points * distances_per_point * dim < 2e9:
        return DistanceSketch(mean, None)
    basis = principal_directions(sample - mean, candidates[-1])
    exact = _squared_distance_matrix(sample - mean)
    radius = exact.fill_diagonal_(math.inf).amin(1, keepdim=True)  # (n, 1) to each point's nearest neighbour
    cost = {0: dim + DIRECT_COST * dim / num_points}
    for k in candidates:
        bound = _squared_distance_matrix(DistanceSketch(mean, basis[:, :k])(sample).double())
        false_alarms = (bound.fill_diagonal_(math.inf) < radius).double().mean().item()
        cost[k] = k + 1 + false_alarms * DIRECT_COST * dim
    best = min(cost, key=cost.__getitem__)
    return DistanceSketch(mean, basis[:, :best].contiguous() if best else None)


def principal_directions(centred: Tensor, count: int) -> Tensor:
    """The first `count` principal directions (D, count) of centred points (n, D), nearly, by subspace iteration."""
    generator = torch.Generator().manual_seed(0)  # any start finds the same subspace
    basis = torch.randn(centred.shape[1], count, generator=generator, dtype=centred.dtype).to(centred.device)
    for _ in range(4):
        basis = torch.linalg.qr(centred.mT @ (centred @ basis)).Q
    inside = centred @ basis
    rotation = torch.linalg.eigh(inside.mT @ inside).eigenvectors.flip(1)  # by falling variance
    return torch.linalg.qr(basis @ rotation).Q


def _squared_distance_matrix(points: Tensor) -> Tensor:
    norms = points.square().sum(1)
    return torch.addmm(norms, points, points.mT, alpha=-2) + norms[:, None]
