"""Exactness of p-values and evidence: all orders of a few values, integrals, and many simulated streams."""

from itertools import permutations

import numpy as np
import pytest
from scipy.integrate import quad

from oddpatch.drift.martingale import EXCESSES, Evidence, bets_on, bets_on_rejection, urn_p_value


def intervals(order, n):
    """Bounds between which each p-value of a stream is drawn, `order` being the ranks of n good images and of it."""
    known, counts, bounds = np.sort(order[:n]), np.zeros(n + 1, int), []
    for value in order[n:]:
        gap = np.array(np.searchsorted(known, value))
        low, high = (float(urn_p_value(counts, gap, np.array(u))) for u in (1.0, 0.0))
        bounds.append((low, high))
        counts[gap] += 1
    return bounds


@pytest.mark.parametrize("n", [1, 2, 3])
def test_p_values_are_independent_and_uniform_whatever_the_order_of_the_values(n):
    """Exactly: over all equally likely orders, the joint distribution function of three p-values is the product."""
    everything = [intervals(np.array(order), n) for order in permutations(range(n + 3))]
    for point in ((0.1, 0.5, 0.9), (0.3, 0.2, 0.25), (0.77, 0.4, 0.03), (0.05, 0.06, 0.5)):
        below = [
            np.prod([np.clip((x - low) / (high - low), 0, 1) for x, (low, high) in zip(point, bounds, strict=True)])
            for bounds in everything
        ]
        assert np.mean(below) == pytest.approx(np.prod(point), abs=1e-12)


def test_a_high_value_has_a_low_p_value():
    counts = np.array([0, 4, 1, 0])  # of 3 good images and 5 values
    assert urn_p_value(counts, np.array(3), np.array(0.0)) == pytest.approx(1 / 9)
    assert urn_p_value(counts, np.array(1), np.array(0.5)) == pytest.approx((1 + 2 + 5 / 2) / 9)
    assert urn_p_value(counts, np.array(0), np.array(0.0)) == pytest.approx(1)


def test_bets_have_a_mean_of_one():
    for place in range(bets_on(np.array(0.5)).shape[-1]):
        # Of z = the normal score, where the integrand has no poles.
        mean, _ = quad(lambda z, k=place: _bet_at(z)[k] * np.exp(-z * z / 2) / np.sqrt(2 * np.pi), -7.5, 7.5, limit=200)
        assert mean == pytest.approx(1, abs=1e-3)


def _bet_at(z):
    from scipy.stats import norm

    return bets_on(np.array(norm.sf(z)))


@pytest.mark.parametrize("allowed", [0.01, 0.05, 0.4])
def test_bets_on_rejection_have_a_mean_of_one_at_the_allowed_share_and_less_below(allowed):
    no, yes = bets_on_rejection(np.array([False, True]), np.array([allowed, allowed]))
    assert len(no) == len(EXCESSES)
    np.testing.assert_allclose(allowed * yes + (1 - allowed) * no, 1)
    assert (0.9 * allowed * yes + (1 - 0.9 * allowed) * no < 1).all()


def test_evidence_is_the_sum_of_all_products_and_remembers_where_the_best_began():
    bets = np.array([[0.5, 3.0], [4.0, 0.2], [3.0, 0.5], [0.9, 2.0]])
    found = Evidence.at_start(2, head_start=7.0)
    for part, row in enumerate(bets):
        found = found.after(row, part)
    products = [[np.prod(bets[begin:, b]) for begin in range(4)] for b in range(2)]
    np.testing.assert_allclose(found.sums, [sum(p) + 7 * np.prod(bets[:, b]) for b, p in enumerate(products)])
    assert found.since.tolist() == [int(np.argmax(p)) for p in products] == [1, 3]
    assert float(found.value) == pytest.approx(found.sums.mean())


def test_p_values_of_streams_that_share_their_images_are_uniform():
    """20,000 streams of values that are exchangeable, not independent: all of a stream have one heavy-tailed scale."""
    rng = np.random.default_rng(0)
    streams, n, parts = 20_000, 6, 12
    scale = rng.standard_cauchy((streams, 1))
    values = scale * rng.normal(size=(streams, n + parts)).round(1)  # with ties
    p_values = simulate(values, n, rng)
    assert abs(p_values.mean(axis=0) - 0.5).max() < 5 / np.sqrt(12 * streams)
    assert abs(np.corrcoef(p_values.T) - np.eye(parts)).max() < 5 / np.sqrt(streams)
    assert abs((p_values < 0.05).mean(axis=0) - 0.05).max() < 5 * np.sqrt(0.05 * 0.95 / streams)


def simulate(values, n, rng):
    """p-values (streams, parts) of values (streams, n + parts), the first n being those of good images."""
    streams, total = values.shape
    ties = rng.random(values.shape)
    counts, found = np.zeros((streams, n + 1), int), []
    for part in range(n, total):
        value, tie = values[:, part, None], ties[:, part, None]
        lower = (values[:, :n] < value) | ((values[:, :n] == value) & (ties[:, :n] < tie))
        gap = lower.sum(axis=1)
        found.append(urn_p_value(counts, gap, rng.random(streams)))
        counts[np.arange(streams), gap] += 1
    return np.stack(found, axis=1)


@pytest.mark.slow
def test_false_alarms_are_no_more_than_stated():
    """4,000 streams of 3,000 parts, each against 40 images of its own, an alarm at c = 26,000, R_0 = 10,000.

    At most (10,000 + 3,000) / 26,000, one half, may raise a false alarm.
    """
    rng = np.random.default_rng(1)
    streams, n, parts, alarm_at, start = 4000, 40, 3000, 26_000.0, 10_000.0
    known, counts, rows = np.sort(rng.normal(size=(streams, n))), np.zeros((streams, n + 1), int), np.arange(streams)
    evidence, raised = Evidence.at_start(streams, 10, head_start=start), np.zeros(streams, bool)
    for part in range(parts):
        gap = (known < rng.normal(size=(streams, 1))).sum(axis=1)
        evidence = evidence.after(bets_on(urn_p_value(counts, gap, rng.random(streams))), part)
        counts[rows, gap] += 1
        raised |= evidence.value >= alarm_at
    assert 0.1 < raised.mean() < 0.5
