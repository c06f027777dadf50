"""Metrics of how well scores rank anomalous above good: AUROC, average precision, F1-max. No score is ever squashed."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.errors import DataError
from oddpatch.metrics.arrays import (
    ArrayLike,
    Floats,
    require_finite,
    to_both_classes,
    to_floats,
)


class MetricResult(NamedTuple):
    """What could be computed, and one line of why for each thing that could not."""

    values: dict[str, float]
    absent: dict[str, str]


@dataclass(frozen=True)
class Ranking:
    """Where the positives fall among the negatives, at each of the T distinct positive scores, in rising order.

    Every ranking metric is a sum over the positives, so nothing needs to be known of the negatives but how many
    score higher: with few positives this is far smaller than a curve over all scores.
    """

    thresholds: Floats  # (T,) distinct scores of the positives
    positives: NDArray[np.int64]  # (T,) positives at exactly this score
    true_positives: NDArray[np.int64]  # (T,) positives at or above it
    false_positives: NDArray[np.int64]  # (T,) negatives at or above it
    above: NDArray[np.int64]  # (T,) negatives strictly above it
    num_positives: int
    num_negatives: int

    @classmethod
    def of_sorted(cls, negatives: Sequence[Floats], positives: Floats, num_below: int = 0) -> "Ranking":
        """Rank positives (P,) among negatives [(N_1,), (N_2,), ...], each sorted in rising order and finite.

        Neither may be empty in all. The counts over the parts add up, so how negatives are split changes nothing.
        Negatives lower than every positive may be left out, and their number given as `num_below`.
        """
        starts = run_starts(positives)
        thresholds = positives[starts]
        # The needles are sorted, which keeps the binary search in cache: several times faster than unsorted ones.
        below = num_below + sum(in_threads(lambda part: np.searchsorted(part, thresholds, side="left"), negatives))
        not_above = num_below + sum(in_threads(lambda part: np.searchsorted(part, thresholds, side="right"), negatives))
        num_negatives = num_below + sum(part.size for part in negatives)
        return cls(
            thresholds=thresholds,
            positives=np.diff(starts, append=positives.size),
            true_positives=positives.size - starts,
            false_positives=num_negatives - below,
            above=num_negatives - not_above,
            num_positives=positives.size,
            num_negatives=num_negatives,
        )

    def auroc(self) -> float:
        """Area under the receiver operating characteristic; a tie counts one half."""
        # In whole numbers until the last division, so that the order of summation cannot matter.
        twice_below = 2 * self.num_negatives - self.above - self.false_positives  # (T,)
        return int(self.positives @ twice_below) / (2 * self.num_negatives * self.num_positives)

    def average_precision(self) -> float:
        """Mean over the positives of the precision at their own score (not interpolated)."""
        precision = self.true_positives / (self.true_positives + self.false_positives)  # (T,)
        return float(np.sum(self.positives * precision)) / self.num_positives

    def f1_max(self) -> tuple[float, float]:
        """The largest F1 over all thresholds, and the highest threshold that gives it.

        Only scores of positives can be best: lowering the threshold to a negative's score adds false alarms alone.
        """
        f1 = 2 * self.true_positives / (self.true_positives + self.false_positives + self.num_positives)  # (T,)
        best = f1.size - 1 - int(np.argmax(f1[::-1]))
        return float(f1[best]), float(self.thresholds[best])


def in_threads(call: Callable[[Floats], Any], parts: Sequence[Floats]) -> list[Any]:
    """`call` of each part, one thread each: NumPy sorts and searches without holding the interpreter."""
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(call, parts))


def run_starts(ordered: Floats) -> NDArray[np.int64]:
    """Positions (T,) where each run of equal values starts in a sorted array that is not empty."""
    return np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])


def rank(scores: ArrayLike, labels: ArrayLike) -> Ranking:
    """Rank scores (N,), larger being more anomalous, by labels (N,) of 0 good and 1 anomalous.

    Raises:
        UndefinedMetricError: there is only one class.
        NonFiniteScoreError: a score is NaN or infinite.
        DataError: shapes differ, or a label is neither 0 nor 1.
    """
    scores, anomalous = to_both_classes(scores, labels)
    return Ranking.of_sorted([np.sort(scores[~anomalous])], np.sort(scores[anomalous]))


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the receiver operating characteristic; arguments and errors as in `rank`."""
    return rank(scores, labels).auroc()


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Average precision, not interpolated; arguments and errors as in `rank`."""
    return rank(scores, labels).average_precision()


def f1_max(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """The largest F1 and its threshold: anomalous is score >= threshold. Arguments and errors as in `rank`.

    Of equally good thresholds the highest is given. It is an oracle: chosen on the labels it is measured on.
    """
    return rank(scores, labels).f1_max()


def auroc_by_type(scores: ArrayLike, defect_types: Sequence[str], good: str = "good") -> MetricResult:
    """Image AUROC of each defect type against all good images.

    Args:
        scores: (N,), larger being more anomalous.
        defect_types: the type of each image's defect.
        good: the name that stands for no defect.

    Raises:
        NonFiniteScoreError: a score is NaN or infinite.
        DataError: shapes differ.
    """
    scores, types = to_floats(scores), np.asarray(defect_types, dtype=str)
    if scores.shape != types.shape or scores.ndim != 1:
        raise DataError(f"scores {scores.shape} and defect_types {types.shape} must both be of one shape (N,)")
    require_finite(scores, "scores")
    names = [str(name) for name in np.unique(types) if name != good]
    negatives = np.sort(scores[types == good])
    if not negatives.size:
        return MetricResult({}, dict.fromkeys(names, f"no image of type {good!r} to compare with"))
    return MetricResult(
        {name: Ranking.of_sorted([negatives], np.sort(scores[types == name])).auroc() for name in names}, {}
    )
