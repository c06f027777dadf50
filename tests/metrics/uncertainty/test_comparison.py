"""DeLong's test against its definition, written out pair by pair."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from oddpatch.metrics import UndefinedMetricError
from oddpatch.metrics.uncertainty.comparison import bootstrap_p_value, delong_test


def by_definition(first, second, labels):
    """AUROCs, standard error and p-value from the matrix of all pairs, ties counting one half."""
    placed = []
    for scores in (first, second):
        anomalous, good = scores[labels == 1][:, None], scores[labels == 0][None]
        won = (anomalous > good) + 0.5 * (anomalous == good)
        placed.append((won.mean(), won.mean(axis=1), won.mean(axis=0)))
    covariance: Any = sum(np.cov([placed[0][axis], placed[1][axis]]) / len(placed[0][axis]) for axis in (1, 2))
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    difference = placed[1][0] - placed[0][0]
    return (placed[0][0], placed[1][0]), error, 2 * norm.sf(abs(difference) / error)


@pytest.mark.parametrize("decimals", [6, 0])
def test_delong_is_its_definition(decimals):
    rng = np.random.default_rng(0)
    labels = (np.arange(50) % 3 == 0).astype(int)
    first = (rng.normal(0, 1, 50) + labels).round(decimals)
    second = (0.5 * first + rng.normal(0, 1, 50) + 2 * labels).round(decimals)
    found, (aurocs, error, p_value) = delong_test(first, second, labels), by_definition(first, second, labels)
    assert found.auroc == pytest.approx(aurocs, abs=1e-12)
    assert found.auroc[0] == pytest.approx(roc_auc_score(labels, first), abs=1e-12)
    assert found.standard_error == pytest.approx(error, abs=1e-12)
    assert found.p_value == pytest.approx(p_value, abs=1e-12)


def test_under_no_difference_small_p_values_are_as_rare_as_they_say():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    drawn = rng.normal(0, 1, (400, 2, 80)) + labels
    p_values = [delong_test(first, second, labels).p_value for first, second in drawn]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09


def test_without_variance_there_is_no_p_value():
    labels = np.array([0, 0, 1, 1])
    assert delong_test([0, 1, 2, 3], [0, 0, 5, 5], labels).p_value is None


def test_too_few_images_are_refused():
    with pytest.raises(UndefinedMetricError, match="got 1 good and 2 anomalous"):
        delong_test([1, 2, 3], [1, 2, 3], [0, 1, 1])
    with pytest.raises(UndefinedMetricError, match="got 0 and 2"):
        delong_test([2, 3], [2, 3], [1, 1])


def test_bootstrap_p_value():
    assert bootstrap_p_value(np.full(999, 0.5)) == pytest.approx(2 / 1000)
    assert bootstrap_p_value(np.full(999, -0.5)) == pytest.approx(2 / 1000)
    assert bootstrap_p_value(np.zeros(999)) == 1.0
    assert bootstrap_p_value(np.append(np.repeat([-1.0, 1.0], [30, 969]), np.nan)) == pytest.approx(62 / 1000)
