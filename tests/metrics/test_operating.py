"""Operating figures against counting by hand and scikit-learn's ROC curve."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_curve

from oddpatch.metrics import UndefinedMetricError
from oddpatch.metrics.operating import (
    errors_at_threshold,
    operating_figures,
    overlap_histogram,
    proportion,
    recall_at_false_alarm_rate,
)


@pytest.mark.parametrize("decimals", [6, 1])
@pytest.mark.parametrize("rate", [0.0, 0.001, 0.01, 0.05, 0.29, 1.0])
def test_recall_is_the_highest_of_the_roc_curve_at_that_rate(rate, decimals):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [100, 60])
    scores = (rng.normal(0, 1, 160) + 1.5 * labels).round(decimals)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    found = recall_at_false_alarm_rate(scores, labels, rate)
    assert found.recall == pytest.approx(tpr[fpr <= rate + 1e-12].max(), abs=1e-12)
    assert found.resolved == (rate >= 0.01)
    if found.threshold is not None:
        assert np.mean(scores[labels == 0] > found.threshold) == found.false_alarms / 100 <= rate + 1e-12
        assert np.mean(scores[labels == 1] > found.threshold) == found.recall


def test_the_last_digits_of_a_rate_do_not_decide():
    scores, labels = [*range(100), 70.5], [0] * 100 + [1]
    assert 0.29 * 100 < 29
    assert recall_at_false_alarm_rate(scores, labels, 0.29).recall == 1
    assert recall_at_false_alarm_rate(scores, labels, 0.28).recall == 0


def test_a_rate_that_the_images_cannot_resolve_says_so():
    figures = operating_figures(np.arange(30.0), np.repeat([0, 1], [20, 10]))
    notes = [point.get("note", "") for point in figures["recall_at_false_alarm_rate"]]
    assert notes[0] == "20 good images cannot resolve this rate, 1000 are needed: recall without any false alarm"
    assert "100 are needed" in notes[1]
    assert notes[2] == ""  # one of 20 is 5 %


def test_errors_at_a_threshold_and_their_intervals():
    scores, labels = [1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 1, 0, 1, 1]
    found = errors_at_threshold(scores, labels, 4)  # a score equal to it is not anomalous
    assert (found["false_rejects"].number, found["false_rejects"].total) == (1, 4)
    assert (found["escapes"].number, found["escapes"].total) == (1, 3)
    assert set(errors_at_threshold([1, 2], [1, 1], 0)) == {"escapes"}


@pytest.mark.parametrize(("number", "total"), [(0, 20), (3, 20), (20, 20)])
def test_interval_is_clopper_and_pearsons(number, total):
    found = proportion(number, total)
    wanted = binomtest(number, total).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_figures_hold_what_can_be_computed():
    figures = operating_figures([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1], threshold=1.5, test_seconds=2.0)
    assert figures["average_latency_ms"] == 500
    assert figures["at_threshold"]["false_rejects_per_1000"] == 500
    assert figures["at_threshold"]["escape_rate"] == 0
    assert set(operating_figures([1.0], [0], test_seconds=1.0)) == {"average_latency_ms"}
    assert operating_figures([], []) == {}
    with pytest.raises(UndefinedMetricError, match="got 2 and 0"):
        recall_at_false_alarm_rate([1, 2], [0, 0], 0.1)


def test_overlap_histogram():
    found = overlap_histogram(np.array([0.0, 0.0, 0.05, 0.1, 0.95, 1.0]))
    assert found["counts"] == [3, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (found["num_regions"], found["missed"]) == (6, 2)
    assert found["mean"] == pytest.approx(0.35)
