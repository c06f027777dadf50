"""What a production line asks: how many defects are caught at a bearable rate of false alarms, and how many escape.

An image is anomalous if its score is higher than a threshold, as in `oddpatch.metrics.thresholds`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.metrics.arrays import ArrayLike, to_both_classes, to_scores_and_labels
from oddpatch.wording import counted

FALSE_ALARM_RATES = (0.001, 0.01, 0.05)
#: Bins of the histogram of per-region overlaps.
OVERLAP_BINS = 10


class RecallAtRate(NamedTuple):
    """A point of the ROC curve: the most defects that a rate of false alarms allows to find.

    It is an oracle: its threshold is chosen on the good images that the rate is measured on.
    """

    rate: float  # asked for
    recall: float
    false_alarms: int  # good images above the threshold
    num_good: int
    threshold: float | None  # highest good score that may not alarm; None if all may
    resolved: bool  # False: with fewer than 1 / rate good images, this is the recall at no false alarm at all


class Proportion(NamedTuple):
    """So many of a total, with the exact (Clopper and Pearson, 1934) interval of the share behind it."""

    number: int
    total: int
    share: float
    low: float
    high: float


def recall_at_false_alarm_rate(scores: ArrayLike, labels: ArrayLike, rate: float) -> RecallAtRate:
    """The highest recall at no more than `rate` false alarms per good image.

    Args:
        scores: (N,), larger being more anomalous.
        labels: (N,) of 0 good and 1 anomalous.
        rate: in [0, 1].

    Raises:
        UndefinedMetricError: there is only one class.
        NonFiniteScoreError: a score is NaN or infinite.
        DataError: shapes differ, or a label is neither 0 nor 1.
    """
    scores, anomalous = to_both_classes(scores, labels)
    good, bad = np.sort(scores[~anomalous])[::-1], scores[anomalous]
    # The last digits of the product must not decide: 0.29 * 100 is below 29.
    allowed = math.floor(rate * good.size + 1e-9)
    # The first good image that may no longer alarm; of those that tie with it, none may.
    threshold = float(good[allowed]) if allowed < good.size else None
    found, alarms = (bad.size, good.size) if threshold is None else (np.sum(bad > threshold), np.sum(good > threshold))
    return RecallAtRate(rate, float(found / bad.size), int(alarms), good.size, threshold, allowed >= 1)


def proportion(number: int, total: int, level: float = 0.95) -> Proportion:
    """`number` of `total` with its exact two-sided interval; `total` must be above 0."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, number, total - number + 1)) if number else 0.0
    high = float(beta.ppf(1 - tail, number + 1, total - number)) if number < total else 1.0
    return Proportion(number, total, number / total, low, high)


def errors_at_threshold(scores: ArrayLike, labels: ArrayLike, threshold: float) -> dict[str, Proportion]:
    """`false_rejects` among the good and `escapes` among the anomalous images.

    A class without images is left out. Errors as in `recall_at_false_alarm_rate`.
    """
    scores, anomalous = to_scores_and_labels(scores, labels)
    called = scores > threshold
    classes = {"false_rejects": (called, ~anomalous), "escapes": (~called, anomalous)}
    return {
        name: proportion(int(np.count_nonzero(wrong & members)), int(members.sum()))
        for name, (wrong, members) in classes.items()
        if members.any()
    }


def overlap_histogram(overlaps: NDArray[np.float64]) -> dict[str, Any]:
    """How many of the defect regions are found to which part; `overlaps` (R,) as `PixelStatistics.region_overlaps`."""
    counts, edges = np.histogram(overlaps, bins=OVERLAP_BINS, range=(0, 1))
    return {
        "num_regions": int(overlaps.size),
        "missed": int(np.count_nonzero(overlaps == 0)),
        "mean": float(overlaps.mean()),
        "counts": counts.tolist(),
        "edges": edges.round(6).tolist(),
    }


def operating_figures(
    scores: ArrayLike,
    labels: ArrayLike,
    threshold: float | None = None,
    test_seconds: float | None = None,
    rates: Sequence[float] = FALSE_ALARM_RATES,
    judged: ArrayLike | None = None,
) -> dict[str, Any]:
    """The image figures, ready for JSON; what cannot be computed is absent.

    Args:
        scores: (N,), larger being more anomalous.
        labels: (N,) of 0 good and 1 anomalous.
        threshold: calibrated on images other than these; None if there is none.
        test_seconds: what loading and scoring all N images took; it gives the average latency.
        rates: false-alarm rates to give the recall at.
        judged: (N,) what the threshold is compared with, where that is not the score alone.
    """
    scores, anomalous = to_scores_and_labels(scores, labels)
    figures: dict[str, Any] = {}
    if anomalous.any() and not anomalous.all():
        points = [recall_at_false_alarm_rate(scores, labels, rate) for rate in rates]
        figures["recall_at_false_alarm_rate"] = [_as_json(point) for point in points]
    if threshold is not None and scores.size:
        found = errors_at_threshold(scores if judged is None else judged, labels, threshold)
        figures["at_threshold"] = {"threshold": threshold, **{name: value._asdict() for name, value in found.items()}}
        if "false_rejects" in found:
            figures["at_threshold"]["false_rejects_per_1000"] = 1000 * found["false_rejects"].share
        if "escapes" in found:
            figures["at_threshold"]["escape_rate"] = found["escapes"].share
    if test_seconds is not None and scores.size:
        figures["average_latency_ms"] = 1000 * test_seconds / scores.size
    return figures


def _as_json(point: RecallAtRate) -> Mapping[str, Any]:
    told = point._asdict()
    if not point.resolved:
        needed = math.ceil(1 / point.rate - 1e-9) if point.rate > 0 else None
        told["note"] = (
            f"{counted(point.num_good, 'good image')} cannot resolve this rate"
            + (f", {needed} are needed" if needed else "")
            + ": recall without any false alarm"
        )
    return told
