"""What a classifier gets right, against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from oddpatch.errors import DataError
from oddpatch.metrics import NonFiniteScoreError, UndefinedMetricError
from oddpatch.metrics.classification import ClassificationMetrics, classification


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.97])
@pytest.mark.parametrize("seed", range(5))
def test_equals_scikit_learn(seed, threshold):
    rng = np.random.default_rng(seed)
    labels = (rng.random(53) < 0.2 + 0.1 * seed).astype(int)
    labels[:2] = 0, 1
    scores = np.round(rng.random(53) + 0.2 * labels, 1)  # with some that lie on the threshold
    called = (scores > threshold).astype(int)
    found = classification(scores, labels, threshold)
    (tn, fp), (fn, tp) = sklearn.confusion_matrix(labels, called)
    assert found == {
        "accuracy": pytest.approx(sklearn.accuracy_score(labels, called)),
        "balanced_accuracy": pytest.approx(sklearn.balanced_accuracy_score(labels, called)),
        "f1": pytest.approx(sklearn.f1_score(labels, called, pos_label=1, zero_division=0)),
        "anomaly_tp": tp, "anomaly_fn": fn, "anomaly_fp": fp, "anomaly_tn": tn,
    }  # fmt: skip


def test_the_published_confusion_matrices_give_the_published_accuracies():
    """Of seed 003's classifier, whose positive class is `good`: anomalous images are the negative ones there."""
    for tp, fn, fp, tn, accuracy, balanced in (
        (85, 2, 1, 13, 0.970, 0.953), (57, 0, 4, 14, 0.947, 0.889), (50, 9, 6, 22, 0.828, 0.817),
    ):  # fmt: skip
        labels = [0] * (tp + fn) + [1] * (fp + tn)
        scores = [0.0] * tp + [1.0] * fn + [0.0] * fp + [1.0] * tn
        found = classification(scores, labels)
        assert (found["anomaly_tp"], found["anomaly_fn"]) == (tn, fp)
        assert found["accuracy"] == pytest.approx(accuracy, abs=6e-4)
        assert found["balanced_accuracy"] == pytest.approx(balanced, abs=6e-4)


def test_the_metric_counts_every_image_once_however_it_is_batched():
    scores, labels = torch.tensor([0.1, 0.9, 0.4, 0.6, 0.7]), torch.tensor([0, 1, 1, 0, 1])
    metric = ClassificationMetrics()
    for index in ([3, 4], [0], [1, 2, 4]):  # a distributed sampler pads with images seen before
        metric.update(scores[index], labels[index], torch.tensor(index))
    assert metric.compute() == classification(scores, labels)
    assert tuple(metric.compute()) == metric.names
    assert metric.compute()["anomaly_tp"] == 2


def test_what_has_no_value_has_a_reason():
    metric = ClassificationMetrics(threshold=0.2)
    metric.update(torch.tensor([0.1, 0.9]), torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert metric.compute() == {}
    assert set(metric.reasons) == set(metric.names)
    with pytest.raises(UndefinedMetricError):
        classification([0.1, 0.2], [1, 1])
    with pytest.raises(NonFiniteScoreError):
        classification([0.1, np.nan], [0, 1])
    with pytest.raises(DataError):
        classification([0.1, 0.2], [0, 2])
