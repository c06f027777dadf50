"""Cells against distances that are measured one by one."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from oddpatch.ops import neighbours
from oddpatch.ops.bounds import Columns, squared_distances
from oddpatch.ops.cells import LARGEST, MANY_THREADS, Cells, at_most_apart, cells_pay, centres_of
from oddpatch.ops.chunks import lengths
from oddpatch.ops.coreset import k_center_greedy
from oddpatch.ops.neighbours import NearestIndex
from oddpatch.ops.projection import DistanceSketch, fit_sketch, principal_directions


def points_of(count: int, dim: int, *, seed: int = 0, offset: float = 0.0, scale: float = 1.0) -> Tensor:
    """Clusters of differing size and spread."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, dim, generator=generator) * 5
    member = torch.randint(20, (count,), generator=generator) ** 2 // 20
    spread = torch.rand(20, 1, generator=generator) + 0.1
    return (centres[member] + torch.randn(count, dim, generator=generator) * spread[member]) * scale + offset


def cells_of(points: Tensor, centres: Tensor) -> Cells:
    return Cells(points, lengths(points), centres)


def parts(cells: Cells) -> list[Tensor]:
    """Indices of the points of each cell."""
    return list(cells.order.split(cells.sizes.tolist()))


@pytest.mark.parametrize("count", [1, 7, 500])
def test_each_point_is_in_one_cell(count: int) -> None:
    cells = cells_of(points_of(count, 6), centres_of(points_of(count, 6), 23))
    assert cells.order.sort().values.tolist() == list(range(count))
    assert int(cells.sizes.sum()) == count
    assert cells.sizes.amin() > 0


@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (4096, 1), (0, 1e-20), (0, 1e15), (0, 3e17), (-1e6, 100)])
@pytest.mark.parametrize("dim", [1, 6, 60])
def test_no_point_is_nearer_than_its_cell(dim: int, offset: float, scale: float) -> None:
    points = points_of(600, dim, offset=offset, scale=scale)
    queries = torch.cat([points[:100], points_of(100, dim, seed=1, offset=offset, scale=3 * scale)])
    cells = cells_of(points, centres_of(points, 24))
    gaps = cells.gaps(cells.distances(queries)).double().numpy()
    least = np.stack([cdist(queries.double(), points[part].double()).min(1) for part in parts(cells)], 1)
    assert (gaps <= least).all()
    if offset == 0 and scale < 1e17:
        assert (gaps > 0.3 * least).mean() > 0.2  # and it says something
    # As it is asked: whether a point may be within a distance.
    assert (torch.from_numpy(gaps).float() <= at_most_apart(torch.from_numpy(least).square())).all()


def test_a_point_on_the_edge_of_its_cell_is_not_passed_over() -> None:
    """Where rounding decides: a query on the line through a centre and its farthest point."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        points = torch.randn(2, 3, generator=generator)
        centre = points.mean(0, keepdim=True)
        cells = cells_of(points, centre)
        query = centre + (points[1:] - centre) * (1 + 3 * torch.rand(1, generator=generator))
        least = cdist(query.double(), points.double()).min()
        assert cells.gaps(cells.distances(query)).item() <= least


def test_roots_are_not_less_than_they_are() -> None:
    squared = torch.rand(10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e3
    assert (at_most_apart(squared).double() >= squared.sqrt()).all()
    assert at_most_apart(torch.tensor([-1.0, -torch.inf, torch.inf], dtype=torch.float64)).tolist() == [
        -torch.inf, -torch.inf, torch.inf,
    ]  # fmt: skip


def test_a_cell_of_duplicates_is_cut() -> None:
    points = torch.cat([torch.zeros(1000, 4), points_of(200, 4)])
    cells = cells_of(points, centres_of(points, 30))
    assert int(cells.sizes.amax()) <= LARGEST * 1200 / 30
    assert cells.order.sort().values.tolist() == list(range(1200))


def test_maxima_and_sums_of_cells() -> None:
    points = points_of(300, 5)
    cells = cells_of(points, centres_of(points, 12))
    values = torch.rand(300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = [values[part].numpy() for part in parts(cells)]
    assert cells.maxima(values[cells.order]).tolist() == [part.max() for part in expected]
    np.testing.assert_allclose(cells.sums(values[cells.order]), [part.sum() for part in expected], rtol=1e-12)


@pytest.mark.parametrize("bounds", [1, 1000, 2**20])
def test_pairs_are_those_of_all_columns(bounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oddpatch.ops.bounds.BOUNDS", bounds)
    points, queries = points_of(700, 8), points_of(90, 8, seed=1)
    columns = Columns(fit_sketch(points, 10), points)
    sorted_ones = columns.in_cells(centres_of(columns.points[:700], 26))
    assert sorted_ones.cells is not None
    sketched = columns.sketch(queries)
    near = torch.rand(90, len(sorted_ones.cells), generator=torch.Generator().manual_seed(0)) < 0.4
    limit = torch.full((90,), float(columns.bounds(sketched, sketched.norm(dim=1).double())[0][:, :700].median()))
    found = list(sorted_ones.pairs_in_cells(sketched, near, limit))
    pairs = {
        (row, column) for rows, places, _ in found for row, column in zip(rows.tolist(), places.tolist(), strict=True)
    }

    cell = torch.repeat_interleave(torch.arange(len(sorted_ones.cells)), sorted_ones.cells.sizes)
    all_bounds = torch.addmm(sorted_ones.bias, sketched, sorted_ones.points.mT, alpha=-2)[:, :700]
    clear = (all_bounds - limit[:, None]).abs() > 1e-3  # of others rounding decides
    expected = {tuple(pair) for pair in ((all_bounds <= limit[:, None]) & near[:, cell] & clear).nonzero().tolist()}
    assert len(expected) > 1000
    assert expected <= pairs
    assert all(clear[pair] <= (pair in expected) for pair in pairs)
    for rows, places, values in found:
        torch.testing.assert_close(values, all_bounds[rows, places], rtol=0, atol=1e-3)
    assert [list(found_part) for found_part in sorted_ones.pairs_in_cells(sketched, near & False, limit)] == []


def test_a_large_bank_is_sorted_once_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oddpatch.ops.cells.MANY_THREADS", 2**16)
    bank, queries = points_of(9000, 12), points_of(150, 12, seed=2)
    monkeypatch.setattr(neighbours, "PER_CELL", 2**62)
    index = NearestIndex(bank)
    expected = index.search(queries, 3)
    assert index.coarse.cells is None

    monkeypatch.setattr(neighbours, "PER_CELL", 2**14)
    found: list[tuple[Tensor, Tensor]] = []
    while index.coarse.cells is None:
        assert len(found) < 50
        found.append(index.search(queries, 3))
    assert len(found) > 1
    for distances, indices in [*found, index.search(queries, 3)]:
        assert distances.equal(expected[0])
        assert indices.equal(expected[1])
    assert index.search(queries[:1], 3)[1].equal(expected[1][:1])  # too few for cells, of a bank that is sorted


def test_a_bank_without_near_and_far_is_searched_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oddpatch.ops.cells.MANY_THREADS", 2**16)
    monkeypatch.setattr(neighbours, "PER_CELL", 0)
    bank = torch.randn(2000, 40, generator=torch.Generator().manual_seed(0))
    index = NearestIndex(bank)
    for _ in range(3):
        assert index.search(bank[:300])[1].flatten().equal(torch.arange(300))
        assert index.search(bank[:300] + 0.5, 2)[0].isfinite().all()
    assert index.by_cells == 300  # the first search found most of the bank near
    assert index.near > 0.4 * 300


def test_what_a_search_by_cells_nominates_stays_within_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oddpatch.ops.cells.MANY_THREADS", 2**16)
    monkeypatch.setattr(neighbours, "PER_CELL", 0)
    monkeypatch.setattr(neighbours, "QUERIES_PER_CELL", 0)
    nominated: list[int] = []

    def counted(a: Tensor, rows: Tensor, *rest: Any) -> Tensor:
        nominated.append(len(rows))
        return squared_distances(a, rows, *rest)

    monkeypatch.setattr(neighbours, "squared_distances", counted)
    bank = points_of(5000, 40)
    index, most = NearestIndex(bank), 1 << 18
    for _ in range(2):
        index.search(bank[:3000], 200, max_bytes=most)
    assert index.coarse.cells is not None
    assert max(nominated) * 16 <= 1.5 * most  # as many as in the mean, and some more
    assert max(nominated) > 4 * nominated[0]  # at first it cannot know how many that will be


def test_many_threads_compare_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "PER_CELL", 0)
    monkeypatch.setattr(neighbours, "QUERIES_PER_CELL", 0)
    assert not cells_pay(torch.device("cuda"))
    few, bank = torch.get_num_threads(), points_of(3000, 12)
    indices = []
    try:
        for threads in (1, MANY_THREADS):
            torch.set_num_threads(threads)
            indices.append(NearestIndex(bank))
            assert indices[-1].search(bank[:300])[1].flatten().equal(torch.arange(300))
    finally:
        torch.set_num_threads(few)
    assert [index.coarse.cells is None for index in indices] == [False, True]


def test_a_selection_sorts_its_points_into_more_and_more_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Counted(Cells):
        def __init__(self, points: Tensor, norms: Tensor, centres: Tensor) -> None:
            made.append(len(centres))
            super().__init__(points, norms, centres)

    monkeypatch.setattr("oddpatch.ops.bounds.Cells", Counted)
    monkeypatch.setattr("oddpatch.ops.coreset.POINTS_PER_CELL", 1)
    monkeypatch.setattr("oddpatch.ops.cells.MANY_THREADS", 2**16)
    points = points_of(4000, 150)
    mean = points.double().mean(0)
    sketch = DistanceSketch(mean, principal_directions(points.double() - mean, 20))
    picks = k_center_greedy(points, 1000, start=0, sketch=sketch)
    assert made == sorted(made)
    assert made[-1] == 64  # twice the root of 1,000
    assert len(set(picks.tolist())) == 1000
