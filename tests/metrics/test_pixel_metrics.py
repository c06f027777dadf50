import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from oddpatch.errors import ConfigError, DataError
from oddpatch.metrics import (
    NonFiniteScoreError,
    UndefinedMetricError,
    au_pro,
    find_regions,
    pixel,
    pixel_metrics,
    pro_curve,
    rank_pixels,
)
from oddpatch.types import IGNORE

LIMITS = (0.01, 0.05, 0.3, 0.77, 1.0)


def brute_force_pro(maps, masks):
    """The PRO curve by definition: at each threshold, the mean part found of each region, in a plain loop."""
    regions = []
    for image, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask == 1, structure=np.ones((3, 3)))
        regions += [image[labels == k + 1] for k in range(count)]
    normal = maps[masks == 0]
    points = [
        ((normal >= threshold).mean(), np.mean([(region >= threshold).mean() for region in regions]))
        for threshold in np.unique(maps[masks != IGNORE])[::-1]
    ]
    return np.array([(0.0, 0.0), *points]).T


def brute_force_au_pro(maps, masks, limit):
    fpr, pro = brute_force_pro(maps, masks)
    inside = fpr <= limit
    x, y = fpr[inside], pro[inside]
    if not inside.all():
        first = int(np.argmin(inside))  # the first point past the limit
        part = (limit - fpr[first - 1]) / (fpr[first] - fpr[first - 1])
        x, y = np.append(x, limit), np.append(y, pro[first - 1] + part * (pro[first] - pro[first - 1]))
    return np.trapezoid(y, x) / limit


@st.composite
def labelled_maps(draw, ignore=True):
    """Small maps of few distinct scores, with masks that hold regions of many shapes."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(2, 7), st.integers(2, 7)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.floats(0.05, 0.6))
    masks = generator.choice(np.array([0, 1, IGNORE], np.uint8), shape, p=[0.9 - share, share, 0.1])
    masks[~np.isin(masks, [0, 1, IGNORE if ignore else 0])] = 0
    masks[0, 0, :2] = (0, 1)
    return generator.integers(-1, draw(st.integers(1, 12)), shape).astype(np.float32), masks


@settings(deadline=None)
@given(labelled_maps())
def test_au_pro_is_the_area_under_the_curve_by_definition(data):
    maps, masks = data
    result = pixel_metrics(maps, masks, LIMITS).au_pro
    assert result == pytest.approx({limit: brute_force_au_pro(maps, masks, limit) for limit in LIMITS}, abs=1e-10)


@settings(deadline=None, max_examples=50)
@given(labelled_maps())
def test_pro_curve_is_the_curve_by_definition(data):
    fpr, pro = brute_force_pro(*data)
    x, y = pro_curve(*data)
    assert (x[0], y[0], x[-1], y[-1]) == pytest.approx((0, 0, 1, 1))
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= -1e-15).all()
    single = ~np.isin(fpr, x[1:][np.diff(x) == 0])  # at a jump one rate has many heights
    np.testing.assert_allclose(np.interp(fpr[single], x, y), pro[single], atol=1e-10)
    jumps = {(a, round(b, 9)) for a, b in zip(fpr[~single], pro[~single], strict=True)}
    assert all(y[x == a].min() - 1e-9 <= b <= y[x == a].max() + 1e-9 for a, b in jumps)


@settings(deadline=None, max_examples=50)
@given(labelled_maps())
def test_the_other_metrics_are_scikit_learns_over_the_known_pixels(data):
    maps, masks = data
    scores, labels = maps[masks != IGNORE], masks[masks != IGNORE]
    result = pixel_metrics(maps, masks)
    f1, threshold = max((f1_score(labels, scores >= t), t) for t in np.unique(scores))
    assert result.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert result.ap == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert (result.f1_max, result.f1_threshold) == pytest.approx((f1, threshold), abs=1e-12)


@pytest.mark.parametrize("limit", [0.05, 0.3])
def test_au_pro_on_maps_without_ties(limit):
    generator = np.random.default_rng(1)
    masks = (ndimage.gaussian_filter(generator.normal(size=(4, 30, 40)), (0, 2, 2)) > 0.15).astype(np.uint8)
    maps = (generator.normal(size=masks.shape) + masks).astype(np.float32)
    assert au_pro(maps, masks, limit) == pytest.approx(brute_force_au_pro(maps, masks, limit), abs=1e-12)


def test_scores_of_ignored_pixels_do_not_matter():
    maps, masks = np.random.default_rng(2).normal(size=(2, 3, 9, 9)).astype(np.float32)
    masks = (masks > 1).astype(np.uint8)
    masks[:, 4] = IGNORE
    before = pixel_metrics(maps, masks)
    maps[:, 4, ::2], maps[:, 4, 1::2] = np.nan, 1e9
    assert pixel_metrics(maps, masks) == before


def test_every_region_weighs_the_same_whatever_its_size():
    masks = np.zeros((2, 8, 8), np.uint8)
    masks[0, :5, :5], masks[1, 7, 7] = 1, 1
    maps = np.zeros((2, 8, 8), np.float32)
    maps[1, 7, 7] = 1.0  # the one-pixel region is found without a false alarm, the large one by chance only
    assert au_pro(maps, masks, 1.0) == pytest.approx((1.0 + 0.5) / 2)


def test_corners_that_touch_are_one_region_and_images_do_not_touch():
    defect = np.zeros((2, 4, 4), bool)
    defect[0, 1, 1] = defect[0, 2, 2] = defect[0, 3, 0] = defect[1, 0, 0] = True
    regions = find_regions(defect)
    assert regions.size.tolist() == [2, 1, 1]
    assert regions.image.tolist() == [0, 0, 1]
    assert regions.region.tolist() == [0, 0, 1, 2]


def test_more_regions_than_16_bits_can_name():
    defect = np.zeros((1, 600, 600), bool)
    defect[:, ::2, ::2] = True
    assert find_regions(defect).size.tolist() == [1] * 90_000


def test_regions_are_those_of_scipy():
    defect = np.random.default_rng(3).random((3, 50, 60)) < 0.3
    defect[1] = False
    regions = find_regions(defect)
    for image in range(3):
        labels, count = ndimage.label(defect[image], structure=np.ones((3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        assert sorted(regions.size[regions.image == image]) == sorted(sizes)
    assert np.bincount(regions.region).tolist() == regions.size.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_takes_tensors_with_a_channel_and_any_float_type(dtype):
    maps = torch.randint(0, 9, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    masks = (maps + torch.arange(8) > 10).to(torch.uint8)
    expected = pixel_metrics(maps[:, 0].numpy().astype(np.float32), masks[:, 0].numpy())
    assert pixel_metrics(maps.to(dtype), masks) == expected
    assert pixel_metrics(maps.to(dtype), masks.bool()) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_takes_tensors_of_a_gpu():
    maps, masks = torch.arange(32.0).reshape(2, 4, 4), torch.eye(4, dtype=torch.uint8).expand(2, 4, 4)
    assert pixel_metrics(maps.cuda(), masks.cuda()) == pixel_metrics(maps, masks)


@pytest.mark.parametrize("threads", [2, 4, 99])
def test_sorting_in_several_parts_changes_nothing(monkeypatch, threads):
    generator = np.random.default_rng(6)
    masks = (generator.random((2, 30, 31)) < 0.1).astype(np.uint8)
    maps = generator.integers(0, 50, masks.shape).astype(np.float32)
    expected = pixel_metrics(maps, masks, LIMITS)
    monkeypatch.setattr(pixel, "SMALLEST_PART", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert pixel_metrics(maps, masks, LIMITS) == expected
    for position in np.argwhere(masks == 0)[::100]:
        broken = maps.copy()
        broken[tuple(position)] = np.nan
        with pytest.raises(NonFiniteScoreError):
            pixel_metrics(broken, masks)


def test_inputs_are_left_as_they_were():
    maps = np.random.default_rng(4).normal(size=(2, 5, 5)).astype(np.float32)
    masks = np.zeros((2, 5, 5), np.uint8)
    masks[0, 0, 0] = 1
    kept = maps.copy(), masks.copy()
    pixel_metrics(maps, masks)
    np.testing.assert_array_equal(maps, kept[0])
    np.testing.assert_array_equal(masks, kept[1])


def test_defects_that_all_score_higher_than_every_normal_pixel():
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[0, :2, :2] = masks[1, 3, 3] = 1
    result = pixel_metrics(masks + np.linspace(0, 0.5, 32).reshape(masks.shape), masks, LIMITS)
    assert (result.auroc, result.ap, result.f1_max) == (1, 1, 1)
    assert set(result.au_pro.values()) == {1}


def test_zero_and_minus_zero_are_a_tie():
    assert au_pro(np.array([[[0.0, -0.0]]], np.float32), np.array([[[0, 1]]], np.uint8), 1.0) == 0.5
    assert au_pro(np.array([[[-0.0, 0.0]]], np.float32), np.array([[[0, 1]]], np.uint8), 1.0) == 0.5


def test_more_pairs_than_32_bits_can_count():
    generator = np.random.default_rng(5)
    masks = np.zeros((1, 400, 500), np.uint8)
    masks[:, :200] = 1
    maps = (generator.normal(size=masks.shape) + masks).astype(np.float32)
    result = pixel_metrics(maps, masks, (1.0,))
    assert result.auroc == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert result.au_pro[1.0] == pytest.approx(result.auroc, abs=1e-12)  # the same where there is one region


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, "no defect pixel in 2 images with a mask and 0 without"),
        (1, "no normal pixel in 2 images with a mask and 0 without"),
        (IGNORE, "no defect pixel in 0 images with a mask and 2 without"),
    ],
)
def test_one_class_is_undefined(value, told):
    with pytest.raises(UndefinedMetricError, match=told):
        rank_pixels(np.zeros((2, 3, 3), np.float32), np.full((2, 3, 3), value, np.uint8))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("pixel", [(1, 0, 0), (1, 2, 2)])
def test_maps_with_values_that_have_no_rank_are_refused(bad, pixel):
    maps, masks = np.zeros((3, 3, 3), np.float32), np.zeros((3, 3, 3), np.uint8)
    masks[:, 0, 0], maps[pixel] = 1, bad
    with pytest.raises(NonFiniteScoreError, match=r"1 of 27 .* 1 maps, first at position 1"):
        pixel_metrics(maps, masks)


def test_wrong_masks_shapes_and_limits_are_refused():
    maps, masks = np.zeros((1, 2, 2), np.float32), np.array([[[0, 1], [0, 2]]], np.uint8)
    with pytest.raises(DataError, match="masks hold 2"):
        pixel_metrics(maps, masks)
    with pytest.raises(DataError, match="differ"):
        pixel_metrics(maps, masks[:, :1])
    with pytest.raises(DataError, match=r"maps of shape \(2, 2\)"):
        pixel_metrics(maps[0], masks)
    for limits in [(0.0,), (1.1,), (0.3, -1), (float("nan"),), ()]:
        with pytest.raises(ConfigError, match="fpr_limits"):
            pixel_metrics(maps, masks, limits)


def test_what_is_done_to_a_result_changes_no_later_one():
    maps, masks = np.random.default_rng(0).random((2, 8, 8)), np.zeros((2, 8, 8), np.uint8)
    masks[:, 2:4, 2:4] = 1
    ranking = rank_pixels(maps, masks)
    first = ranking.metrics((0.3,))
    expected = dict(first.au_pro)
    first.au_pro[0.3] = 99
    assert ranking.metrics((0.3,)).au_pro == expected
