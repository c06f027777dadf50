"""What thresholds from good images give, against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from oddpatch.metrics.at_threshold import BalancedAccuracy, ClassF1, SegF1
from oddpatch.types import IGNORE

ABSENT = "it was fitted with calibration=none"


def scene(seed):
    rng = np.random.default_rng(seed)
    masks = (rng.random((7, 1, 9, 9)) < 0.1).astype(np.uint8)
    masks[4:] = 0
    maps = np.round(rng.normal(size=masks.shape) + 1.5 * masks, 1)  # with some that lie on the threshold
    masks[:, :, 0] = IGNORE
    return maps, masks, (np.arange(7) < 4).astype(int)


def fed(metric, **values):
    """What a metric gives of batches in which one image comes twice; values that are not tensors are for all."""
    for index in ([5, 6], [0, 1, 2], [2, 3, 4]):
        given = {name: v[index] if isinstance(v, torch.Tensor) else v for name, v in values.items()}
        metric.update(index=torch.tensor(index), **given)
    return metric.compute()


@pytest.mark.parametrize("threshold", [0.5, 1.3])
@pytest.mark.parametrize("seed", range(3))
def test_seg_f1_is_of_all_known_pixels(seed, threshold):
    maps, masks, _ = scene(seed)
    known = masks != IGNORE
    expected = f1_score(masks[known], maps[known] > threshold)
    found = fed(SegF1(), anomaly_map=torch.tensor(maps), mask=torch.tensor(masks), pixel_threshold=threshold,
                no_threshold="")  # fmt: skip
    assert found == {"seg_f1": pytest.approx(expected)}


@pytest.mark.parametrize(("area", "threshold"), [(0, 2.4), (2, 2.0)])
def test_class_f1_is_of_images_whose_map_has_more_pixels_than_bearable(area, threshold):
    maps, _, labels = scene(0)
    called = (maps > threshold).sum((1, 2, 3)) > area
    assert 0 < called.sum() < 7
    found = fed(ClassF1(), anomaly_map=torch.tensor(maps), label=torch.tensor(labels), pixel_threshold=threshold,
                min_area=area, no_threshold="")  # fmt: skip
    assert found == {"class_f1": pytest.approx(f1_score(labels, called))}


def test_balanced_accuracy_at_each_threshold():
    scores, labels = np.array([0.2, 0.9, 0.5, 0.7, 0.5, 0.1, 0.8]), np.array([1, 1, 1, 1, 0, 0, 0])
    thresholds = {"conformal": 0.5, "validation": 0.1}
    metric = BalancedAccuracy()
    given = {"score": torch.tensor(scores), "label": torch.tensor(labels), "no_threshold": ABSENT}
    assert fed(metric, thresholds=thresholds, **given) == {
        f"image_balanced_accuracy@{source}": pytest.approx(balanced_accuracy_score(labels, scores > threshold))
        for source, threshold in thresholds.items()
    }
    metric.reset()
    assert set(fed(metric, thresholds={"validation": 0.1}, **given)) == {"image_balanced_accuracy@validation"}
    assert metric.reasons == {"image_balanced_accuracy@conformal": ABSENT}


def test_without_a_threshold_there_is_a_reason():
    maps, masks, labels = map(torch.tensor, scene(0))
    told = {"pixel_threshold": None, "no_threshold": ABSENT}
    for metric, given in (
        (SegF1(), {"anomaly_map": maps, "mask": masks, **told}),
        (ClassF1(), {"anomaly_map": maps, "label": labels, "min_area": 0, **told}),
    ):
        assert fed(metric, **given) == {}
        assert list(metric.reasons.values()) == [ABSENT]


def test_seg_f1_without_a_defect_pixel_has_a_reason():
    metric = SegF1()
    metric.update(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.tensor([0]), 0.5, "")
    assert metric.compute() == {}
    assert metric.reasons == {"seg_f1": "needs defect pixels: there are none"}
