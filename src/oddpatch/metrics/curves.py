"""The curves behind the ranking metrics: as scikit-learn gives them for few scores, thinned for plots of many."""

import numpy as np
from numpy.typing import NDArray

from oddpatch.metrics.arrays import ArrayLike, to_both_classes
from oddpatch.metrics.ranking import Ranking

Points = NDArray[np.float64]


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> tuple[Points, Points, Points]:
    """Receiver operating characteristic: (fpr, tpr, thresholds), the thresholds falling from infinity.

    Points on a straight line between others are left out, as in `sklearn.metrics.roc_curve`. Arguments and errors as
    in `oddpatch.metrics.rank`.
    """
    false_positives, true_positives, thresholds = _counts(scores, labels)
    corners = (np.diff(false_positives, 2) != 0) | (np.diff(true_positives, 2) != 0)
    keep = np.concatenate([[True], corners, [True]]) if thresholds.size > 1 else np.array([True])
    fpr = np.concatenate([[0], false_positives[keep] / false_positives[-1]])
    tpr = np.concatenate([[0], true_positives[keep] / true_positives[-1]])
    return fpr, tpr, np.concatenate([[np.inf], thresholds[keep]])


def precision_recall_curve(scores: ArrayLike, labels: ArrayLike) -> tuple[Points, Points, Points]:
    """(precision (K+1,), recall (K+1,), thresholds (K,)), the thresholds rising, as in scikit-learn.

    The last point, precision 1 at recall 0, has no threshold. Arguments and errors as in `oddpatch.metrics.rank`.
    """
    false_positives, true_positives, thresholds = _counts(scores, labels)
    precision = true_positives / (true_positives + false_positives)
    recall = true_positives / true_positives[-1]
    return np.append(precision[::-1], 1.0), np.append(recall[::-1], 0.0), thresholds[::-1]


def _counts(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64], Points]:
    """False and true positives at each distinct score, falling."""
    scores, anomalous = to_both_classes(scores, labels)
    order = np.argsort(scores)[::-1]
    ordered = scores[order]
    last_of_run = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), ordered.size - 1)
    true_positives = np.cumsum(anomalous[order], dtype=np.int64)[last_of_run]
    return last_of_run + 1 - true_positives, true_positives, ordered[last_of_run].astype(np.float64)


def rate_curve(ranking: Ranking, gains: NDArray[np.float64], max_points: int) -> tuple[Points, Points]:
    """(false-positive rate, sum of the gains so far) from (0, 0) to (1, 1), thinned to `max_points`.

    Args:
        ranking: T distinct positive scores.
        gains: (T,) by how much the curve rises at each of them; they sum to 1.
        max_points: about how many points to keep, see `thin`.
    """
    risen = np.minimum(np.cumsum(gains[::-1]), 1.0)  # (T,) from the highest score down
    # Between two positive scores the curve runs flat; within a tie of positives and negatives it is a straight line.
    x = np.stack([ranking.above[::-1], ranking.false_positives[::-1]], axis=1) / ranking.num_negatives  # (T, 2)
    y = np.stack([np.concatenate([[0.0], risen[:-1]]), risen], axis=1)  # (T, 2)
    return thin(np.concatenate([[0.0], x.ravel(), [1.0]]), np.concatenate([[0.0], y.ravel(), [1.0]]), max_points)


def recall_precision_curve(ranking: Ranking, max_points: int) -> tuple[Points, Points]:
    """(recall, precision) from recall 0 up, thinned to `max_points`; both ends of each vertical fall are kept."""
    true, false = ranking.true_positives[::-1], ranking.false_positives[::-1]  # (T,) from the highest score down
    # Precision falls, at unchanged recall, over the negatives that come before the next positive's score.
    false_at_end = np.append(ranking.above[::-1][1:], ranking.num_negatives)
    precision = true[:, None] / (true[:, None] + np.stack([false, false_at_end], axis=1))  # (T, 2)
    recall = np.repeat(true / ranking.num_positives, 2)
    return thin(np.append(0.0, recall), np.append(precision[0, 0], precision.ravel()), max_points)


def thin(x: Points, y: Points, max_points: int) -> tuple[Points, Points]:
    """At most `max_points` + 1 points of a polyline, evenly spaced along it, its ends among them.

    Each point kept is exact, and the line through them stays within (length of the polyline) / (max_points - 1)
    of the exact one, lengths being |dx| + |dy|: 2 / (max_points - 1) for a curve from (0, 0) to (1, 1).
    """
    if x.size <= max_points:
        return x, y
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    keep = np.searchsorted(along, np.linspace(0.0, along[-1], max_points))
    keep = np.unique(np.append(keep, x.size - 1))
    return x[keep], y[keep]
