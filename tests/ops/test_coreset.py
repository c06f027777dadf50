"""Coreset selection against the plain greedy algorithm, one pick at a time."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from oddpatch.errors import ConfigError, DataError
from oddpatch.ops import coreset
from oddpatch.ops.coreset import (
    OtherGroups,
    StreamingCoreset,
    approximate_greedy,
    density_subset,
    k_center_greedy,
    random_subset,
)
from oddpatch.ops.projection import DistanceSketch, fit_sketch, principal_directions


@pytest.fixture(params=["as chosen", "cells"], autouse=True)
def how_points_are_compared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every selection as it is made of so many points, and by cells of their sketches however few they are."""

    def sketch(points: Tensor, _: int) -> DistanceSketch:
        mean = points.double().mean(0)
        return DistanceSketch(mean, principal_directions(points.double() - mean, max(1, points.shape[1] // 3)))

    if request.param == "cells":
        monkeypatch.setattr("oddpatch.ops.cells.MANY_THREADS", 2**16)
        monkeypatch.setattr(coreset, "fit_sketch", sketch)
        monkeypatch.setattr(coreset, "POINTS_PER_CELL", 1)


def covering_radius(points: Tensor, selected: Tensor) -> float:
    """Largest distance of any point to the nearest of those selected: what k-center keeps small."""
    return float(cdist(points.double(), selected.double()).min(1).max())


def k_center_greedy_plain(points: Tensor, count: int, start: int) -> list[int]:
    """Measure all points against each pick in turn, in float64."""
    rows = points.double().numpy()
    distances = np.square(rows - rows[start]).sum(1)
    picks = [start]
    distances[start] = -1
    while len(picks) < count:
        picks.append(int(distances.argmax()))
        distances = np.minimum(distances, np.square(rows - rows[picks[-1]]).sum(1))
        distances[picks] = -1
    return picks


def clustered(num_points: int, dim: int, *, rank: int = 12, clusters: int = 30, seed: int = 0) -> Tensor:
    """Points like patch embeddings: dense and thin clusters, and few directions with most of the variance."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0, -6, dim).exp()
    centres = torch.randn(clusters, dim, generator=generator) * scales * 8
    member = torch.randint(clusters, (num_points,), generator=generator) ** 2 // clusters
    spread = torch.rand(clusters, 1, generator=generator) + 0.2
    return centres[member] + torch.randn(num_points, dim, generator=generator) * scales * spread[member]


@pytest.mark.parametrize("block", [1, 7, 64, 300, 3000])
@pytest.mark.parametrize("seed", [0, 1])
def test_picks_equal_plain_greedy(block: int, seed: int) -> None:
    points = clustered(2000, 40, seed=seed)
    assert k_center_greedy(points, 500, start=5, block=block).tolist() == k_center_greedy_plain(points, 500, 5)


def test_picks_equal_plain_greedy_over_a_sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    points = clustered(5000, 200)
    assert fit_sketch(points, 2500).basis is not None
    picks = k_center_greedy(points, 2500, start=0)
    assert picks[:400].tolist() == k_center_greedy_plain(points, 400, 0)
    monkeypatch.setattr(coreset, "fit_sketch", lambda points, _: DistanceSketch(points.double().mean(0), None))
    assert picks.equal(k_center_greedy(points, 2500, start=0))


def test_picks_equal_plain_greedy_where_all_directions_matter() -> None:
    points = torch.randn(2000, 150, generator=torch.Generator().manual_seed(0))
    assert k_center_greedy(points, 500, start=0).tolist() == k_center_greedy_plain(points, 500, 0)


@pytest.mark.parametrize("block", [1, 5, 20, 1000])
@pytest.mark.parametrize(("side", "dim"), [(4, 5), (9, 2), (7, 3)])
def test_ties_go_to_the_lowest_index(block: int, side: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    grid = torch.randint(0, side, (400, dim), generator=generator).float()  # ties and duplicates everywhere
    assert k_center_greedy(grid, 400, start=3, block=block).tolist() == k_center_greedy_plain(grid, 400, 3)


@pytest.mark.parametrize("num_groups", [2, 3, 40])
@pytest.mark.parametrize("block", [1, 64])
def test_the_nearest_pick_of_another_group_is_known(num_groups: int, block: int) -> None:
    points = clustered(1500, 30)
    groups = (torch.arange(1500) - 300).clamp(min=0) * num_groups // 1200
    # The first picks are of one group, which leaves its points without any of another.
    points[groups > 0] = points[0] + 0.01 * (points[groups > 0] - points[0])
    others = OtherGroups(groups)
    picks = k_center_greedy(points, 300, start=0, block=block, others=others)
    assert (groups[picks[:100]] == 0).all()
    assert picks.tolist() == k_center_greedy_plain(points, 300, 0)
    squared = cdist(points.double(), points[picks].double(), "sqeuclidean")
    squared[groups[:, None] == groups[picks]] = math.inf
    np.testing.assert_allclose(others.squared, squared.min(1), rtol=1e-9)


def test_duplicates_cost_nothing() -> None:
    points = torch.full((60_000, 100), 0.3)  # as of a black background: comparing all with each pick would take minutes
    points[-500:] = clustered(500, 100)
    picks = k_center_greedy(points, 5000, start=0)
    assert set(picks[:501].tolist()) == {0, *range(59_500, 60_000)}
    assert picks[501:].tolist() == list(range(1, 4500))


@pytest.mark.parametrize("dim", [30, 256])
def test_offset_far_beyond_the_spread_changes_nothing(dim: int) -> None:
    points = clustered(2000, dim) + 4096.0
    near_origin = points - 4096.0  # exact: the sum above has rounded already
    picks = k_center_greedy(points, 600, start=0)
    assert picks.tolist() == k_center_greedy(near_origin, 600, start=0).tolist()
    assert picks.tolist() == k_center_greedy_plain(near_origin, 600, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(dtype: torch.dtype) -> None:
    points = clustered(800, 24).to(dtype)
    assert k_center_greedy(points, 300, start=0).tolist() == k_center_greedy_plain(points, 300, 0)


@pytest.mark.parametrize("shift", [0, 5])
def test_a_sketch_of_other_points_changes_no_pick(shift: float) -> None:
    sketch = fit_sketch(clustered(2000, 40, seed=9) + shift, 10**9)
    assert sketch.basis is not None
    for points in (clustered(1500, 40), torch.randn(800, 40, generator=torch.Generator().manual_seed(0))):
        picks = k_center_greedy(points, 400, start=7, sketch=sketch)
        assert picks.tolist() == k_center_greedy_plain(points, 400, 7)


def test_low_matrix_precision_and_autocast_change_nothing() -> None:
    points = clustered(2000, 256)
    expected = k_center_greedy(points, 300, start=0)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert k_center_greedy(points, 300, start=0).equal(expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_first_pick_is_drawn_and_kept() -> None:
    points = clustered(500, 8)
    picks = k_center_greedy(points, 20, generator=torch.Generator().manual_seed(3))
    assert picks.equal(k_center_greedy(points, 20, generator=torch.Generator().manual_seed(3)))
    assert picks.tolist() == k_center_greedy_plain(points, 20, int(picks[0]))
    starts = {int(k_center_greedy(points, 1, generator=torch.Generator().manual_seed(seed))) for seed in range(8)}
    assert len(starts) > 4


def test_progress_is_told() -> None:
    told: list[tuple[int, int, str]] = []
    k_center_greedy(clustered(500, 8), 200, start=0, progress=lambda *step: told.append(step))
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1] == (200, 200, "coreset")


@pytest.mark.parametrize("count", [0, 11])
def test_impossible_count(count: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot select {count} of 10"):
        k_center_greedy(torch.randn(10, 3), count, start=0)


def test_unusable_arguments() -> None:
    points = torch.randn(10, 3)
    with pytest.raises(ConfigError, match="start=10"):
        k_center_greedy(points, 2, start=10)
    with pytest.raises(ConfigError, match="generator"):
        k_center_greedy(points, 2)
    points[7, 1] = math.nan
    with pytest.raises(DataError, match="row 7"):
        k_center_greedy(points, 2, start=0)


def test_approximate_greedy_starts_from_mean_distances() -> None:
    points = clustered(800, 10)
    picks = approximate_greedy(points, 60, torch.Generator().manual_seed(1), num_starts=4)
    starts = random_subset(800, 4, torch.Generator().manual_seed(1))
    rows = points.double().numpy()
    distances = cdist(rows, rows[starts.numpy()]).mean(1)
    for pick in picks.tolist():
        distances[list(picks[: picks.tolist().index(pick)])] = -1
        assert pick == distances.argmax()
        distances = np.minimum(distances, cdist(rows, rows[[pick]])[:, 0])


def test_random_subset_is_distinct_and_reproducible() -> None:
    subset = random_subset(100, 30, torch.Generator().manual_seed(0))
    assert len(set(subset.tolist())) == 30
    assert subset.min() >= 0
    assert subset.max() < 100
    assert subset.equal(random_subset(100, 30, torch.Generator().manual_seed(0)))
    assert not subset.equal(random_subset(100, 30, torch.Generator().manual_seed(1)))


def stream(points: Tensor, max_rows: int, batch_size: int, reduce_to: float = 0.5) -> StreamingCoreset:
    held = StreamingCoreset(max_rows, torch.Generator().manual_seed(0), reduce_to)
    labels = torch.stack([torch.arange(len(points)), -torch.arange(len(points))], 1)  # (N, 2)
    for rows, row_labels in zip(points.split(batch_size), labels.split(batch_size), strict=True):
        held.add(rows, row_labels)
        assert held.num_held <= max_rows
    return held


def test_streamed_coreset_is_exact_while_all_is_held() -> None:
    points = clustered(600, 12)
    selected, labels = stream(points, 600, 100).select(80)
    picks = k_center_greedy(points, 80, generator=torch.Generator().manual_seed(0))
    assert selected.equal(points[picks])
    assert labels[:, 0].equal(picks)


def test_streamed_coreset_does_not_depend_on_the_batch_size() -> None:
    points = clustered(2000, 12)
    selected, labels = stream(points, 300, 2000).select(100)
    for batch_size in (1, 77, 300, 301):
        same, same_labels = stream(points, 300, batch_size).select(100)
        assert same.equal(selected)
        assert same_labels.equal(labels)
    assert selected.equal(points[labels[:, 0]])
    assert labels[:, 1].equal(-labels[:, 0])
    assert len(set(labels[:, 0].tolist())) == 100


@pytest.mark.parametrize(("room", "reduce_to"), [(2, 0.5), (4, 0.5), (4, 0.25), (8, 0.25)])
def test_streamed_coreset_covers_nearly_as_well(room: int, reduce_to: float) -> None:
    points = clustered(6000, 32)
    exact = covering_radius(points, points[k_center_greedy(points, 200, start=0)])
    selected, _ = stream(points, room * 200, 500, reduce_to).select(200)
    assert covering_radius(points, selected) <= 1.5 * exact


def test_a_reduction_keeps_the_share_it_is_told() -> None:
    held = stream(clustered(41, 3), 40, 1, reduce_to=0.25)
    assert held.num_held == 11  # the 41st came when ten of 40 were left
    assert len(held.select(10)[0]) == 10
    with pytest.raises(ConfigError, match="choose at most 10, or raise max_rows=40"):
        held.select(11)


def test_streamed_coreset_of_too_little() -> None:
    with pytest.raises(ConfigError, match="max_rows=1"):
        StreamingCoreset(1, torch.Generator())
    with pytest.raises(ConfigError, match="reduce_to=1: choose a share above 0 and below 1"):
        StreamingCoreset(10, torch.Generator(), reduce_to=1)
    with pytest.raises(ConfigError, match="add points first"):
        StreamingCoreset(10, torch.Generator()).select(1)
    with pytest.raises(ConfigError, match=r"points \(4, 3\), labels \(5, 1\): give \(n, D\) and \(n, C\)"):
        StreamingCoreset(10, torch.Generator()).add(torch.zeros(4, 3), torch.zeros(5, 1))
    held = stream(clustered(50, 3), 40, 50)
    with pytest.raises(ConfigError, match=r"cannot select 21 points .* raise max_rows=40"):
        held.select(21)
    assert len(held.select(20)[0]) == 20


# -- by density -------------------------------------------------------------------------------------------------------


def test_density_keeps_fewer_of_what_lies_close_together():
    drawn = torch.Generator().manual_seed(0)
    dense, sparse = 0.01 * torch.randn(9000, 3, generator=drawn), 10 * torch.randn(1000, 3, generator=drawn)
    picks = density_subset(torch.cat([dense, sparse]), 1000, torch.Generator().manual_seed(1))
    assert len(picks.unique()) == 1000
    assert (picks >= 9000).float().mean() > 0.5  # of which a random subset holds a tenth


def test_density_keeps_as_many_as_are_asked_for_where_all_points_are_equal():
    picks = density_subset(torch.zeros(500, 2), 37, torch.Generator().manual_seed(0), rounds=10)
    assert len(picks.unique()) == 37


def test_density_is_that_of_its_seed():
    points = torch.randn(600, 4, generator=torch.Generator().manual_seed(3))
    first, again, other = (density_subset(points, 50, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_start_that_is_no_index_is_refused():
    with pytest.raises(ConfigError, match=r"start=5 is no index of 5 points: choose 0\.\.4"):
        coreset.k_center_greedy(torch.zeros(5, 2), 2, start=5)


def test_numbers_below_one_are_refused():
    with pytest.raises(ConfigError, match="block=0: choose at least 1"):
        k_center_greedy(torch.zeros(5, 2), 2, start=0, block=0)
    with pytest.raises(ConfigError, match="num_starts=0: choose at least 1"):
        approximate_greedy(torch.zeros(5, 2), 2, num_starts=0, generator=torch.Generator())
