"""Counts at a threshold, and colours of a range, by values worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from oddpatch.demo.inspecting import Inspected, Item, by_score, confusion, shrink, thumbnail, verdict
from oddpatch.figures.drawing import colors_of
from oddpatch.figures.overlay import HIGH, LOW, heatmap


def inspected(score, label, **changes):
    item = Item(f"{score}", Path("x.png"), label, "kind")
    return Inspected(item, {"error": "cannot be read"} if score is None else {"score": score}, **changes)


@pytest.mark.parametrize("threshold", [-1.0, 0.3, 0.5, 0.50001, 9.0])
def test_counts_are_those_of_a_confusion_matrix(threshold):
    rng = np.random.default_rng(0)
    scores, labels = rng.choice([0.1, 0.3, 0.5, 0.7], 40), rng.integers(0, 2, 40)
    found = [inspected(float(score), int(label)) for score, label in zip(scores, labels, strict=True)]
    found += [inspected(0.7, None), inspected(None, 1)]  # of which nothing is known, and which was not inspected
    passed, alarms, missed, caught = confusion_matrix(labels, scores > threshold, labels=[0, 1]).ravel().tolist()
    assert confusion(found, threshold) == (caught, missed, alarms, passed)


def test_a_score_at_the_threshold_is_good_as_in_predict():
    words = {label: [verdict(inspected(score, label), 0.5) for score in (0.5, 0.6)] for label in (0, 1, None)}
    assert words == {
        0: ["good", "false alarm"], 1: ["missed", "anomalous"], None: ["good", "anomalous"],
    }  # fmt: skip


def test_a_part_of_no_product_is_anomalous_at_every_threshold():
    stranger = Inspected(Item("x", Path("x.png"), 1, "kind"), {"score": 0.1, "reason": "belongs to no product"})
    assert verdict(stranger, 0.5) == "anomalous"
    assert confusion([stranger, inspected(0.4, 1)], 0.5) == (1, 1, 0, 0)
    assert by_score([inspected(0.9, 1), stranger])[0] is stranger


def test_the_most_anomalous_come_first_and_failures_not_at_all():
    found = [inspected(0.1, 0), inspected(None, 0), inspected(0.9, 1)]
    assert [one.score for one in by_score(found)] == [0.9, 0.1]


def test_the_colour_range_moves_the_colours_and_nothing_is_hidden_of_the_image():
    level = np.array([[0.2, 0.5, 0.8]], np.float32)
    expected = (colors_of(np.array([[0.0, 0.5, 1.0]]))[..., :3] * 255).round()
    assert np.abs(heatmap(level, (0.2, 0.8)).astype(int) - expected).max() <= 1
    assert np.array_equal(heatmap(level), heatmap(level, (LOW, HIGH)))
    image = np.full((1, 3, 3), 100, np.uint8)
    drawn = thumbnail(inspected(0.1, 0, image=image, level=level), (0.2, 0.8))
    assert (drawn[0, 0] == 100).all()
    assert (drawn[0, 2] != 100).any()
    assert np.array_equal(thumbnail(inspected(0.1, 0, image=image), (0.2, 0.8)), image)


def test_small_pictures_keep_their_shape():
    assert shrink(np.zeros((100, 50, 3), np.uint8)).shape == (100, 50, 3)
    assert shrink(np.zeros((1000, 500, 3), np.uint8)).shape == (320, 160, 3)
    assert shrink(np.zeros((2, 5000), np.float32)).shape == (1, 320)
