"""Coresets: few points that stand for many. Greedy k-center selection, as PatchCore does it, and cheaper kin.

PatchCore: Roth et al., "Towards total recall in industrial anomaly detection", CVPR 2022, algorithm 1.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from oddpatch.errors import ConfigError
from oddpatch.ops.bounds import Columns, pairs_below, squared_distances
from oddpatch.ops.cells import at_most_apart, cells_pay
from oddpatch.ops.chunks import chunks, lengths
from oddpatch.ops.neighbours import nearest, require_finite
from oddpatch.ops.precision import full_precision
from oddpatch.ops.projection import DistanceSketch, fit_sketch
from oddpatch.settings import require_at_least

#: Told how far a selection has come: (points picked, points to pick, what is being done).
ProgressFn = Callable[[int, int, str], None]

#: Squared distance of a point that is picked already: less than that of any duplicate of it.
PICKED = -1.0
#: Fewest points that are picked from between two looks at all points.
SMALLEST_BLOCK = 64
#: Points of a cell, at least, in the mean.
POINTS_PER_CELL = 400


class OtherGroups:
    """The squared distance of every point to the nearest pick from another group than its own.

    A selection that is given one keeps it up to date at little cost: it measures all points against all picks anyway.

    Args:
        groups: (N,) integer group of each point.
    """

    def __init__(self, groups: Tensor) -> None:
        self.groups = groups
        self.squared = torch.full((len(groups),), math.inf, dtype=torch.float64, device=groups.device)  # (N,)

    def differ(self, a: Tensor, b: Tensor) -> Tensor:
        """Whether points of indices (n,) are of other groups than those of other indices (n,)."""
        return self.groups[a] != self.groups[b]

    def add_first(self, pick: int, squared: Tensor) -> None:
        """Add the pick that a selection starts from, and the squared distances (N,) of all points to it."""
        self.squared = squared.where(self.groups != self.groups[pick], self.squared)


@torch.no_grad()
def k_center_greedy(
    points: Tensor,
    count: int,
    *,
    generator: torch.Generator | None = None,
    start: int | None = None,
    block: int = 1024,
    progress: ProgressFn | None = None,
    others: OtherGroups | None = None,
    sketch: DistanceSketch | None = None,
) -> Tensor:
    """Pick `count` points, each the farthest from those picked before it (Gonzalez, 1985).

    The picks are exactly those of the plain algorithm, which measures every point against one pick at a time; of
    equally far ones the lowest index is taken. Here the farthest points are taken as a block, and picked from for as
    long as the farthest of it is at least as far as any outside; then all points meet the block's picks in one matrix
    product. That product is over a `DistanceSketch` and only nominates the pairs that are measured exactly.

    On few threads of a CPU, points are sorted into `Cells` around the first picks, so that only those near a new pick
    are compared with it.

    Memory beyond the points: a float32 copy in few dimensions, two while it is sorted, O(N), and chunks of a size that
    does not grow with N.

    Args:
        points: (N, D) of any float type, on any device.
        count: how many to pick, 1..N.
        generator: draws the first pick, which stays in the set; or give its index as `start`.
        block: most points that are picked from between two looks at all points.
        progress: told after each block.
        others: kept up to date with the picks; it changes none of them.
        sketch: fitted to points like these; None fits one. It changes none of the picks.

    Returns:
        (count,) int64 indices in the order of picking, no two the same, on the device of the points.

    Raises:
        DataError: NaN or infinity in the points.
    """
    _require_count(count, len(points))
    if start is None:
        if generator is None:
            raise ConfigError("k_center_greedy needs a generator that draws the first pick, or its index as start")
        start = int(torch.randint(len(points), (1,), generator=generator, device=generator.device))
    if not 0 <= start < len(points):
        raise ConfigError(f"start={start} is no index of {len(points)} points: choose 0..{len(points) - 1}")
    require_finite(points, "patches to select from")
    distances = _distances_to(points, start)
    if others is not None:
        others.add_first(start, distances)
    distances[start] = PICKED
    return _Selection(points, distances, [start], count, block, others, sketch).run(progress)


@torch.no_grad()
def approximate_greedy(
    points: Tensor,
    count: int,
    generator: torch.Generator,
    num_starts: int = 10,
    *,
    block: int = 1024,
    progress: ProgressFn | None = None,
    others: OtherGroups | None = None,
) -> Tensor:
    """Greedy selection whose distances begin as the mean distance to a few random points.

    This is how the PatchCore authors' `ApproximateGreedyCoresetSampler` begins: a point's distance to the set is first
    its mean (not smallest) distance to `num_starts` random points, which are not in the set themselves; from then on
    each pick lowers it as in `k_center_greedy`. They run it on a 128-dimensional random linear map of the embedding:
    give `random_projection(points, 128, generator)` for that. Unlike theirs, it never picks a point twice.

    Arguments, result and errors as for `k_center_greedy`.
    """
    _require_count(count, len(points))
    require_at_least(1, num_starts=num_starts)
    require_finite(points, "patches to select from")
    starts = random_subset(len(points), min(num_starts, len(points)), generator).tolist()
    mean = torch.zeros(len(points), dtype=torch.float64, device=points.device)
    for start in starts:
        mean += _distances_to(points, start).sqrt_() / len(starts)
    return _Selection(points, mean.square_(), [], count, block, others).run(progress)


def random_subset(total: int, count: int, generator: torch.Generator) -> Tensor:
    """(count,) distinct indices of 0..total-1, each subset equally likely, in random order."""
    _require_count(count, total)
    return torch.randperm(total, generator=generator, device=generator.device)[:count]


@torch.no_grad()
def density_subset(
    points: Tensor,
    count: int,
    generator: torch.Generator,
    rounds: int = 100,
    num_neighbours: int = 100,
    progress: ProgressFn | None = None,
) -> Tensor:
    """Thin points by their density, as SuperADD (arXiv 2605.14808) does, in time that grows with their number.

    In each round some points are drawn, an equal share of all. One with n others of the draw within a spacing is kept
    with probability 1 / (1 + n), by one uniform number; the spacing grows until no more than the round's share of
    `count` are kept. Places that are left over at the end go to random points. The released code counts a point among
    its own neighbours, so that it drops half of the isolated ones; this does not.

    Args:
        points: (N, D).
        count: how many to keep, 1..N.
        generator: of the draws.
        rounds: number of draws.
        num_neighbours: most neighbours that are counted.
        progress: told after each round.

    Returns:
        (count,) int64 distinct indices.
    """
    _require_count(count, len(points))
    left = torch.randperm(len(points), generator=generator, device=generator.device).to(points.device)
    share = len(points) / rounds
    kept: list[Tensor] = []
    for done in range(1, rounds + 1):
        wanted = count * done // rounds - sum(map(len, kept))
        drawn, left = left.tensor_split([max(wanted, int(share))])
        if not wanted or not len(drawn):
            continue
        distances, _ = nearest(points[drawn], points[drawn], min(num_neighbours + 1, len(drawn)))
        distances = distances[:, 1:]  # the first is the point itself, or one that equals it
        uniform = torch.rand(len(drawn), generator=generator, device=generator.device).to(points.device)
        chances = 1 / (1 + torch.arange(distances.shape[1] + 1, device=points.device))
        spacing = 0.1 * float(distances.mean()) if distances.numel() else 0.0
        while True:
            chosen = uniform < chances[(distances < spacing).sum(dim=1)]
            if chosen.sum() <= wanted:
                break
            if (distances < spacing).all() or not spacing:
                chosen = torch.zeros_like(chosen).index_fill_(0, uniform.argsort()[:wanted], True)
                break
            spacing *= 1.1
        kept.append(drawn[chosen])
        left = torch.cat([left, drawn[~chosen]])
        if progress:
            progress(done, rounds, "coreset")
    picked = torch.cat(kept)
    return torch.cat([picked, left[: count - len(picked)]])


class StreamingCoreset:
    """k-center selection from a stream of points, of which at most `max_rows` are held at any time (merge and reduce).

    Whenever the buffer is full, k-center greedy keeps half of it, or another share. What is kept depends on the
    sequence of rows only, not on how they were batched: feed them in the order of the dataset for a result that does
    not depend on the loader either. Another order gives another coreset, as valid. As long as nothing was dropped,
    `select` is exact. After that the covering radius is larger than that of an exact selection: on real patches 1.1 to
    1.3 times, with room for 2 to 8 times the coreset (that of random points is 1.6 to 2 times).

    Args:
        max_rows: most points held.
        generator: draws the first pick of each selection.
        reduce_to: share that is kept, between 0 and 1. A smaller one takes less time, as there are fewer reductions
            and each picks less, and leaves less to select from.

    Attributes:
        num_kept: points that a reduction keeps: the most that can be selected after the first.
    """

    def __init__(self, max_rows: int, generator: torch.Generator, reduce_to: float = 0.5) -> None:
        if not 0 < reduce_to < 1:
            raise ConfigError(f"reduce_to={reduce_to}: choose a share above 0 and below 1")
        if max_rows < 2:
            raise ConfigError(f"max_rows={max_rows}: choose at least 2, better 4 times the size of the coreset")
        self.max_rows = max_rows
        self.num_kept = max(1, int(max_rows * reduce_to))
        self.generator = generator
        self.num_seen = 0
        self.num_held = 0
        self._sketch: DistanceSketch | None = None
        self._points: Tensor | None = None
        self._labels: Tensor | None = None

    @torch.no_grad()
    def add(self, points: Tensor, labels: Tensor) -> None:
        """Add points (n, D) and the integers (n, C) that belong to them, such as image index and position."""
        if len(points) != len(labels) or points.ndim != 2 or labels.ndim != 2:
            raise ConfigError(f"points {tuple(points.shape)}, labels {tuple(labels.shape)}: give (n, D) and (n, C)")
        if self._points is None or self._labels is None:
            self._points = points.new_empty(self.max_rows, points.shape[1])
            self._labels = labels.new_empty(self.max_rows, labels.shape[1])
        taken = 0
        while taken < len(points):
            if self.num_held == self.max_rows:
                self._reduce()
            room = slice(self.num_held, min(self.max_rows, self.num_held + len(points) - taken))
            rows = slice(taken, taken + room.stop - room.start)
            self._points[room], self._labels[room] = points[rows], labels[rows]
            self.num_held, taken = room.stop, rows.stop
        self.num_seen += len(points)

    def select(self, count: int, progress: ProgressFn | None = None) -> tuple[Tensor, Tensor]:
        """The coreset of what was added: points (count, D) and their labels (count, C), in the order of picking."""
        points, labels = self.held()
        if count > self.num_held or (self.num_held < self.num_seen and count > self.num_kept):
            raise ConfigError(
                f"cannot select {count} points from the {self.num_held} held of {self.num_seen}: "
                f"choose at most {self.num_kept}, or raise max_rows={self.max_rows}"
            )
        picks = k_center_greedy(points, count, generator=self.generator, progress=progress)
        return points[picks], labels[picks]

    def _reduce(self) -> None:
        points, labels = self.held()
        self._sketch = self._sketch or fit_sketch(points, self.num_kept)
        kept = k_center_greedy(points, self.num_kept, generator=self.generator, sketch=self._sketch)
        points[: len(kept)], labels[: len(kept)] = points[kept], labels[kept]
        self.num_held = len(kept)

    def held(self) -> tuple[Tensor, Tensor]:
        """What is held now: points (n, D) and their labels (n, C), views that the next `add` may overwrite."""
        if self._points is None or self._labels is None:
            raise ConfigError("nothing to select from: add points first")
        return self._points[: self.num_held], self._labels[: self.num_held]


class _Selection:
    """A greedy selection under way: the squared distance of every point to the picks so far, and those picks."""

    def __init__(
        self,
        points: Tensor,
        distances: Tensor,
        picks: list[int],
        count: int,
        block: int,
        others: OtherGroups | None = None,
        sketch: DistanceSketch | None = None,
    ) -> None:
        require_at_least(1, block=block)
        self.points, self.distances, self.picks, self.count = points, distances, picks, count
        self.others = others
        self.largest_block = block
        self.block = min(block, SMALLEST_BLOCK)  # early picks change most distances: few are made per block
        with full_precision():
            self.sketch = sketch or fit_sketch(points, count)
            self.sketched = Columns(self.sketch, points) if self.sketch.basis is not None else None
        self.place: Tensor | None = None  # (N,) of each point in `sketched`, where that is sorted into cells
        # More cells leave more of the points out, and cost more themselves.
        self.num_cells, self.most_cells = 1, min(math.ceil(2 * math.sqrt(count)), len(points) // POINTS_PER_CELL)

    def run(self, progress: ProgressFn | None) -> Tensor:
        with full_precision():
            while len(self.picks) < self.count:
                picked = self._pick_block()
                self.picks += picked.tolist()
                if len(self.picks) < self.count or self.others is not None:
                    self._lower_distances(picked)
                if progress:
                    progress(len(self.picks), self.count, "coreset")
        return torch.tensor(self.picks, device=self.points.device)

    def _pick_block(self) -> Tensor:
        """Indices of the next picks: those the farthest points give before one outside of them might be farther."""
        members, reach, reach_index = _farthest(self.distances, self.block)
        distances = self.distances[members]
        columns = self._columns(members)
        bounds, slack = columns.bounds(columns.points[: len(members)], columns.norms[: len(members)])
        row, column = pairs_below(bounds, _limit(distances, slack).float())
        between = torch.full((len(members), len(members)), math.inf, dtype=torch.float64, device=members.device)
        between[column, row] = squared_distances(self.points, members[row], self.points, members[column])

        left, rows, indices = distances.cpu().numpy(), between.cpu().numpy(), members.cpu().numpy()
        chosen: list[int] = []
        while len(self.picks) + len(chosen) < self.count:
            best = int(left.argmax())  # the first of equals, and members are in rising order
            if left[best] < reach or (left[best] == reach and indices[best] > reach_index):
                break
            chosen.append(best)
            np.minimum(left, rows[best], out=left)
            left[best] = PICKED
        self._adapt(len(chosen))
        return members[chosen]

    def _columns(self, rows: Tensor) -> Columns:
        if self.sketched is None:
            return Columns(self.sketch, self.points[rows])
        places = rows if self.place is None else self.place[rows]
        return Columns(self.sketch, self.sketched.points[places], sketched=True)

    def _sketch(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Sketches and their lengths of some of the points; a sketch that is no smaller than they is not kept."""
        if self.sketched is None:
            sketched = self.sketch(self.points[rows])
            return sketched, lengths(sketched)
        return self.sketched.points[rows], self.sketched.norms[rows]

    def _adapt(self, chosen: int) -> None:
        if chosen > self.block // 2:
            self.block = min(2 * self.block, self.largest_block)
        elif chosen < self.block // 8:
            self.block = max(self.block // 2, min(SMALLEST_BLOCK, self.largest_block))

    def _lower_distances(self, picked: Tensor) -> None:
        """Bring the distance of every point up to date with new picks (M,)."""
        self._sort_into_cells()
        new = self.points[picked]  # (M, D)
        for row, column in self._pairs(self._columns(picked), picked):
            exact = squared_distances(self.points, row, new, column)
            self.distances.scatter_reduce_(0, row, exact, "amin")
            if self.others is not None:
                other = self.others.differ(row, picked[column])
                self.others.squared.scatter_reduce_(0, row[other], exact[other], "amin")
        self.distances[picked] = PICKED

    def _sort_into_cells(self) -> None:
        """Where it pays, sort the points into cells around the picks, again when there are four times as many."""
        if self.sketched is None or not cells_pay(self.points.device):
            return
        wanted = self.most_cells
        while wanted > len(self.picks):
            wanted //= 4
        if wanted > self.num_cells:
            centres = self._columns(torch.tensor(self.picks[:wanted])).points[:wanted]
            self.sketched, self.num_cells = self.sketched.in_cells(centres), wanted
            self.place = self.sketched.order.argsort()

    def _pairs(self, columns: Columns, picked: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Points, and new picks (their places in `picked`), that are to be measured: some at a time."""
        if self.sketched is not None and self.sketched.cells is not None:
            yield from self._pairs_by_cells(self.sketched, columns, picked)
            return
        for rows in chunks(len(self.points), 4 * len(columns.bias), self.points.device):
            sketched, norms = self._sketch(rows)
            bounds, slack = columns.bounds(sketched, norms)
            own, limit = self._limits(rows, slack)
            row, column = pairs_below(bounds, limit.float().clamp_(max=torch.finfo(torch.float32).max))
            if self.others is not None:
                below = bounds[row, column] <= own.float()[row]
                matters = below | self.others.differ(row + rows.start, picked[column])
                row, column = row[matters], column[matters]
            yield row + rows.start, column

    def _pairs_by_cells(self, sketched: Columns, columns: Columns, picked: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The same, where no cell is looked at that is too far from a pick for any of its points to come nearer."""
        cells, order, norms = sketched.cells, sketched.order, sketched.norms[: sketched.count]
        assert cells is not None
        own, limit = self._limits(order, self.sketch.tolerance(norms, columns.largest))
        new, count = columns.points[: columns.count], columns.count
        near = cells.gaps(cells.distances(new)) <= at_most_apart(cells.maxima(limit))  # (M, cells)
        # |a|^2 - 2ab + |b|^2 <= limit: the limit of a point goes over to its side.
        short = sketched.with_bias((norms.square() - limit).float())
        spare = (limit - own).float()  # (N,) by which more pairs are nominated for the sake of other groups
        for column, place, bound in short.pairs_in_cells(new, near, -columns.bias[:count]):
            row = order[place]
            if self.others is not None:
                # No number, and so not above, where there is no pick of another group yet: its limit is infinite.
                above = bound + spare[place] > -columns.bias[column]
                matters = ~above | self.others.differ(row, picked[column])
                row, column = row[matters], column[matters]
            yield row, column

    def _limits(self, rows: slice | Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds (n,) above which new picks leave the distances of some points as they are; and the larger ones above
        which they leave those to other groups, too."""
        own = _limit(self.distances[rows], slack)
        if self.others is None:
            return own, own
        # The nearest pick of another group is never nearer than the nearest of all.
        return own, torch.maximum(own, _limit(self.others.squared[rows], slack))


def _limit(distances: Tensor, slack: Tensor) -> Tensor:
    """Bounds above this leave a distance as it is; one of zero, of a duplicate, nothing lowers any more."""
    return (distances + slack).masked_fill_(distances <= 0, -math.inf)


def _farthest(distances: Tensor, size: int) -> tuple[Tensor, float, int]:
    """The `size` farthest points in rising order, and the distance and index of the farthest of the others."""
    if size >= len(distances):
        return torch.arange(len(distances), device=distances.device), -math.inf, len(distances)
    last = distances.topk(size).values[-1]
    farther = torch.nonzero(distances > last)[:, 0]
    equal = torch.nonzero(distances == last)[:, 0]  # of these the lowest indices come first
    members = torch.cat([farther, equal[: size - len(farther)]]).sort().values
    reach, index = distances.index_fill(0, members, -math.inf).max(0)
    return members, reach.item(), int(index)


def _distances_to(points: Tensor, index: int) -> Tensor:
    """Squared distances (N,) of all points to one of them."""
    everything = torch.arange(len(points), device=points.device)
    return squared_distances(points, everything, points, torch.full_like(everything, index))


def _require_count(count: int, total: int) -> None:
    if not 1 <= count <= total:
        raise ConfigError(f"cannot select {count} of {total} points: choose 1..{total}")
