"""Nearest neighbours against SciPy and scikit-learn in float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torch import Tensor

from oddpatch.errors import ConfigError, DataError
from oddpatch.ops import neighbours
from oddpatch.ops.bounds import Columns, squared_distances
from oddpatch.ops.neighbours import NearestIndex, nearest, plain_nearest
from oddpatch.ops.precision import float32_products, full_precision
from oddpatch.ops.projection import DIRECT_COST


@pytest.fixture(params=["whole", "cells"], autouse=True)
def how_a_bank_is_searched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every search of a bank as a whole, and by cells however small it is."""
    if request.param == "cells":
        monkeypatch.setattr("oddpatch.ops.cells.MANY_THREADS", 2**16)
        monkeypatch.setattr(neighbours, "PER_CELL", 0)
        monkeypatch.setattr(neighbours, "QUERIES_PER_CELL", 0)
        monkeypatch.setattr(neighbours, "MOST_NEAR", 1.0)
    else:
        monkeypatch.setattr(neighbours, "PER_CELL", 2**62)


def embedding_like(num_points: int, dim: int, seed: int = 0) -> Tensor:
    """Clusters with few directions that hold most of the variance, off the origin."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0, -6, dim).exp()
    centres = torch.randn(20, dim, generator=torch.Generator().manual_seed(99)) * 6 * scales
    member = torch.randint(20, (num_points,), generator=generator)
    return centres[member] + torch.randn(num_points, dim, generator=generator) * scales + 3.0


def brute_force(queries: Tensor, bank: Tensor, k: int, metric: str = "euclidean") -> tuple[np.ndarray, np.ndarray]:
    distances = cdist(queries.double().numpy(), bank.double().numpy(), metric)
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, indices, 1), indices


@pytest.mark.parametrize("dim", [3, 40, 256])
@pytest.mark.parametrize("k", [1, 9, 50])
@pytest.mark.parametrize("num_points", [50, 1000, 6500])
def test_euclidean_equals_brute_force(dim: int, k: int, num_points: int) -> None:
    queries, bank = embedding_like(150, dim, seed=1), embedding_like(num_points, dim)
    queries[::10] = bank[: len(queries[::10])]  # some are in the bank
    distances, indices = nearest(queries, bank, k)
    expected, expected_indices = brute_force(queries, bank, k)
    assert distances.dtype == torch.float32
    np.testing.assert_allclose(distances, expected, rtol=1e-6, atol=0)
    np.testing.assert_array_equal(indices, expected_indices)


def test_sketched_bank_equals_scikit_learn() -> None:
    queries, bank = embedding_like(300, 400, seed=1), embedding_like(5000, 400)
    index = NearestIndex(bank)
    assert index.sketch.basis is not None
    distances, indices = index.search(queries, 5)
    reference = NearestNeighbors(n_neighbors=5, algorithm="ball_tree").fit(bank.double())
    expected, expected_indices = reference.kneighbors(queries.double())
    np.testing.assert_allclose(distances, expected, rtol=1e-6)
    np.testing.assert_array_equal(indices, expected_indices)


@pytest.mark.parametrize("far", [10.0, 1e4])
def test_queries_unlike_anything_in_the_bank(far: float) -> None:
    bank = embedding_like(5000, 300)
    queries = embedding_like(40, 300, seed=1)
    queries[::2] += far * torch.randn(20, 300, generator=torch.Generator().manual_seed(2))
    index = NearestIndex(bank)
    assert index.sketch.basis is not None
    distances, indices = index.search(queries, 3)
    assert index.fine is not None  # the sketch leaves too much open: all dimensions are looked at
    expected, expected_indices = brute_force(queries, bank, 3)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)
    np.testing.assert_array_equal(indices, expected_indices)


@pytest.mark.parametrize("k", [1, 3])
def test_for_a_few_odd_queries_no_second_copy_of_the_bank_is_made(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def counted(a: Tensor, rows: Tensor, b: Tensor, columns: Tensor) -> Tensor:
        measured.append(int((rows == 7).sum()))
        return squared_distances(a, rows, b, columns)

    monkeypatch.setattr(neighbours, "squared_distances", counted)
    bank, queries = embedding_like(5000, 300), embedding_like(40, 300, seed=1)
    queries[7] += 10 * torch.randn(300, generator=torch.Generator().manual_seed(2))
    index = NearestIndex(bank)
    distances, indices = index.search(queries, k)
    # The sketch leaves too much open for it.
    assert len(bank) // DIRECT_COST < max(measured) < len(bank) // neighbours.FEW_CROWDED
    assert index.fine is None
    expected, expected_indices = brute_force(queries, bank, k)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)
    np.testing.assert_array_equal(indices, expected_indices)


@pytest.mark.parametrize("k", [1, 3])
def test_queries_unlike_those_before_take_no_more_memory(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    most, measured, at_once = 1 << 20, [], []

    def counted(a: Tensor, rows: Tensor, b: Tensor, columns: Tensor) -> Tensor:
        measured.append(len(rows))
        return squared_distances(a, rows, b, columns)

    def looked_at(columns: Columns, sketched: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        at_once.append(len(sketched) * len(columns.points))
        return bounds(columns, sketched, norms)

    bounds = Columns.bounds
    monkeypatch.setattr(neighbours, "squared_distances", counted)
    monkeypatch.setattr(Columns, "bounds", looked_at)
    bank = embedding_like(5000, 300)
    index = NearestIndex(bank)
    for seed in (1, 2, 3):
        index.search(embedding_like(1000, 300, seed), k, most)
    measured.clear()
    queries = embedding_like(600, 300, seed=4)
    queries += 10 * torch.randn(600, 300, generator=torch.Generator().manual_seed(5))
    distances, indices = index.search(queries, k, most)
    assert max(measured) <= neighbours.FEWER * most // 16
    assert 4 * max(at_once) <= most  # where all dimensions are looked at
    expected, expected_indices = brute_force(queries, bank, k)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)
    np.testing.assert_array_equal(indices, expected_indices)


@pytest.mark.parametrize("scale", [1e-19, 1e-21, 1e-22, 1e-23, 1e-30])
def test_points_whose_squares_are_next_to_nothing(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(500, 8, generator=generator) * scale, torch.randn(200, 8, generator=generator) * scale
    distances, indices = nearest(queries, bank, 2)
    expected, expected_indices = brute_force(queries / scale, bank / scale, 2)
    np.testing.assert_allclose(distances / scale, expected, rtol=1e-5)
    np.testing.assert_array_equal(indices, expected_indices)


def test_distances_depend_on_no_number_of_threads() -> None:
    points = torch.randn(40, 12_000, generator=torch.Generator().manual_seed(0))
    row, column = torch.arange(20), torch.arange(20, 40)
    found = []
    for threads in (1, 2, 4):
        with threadpool_limits(threads, "blas"):
            found.append(squared_distances(points, row, points, column))
    assert found[0].equal(found[1])
    assert found[0].equal(found[2])


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 4])
def test_batches_and_chunks_change_no_bit(metric: neighbours.Metric, k: int) -> None:
    queries, bank = embedding_like(200, 200, seed=1), embedding_like(3000, 200)
    whole = nearest(queries, bank, k, metric=metric)
    index = NearestIndex(bank, metric)
    for search in (
        lambda q: nearest(q, bank, k, metric=metric),
        lambda q: nearest(q, bank, k, metric=metric, max_bytes=1),
        lambda q: index.search(q, k, max_bytes=100_000),
    ):
        for size in (1, 7, 200):
            distances, indices = zip(*[search(batch) for batch in queries[:21].split(size)], strict=True)
            assert torch.cat(distances).equal(whole[0][:21])
            assert torch.cat(indices).equal(whole[1][:21])


def test_duplicates_come_by_rising_index() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = torch.randint(0, 3, (700, 4), generator=generator).float()
    queries = torch.randint(0, 3, (90, 4), generator=generator).float()
    for k in (1, 5, 60):
        distances, indices = nearest(queries, bank, k)
        expected, expected_indices = brute_force(queries, bank, k)
        np.testing.assert_allclose(distances, expected, rtol=1e-6)
        np.testing.assert_array_equal(indices, expected_indices)


def test_all_of_the_bank_the_same() -> None:
    bank = torch.full((300, 5), 2.5)
    distances, indices = nearest(torch.full((2, 5), 2.5), bank, 4)
    assert distances.equal(torch.zeros(2, 4))
    assert indices.tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("dim", [16, 300])
def test_offset_a_thousand_times_the_spread(dim: int) -> None:
    queries, bank = embedding_like(100, dim, seed=1) + 8192.0, embedding_like(4000, dim) + 8192.0
    distances, indices = nearest(queries, bank, 3)
    expected, expected_indices = brute_force(queries, bank, 3)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)
    np.testing.assert_array_equal(indices, expected_indices)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(dtype: torch.dtype) -> None:
    queries, bank = embedding_like(50, 20, seed=1).to(dtype), embedding_like(400, 20).to(dtype)
    distances, indices = nearest(queries, bank, 3)
    expected, expected_indices = brute_force(queries, bank, 3)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)
    np.testing.assert_array_equal(indices, expected_indices)


@pytest.mark.parametrize("dim", [8, 300])
def test_cosine_equals_brute_force(dim: int) -> None:
    queries, bank = embedding_like(120, dim, seed=1), embedding_like(3000, dim)
    distances, indices = nearest(queries, bank, 6, metric="cosine")
    expected, expected_indices = brute_force(queries, bank, 6, "cosine")
    np.testing.assert_allclose(distances, expected, rtol=1e-6, atol=1e-14)
    np.testing.assert_array_equal(indices, expected_indices)


def test_cosine_of_zero_vectors() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    distances, indices = nearest(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), bank, 3, metric="cosine")
    assert distances.tolist() == [[0.0, 1.0, 1.0], [0.0, 1.0, 2.0]]
    assert indices.tolist() == [[1, 0, 2], [0, 1, 2]]


def test_autocast_and_low_matrix_precision_change_nothing() -> None:
    queries, bank = embedding_like(50, 100, seed=1), embedding_like(900, 100)
    expected = nearest(queries, bank, 2)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            distances, indices = nearest(queries, bank, 2)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert distances.equal(expected[0])
    assert indices.equal(expected[1])


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9")
def test_full_precision_is_set_and_put_back() -> None:
    of_torch: Any = torch.backends
    backends = (of_torch.cuda.matmul, of_torch.mkldnn.matmul, of_torch.cudnn.conv)
    torch.set_float32_matmul_precision("medium")
    before = [backend.fp32_precision for backend in backends]
    try:
        with full_precision():
            assert [backend.fp32_precision for backend in backends] == ["ieee"] * 3
        assert [backend.fp32_precision for backend in backends] == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert "ieee" not in before


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9")
def test_threads_that_ask_for_precision_leave_what_was_set() -> None:
    conv: Any = torch.backends.cudnn
    before = conv.conv.fp32_precision
    assert before != "ieee"
    first, second = float32_products("ieee"), float32_products("tf32")
    first.__enter__()
    second.__enter__()  # as of another thread, which ends later
    assert conv.conv.fp32_precision == conv.rnn.fp32_precision == "ieee"
    first.__exit__(None, None, None)
    assert conv.conv.fp32_precision == "tf32"
    assert conv.allow_tf32
    second.__exit__(None, None, None)
    assert conv.conv.fp32_precision == before


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 4])
def test_what_can_be_exported_equals_brute_force_among_points_that_are_nearly_alike(
    metric: neighbours.Metric, k: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = 5 * torch.randn(100, 48, generator=generator)
    bank = (groups[:, None] + 1e-3 * torch.randn(100, 3, 48, generator=generator)).flatten(0, 1)
    queries = bank[::7] + 1e-4 * torch.randn(43, 48, generator=generator)
    distances, indices = plain_nearest(queries, bank, k, metric=metric)
    expected = cdist(queries.double(), bank.double(), metric)
    order = expected.argsort(axis=1)[:, :k]
    np.testing.assert_array_equal(indices, order)
    tolerance = 1e-6 if metric == "euclidean" else 1e-12  # of squares of unit vectors, in float64
    np.testing.assert_allclose(distances, np.take_along_axis(expected, order, 1), rtol=1e-3, atol=tolerance)


def test_no_queries() -> None:
    distances, indices = nearest(torch.empty(0, 4), torch.randn(10, 4), 2)
    assert distances.shape == indices.shape == (0, 2)


UNKNOWN: Any = "manhattan"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda q, b: nearest(q, b, 11), ConfigError, "k=11 nearest of a bank of 10"),
        (lambda q, b: nearest(q, b, 0), ConfigError, "k=0"),
        (lambda q, b: nearest(q[:, :2], b), ConfigError, r"\(Q, 3\)"),
        (lambda q, b: nearest(q, b[:0]), ConfigError, "at least one point"),
        (lambda q, b: nearest(q, b, metric=UNKNOWN), ConfigError, "choose one of euclidean, cosine"),
        (lambda q, b: nearest(q * math.nan, b), DataError, "queries: row 0"),
        (lambda q, b: nearest(q, b * math.inf), DataError, "memory bank: row 0"),
    ],
)
def test_unusable_arguments(call: Callable[[Tensor, Tensor], object], error: type[Exception], message: str) -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(error, match=message):
        call(torch.rand(4, 3, generator=generator), torch.rand(10, 3, generator=generator) + 1)


def test_queries_of_another_dimension_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"queries of shape \(2, 4\): this bank needs \(Q, 3\)"):
        NearestIndex(torch.zeros(5, 3)).search(torch.zeros(2, 4), 1)
