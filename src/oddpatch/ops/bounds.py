"""Lower bounds on many distances at once, by float32 matrix products, and the pairs of points that these nominate."""

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from oddpatch.ops.cells import Cells
from oddpatch.ops.chunks import chunks, lengths
from oddpatch.ops.projection import DistanceSketch

#: Columns that share one minimum when pairs are nominated: a row is looked at closely only where that is small enough.
GROUP = 64
#: Bytes of differences that are summed at a time on a CPU.
CACHED = 1 << 19
#: Dimensions beyond which OpenBLAS divides a sum among its threads, so that it depends on their number.
MOST_IN_BLAS = 10_000
#: Bounds of points in cells that are made at a time, about.
BOUNDS = 1 << 20


class Columns:
    """Points (M, D) as the columns of matrices of lower bounds; filled up to a multiple of `GROUP` with far ones.

    Args:
        sketch: of the points.
        points: (M, D), or their sketches (M, dim).
        sketched: whether they are sketches.

    Attributes:
        count: M, without those that fill up.
        cells: that the points were sorted into, if they were.
        order: (M,) index of each column among the points as they were given.
    """

    def __init__(self, sketch: DistanceSketch, points: Tensor, sketched: bool = False) -> None:
        self.sketch, self.count = sketch, len(points)
        self.cells: Cells | None = None
        self.order = torch.arange(self.count, device=points.device)
        padded = math.ceil(len(points) / GROUP) * GROUP
        self.points = torch.zeros(padded, sketch.dim, device=points.device)
        for rows in chunks(len(points), 8 * points.shape[1], points.device):
            self.points[rows] = points[rows] if sketched else sketch(points[rows])
        self.norms = lengths(self.points)  # (M,)
        self.largest = self.norms.amax()
        self.bias = self.norms.square().float()
        self.bias[len(points) :] = math.inf

    def bounds(self, sketched: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Lower bounds on the squared distances from points (q, D), short of a term per row.

        Args:
            sketched: (q, dim) their sketches.
            norms: (q,) the lengths of these.

        Returns:
            bounds (q, M) and slack (q,) float64: where `squared distance <= d` it is sure that `bound <= d + slack`.
        """
        bounds = torch.addmm(self.bias, sketched, self.points.mT, alpha=-2)
        return bounds, self.sketch.tolerance(norms, self.largest) - norms.square()

    def in_cells(self, centres: Tensor) -> "Columns":
        """The same points, sorted into the cells of some centres (m, dim)."""
        cells = Cells(self.points[: self.count], self.norms[: self.count], centres)
        order = torch.cat([cells.order, torch.arange(self.count, len(self.points), device=cells.order.device)])
        result = copy.copy(self)
        result.cells, result.order = cells, self.order[cells.order]
        result.points, result.norms, result.bias = self.points[order], self.norms[order], self.bias[order]
        return result

    def with_bias(self, bias: Tensor) -> "Columns":
        """The same, with another bias (M,) in place of the squared lengths: infinite for points that are left out."""
        result = copy.copy(self)
        result.bias = torch.cat([bias, self.bias[self.count :]])
        return result

    def best_in_cells(self, sketched: Tensor, chosen: Tensor, k: int) -> Tensor:
        """Columns (q, k) of the smallest bounds for queries (q, dim), of those in the cells `chosen` (q, n)."""
        assert self.cells is not None
        count, each = chosen.shape
        cell, place = chosen.flatten().sort()  # (q * n,)
        left = sketched[place.div(each, rounding_mode="floor")]
        most = min(k, int(self.cells.sizes.amax()))
        least, member = sketched.new_full((len(cell), most), math.inf), cell.new_zeros(len(cell), most)
        for rows, columns in self.cells.runs(cell):
            bounds = torch.addmm(self.bias[columns], left[rows], self.points[columns].mT, alpha=-2)
            held = min(k, bounds.shape[1])
            least[rows, :held], member[rows, :held] = bounds.topk(held, largest=False)
        found = torch.empty_like(least).index_copy_(0, place, least).view(count, -1)
        column = torch.empty_like(member).index_copy_(0, place, member + self.cells.starts[cell, None]).view(count, -1)
        return column.gather(1, found.topk(k, largest=False).indices)

    def pairs_in_cells(self, sketched: Tensor, near: Tensor, limit: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Query, column and bound of all pairs whose bound does not exceed the limit of the query, some at a time.

        Args:
            sketched: (q, dim) queries.
            near: (q, cells) which cells are looked at.
            limit: (q,) float32.
        """
        assert self.cells is not None
        cell, query = torch.nonzero(near.mT, as_tuple=True)
        if not len(cell):
            return
        ends = self.cells.sizes[cell].cumsum(0)
        for pairs in _parts(cell, ends):
            some, number = query[pairs], cell[pairs]
            sizes = self.cells.sizes[number]
            last = sizes.cumsum(0)
            bounds = sketched.new_empty(int(last[-1]))
            below = torch.empty_like(bounds, dtype=torch.bool)
            left, most, filled = sketched[some], limit[some, None], 0
            for rows, columns in self.cells.runs(number):
                shape = rows.stop - rows.start, columns.stop - columns.start
                room = slice(filled, filled := filled + shape[0] * shape[1])
                found = bounds[room].view(shape)
                torch.addmm(self.bias[columns], left[rows], self.points[columns].mT, alpha=-2, out=found)
                torch.le(found, most[rows], out=below[room].view(shape))
            place = _nonzero(below)
            pair = torch.searchsorted(last, place, right=True)
            column = place - (last - sizes - self.cells.starts[number])[pair]
            yield some[pair], column, bounds[place]

    def as_given(self, row: Tensor, column: Tensor, ordered: bool = True) -> tuple[Tensor, Tensor]:
        """Pairs of a query and a column as those of a query and the index of a point, by rising query, then index
        where they have to be `ordered`."""
        if self.cells is None:
            return row, column
        column = self.order[column]
        if not ordered:
            return row, column
        order = (row * self.count + column).argsort()
        return row[order], column[order]


def group_minima(bounds: Tensor) -> Tensor:
    """The smallest of each `GROUP` columns: (q, M) -> (q, M / GROUP)."""
    return bounds.view(len(bounds), -1, GROUP).amin(2)


def pairs_below(bounds: Tensor, limit: Tensor, minima: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Row and column of all entries of `bounds` (q, M) that do not exceed their row's `limit` (q,), in row-major order.

    Most groups hold none and are passed over at the cost of one look at their minimum. Other numbers of columns than
    multiples of `GROUP`, which are few, are looked at one by one.
    """
    if bounds.shape[1] % GROUP:
        place = _nonzero((bounds <= limit[:, None]).flatten())
        row = place.div(bounds.shape[1], rounding_mode="floor")
        return row, place - row * bounds.shape[1]
    minima = group_minima(bounds) if minima is None else minima
    row, group = torch.nonzero(minima <= limit[:, None], as_tuple=True)
    members = bounds.view(-1, GROUP).index_select(0, row * minima.shape[1] + group)  # (groups, GROUP)
    found, member = torch.nonzero(members <= limit.index_select(0, row)[:, None], as_tuple=True)
    return row[found], group[found] * GROUP + member


def squared_distances(a: Tensor, rows: Tensor, b: Tensor, columns: Tensor) -> Tensor:
    """`|a[rows] - b[columns]|²` (P,) in float64, from the differences, which do not cancel."""
    result = torch.empty(len(rows), dtype=torch.float64, device=a.device)
    # NumPy makes fewer passes over them.
    in_numpy = a.is_cpu and a.dtype == b.dtype == torch.float32 and a.shape[1] <= MOST_IN_BLAS
    for pairs in chunks(len(rows), 8 * a.shape[1], a.device, CACHED if a.is_cpu else None):
        left, right = a.index_select(0, rows[pairs]), b.index_select(0, columns[pairs])
        if in_numpy:
            apart = np.subtract(left.numpy(), right.numpy(), dtype=np.float64)
            np.vecdot(apart, apart, out=result[pairs].numpy())
        else:
            torch.sum(left.double().sub_(right).square_(), 1, out=result[pairs])
    return result


def _parts(cell: Tensor, ends: Tensor) -> Iterator[slice]:
    """Slices of pairs of a cell and something, sorted by cell, none of which is divided, nor are there many bounds.

    Args:
        cell: (n,) of the pairs.
        ends: (n,) number of bounds up to the end of each pair.
    """
    last = torch.cat([torch.nonzero(cell[1:] != cell[:-1])[:, 0], cell.new_tensor([len(cell) - 1])])  # of each cell
    part = ends[last].div(BOUNDS, rounding_mode="floor")
    stops = last[torch.cat([torch.nonzero(part[1:] != part[:-1])[:, 0], part.new_tensor([len(part) - 1])])] + 1
    start = 0
    for stop in stops.tolist():
        yield slice(start, stop)
        start = stop


def _nonzero(flags: Tensor) -> Tensor:
    """Places of those of (n,) flags that are set."""
    if flags.is_cpu:  # NumPy looks at eight at a time
        return torch.from_numpy(np.flatnonzero(flags.numpy()))
    return torch.nonzero(flags)[:, 0]
