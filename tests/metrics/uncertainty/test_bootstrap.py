"""Resampling against a naive computation, draw by draw, on repeated images."""

import sys

import cv2
import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from oddpatch.errors import CheckpointError, ConfigError, DataError
from oddpatch.metrics import UndefinedMetricError, pixel_metrics
from oddpatch.metrics.uncertainty import bootstrap, pixel_statistics
from oddpatch.metrics.uncertainty.bootstrap import (
    Confidence,
    confidence_intervals,
    image_metrics_by_draw,
    intervals,
    pixel_metrics_by_draw,
    resample,
)
from oddpatch.metrics.uncertainty.pixel_statistics import PixelStatistics
from oddpatch.types import IGNORE

LIMITS = (0.3, 0.05)


def make_maps(images=14, size=64, seed=0, decimals=None):
    """Smooth maps and round defects on three images of four; with decimals there are ties."""
    rng = np.random.default_rng(seed)
    maps, masks = np.empty((images, size, size), np.float32), np.zeros((images, size, size), np.uint8)
    for i in range(images):
        if i % 4:
            for x, y in rng.integers(size // 8, size - size // 8, (2, 2)):
                cv2.circle(masks[i], (int(x), int(y)), int(rng.integers(3, 7)), 1, -1)
        noise = cv2.GaussianBlur(rng.normal(0, 1, (size, size)).astype(np.float32), (0, 0), 2)
        maps[i] = 4 * noise + 1.5 * cv2.GaussianBlur(masks[i].astype(np.float32), (0, 0), 2) - 0.5
    return maps if decimals is None else maps.round(decimals), masks


def exact(maps, masks, weights):
    """Exact pixel metrics of one draw, by repeating its images."""
    chosen = np.repeat(np.arange(len(maps)), weights)
    result = pixel_metrics(maps[chosen], masks[chosen], LIMITS)
    return {
        "pixel_auroc": result.auroc, "pixel_ap": result.ap, "pixel_f1_max": result.f1_max,
        "au_pro": result.au_pro[0.3], "au_pro@0.05": result.au_pro[0.05],
    }  # fmt: skip


@pytest.fixture(scope="module")
def scene():
    maps, masks = make_maps()
    return maps, masks, PixelStatistics.from_maps(maps, masks, LIMITS), masks.any((1, 2)).astype(int)


def test_draws_keep_the_number_of_each_class_and_follow_the_seed():
    labels = np.array([0, 1, 0, 1, 1, 0, 1])
    weights = resample(labels, 400, seed=3)
    assert weights.shape == (400, 7)
    assert (weights[:, labels == 0].sum(axis=1) == 3).all()
    assert (weights[:, labels == 1].sum(axis=1) == 4).all()
    np.testing.assert_array_equal(weights, resample(labels, 400, seed=3))
    assert (weights != resample(labels, 400, seed=4)).any()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.2)  # every image is as likely as another


@pytest.mark.parametrize("decimals", [6, 1])
def test_image_metrics_are_scikit_learns_draw_by_draw(decimals):
    rng = np.random.default_rng(1)
    labels = (np.arange(40) % 3 > 0).astype(int)
    scores = (rng.normal(0, 1, 40) + labels).round(decimals)
    weights = resample(labels, 60, seed=0)
    found = image_metrics_by_draw(scores, labels, weights)
    for draw, weight in enumerate(weights):
        truth, drawn = np.repeat(labels, weight), np.repeat(scores, weight)
        precision, recall, _ = precision_recall_curve(truth, drawn)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        assert found["image_auroc"][draw] == pytest.approx(roc_auc_score(truth, drawn), abs=1e-12)
        assert found["image_ap"][draw] == pytest.approx(average_precision_score(truth, drawn), abs=1e-12)
        assert found["image_f1_max"][draw] == pytest.approx(f1.max(), abs=1e-12)


def binning_errors(statistics, weights):
    """The most by which a value read off the bins can be off, whatever the order of scores within a bin.

    Precision lies between that with all of a bin's normal pixels above its defect pixels and that with none; F1
    likewise; a rising curve between two known points stays in the rectangle they span, and so within half of it of
    the line, but in the bin that a limit cuts.
    """

    def from_top(histograms):
        return np.cumsum(np.pad((weights @ histograms)[:, ::-1], ((0, 0), (1, 0))), axis=1)

    true, false = from_top(statistics.defect), from_top(statistics.normal)
    overlap = from_top(statistics.region_share) / (weights @ statistics.num_regions)[:, None]
    positives, gained, rate = true[:, -1:], np.diff(true, axis=1), false / false[:, -1:]
    least = (true[:, :-1] + 1) / (true[:, :-1] + 1 + false[:, 1:])
    most = true[:, 1:] / np.maximum(true[:, 1:] + false[:, :-1], 1)
    f1 = (2 * true / (true + false + positives)).max(axis=1)
    reachable = (2 * true[:, 1:] / (true[:, 1:] + false[:, :-1] + positives)).max(axis=1)

    def area(curve, limit):
        rectangles = np.diff(np.minimum(rate, limit), axis=1) * np.diff(curve, axis=1)
        return np.sum(np.where(rate[:, 1:] > limit, 1, 0.5) * rectangles, axis=1) / limit

    return {
        "pixel_auroc": area(true / positives, 1), "pixel_f1_max": reachable - f1,
        "pixel_ap": np.sum(np.where(gained > 0, gained * (most - least), 0), axis=1) / positives[:, 0],
        "au_pro": area(overlap, 0.3), "au_pro@0.05": area(overlap, 0.05),
    }  # fmt: skip


def test_pixel_metrics_stay_within_the_bounds_of_their_bins_and_these_are_small(scene):
    maps, masks, statistics, labels = scene
    weights = np.concatenate([np.ones((1, len(labels)), int), resample(labels, 15, seed=0)])
    found, off = pixel_metrics_by_draw(statistics, weights), binning_errors(statistics, weights)
    for draw, weight in enumerate(weights):
        for name, value in exact(maps, masks, weight).items():
            error = abs(found[name][draw] - value)
            assert error <= off[name][draw] + off[name][0] + 1e-12, name
            assert error < (1e-3 if draw else 1e-12), name
            assert off[name][draw] < 0.01, name


def test_the_bounds_hold_where_bins_are_few_and_ties_many(monkeypatch):
    monkeypatch.setattr(pixel_statistics, "QUANTILES", 6)
    maps, masks = make_maps(images=8, size=40, decimals=1)
    statistics = PixelStatistics.from_maps(maps, masks, LIMITS)
    assert len(statistics.edges) <= 14
    weights = np.concatenate([np.ones((1, 8), int), resample(masks.any((1, 2)).astype(int), 20, seed=0)])
    found, off = pixel_metrics_by_draw(statistics, weights), binning_errors(statistics, weights)
    worst = 0.0
    for draw, weight in enumerate(weights):
        for name, value in exact(maps, masks, weight).items():
            error = abs(found[name][draw] - value)
            assert error <= off[name][draw] + off[name][0] + 1e-12, name
            worst = max(worst, error)
    assert worst > 1e-3  # so few bins are seen, and the bounds are tested


def constant_of_good(maps, masks):
    maps[masks.any((1, 2)) == 0] = 0.25


def constant_of_defects(maps, masks):
    maps[masks == 1] = 0.5


def constant_of_normal_pixels(maps, masks):
    maps[masks == 0] = -0.0  # equal to 0.0, with other bits
    maps[:4] += 0.0


def with_unknown_pixels(maps, masks):
    masks[2:7, :20] = IGNORE
    maps[3] = 1.0


def with_few_defects(maps, masks):
    masks[:] = 0
    masks[1, 3:5, 3:5] = masks[2, 9:12, 3:5] = masks[3, 30, 30] = 1


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize(
    "change",
    [None, constant_of_good, constant_of_defects, constant_of_normal_pixels, with_unknown_pixels, with_few_defects],
)
def test_intervals_agree_with_those_of_exact_metrics_of_every_draw(change, decimals):
    maps, masks = make_maps(images=12, size=40, decimals=decimals)
    if change:
        change(maps, masks)
    labels = (masks == 1).any((1, 2)).astype(int)
    statistics = PixelStatistics.from_maps(maps, masks, LIMITS)
    weights = resample(labels, 100, seed=0)
    found = pixel_metrics_by_draw(statistics, weights)
    kept = np.flatnonzero(weights @ statistics.num_defect)
    by_draw = [exact(maps, masks, weights[draw]) for draw in kept]
    wanted = {name: np.array([values[name] for values in by_draw]) for name in found}
    for name, ends in intervals(wanted, 0.95).items():
        assert intervals(found, 0.95)[name] == pytest.approx(ends, abs=1e-3), name
    np.testing.assert_allclose(found["pixel_auroc"][kept], wanted["pixel_auroc"], rtol=0, atol=1e-3)
    known = masks[np.repeat(np.arange(12), weights[kept[0]])] != IGNORE  # the reference has one of its own
    truth, scores = (part[np.repeat(np.arange(12), weights[kept[0]])][known] for part in (masks, maps))
    assert by_draw[0]["pixel_auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)


def test_few_scores_are_counted_exactly():
    maps, masks = make_maps(images=9, size=24, decimals=1)
    weights = resample(masks.any((1, 2)).astype(int), 25, seed=0)
    found = pixel_metrics_by_draw(PixelStatistics.from_maps(maps, masks, LIMITS), weights)
    for draw, weight in enumerate(weights):
        for name, value in exact(maps, masks, weight).items():
            assert found[name][draw] == pytest.approx(value, abs=1e-12), name


def test_statistics_grow_with_the_images_and_not_with_their_square():
    sizes = {}
    for images in (8, 16, 32):
        maps, masks = make_maps(images=images, size=24, decimals=1)
        statistics = PixelStatistics.from_maps(maps, masks)
        assert statistics.normal.shape == (images, len(statistics.edges))
        sizes[images] = sum(value.size for name, value in vars(statistics).items() if name != "normal")
    assert sizes[32] < 4.5 * sizes[8]


def test_the_size_of_blocks_changes_nothing(scene, monkeypatch):
    maps, _, statistics, labels = scene
    weights = resample(labels, 30, seed=0)
    whole = pixel_metrics_by_draw(statistics, weights) | image_metrics_by_draw(maps.max((1, 2)), labels, weights)
    monkeypatch.setattr(bootstrap, "BLOCK", 1)
    parts = pixel_metrics_by_draw(statistics, weights) | image_metrics_by_draw(maps.max((1, 2)), labels, weights)
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, rtol=1e-13)


def far_apart(maps, masks):
    np.exp(30 * maps, out=maps)  # most scores share a cell of the grid that bins are looked up in


def largest(maps, masks):
    maps *= np.finfo(np.float32).max / np.abs(maps).max()  # a difference of two overflows


@pytest.mark.parametrize("change", [-100, 0, 100, far_apart, largest, constant_of_defects])
def test_every_pixel_is_in_a_bin_and_no_score_below_the_first(change):
    maps, masks = make_maps(images=5, size=24)
    if callable(change):
        change(maps, masks)
    else:
        maps[masks == 1] += change  # all below, among or above the normal ones
    statistics = PixelStatistics.from_maps(maps, masks)
    assert statistics.edges[0] <= maps.min()
    np.testing.assert_array_equal(statistics.num_normal, (masks == 0).sum((1, 2)))
    for image in range(5):
        bins = np.append(statistics.edges, np.inf)
        wanted = np.histogram(maps[image][masks[image] == 0], bins)[0]
        np.testing.assert_array_equal(statistics.normal[image], wanted)
    every = np.ones((1, 5), int)
    result = pixel_metrics(maps, masks)
    found = pixel_metrics_by_draw(statistics, every)
    assert found["pixel_auroc"][0] == pytest.approx(result.auroc, abs=1e-12)
    assert found["au_pro"][0] == pytest.approx(result.au_pro[0.3], abs=1e-3)


def test_region_overlaps_are_exact(scene):
    maps, masks, statistics, _ = scene
    threshold = float(maps[masks == 1][5])  # a score that is there: higher is strictly higher
    wanted = []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        count, labels = cv2.connectedComponents(mask, connectivity=8)
        wanted += [(anomaly_map[labels == region] > threshold).mean() for region in range(1, count)]
    np.testing.assert_allclose(statistics.region_overlaps(threshold), wanted)


def test_intervals_are_the_percentiles_of_defined_draws():
    values = {"a": np.array([np.nan, *range(101)], float), "never": np.full(3, np.nan)}
    found = intervals(values, 0.9)
    assert list(found) == ["a"]
    assert found["a"] == pytest.approx((5, 95))


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    labels, truth = np.repeat([0, 1], 60), norm.cdf(1 / np.sqrt(2))
    covered = 0
    for trial in range(150):
        scores = rng.normal(0, 1, 120) + labels
        low, high = confidence_intervals(scores, labels, None, Confidence(400, 0.9, trial))["image_auroc"]
        covered += low <= truth <= high
    assert 0.82 < covered / 150 < 0.97


def test_draws_without_defect_pixels_are_left_out():
    maps, masks = make_maps(images=4, size=24)
    masks[2:] = np.where(masks[2:] == 1, IGNORE, 0)  # only image 1 has a mask
    statistics = PixelStatistics.from_maps(maps, masks)
    labels = np.array([0, 1, 1, 1])
    weights = resample(labels, 200, seed=0)
    found = pixel_metrics_by_draw(statistics, weights)
    np.testing.assert_array_equal(np.isnan(found["au_pro"]), weights[:, 1] == 0)
    ends = confidence_intervals([0, 1, 2, 3], labels, statistics, Confidence(200))
    assert all(np.isfinite(end) for pair in ends.values() for end in pair)


def test_one_class_has_no_image_intervals_and_no_draws_none(scene):
    _, _, statistics, labels = scene
    assert confidence_intervals([1.0, 2.0], [0, 0], None, Confidence()) == {}
    assert confidence_intervals(np.arange(14.0), labels, statistics, Confidence(draws=0)) == {}
    assert "pixel_auroc" in confidence_intervals(np.arange(14.0), np.ones(14, int), statistics, Confidence(20))


def test_draws_are_not_computed_one_by_one():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [20, 63])
    scores = rng.normal(0, 1, 83) + labels

    def calls(draws):
        """How many functions are called for so many draws."""
        found = []
        sys.setprofile(lambda frame, event, what: found.append(event) if event == "call" else None)
        try:
            confidence_intervals(scores, labels, None, Confidence(draws))
        finally:
            sys.setprofile(None)
        return len(found)

    calls(10)  # what is loaded or kept for later is no part of it
    assert calls(1000) == calls(10)


def test_saved_statistics_come_back_and_nothing_else_is_loaded(scene, tmp_path):
    _, _, statistics, labels = scene
    path = tmp_path / "pixel_statistics.npz"
    statistics.save(path)
    again, weights = PixelStatistics.load(path), resample(labels, 5, seed=0)
    for name, values in pixel_metrics_by_draw(statistics, weights).items():
        np.testing.assert_array_equal(pixel_metrics_by_draw(again, weights)[name], values)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"npz cannot be read .*test the run again"):
        PixelStatistics.load(path)
    np.savez(path, edges=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CheckpointError, match="cannot be read"):
        PixelStatistics.load(path)


def test_errors_name_what_is_wrong(scene):
    maps, masks, statistics, _ = scene
    with pytest.raises(DataError, match="of 14 images with draws of 3"):
        pixel_metrics_by_draw(statistics, np.ones((1, 3), int))
    with pytest.raises(UndefinedMetricError, match="got 3 and 0"):
        image_metrics_by_draw([1, 2, 3], [0, 0, 0], np.ones((1, 3), int))
    with pytest.raises(UndefinedMetricError, match="normal and defect pixels"):
        PixelStatistics.from_maps(maps, masks * 0)
    for wrong in ({"draws": -1}, {"level": 1.0}, {"seed": -2}):
        with pytest.raises(ConfigError, match=f"confidence.{next(iter(wrong))}"):
            Confidence(**wrong)
