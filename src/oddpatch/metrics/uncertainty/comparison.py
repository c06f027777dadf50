"""Whether two detectors differ on the same images: the paired bootstrap, and DeLong's test for AUROC."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.metrics.arrays import ArrayLike, Floats, UndefinedMetricError, to_both_classes


class DeLong(NamedTuple):
    """Result of `delong_test`."""

    auroc: tuple[float, float]
    standard_error: float  # of the difference
    p_value: float | None  # two-sided; None where the variance is zero, as if both separate the classes perfectly


def delong_test(first: ArrayLike, second: ArrayLike, labels: ArrayLike) -> DeLong:
    """Test whether two AUROCs of the same images differ.

    DeLong, DeLong and Clarke-Pearson, Biometrics 1988, by midranks (Sun and Xu, IEEE Signal Processing Letters 2014).

    Args:
        first: (N,) scores of one detector.
        second: (N,) scores of the other.
        labels: (N,) of 0 good and 1 anomalous.

    Raises:
        UndefinedMetricError: a class has fewer than two images, so that no variance can be estimated.
        NonFiniteScoreError: a score is NaN or infinite.
        DataError: shapes differ, or a label is neither 0 nor 1.
    """
    from scipy.stats import norm

    one, other = (_place(*to_both_classes(scores, labels)) for scores in (first, second))
    num_anomalous, num_good = one.below.size, one.above.size
    if min(num_anomalous, num_good) < 2:
        raise UndefinedMetricError(
            f"DeLong's test needs two images of each class: got {num_good} good and {num_anomalous} anomalous"
        )
    variance = (
        np.var(other.below - one.below, ddof=1) / num_anomalous + np.var(other.above - one.above, ddof=1) / num_good
    )
    error = float(np.sqrt(variance))
    aurocs = (float(one.below.mean()), float(other.below.mean()))
    p_value = float(2 * norm.sf(abs(aurocs[1] - aurocs[0]) / error)) if error > 0 else None
    return DeLong(aurocs, error, p_value)


class _Placements(NamedTuple):
    """Where the classes lie within each other; ties count one half. The mean of either is the AUROC."""

    below: NDArray[np.float64]  # of each anomalous image, the share of good ones that score lower
    above: NDArray[np.float64]  # of each good image, the share of anomalous ones that score higher


def _place(scores: Floats, anomalous: NDArray[np.bool_]) -> _Placements:
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    num_anomalous, num_good = int(anomalous.sum()), int((~anomalous).sum())
    below = (ranks[anomalous] - rankdata(scores[anomalous])) / num_good
    above = 1 - (ranks[~anomalous] - rankdata(scores[~anomalous])) / num_anomalous
    return _Placements(below, above)


def bootstrap_p_value(differences: NDArray[np.float64]) -> float:
    """Two-sided p-value of "no difference" from the differences (S,) of paired draws; never below 2 / (S + 1).

    Twice the smaller share of draws on either side of zero, the observed sample counting as one draw of each side
    (Davison and Hinkley, "Bootstrap Methods and their Application", 1997).
    """
    defined = differences[np.isfinite(differences)]
    smaller = min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0))
    return min(1.0, 2 * (smaller + 1) / (defined.size + 1))
