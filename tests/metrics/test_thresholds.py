"""Conformal thresholds keep their promise on simulated scores; p-values and scores never tie."""

from typing import Literal

import numpy as np
import pytest
from scipy import stats

from oddpatch.errors import ConfigError
from oddpatch.metrics.thresholds import (
    anomaly_score,
    at_threshold,
    conformal_p_values,
    conformal_threshold,
    fold_of,
    max_excluding,
    stands_out,
)


@pytest.mark.parametrize("target", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("draw", [stats.norm(), stats.lognorm(1.5), stats.cauchy()], ids=["normal", "skewed", "cauchy"])
def test_the_realised_false_alarm_rate_is_within_the_stated_bounds(target, draw):
    rng = np.random.default_rng(0)
    rates, bounds, stated = [], [], []
    for _ in range(200):
        threshold = conformal_threshold(draw.rvs(150, random_state=rng), target)
        rates.append(draw.sf(threshold.value))  # the exact rate of new images
        bounds.append(threshold.fpr_bound(0.95))
        stated.append(threshold.fpr)
    realised = np.array(rates)
    assert stated[0] <= target
    # On average over the draws the rate is what was stated, to three standard errors ...
    assert abs(realised.mean() - stated[0]) <= 3 * realised.std() / np.sqrt(200)
    # ... and exceeds the 95 % bound in no more draws than a binomial of 5 % allows.
    assert (realised > bounds).sum() <= stats.binom(200, 0.05).ppf(0.999)


def test_bound_is_the_quantile_of_the_known_distribution():
    threshold = conformal_threshold(np.arange(99), 0.05)
    assert threshold.value == 94  # the 95th of 99
    assert threshold.fpr == pytest.approx(0.05)
    assert threshold.fpr_bound(0.9) == pytest.approx(stats.beta(5, 95).ppf(0.9))


def test_too_few_images_give_the_rate_they_support():
    threshold = conformal_threshold([3.0, 1.0, 2.0], 0.01)
    assert (threshold.value, threshold.fpr, threshold.supported) == (3.0, 0.25, False)
    assert conformal_threshold(np.arange(99), 0.01) == (98, 0.01, 0.01, 99, "marginal")
    assert conformal_threshold(np.arange(99), 0.01).supported


@pytest.mark.parametrize(("target", "count"), [(0.1, 29), (0.05, 59), (0.02, 149), (0.01, 299), (0.005, 598)])
def test_so_many_images_support_the_confident_promise(target, count):
    """The table of tolerance bounds by the highest value (Wilks 1941)."""
    enough = conformal_threshold(np.arange(count), target, "confident")
    assert (enough.value, enough.supported, enough.num_needed) == (count - 1, True, count)
    fewer = conformal_threshold(np.arange(count - 1), target, "confident")
    assert (fewer.value, fewer.supported, fewer.num_needed) == (count - 2, False, count)
    assert enough.promised == pytest.approx(1 - 0.05 ** (1 / count)) == enough.fpr_bound(0.95)
    assert conformal_threshold(np.arange(99), target).num_needed == round(1 / target) - 1


@pytest.mark.parametrize("count", [60, 93, 150, 1000])
def test_the_confident_threshold_is_the_lowest_whose_bound_holds(count):
    """By the distribution of order statistics of uniform scores, Beta(k, n + 1 - k)."""
    threshold = conformal_threshold(np.arange(1, count + 1), 0.05, "confident")
    holds = [k for k in range(1, count + 1) if stats.beta(k, count + 1 - k).sf(0.95) >= 0.95]
    assert threshold.value == min(holds)
    assert threshold.promised <= 0.05
    with pytest.raises(ConfigError, match=r"calibration\.promise='sure' is not known: choose marginal or confident"):
        conformal_threshold([1.0], 0.05, "sure")  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [59, 150, 400])
def test_what_each_promise_says_holds_in_a_simulation(count):
    """The marginal one on average over sets of good images; the confident one for 95 in 100 of them."""
    rng, draw, target = np.random.default_rng(0), stats.lognorm(1.0), 0.05
    rates: dict[Literal["marginal", "confident"], list[float]] = {"marginal": [], "confident": []}
    for _ in range(2000):
        scores = draw.rvs(count, random_state=rng)
        for promise, realised in rates.items():
            realised.append(draw.sf(conformal_threshold(scores, target, promise).value))
    marginal, confident = (np.array(found) for found in rates.values())
    assert marginal.mean() <= target + 3 * marginal.std() / np.sqrt(2000)
    assert (confident > target).sum() <= stats.binom(2000, 0.05).ppf(0.999)
    assert (marginal > target).mean() > 0.2  # which the marginal one does not say
    assert confident.mean() < marginal.mean()


def test_p_values_are_valid_and_never_tie():
    rng = np.random.default_rng(0)
    calibration = np.round(rng.normal(10, 2, 60), 1)  # with ties
    scores = np.sort(np.concatenate([rng.normal(10, 3, 300), [1e-3, 1e3, 1e5, 1e6, -1e3], calibration]))
    p = conformal_p_values(scores, calibration)
    exact = (1 + (calibration[None] >= scores[:, None]).sum(axis=1)) / 61
    inside = scores > calibration.min()
    assert (p[inside] >= exact[inside] - 1e-12).all()
    np.testing.assert_allclose(p[inside & np.isin(scores, calibration)], exact[inside & np.isin(scores, calibration)])
    distinct = np.diff(scores) > 0
    assert (np.diff(p)[distinct] < 0).all()
    assert p.min() > 1 / 61
    assert p.max() < 1
    assert p[:1] == conformal_p_values(scores[:1], calibration)  # of a single image


@pytest.mark.parametrize("calibration", [[2.0], [2.0, 2.0, 2.0]])
def test_p_values_of_hardly_any_images(calibration):
    p = conformal_p_values([0.0, 1.0, 2.0, 3.0, 4.0], calibration)
    assert (np.diff(p) < 0).all()
    assert 0 < p.min() <= p.max() < 1


def test_scores_are_monotone_and_half_at_the_threshold():
    raw = np.array([-1e9, 0, 4, 6, 10, 11, 1e4, 1e8, 1e9])
    scaled = anomaly_score(raw, typical=4, threshold=10)
    assert (np.diff(scaled) > 0).all()
    assert 0 < scaled.min() < scaled.max() < 1
    assert scaled[raw == 10] == 0.5
    assert scaled[raw == 4] == 0.25
    of_maps = anomaly_score(raw.astype(np.float32), typical=4, threshold=np.float64(10))
    assert of_maps.dtype == np.float32
    np.testing.assert_allclose(of_maps, scaled, rtol=0, atol=1e-7)


def test_at_most_so_many_pixels_exceed_the_value():
    maps = np.random.default_rng(0).normal(size=(5, 8, 9))
    for area in (0, 3, 71):
        values = max_excluding(maps, area)
        assert ((maps > values[:, None, None]).sum(axis=(1, 2)) == area).all()


def test_exactly_at_the_threshold_is_good():
    scores, labels = [1.0, 2.0, 2.0, 3.0], [0, 0, 1, 1]
    assert at_threshold(scores, labels, 2.0) == {
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "fpr": 0.0,
    }
    held_out = np.random.default_rng(0).lognormal(size=30)
    for target in (0.01, 0.1, 0.3):
        threshold = conformal_threshold(held_out, target)
        rate = at_threshold(held_out, np.zeros(30), threshold.value)["fpr"]
        assert threshold.value in held_out
        assert rate == pytest.approx(round(threshold.fpr * 31 - 1) / 30), "the image that set it is good"


def test_folds_are_balanced_and_seeded():
    folds = fold_of(23, 5, seed=1)
    assert sorted(np.bincount(folds)) == [4, 4, 5, 5, 5]
    assert folds == fold_of(23, 5, seed=1) != fold_of(23, 5, seed=2)


@pytest.mark.parametrize("target", [0, 1, -0.1])
def test_an_impossible_rate_is_refused(target):
    with pytest.raises(ConfigError, match=r"target_fpr=.* must lie between 0 and 1"):
        conformal_threshold([1.0], target)


@pytest.mark.parametrize("count", [5, 8, 30, 209])
def test_good_images_seldom_stand_out_and_an_odd_one_does(count):
    rng = np.random.default_rng(0)
    for draw, at_most in ((rng.standard_normal, 0.0015), (rng.standard_exponential, 0.0025)):
        found = [stands_out(10 + draw(count)) for _ in range(4000)]
        assert np.mean(found) <= at_most
    assert not stands_out(np.ones(count))
    scores = 10 + rng.standard_normal(count)
    assert count < 9 or stands_out([*scores, 10 + (100 if count < 10 else 12)])
    assert stands_out([*scores, 1e4])
    assert not stands_out([1.0, 1.0, 1.0, 50.0])


def test_no_score_is_refused():
    with pytest.raises(ConfigError, match="no held-out good image was scored: a threshold needs at least one"):
        conformal_threshold([], 0.1)
