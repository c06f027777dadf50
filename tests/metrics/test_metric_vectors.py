"""Agreement with independent reference programs, on stored scores and masks."""

import json
from pathlib import Path

import numpy as np
import pytest

from oddpatch.metrics import ImageMetrics, PixelMetrics, auroc, average_precision, f1_max, pixel_metrics

VECTORS = Path(__file__).parents[2] / "../shared/metric_vectors"
LIMITS = (0.01, 0.05, 0.1, 0.3, 1.0)
EXPECTED = json.loads((VECTORS / "expected.json").read_text()) if (VECTORS / "expected.json").exists() else {}
pytestmark = pytest.mark.skipif(not EXPECTED, reason="../shared/metric_vectors is absent")


@pytest.mark.parametrize("name", EXPECTED)
def test_functions_agree_with_the_reference(name):
    with np.load(VECTORS / f"{name}.npz") as vectors:
        maps, masks = vectors["scores"], vectors["masks"]
    scores, labels = maps.max(axis=(1, 2)), masks.any(axis=(1, 2)).astype(int)
    result = pixel_metrics(maps, masks, LIMITS)
    values = {f"au_pro@{limit}": value for limit, value in result.au_pro.items()} | {
        "pixel_auroc": result.auroc,
        "pixel_ap": result.ap,
        "pixel_f1_max": result.f1_max,
        "image_auroc": auroc(scores, labels),
        "image_ap": average_precision(scores, labels),
        "image_f1_max": f1_max(scores, labels)[0],
    }
    assert values == pytest.approx(EXPECTED[name], abs=1e-6)


@pytest.mark.parametrize("name", EXPECTED)
def test_classes_agree_with_the_reference(name):
    import torch

    with np.load(VECTORS / f"{name}.npz") as vectors:
        maps, masks = torch.from_numpy(vectors["scores"])[:, None], torch.from_numpy(vectors["masks"])[:, None]
    image, pixel, index = ImageMetrics(), PixelMetrics((0.3, 0.05)), torch.arange(len(maps))
    for batch in index.split(5):
        image.update(maps[batch].amax((1, 2, 3)), masks[batch].amax((1, 2, 3)), batch)
        pixel.update(maps[batch], masks[batch], batch)
    values = image.compute() | pixel.compute()
    values["au_pro@0.3"] = values["au_pro"]
    shared = values.keys() & EXPECTED[name].keys()
    assert len(shared) == 8
    assert {key: values[key] for key in shared} == pytest.approx({k: EXPECTED[name][k] for k in shared}, abs=1e-6)


def test_thresholds_cut_where_f1_says():
    with np.load(VECTORS / "ties_quantised.npz") as vectors:
        maps, masks = vectors["scores"], vectors["masks"]
    result = pixel_metrics(maps, masks)
    anomalous = maps >= result.f1_threshold
    f1 = 2 * (anomalous & (masks == 1)).sum() / (anomalous.sum() + (masks == 1).sum())
    assert f1 == pytest.approx(result.f1_max, abs=1e-12)
