"""Points sorted into cells, most of which lie too far from a query for any of their points to matter."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from oddpatch.ops.chunks import chunks, lengths

#: Points of a sample that are averaged for a centre, and how often: more make cells hardly smaller.
SAMPLED, STEPS = 32, 3
#: Points of a cell, at most, in multiples of their mean.
LARGEST = 4
#: Threads that share one large product better than the many small ones of cells, from so many on.
MANY_THREADS = 5


class Cells:
    """The cells of some centres: each point belongs to the nearest of them.

    By the triangle inequality a query that is `d` away from a centre is at least `d - r` away from all points of its
    cell, the farthest of which is `r` away from the centre (Fukunaga and Narendra, "A branch and bound algorithm for
    computing k-nearest neighbors", 1975). Patches of images lie in so few directions that of some hundred cells a query
    has to be compared with one in twenty.

    Args:
        points: (N, dim) float32.
        norms: (N,) float64, their lengths.
        centres: (M, dim) float32, any points; the nearer those of a cell are to its centre, the more is passed over.

    A cell of more than `LARGEST` times the mean is cut into several around the same centre, so that none is of a size
    that grows with the number of its duplicates.

    Attributes:
        order: (N,) int64 indices of the points, cell by cell.
        sizes: (cells,) int64 numbers of points; none is empty.
        starts: (cells,) int64 where each begins in `order`.
        centres: (cells, dim) float64.
        radii: (cells,) float32: none of its points is farther from its centre.
    """

    def __init__(self, points: Tensor, norms: Tensor, centres: Tensor) -> None:
        own = lengths(centres)  # (M,)
        cell = torch.empty(len(points), dtype=torch.int64, device=points.device)  # (N,)
        least = torch.empty(len(points), device=points.device)  # (N,)
        for rows in chunks(len(points), 4 * max(centres.shape), points.device):
            # Rounding may put a point into the cell of another centre that is as near, which will do as well.
            products = torch.addmm(own.square().float(), points[rows], centres.mT, alpha=-2)
            torch.min(products, 1, out=(least[rows], cell[rows]))
        rounding = 2 * (points.shape[1] + 8) * torch.finfo(torch.float32).eps  # twice `DistanceSketch.tolerance`
        squared = least + norms.square() + rounding * (norms + own.amax()).square()  # (N,) float64, not too little
        squared.clamp_(min=0).masked_fill_(~least.isfinite(), math.inf)  # what overflows is always looked at
        self.order = cell.argsort(stable=True)
        radii = squared.new_zeros(len(centres)).scatter_reduce_(0, cell, squared, "amax").sqrt_()
        largest = math.ceil(LARGEST * len(points) / len(centres))
        centre, sizes = [], []
        for number, count in enumerate(torch.bincount(cell, minlength=len(centres)).tolist()):
            for start in range(0, count, largest):
                centre.append(number)
                sizes.append(min(largest, count - start))
        self.sizes = torch.tensor(sizes, device=points.device)
        self.centres = centres[centre].double()
        self.radii = (radii[centre] * (1 + torch.finfo(torch.float32).eps)).float()  # not less than before
        self._lengths = lengths(self.centres)  # (cells,)
        self.starts = self.sizes.cumsum(0) - self.sizes  # (cells,)
        self._slices = [slice(start, start + size) for start, size in zip(self.starts.tolist(), sizes, strict=True)]

    def __len__(self) -> int:
        return len(self.radii)

    def distances(self, queries: Tensor) -> Tensor:
        """Distances of queries (n, dim) of float32 to each centre, or a little less: (n, cells) float32."""
        distances = queries.new_empty(len(queries), len(self))
        # What rounding adds at most: see `DistanceSketch.tolerance`, and float32 in the end.
        added = 2 * (queries.shape[1] + 8) * torch.finfo(torch.float64).eps
        less = 1 - torch.finfo(torch.float32).eps
        for rows in chunks(len(queries), 8 * len(self), queries.device):
            some = queries[rows].double()
            norms = lengths(some)[:, None]  # (n, 1)
            squared = torch.addmm(self._lengths.square(), some, self.centres.mT, alpha=-2).add_(norms.square())
            squared.sub_((norms + self._lengths).square_().mul_(added)).clamp_(min=0)
            distances[rows] = squared.sqrt_().mul_(less)
        return distances

    def gaps(self, distances: Tensor) -> Tensor:
        """What queries are away at least from all points of each cell, by their `distances` (n, cells)."""
        return (distances - self.radii).clamp_(min=0)

    def maxima(self, values: Tensor) -> Tensor:
        """The largest in each cell (M,) of values (N,) of the points in `order`."""
        return torch.segment_reduce(values, "max", lengths=self.sizes)

    def sums(self, values: Tensor) -> Tensor:
        """The sum of each cell (M,) of values (N,) of the points in `order`."""
        return torch.segment_reduce(values, "sum", lengths=self.sizes)

    def runs(self, cell: Tensor) -> Iterator[tuple[slice, slice]]:
        """Of sorted numbers of cells (n,), where each stands that occurs, and what it is of `order`."""
        start = 0
        for points, count in zip(self._slices, torch.bincount(cell, minlength=len(self)).tolist(), strict=True):
            if count:
                yield slice(start, start + count), points
                start += count


def cells_pay(device: torch.device) -> bool:
    """Whether comparing with what is near is faster there than comparing with all: on few threads of a CPU."""
    return device.type == "cpu" and torch.get_num_threads() < MANY_THREADS


def at_most_apart(squared: Tensor) -> Tensor:
    """Roots of squared distances of float64 as float32, not less than they are; of negative ones -infinity."""
    roots = squared.clamp(min=0).sqrt().mul(1 + torch.finfo(torch.float32).eps).float()
    return roots.masked_fill_(squared < 0, -math.inf)


def centres_of(points: Tensor, count: int) -> Tensor:
    """Centres (M, dim) of small cells of points (N, dim), M = count at most: k-means of a sample, a few steps of it."""
    generator = torch.Generator().manual_seed(0)  # whichever they are, what is found with them is the same
    sample = points[torch.randperm(len(points), generator=generator)[: SAMPLED * count].to(points.device)]
    centres = sample[:count].clone()
    for _ in range(STEPS):
        cell = torch.addmm(centres.square().sum(1), sample, centres.mT, alpha=-2).argmin(1)
        counts = torch.bincount(cell, minlength=len(centres))[:, None]  # (M, 1)
        means = torch.zeros_like(centres).index_add_(0, cell, sample) / counts.clamp(min=1)
        centres = means.where(counts > 0, centres)
    return centres
