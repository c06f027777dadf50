"""Exact nearest neighbours in bounded memory: matrix products nominate, direct differences decide.

A float32 matrix product gives many distances fast, but with errors that depend on the shapes multiplied, so that a
result would change with the batch. Here it only nominates: every pair that could be among the nearest, given a bound
on those errors, is measured again as a float64 sum of squared differences. What is returned is therefore exact, and
the same bit for bit however the queries were batched.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from oddpatch.errors import ConfigError, DataError
from oddpatch.ops.bounds import GROUP, Columns, group_minima, pairs_below, squared_distances
from oddpatch.ops.cells import at_most_apart, cells_pay, centres_of
from oddpatch.ops.chunks import lengths
from oddpatch.ops.precision import full_precision
from oddpatch.ops.projection import DIRECT_COST, DistanceSketch, fit_sketch

Metric = Literal["euclidean", "cosine"]

#: Points that are nominated beyond those wanted where no bound on the errors is known, see `plain_nearest`: at least so
#: many, and a share of a large bank, where more are nearly alike. To measure these takes a tenth of the product's time.
LEAST_SPARE, SPARE_SHARE = 3, 1e-3
#: Largest matrix of bounds in a search, unless told otherwise: below it, products have too few rows to be fast, and a
#: GPU waits for the CPU between chunks.
SEARCH_BYTES, GPU_SEARCH_BYTES = 1 << 25, 1 << 28
#: Cells of a bank, in square roots of its size: more have to be looked at for a query than is saved.
CELLS = 1
#: What looking at a cell costs whatever its size, in multiply-adds of a large product; and how many queries for each
#: cell it takes until sorting a bank into them has paid.
PER_CELL, QUERIES_PER_CELL = 2**21, 4
#: Cells next to a query that the first of its neighbours are looked for in, at least.
NEXT_CELLS = 2
#: What a product over all dimensions costs however few the queries: as measuring a pair for each of so many points.
FEW_CROWDED = 2
#: How many times as many pairs as are expected of queries are taken; then so many times fewer queries are.
FEWER = 4
#: Share of a bank, in the mean, that cells may leave to be looked at: beyond, all of it is looked at faster.
MOST_NEAR = 0.4


def nearest(
    queries: Tensor, bank: Tensor, k: int = 1, *, metric: Metric = "euclidean", max_bytes: int | None = None
) -> tuple[Tensor, Tensor]:
    """The k nearest points of `bank` (N, D) for each of `queries` (Q, D); see `NearestIndex`, which a bank that is
    searched more than once is better put into.
    """
    if torch.compiler.is_exporting():
        return plain_nearest(queries, bank, k, metric=metric)
    return NearestIndex(bank, metric, num_queries=len(queries)).search(queries, k, max_bytes)


def plain_nearest(queries: Tensor, bank: Tensor, k: int = 1, *, metric: Metric = "euclidean") -> tuple[Tensor, Tensor]:
    """The same by one matrix product, without a look at any value: what can be exported.

    It takes 4 bytes for each pair, and of equally near points any. The product, in float32 and of centred points,
    nominates a few points too many; what decides, and is returned, is measured on their differences, as one of large
    squares is far from a distance of nearly 0. No bound says that the nearest are nominated: an artifact is held to the
    numbers of `nearest`.
    """
    if metric == "cosine":
        queries, bank = unit_vectors(queries), unit_vectors(bank)
    centre = bank.mean(dim=0)
    queries, bank = queries - centre, bank - centre
    nominees = nominated(queries.float(), bank.float(), k)  # (Q, k')
    measured = (queries[:, None] - bank[nominees]).double().square().sum(dim=2)  # (Q, k')
    squared, order = measured.topk(k, dim=1, largest=False)  # (Q, k)
    return (squared / 2 if metric == "cosine" else squared.sqrt()).float(), nominees.gather(1, order)


def nominated(a: Tensor, b: Tensor, k: int) -> Tensor:
    """Points of `b` (..., m, D) that seem nearest to each of `a` (..., n, D), by one matrix product: some more than k.

    Indices (..., n, k'); all points if there are fewer.
    """
    count = min(k + max(LEAST_SPARE, int(SPARE_SHARE * b.shape[-2])), b.shape[-2])
    norms = b.square().sum(-1)[..., None, :]  # without those of `a`, which change no order
    return (norms - 2 * a @ b.mT).topk(count, dim=-1, largest=False).indices


class NearestIndex:
    """A bank of points made ready to be searched. It holds the bank, and a float32 copy of it in few dimensions.

    On few threads of a CPU, a large bank is sorted into `Cells` once it has been searched for some queries: most of it
    is passed over.

    Args:
        bank: (N, D) points of any float type.
        metric: `euclidean`, or `cosine`: 1 - cos, where a zero vector is at 1 from all others and at 0 from its like.
        num_queries: about how many will be searched for: for few it does not pay to look for the fewest dimensions.

    Raises:
        DataError: NaN or infinity in the bank.
    """

    def __init__(self, bank: Tensor, metric: Metric = "euclidean", num_queries: int = 1_000_000) -> None:
        if metric not in get_args(Metric):
            raise ConfigError(f"metric={metric!r} is not known: choose one of {', '.join(get_args(Metric))}")
        if bank.ndim != 2 or not len(bank):
            raise ConfigError(f"bank of shape {tuple(bank.shape)}: give (N, D) with at least one point")
        self.metric, self.dim = metric, bank.shape[1]
        self.bank = unit_vectors(bank) if metric == "cosine" else bank.detach()
        with full_precision():
            require_finite(self.bank, "memory bank")
            self.sketch = fit_sketch(self.bank, num_queries)
            self.coarse = Columns(self.sketch, self.bank)
        self.fine: Columns | None = None
        self.asked = 0  # queries that might be searched for by cells
        # Of so many queries in sum: shares of the bank that were looked at, and pairs that were nominated; and pairs
        # of each of the last.
        self.by_cells, self.near, self.pairs, self.last_pairs = 0, 0.0, 0, 0.0

    @torch.no_grad()
    def search(
        self, queries: Tensor, k: int = 1, max_bytes: int | None = None, without: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k nearest points of the bank for each query, equally near ones by rising index.

        Args:
            queries: (Q, D), on the device of the bank.
            k: how many, 1..N less those left out.
            max_bytes: size of the largest intermediate, of which a few exist at a time; None for what is fast.
            without: (n,) distinct indices of points that are left out of the search.

        Returns:
            distances (Q, k) float32, ascending, and indices (Q, k) int64 into the bank.

        Raises:
            DataError: NaN or infinity in the queries.
        """
        most = len(self.bank) - (0 if without is None else len(without))
        if not 1 <= k <= most:
            raise ConfigError(f"k={k} nearest of a bank of {most} points: choose 1..{most}")
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ConfigError(f"queries of shape {tuple(queries.shape)}: this bank needs (Q, {self.dim})")
        queries = unit_vectors(queries) if self.metric == "cosine" else queries.detach()
        require_finite(queries, "queries")
        max_bytes = max_bytes or (GPU_SEARCH_BYTES if queries.is_cuda else SEARCH_BYTES)
        squared = queries.new_empty((len(queries), k), dtype=torch.float64)
        indices = queries.new_empty((len(queries), k), dtype=torch.int64)
        with full_precision():
            columns, by_cells = self._columns(queries)
            start = 0
            while start < len(queries):
                size = max(1, max_bytes // self._bytes_of_a_query(columns, by_cells))
                while True:
                    rows = slice(start, start + size)
                    found = self._search(columns, queries[rows], k, without, max_bytes, by_cells)
                    if found is not None:
                        break
                    size = max(1, size // FEWER)
                squared[rows], indices[rows] = found
                start += size
        distances = squared / 2 if self.metric == "cosine" else squared.sqrt()
        return distances.float(), indices

    def _columns(self, queries: Tensor) -> tuple[Columns, bool]:
        """The bank, and whether it is faster to search it by cells: not if there is little to do."""
        columns = self.coarse
        wanted = math.ceil(CELLS * math.sqrt(columns.count))
        work = len(queries) * columns.count * columns.sketch.dim
        if work < wanted * PER_CELL or not cells_pay(queries.device):
            return columns, False
        if self.near > MOST_NEAR * self.by_cells:  # points that lie in all directions: cells leave out too few
            return columns, False
        self.asked += len(queries)
        if columns.cells is None and self.asked >= wanted * QUERIES_PER_CELL:
            self.coarse = columns = columns.in_cells(centres_of(columns.points[: columns.count], wanted))
        return columns, columns.cells is not None

    def _bytes_of_a_query(self, columns: Columns, by_cells: bool) -> int:
        """What is held for it at a time; by cells, it is seen from the queries before."""
        if columns.cells is None or not by_cells:
            return 4 * len(columns.bias)
        pairs = max(self.pairs / self.by_cells, self.last_pairs) if self.by_cells else MOST_NEAR * len(self.bank)
        # Of each cell two numbers, of the largest one bounds, and what is nominated.
        return max(8 * len(columns.cells), 4 * int(columns.cells.sizes.amax()), math.ceil(16 * pairs))

    def _search(
        self, columns: Columns, queries: Tensor, k: int, without: Tensor | None, max_bytes: int, by_cells: bool = False
    ) -> tuple[Tensor, Tensor] | None:
        """Squared distances (q, k) float64 and indices (q, k) for one chunk of queries.

        None if cells nominate far more pairs than `max_bytes` hold, as they may where queries are unlike those before.
        """
        sketched = columns.sketch(queries)
        if without is not None:
            columns = columns.with_bias(
                columns.bias[: columns.count].masked_fill(torch.isin(columns.order, without), math.inf)
            )

        def at_most(candidates: Tensor) -> Tensor:
            """Bounds (q,) on the squared distances to the k nearest, by k columns for each query (q, k)."""
            row = torch.arange(len(queries), device=queries.device).repeat_interleave(k)
            return squared_distances(queries, row, self.bank, columns.order[candidates].flatten()).view(-1, k).amax(1)

        if by_cells:
            most = math.inf if len(queries) == 1 else FEWER * max_bytes // 16
            pairs = _pairs_by_cells(columns, sketched, k, at_most, most)
            if pairs is None:
                return None
            row, column, near = pairs
            self.by_cells += len(queries)
            self.near += near * len(queries)
            self.pairs += len(row)
            self.last_pairs = len(row) / len(queries)
        else:
            row, column = _pairs(columns, sketched, k, at_most)
        row, column = columns.as_given(row, column, ordered=k > 1)
        counts = torch.bincount(row, minlength=len(queries))
        # Where the sketch leaves too much open, a product over all dimensions costs less than measuring the pairs.
        most = len(self.bank) if columns.sketch.basis is None else max(4 * k, len(self.bank) // DIRECT_COST)
        crowded = counts > most  # (q,)
        if int(counts[crowded].sum()) * FEW_CROWDED < len(self.bank):  # that product would cost more than all of them
            crowded.zero_()
        if crowded.any():
            row, column = row[~crowded[row]], column[~crowded[row]]
        squared, indices = _first_of_each(
            row, column, squared_distances(queries, row, self.bank, column), len(queries), k
        )
        if crowded.any():
            self.fine = fine = self.fine or Columns(DistanceSketch(self.sketch.mean, None), self.bank)
            for some in crowded.nonzero()[:, 0].split(max(1, max_bytes // self._bytes_of_a_query(fine, False))):
                found = self._search(fine, queries[some], k, without, max_bytes)
                assert found is not None
                squared[some], indices[some] = found
        return squared, indices


def _pairs(columns: Columns, sketched: Tensor, k: int, at_most: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Queries (q, dim) and the columns that may be among their k nearest.

    Args:
        columns: of the bank.
        sketched: the queries, of float32.
        k: how many are wanted.
        at_most: bounds (q,) on the squared distances to the k nearest, by k columns of each query (q, k).
    """
    bounds, slack = columns.bounds(sketched, lengths(sketched))  # (q, M), (q,)
    minima = group_minima(bounds)  # (q, M / GROUP)
    limit = at_most(_smallest(bounds, minima, k)) + slack
    return pairs_below(bounds, limit.float(), minima)


def _pairs_by_cells(
    columns: Columns, sketched: Tensor, k: int, at_most: Callable[[Tensor], Tensor], most: float
) -> tuple[Tensor, Tensor, float] | None:
    """The same, where no cell is looked at that is too far from a query for any of its points to be near enough; and
    the share of the bank that was looked at. None as soon as there are more than `most` pairs."""
    cells = columns.cells
    assert cells is not None
    distances, norms = cells.distances(sketched), lengths(sketched)  # (q, cells), (q,)
    # The cells next to a query hold near points; of many, as many cells as it takes to hold so many.
    held = cells.sums(columns.bias[: columns.count].isfinite().double())  # others are left out
    number = min(NEXT_CELLS, len(cells))
    while True:
        chosen = distances.topk(number, largest=False).indices  # (q, number)
        if number == len(cells) or held[chosen].sum(1).amin() >= k:
            break
        number = min(2 * number, len(cells))
    limit = at_most(columns.best_in_cells(sketched, chosen, k)) + columns.sketch.tolerance(norms, columns.largest)
    near = cells.gaps(distances) <= at_most_apart(limit)[:, None]
    found, count = [], 0
    for part in columns.pairs_in_cells(sketched, near, (limit - norms.square()).float()):
        found.append(part)
        count += len(part[0])
        if count > most:
            return None
    share = float((near.float() @ cells.sizes.float()).mean()) / columns.count
    return torch.cat([row for row, _, _ in found]), torch.cat([column for _, column, _ in found]), share


def _smallest(bounds: Tensor, minima: Tensor, k: int) -> Tensor:
    """Columns (q, k) with small bounds, in each row distinct: good guesses, not surely the k smallest."""
    if minima.shape[1] < k:
        return bounds.topk(k, dim=1, largest=False).indices
    least, groups = minima.topk(k, dim=1, largest=False)  # (q, k)
    if least.isinf().any():  # whole groups are left out
        return bounds.topk(k, dim=1, largest=False).indices
    row = torch.arange(len(bounds), device=bounds.device)[:, None]
    members = bounds.view(len(bounds), -1, GROUP)[row, groups]  # (q, k, GROUP)
    return groups * GROUP + members.argmin(2)


def _first_of_each(row: Tensor, column: Tensor, squared: Tensor, num_rows: int, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of each row's pairs: (num_rows, k) both, undefined for rows without.

    The pairs are given in row-major order; for k = 1 in any.
    """
    if k == 1:
        least = squared.new_full((num_rows,), math.inf).scatter_reduce_(0, row, squared, "amin")
        equal = squared == least[row]  # of equally near ones the lowest column
        lowest = column.new_full((num_rows,), torch.iinfo(column.dtype).max)
        lowest.scatter_reduce_(0, row[equal], column[equal], "amin")
        return least[:, None], lowest[:, None]
    order = squared.argsort(stable=True)  # stable: of equally near ones the lowest column stays first
    order = order[row[order].argsort(stable=True)]
    counts = torch.bincount(row, minlength=num_rows)
    has = counts > 0
    first = (counts.cumsum(0) - counts)[has]
    chosen = order[first[:, None] + torch.arange(k, device=row.device)]  # (rows that have any, k)
    nearest_squared, nearest_column = squared.new_empty(num_rows, k), column.new_empty(num_rows, k)
    nearest_squared[has], nearest_column[has] = squared[chosen], column[chosen]
    return nearest_squared, nearest_column


def unit_vectors(points: Tensor) -> Tensor:
    """(n, D) -> (n, D + 1) float64 of length 1; what is added is 0, or 1 for a zero vector, which has no direction."""
    points = points.detach().double()
    norms = torch.linalg.vector_norm(points, dim=1, keepdim=True)  # (n, 1)
    return torch.cat([points / norms.where(norms > 0, 1.0), (norms == 0).double()], 1)


def require_finite(points: Tensor, what: str) -> None:
    """Raise a DataError that names the first of the rows (n, D) with NaN, infinity, or too large a norm for float32."""
    norms = lengths(points).float().square()
    if not norms.isfinite().all():
        row = int((~norms.isfinite()).nonzero()[0])
        raise DataError(f"{what}: row {row} holds NaN, infinity or values too large: check the backbone's precision")
