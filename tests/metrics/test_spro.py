"""sPRO against its definition, threshold by threshold, and read from files as the owner of MVTec LOCO AD packs them."""

import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from oddpatch.data.transforms import Preprocess
from oddpatch.errors import ConfigError, DataError
from oddpatch.metrics import UndefinedMetricError, au_pro
from oddpatch.metrics.configured import AtTest, Metrics
from oddpatch.metrics.spro import SPRO, au_spro, gains, read_defects
from oddpatch.types import Batch, Prediction

LIMITS = [0.05, 0.3, 1.0]


def slowly(maps, normal, defects, limit):
    """Area under the curve through the points of every threshold; defects are (image, mask, share that saturates)."""
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        called = maps >= threshold
        overlaps = [
            min((called[i] & mask).sum() / (share * mask.sum()), 1.0) if mask.any() else 0.0
            for i, mask, share in defects
        ]
        points.append(((called & normal).sum() / normal.sum(), float(np.mean(overlaps))))
    fpr, overlap = np.array(points).T
    inside = fpr <= limit
    x, y = np.append(fpr[inside], limit), np.append(overlap[inside], np.interp(limit, fpr, overlap))
    return np.trapezoid(y, x) / limit


def scene(seed, decimals):
    """Maps with regions that overlap, are apart, small and large; and which pixels are of none."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((5, 16, 16), bool)
    masks[0, 2:6, 2:6], masks[1, 4:9, 4:12], masks[2, :3], masks[2, 12:], masks[3, 8, 8] = True, True, True, True, True
    defects = [(0, masks[0], 1.0), (0, masks[1], 0.1), (1, masks[2], 0.37), (1, masks[3], 1.0), (2, masks[4], 0.5)]
    normal = ~np.stack([masks[0] | masks[1], masks[2] | masks[3], masks[4], masks[4]])
    return np.round(rng.normal(size=normal.shape) + 1.2 * ~normal, decimals), normal, defects


def raised(maps, defects):
    of_image = [[(mask, share) for i, mask, share in defects if i == n] for n in range(len(maps))]
    return np.stack([gains(one, found) for one, found in zip(maps, of_image, strict=True)])


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("decimals", [0, 1, 8])
@pytest.mark.parametrize("seed", range(3))
def test_is_what_its_definition_says(seed, decimals, limit):
    maps, normal, defects = scene(seed, decimals)
    found = au_spro(maps, normal, raised(maps, defects), len(defects), limit)
    assert found == pytest.approx(slowly(maps, normal, defects, limit), abs=1e-9)


@pytest.mark.parametrize("limit", LIMITS)
def test_without_saturation_it_is_au_pro(limit):
    maps, _, _ = scene(0, 8)
    masks = np.zeros(maps.shape, np.uint8)
    masks[0, 2:5, 2:5], masks[1, 1:9, 3:5], masks[1, 12:, 12:] = 1, 1, 1
    first, second = masks[1] * (np.arange(16) < 8), masks[1] * (np.arange(16) >= 8)
    defects = [(0, masks[0] == 1, 1.0), (1, first == 1, 1.0), (1, second == 1, 1.0)]
    found = au_spro(maps, masks == 0, raised(maps, defects), 3, limit)
    assert found == pytest.approx(au_pro(maps, masks, limit), abs=1e-12)


def test_a_defect_outside_of_what_is_inspected_is_never_found():
    maps, normal, defects = scene(0, 8)
    gained = raised(maps, defects)
    assert au_spro(maps, normal, gained, len(defects) + 1) == pytest.approx(
        au_spro(maps, normal, gained, len(defects)) * len(defects) / (len(defects) + 1)
    )
    with pytest.raises(UndefinedMetricError, match="no pixel of one was inspected"):
        au_spro(maps, normal, 0 * gained, 3)


@pytest.fixture
def owner(tmp_path):
    """A category as its owner packs it, with an image of two defects."""
    base = tmp_path / "loco/box"
    config = [
        {"defect_name": "missing", "pixel_value": 255, "saturation_threshold": 8, "relative_saturation": False},
        {"defect_name": "broken", "pixel_value": 254, "saturation_threshold": 0.5, "relative_saturation": True},
    ]
    (base / "ground_truth/logical_anomalies/003").mkdir(parents=True)
    (base / "defects_config.json").write_text(json.dumps(config))
    masks = np.zeros((2, 16, 16), np.uint8)
    masks[0, 2:6, 2:10], masks[1, 10:12, :4], masks[1, 10:12, 12:] = 255, 254, 254  # the second is in two pieces
    for i, mask in enumerate(masks):
        Image.fromarray(mask).save(base / f"ground_truth/logical_anomalies/003/{i:03}.png")
    return tmp_path / "loco", masks > 0


def test_saturation_is_an_area_or_a_share(owner):
    source, masks = owner
    defects = read_defects(source.parent / "elsewhere/box/test/logical_anomalies/003.png", source)
    assert [one.saturation for one in defects] == [8 / 32, 0.5]
    np.testing.assert_array_equal([one.mask.numpy() == 1 for one in defects], masks)


@pytest.mark.parametrize("size", [16, 8])
def test_the_metric_of_a_run(owner, size):
    source, masks = owner
    prepared = Preprocess((size, size), None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    rng = np.random.default_rng(0)
    laid = masks if size == 16 else masks[:, ::2, ::2]  # of even edges, halved
    truth = np.stack([laid.any(0), np.zeros_like(laid[0])])
    maps = rng.normal(size=truth.shape) + 2.0 * truth
    metric = SPRO(source, [0.05, 0.5])
    paths = [f"/data/box/test/{name}.png" for name in ("logical_anomalies/003", "good/000")]
    for i in (1, 0, 1):
        metric.update(
            torch.tensor(maps[i])[None, None], torch.tensor(truth[i])[None, None].byte(), torch.tensor([1 - i]),
            torch.tensor([i]), [paths[i]], prepared,
        )  # fmt: skip
    defects = [(0, laid[0], 0.25), (0, laid[1], 0.5)]
    expected = {f"au_spro@{limit}": pytest.approx(slowly(maps, ~truth, defects, limit)) for limit in (0.05, 0.5)}
    assert metric.compute() == expected


def test_a_test_gives_it_what_it_asks_for(owner):
    source, masks = owner
    truth = torch.from_numpy(np.stack([masks.any(0), np.zeros_like(masks[0])]))[:, None].byte()
    batch = Batch(
        torch.zeros(2, 3, 16, 16), truth, torch.tensor([1, 0]), torch.tensor([0, 1]),
        ["/data/box/test/logical_anomalies/003.png", "/data/box/test/good/000.png"],
    )  # fmt: skip
    prepared = Preprocess((16, 16), None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    metrics = Metrics({"spro": SPRO(source)})
    assert metrics.need_maps
    metrics.update(
        Prediction(torch.zeros(2), truth.float()), batch, with_pixels=True, test=AtTest(prepared, {}, None, 0, "none")
    )
    assert metrics.compute(with_pixels=True) == ({"au_spro@0.05": 1.0}, {})


def test_what_is_wrong_is_said(owner, tmp_path):
    source, masks = owner
    with pytest.raises(ConfigError, match=r"holds no CATEGORY/defects_config\.json"):
        SPRO(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"structural_anomalies/003: holds no masks of"):
        read_defects(tmp_path / "box/test/structural_anomalies/003.png", source)
    place = source / "box/ground_truth/logical_anomalies/003/000.png"
    Image.fromarray(masks[0] * np.uint8(7)).save(place)
    with pytest.raises(DataError, match=r"000\.png: its pixels are \[7\], defects_config\.json knows \[254, 255\]"):
        read_defects(tmp_path / "box/test/logical_anomalies/003.png", source)
    one = {"pixel_value": 7, "saturation_threshold": 0, "relative_saturation": True}
    (source / "box/defects_config.json").write_text(json.dumps([one]))
    with pytest.raises(DataError, match=r"defects_config\.json: saturation_threshold 0\.0 of 7 must be above 0"):
        read_defects(tmp_path / "box/test/logical_anomalies/003.png", source)
    nothing, aligned = torch.zeros(0), SimpleNamespace(alignment="a reference")
    with pytest.raises(ConfigError, match=r"metrics\.spro cannot be had with data\.align: set data\.align=null"):
        SPRO(source).update(nothing, nothing, nothing, nothing, [], cast(Any, aligned))
    (source / "box/defects_config.json").write_text('[{"pixel_value": 7}]')
    with pytest.raises(DataError, match=r"defects_config\.json cannot be read"):
        read_defects(tmp_path / "box/test/logical_anomalies/003.png", source)
