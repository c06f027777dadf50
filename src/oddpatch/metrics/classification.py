"""What a classifier gets right at the score above which it calls an image anomalous."""

import numpy as np

from oddpatch.metrics.arrays import ArrayLike, to_both_classes
from oddpatch.metrics.classes import ImageMetrics


def classification(scores: ArrayLike, labels: ArrayLike, threshold: float = 0.5) -> dict[str, float]:
    """Accuracy, balanced accuracy, F1 and confusion matrix; the positive class is `anomaly`.

    Args:
        scores: (N,), larger being more anomalous.
        labels: (N,) of 0 good and 1 anomalous.
        threshold: an image is called anomalous if its score is above it.

    Returns:
        `accuracy`; `balanced_accuracy`, the mean of the shares of either class that are called right; `f1`; and how
        many images there are of each kind: `anomaly_tp`, `anomaly_fn`, `anomaly_fp` and `anomaly_tn`.

    Raises:
        UndefinedMetricError: there is only one class.
        NonFiniteScoreError: a score is NaN or infinite.
        DataError: shapes differ, or a label is neither 0 nor 1.
    """
    scores, anomalous = to_both_classes(scores, labels)
    called = scores > threshold
    tp, fn = int(np.sum(called & anomalous)), int(np.sum(~called & anomalous))
    fp, tn = int(np.sum(called & ~anomalous)), int(np.sum(~called & ~anomalous))
    return {
        "accuracy": (tp + tn) / len(scores),
        "balanced_accuracy": (tp / (tp + fn) + tn / (tn + fp)) / 2,
        "f1": 2 * tp / (2 * tp + fp + fn),
        "anomaly_tp": tp,
        "anomaly_fn": fn,
        "anomaly_fp": fp,
        "anomaly_tn": tn,
    }


class ClassificationMetrics(ImageMetrics):
    """What `classification` gives, of image scores.

    Args:
        threshold: a score above it means anomalous; 0.5 for probabilities.

    Examples:
        >>> import torch
        >>> from oddpatch.metrics.classification import ClassificationMetrics
        >>> metric = ClassificationMetrics(threshold=0.5)
        >>> metric.update(torch.tensor([0.1, 0.7, 0.4, 0.9]), label=torch.tensor([0, 0, 1, 1]), index=torch.arange(4))
        >>> metric.compute()["balanced_accuracy"]
        0.5
    """

    names = ("accuracy", "balanced_accuracy", "f1", "anomaly_tp", "anomaly_fn", "anomaly_fp", "anomaly_tn")

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold

    def _values(self) -> tuple[float, ...]:
        scores, labels = self._in_order("scores"), self._in_order("labels")
        return tuple(classification(scores, labels, self.threshold).values())
