"""Metrics that a config lists."""

from typing import cast

import pytest
import torch
from torch import nn
from torchmetrics import Metric

from oddpatch.errors import ConfigError
from oddpatch.metrics import ImageMetrics, PixelMetrics, UndefinedMetricError
from oddpatch.metrics.configured import Metrics
from oddpatch.types import Batch, Prediction


class Own(Metric):
    """Gives what it was made with."""

    def __init__(self, value=None, error=None):
        super().__init__()
        self.value, self.error, self.seen = value, error, []

    def update(self, preds, target, other=None):
        self.seen.append((preds, target))

    def compute(self):
        if self.error:
            raise self.error
        return self.value


class Pixels(Own):
    def update(self, mask):  # type: ignore[override]
        self.seen.append(mask)


class Unknown(Own):
    def update(self, depth):  # type: ignore[override]
        self.seen.append(depth)


def batch(count=2):
    maps, mask = torch.rand(count, 1, 4, 4), torch.zeros(count, 1, 4, 4, dtype=torch.uint8)
    label = torch.arange(count) % 2
    return Prediction(maps.amax((1, 2, 3)), maps), Batch(maps, mask, label, torch.arange(count), [""] * count)


def computed(with_pixels=True, **metrics):
    found = Metrics(metrics)
    prediction, given = batch()
    found.update(prediction, given, with_pixels=with_pixels)
    return found.compute(with_pixels)


def test_each_gets_what_its_update_asks_for():
    own, pixels = Own(0.5), Pixels(torch.tensor(0.25))
    assert computed(own=own, pixels=pixels) == ({"own": 0.5, "pixels": 0.25}, {})
    assert torch.equal(own.seen[0][1], torch.tensor([0, 1]))
    assert pixels.seen[0].shape == (2, 1, 4, 4)


def test_without_pixels_those_of_images_are_left():
    pixels = Pixels(1.0)
    assert computed(False, own=Own(0.5), pixels=pixels) == ({"own": 0.5}, {})
    assert pixels.seen == []
    found = Metrics({"image": ImageMetrics(), "pixel": PixelMetrics((0.3, 0.1)), "pixels": pixels})
    names = ["pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_f1_max_threshold", "au_pro", "au_pro@0.1", "pixels"]
    assert list(found.absent("no mask", of_pixels_only=True)) == names
    assert found.absent("nothing").keys() == {*ImageMetrics.names, *names}
    assert not Metrics({"image": ImageMetrics()}).need_maps


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (Own(float("nan")), "it is nan"),
        (Own(torch.tensor(float("inf"))), "it is inf"),
        (Own(torch.ones(2, 3)), r"it is a Tensor (2, 3), not one number"),
        (Own("good"), "it is a str, not one number"),
        (Own(error=UndefinedMetricError("one class")), "one class"),
    ],
)
def test_what_is_no_number_has_a_reason(metric, reason):
    assert computed(own=metric) == ({}, {"own": reason})


def test_ours_say_why_they_have_no_value():
    values, reasons = computed(pixel=PixelMetrics())
    assert not values
    assert len(reasons) == 5
    assert all("defect" in reason for reason in reasons.values())


def test_a_name_that_is_taken_is_refused_and_never_overwritten():
    for name in ("timing", "au_pro"):
        with pytest.raises(ConfigError, match=f"metrics: {name} is the name of something else in metrics.json"):
            Metrics({"pixel": PixelMetrics(), name: Own()})
    values, reasons = computed(own=Own({"a": 1.0, "thresholds": 2.0}), other=Own({"a": 3.0}))
    assert values == {"a": 1.0}
    assert reasons.keys() == {"own.thresholds", "other.a"}


def test_what_cannot_work_is_refused_before_the_run():
    with pytest.raises(ConfigError, match=r"metrics.mine is a Identity: give a torchmetrics.Metric"):
        Metrics({"mine": cast(Metric, nn.Identity())})
    with pytest.raises(ConfigError, match=r"metrics.mine: its update needs depth: it can have score, label, index"):
        Metrics({"mine": Unknown()})


def test_an_epoch_leaves_nothing_for_the_next():
    found = Metrics({"image": ImageMetrics()})
    for _ in range(2):
        prediction, given = batch()
        found.update(prediction, given, with_pixels=True)
        assert found.compute(True)[0].keys() == set(ImageMetrics.names)
    assert found.compute(True)[0] == {}
