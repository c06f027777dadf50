"""Pixel AUROC at low false-positive rates against scikit-learn; AUPIMO against its definition."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from oddpatch.errors import ConfigError, DataError
from oddpatch.metrics import UndefinedMetricError
from oddpatch.metrics.partial import AUPIMO, PartialPixelAUROC, aupimo, partial_pixel_auroc
from oddpatch.types import IGNORE


def scene(seed, decimals=8, images=6, side=20):
    """Maps, masks and labels; half of the images are good, and some pixels are not known."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((images, side, side), np.uint8)
    for i in range(images // 2):
        top, left = rng.integers(0, side - 5, 2)
        masks[i, top : top + 4, left : left + 3] = 1
    maps = np.round(rng.normal(size=masks.shape) + 1.5 * masks, decimals)
    masks[:, :2] = IGNORE
    return maps, masks, (np.arange(images) < images // 2).astype(int)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("decimals", [0, 1, 8])
@pytest.mark.parametrize("seed", range(3))
def test_partial_auroc_equals_scikit_learn(seed, decimals, limit):
    maps, masks, _ = scene(seed, decimals)
    known = masks != IGNORE
    expected = roc_auc_score(masks[known], maps[known], max_fpr=limit)
    assert partial_pixel_auroc(maps, masks, limit) == pytest.approx(expected, abs=1e-9)


def slowly(maps, masks, labels, low, high):
    """AUPIMO by its definition: at each of many rates the lowest threshold that keeps it, and the overlap there."""
    good = [m[k != IGNORE] for m, k, label in zip(maps, masks, labels, strict=True) if not label]
    thresholds = np.append(np.unique(maps), np.inf)
    rates = np.array([np.mean([np.mean(pixels >= t) for pixels in good]) for t in thresholds])
    logs = np.linspace(np.log(low), np.log(high), 4001)
    logs = (logs[1:] + logs[:-1]) / 2
    chosen = [thresholds[rates <= rate].min() for rate in np.exp(logs)]
    defects = [m[k == 1] for m, k, label in zip(maps, masks, labels, strict=True) if label]
    return [np.mean([np.mean(pixels >= t) for t in chosen]) for pixels in defects]


@pytest.mark.parametrize("bounds", [(1e-2, 1e-1), (5e-3, 1.0)])
@pytest.mark.parametrize("decimals", [1, 8])
@pytest.mark.parametrize("seed", range(2))
def test_aupimo_is_what_its_definition_says(seed, decimals, bounds):
    maps, masks, labels = scene(seed, decimals)
    masks[-1, 2:9] = IGNORE  # another number of pixels: the rate is the mean over images
    found = aupimo(maps, masks, labels, bounds)
    np.testing.assert_allclose(found, slowly(maps, masks, labels, *bounds), atol=2e-3)
    assert 0.05 < found.mean() < 0.95


def test_aupimo_of_nothing_found_and_all_found():
    maps, masks, labels = scene(0)
    assert (aupimo(np.where(masks == 1, 9.0, maps), masks, labels, (1e-2, 1e-1)) == 1).all()
    assert (aupimo(np.where(masks == 1, -9.0, maps), masks, labels, (1e-2, 1e-1)) == 0).all()


def test_what_has_no_value_says_why():
    maps, masks, labels = scene(0)
    with pytest.raises(UndefinedMetricError, match=r"1080 pixels .* cannot resolve a rate of 0.0001: 10000 are needed"):
        aupimo(maps, masks, labels)
    with pytest.raises(UndefinedMetricError, match="needs good images and anomalous ones with a mask: got 0 and 6"):
        aupimo(maps, np.ones_like(masks), np.ones(6))
    with pytest.raises(DataError, match="are not of the same images"):
        aupimo(maps, masks, labels[1:])
    with pytest.raises(ConfigError, match="two rising false-positive rates"):
        AUPIMO([1e-3, 1e-4])
    with pytest.raises(ConfigError, match="fpr_limits"):
        PartialPixelAUROC([0.0])


def test_metrics_count_every_image_once_however_batched():
    of_scene = scene(3)
    first, second, third = of_scene
    maps, masks, labels = (torch.from_numpy(array) for array in of_scene)
    for metric, needs, expected in (
        (AUPIMO([1e-2, 1e-1]), True, {"aupimo": float(aupimo(first, second, third, fpr_bounds=(1e-2, 1e-1)).mean())}),
        (PartialPixelAUROC([0.05, 0.3]), False,
         {f"pixel_auroc@{limit}": partial_pixel_auroc(first, second, fpr_limit=limit) for limit in (0.05, 0.3)}),
    ):  # fmt: skip
        for index in ([4, 5], [0, 1], [1, 2, 3]):  # a distributed sampler pads with images seen before
            given = {"label": labels[index]} if needs else {}
            metric.update(
                anomaly_map=maps[index][:, None], mask=masks[index][:, None], index=torch.tensor(index), **given
            )
        assert metric.compute() == pytest.approx(expected)
        assert tuple(expected) == metric.names
        metric.reset()
        assert metric.compute() == {}
        assert set(metric.reasons) == set(metric.names)
