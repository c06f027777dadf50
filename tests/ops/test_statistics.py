"""Streaming moments against numpy on stored samples."""

import multiprocessing
import os
import threading

import numpy as np
import pytest
import torch
from narrowing import present

from oddpatch.errors import ConfigError, DataError
from oddpatch.ops import statistics
from oddpatch.ops.statistics import (
    add_samples,
    empty_blocks,
    empty_moments,
    fill_blocks,
    from_blocks,
    mahalanobis,
    merge,
    whiten_,
)


def samples(count=40, positions=6, dim=9, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(positions, dim, dim))
    drawn = np.einsum("pij,pnj->pni", mixing, rng.normal(size=(positions, count, dim))) + offset
    return torch.from_numpy(drawn.astype(np.float32))  # (P, N, D)


def stream(data, batch_size):
    moments = empty_moments(data.shape[0], data.shape[2])
    for part in data.split(batch_size, dim=1):
        moments = add_samples(moments, part)
    return moments


def blocks_of(whitening):
    fill_blocks(blocks := empty_blocks(*whitening.shape[:2]), slice(None), whitening)
    return blocks


def numpy_covariances(data):
    return np.stack([np.cov(position.double().numpy(), rowvar=False) for position in data])


@pytest.mark.parametrize("batch_size", [1, 3, 16, 40])
@pytest.mark.parametrize("offset_over_spread", [0, 1, 1e3])
def test_equals_numpy_cov_in_float64(batch_size, offset_over_spread):
    spread = float(samples().std())
    data = samples(offset=offset_over_spread * spread)
    count, mean, scatter = stream(data, batch_size)
    expected = numpy_covariances(data)
    assert count == 40
    np.testing.assert_allclose(mean.numpy(), data.double().mean(1).numpy(), rtol=1e-6, atol=1e-6)
    error = np.abs(scatter.double().numpy() / (count - 1) - expected).max() / np.abs(expected).max()
    assert error < 1e-4


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_the_mean_keeps_nine_digits_far_from_zero(batch_size):
    data = samples(offset=1e4)
    expected = data.double().mean(1)
    mean = stream(data, batch_size).mean
    halves = merge(stream(data[:, :11], batch_size), stream(data[:, 11:], batch_size)).mean
    for found in (mean, halves):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_a_first_sample_far_away_costs_no_digits():
    data = samples(count=30)
    data[:, 0] += 1e3
    _, _, scatter = stream(data, 1)
    expected = numpy_covariances(data)
    assert np.abs(scatter.double().numpy() / 29 - expected).max() / np.abs(expected).max() < 1e-4


@pytest.mark.parametrize("split", [0, 1, 17, 40])
def test_merging_two_parts_equals_taking_in_all(split):
    data = samples(offset=50)
    together = stream(data, 8)
    merged = merge(stream(data[:, :split], 8), stream(data[:, split:], 8))
    assert merged.count == together.count
    torch.testing.assert_close(merged.mean, together.mean, rtol=1e-7, atol=1e-6)
    torch.testing.assert_close(merged.scatter, together.scatter, rtol=1e-4, atol=1e-2)


def test_parts_merged_are_as_near_to_float64_as_batches_are():
    """What docs/scaling.md says of several ranks: inverting a covariance magnifies the rounding of its sums."""
    rng = np.random.default_rng(0)
    spread = np.logspace(0, -2, 50)  # channels of very unlike spread, mixed, as a network's are
    mixing = np.linalg.qr(rng.normal(size=(50, 50)))[0] * spread[:, None]
    data = torch.from_numpy((rng.normal(size=(8, 60, 50)) @ mixing + 1).astype(np.float32))  # (P, N, D)
    queries = torch.from_numpy((2 * rng.normal(size=(8, 9, 50)) @ mixing + 1).astype(np.float32))
    covariances = numpy_covariances(data) + 0.01 * np.eye(50)
    factors = torch.from_numpy(np.linalg.inv(np.linalg.cholesky(covariances)))
    lengths = (factors @ (queries.double() - data.double().mean(1, keepdim=True)).mT).norm(dim=1)  # (P, B)
    ranks = [stream(data[:, rank::3], 8) for rank in range(3)]
    ways = {"all": stream(data, 8), "one by one": stream(data, 1), "ranks": merge(merge(*ranks[:2]), ranks[2])}
    for name, (count, mean, scatter) in ways.items():
        whiten_(scatter, count, 0.01, 0, 8)
        assert (scatter - factors).abs().max() < 1e-4 * factors.abs().max(), name
        distances = mahalanobis(queries, mean.float(), blocks_of(scatter))
        torch.testing.assert_close(distances.double(), lengths, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dim_of_small", [128, 0])
def test_mahalanobis_of_whitening_equals_the_inverse_covariance(dim_of_small, monkeypatch):
    monkeypatch.setattr(statistics, "SMALL", dim_of_small)
    data = samples(count=60)
    count, mean, scatter = stream(data, 7)
    for start in range(0, 6, 4):
        whiten_(scatter, count, 0.01, start, min(start + 4, 6))
    queries = samples(count=5, seed=1)
    distances = mahalanobis(queries, mean.float(), blocks_of(scatter)).numpy()
    for p, covariance in enumerate(numpy_covariances(data)):
        precision = np.linalg.inv(covariance + 0.01 * np.eye(9))
        shift = queries[p].double().numpy() - data[p].double().numpy().mean(0)
        expected = np.sqrt(np.einsum("ni,ij,nj->n", shift, precision, shift))
        np.testing.assert_allclose(distances[p], expected, rtol=1e-4)
    one_by_one = [mahalanobis(queries[:, i : i + 1], mean.float(), blocks_of(scatter)).numpy() for i in range(5)]
    np.testing.assert_allclose(np.concatenate(one_by_one, axis=1), distances, rtol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("positions", "batch", "dim"),
    [(11, 3, 100), (5, 1, 40), (2, 2, 128), (3, 130, 50), (1, 1, 33), (0, 2, 50), (3, 1, 150), (3, 4, 150)],
)
def test_blocks_of_a_cpu_give_the_lengths_of_whole_matrices(positions, batch, dim, threads, monkeypatch):
    monkeypatch.setattr(statistics, "CACHED", 2000)
    random = torch.Generator().manual_seed(0)
    whitening = torch.randn(positions, dim, dim, generator=random).tril_()
    mean, queries = torch.randn(positions, dim, generator=random), torch.randn(positions, batch, dim, generator=random)
    blocks = blocks_of(whitening)
    assert torch.equal(from_blocks(blocks), whitening)
    expected = (whitening.double() @ (queries - mean[:, None]).double().mT).norm(dim=1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = mahalanobis(queries, mean, blocks)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    with torch.enable_grad():  # as on a GPU
        other = mahalanobis(queries.requires_grad_(), mean, blocks)
    torch.testing.assert_close(other.double(), expected, rtol=1e-5, atol=0)


def test_blocks_hold_few_of_the_zeros_of_small_matrices():
    for dim in (100, 128):
        assert sum(block.numel() for block in empty_blocks(1, dim)) < 0.66 * dim**2
    for dim in (9, 200):
        assert [block.shape for block in empty_blocks(3, dim)] == [(3, dim, dim)]


def test_distances_have_gradients_for_who_asks():
    whitening, queries = torch.randn(2, 40, 40).tril_(), torch.randn(2, 3, 40, requires_grad=True)
    mahalanobis(queries, torch.zeros(2, 40), blocks_of(whitening)).sum().backward()
    assert present(queries.grad).abs().sum() > 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python from 3.12 on
def test_a_forked_process_measures_too():
    whitening, queries = torch.randn(4, 40, 40).tril_(), torch.randn(4, 3, 40)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = mahalanobis(queries, torch.zeros(4, 40), blocks_of(whitening))
        both = threading.Barrier(2)
        list(statistics.workers(2, os.getpid()).map(lambda _: both.wait(60), range(2)))  # all threads are there
        pool = multiprocessing.get_context("fork").Pool(1)
        with pool:
            found = pool.apply_async(mahalanobis, (queries, torch.zeros(4, 40), blocks_of(whitening))).get(60)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, expected)


def test_fewer_samples_than_dimensions_work_with_epsilon():
    count, _, scatter = stream(samples(count=3), 2)
    whiten_(scatter, count, 0.01, 0, 6)
    assert torch.isfinite(scatter).all()


@pytest.mark.parametrize("dim", [3, 40, 100, 150])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_features_that_are_not_finite_are_refused_at_their_position(dim, value):
    data = samples(count=60, positions=4, dim=dim)
    data[2, 7, 1] = value
    count, _, scatter = stream(data, 20)
    with pytest.raises(DataError, match="position 2 hold NaN, infinity or values too large: check the backbone's"):
        whiten_(scatter, count, 0.01, 1, 4)


def test_whichever_routine_refuses_a_matrix_names_its_position():
    """Next to singular, one LAPACK factors what another refuses."""
    told = []
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        dim = int(torch.randint(2, 60, (1,), generator=generator))
        deviations = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        deviations -= deviations.mean(0)  # of rank dim - 1
        scatter = torch.stack([torch.eye(dim, dtype=torch.float64), deviations.mT @ deviations])
        try:
            whiten_(scatter, dim, 0.0, 0, 2)
        except ConfigError as error:
            told.append(str(error))
    assert len(told) > 100
    assert all("the covariance at position 1 is not positive definite" in text for text in told)


@pytest.mark.parametrize("dim_of_small", [128, 0])
def test_a_covariance_that_is_not_positive_definite_says_what_to_change(dim_of_small, monkeypatch):
    monkeypatch.setattr(statistics, "SMALL", dim_of_small)
    data = samples(count=40, positions=4, dim=4)
    data[2] = 1.0
    count, _, scatter = stream(data, 5)
    with pytest.raises(ConfigError, match=r"epsilon=0.0 with 40 images: .*position 2 .*raise epsilon"):
        whiten_(scatter, count, 0.0, 1, 4)
