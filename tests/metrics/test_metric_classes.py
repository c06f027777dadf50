import numpy as np
import pytest
import torch

from oddpatch.errors import ConfigError, DataError
from oddpatch.metrics import ImageMetrics, NonFiniteScoreError, PixelMetrics, UndefinedMetricError, pixel_metrics
from oddpatch.types import IGNORE

pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method")


@pytest.fixture(scope="module")
def batch():
    """Nine images: maps, masks, scores, labels, index."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(9, 1, 12, 10, generator=generator)
    masks = (torch.rand(9, 1, 12, 10, generator=generator) < 0.1).to(torch.uint8)
    masks[:4] = 0
    return maps, masks, maps.amax((1, 2, 3)), masks.amax((1, 2, 3)).long(), torch.arange(9) + 40


def run(batch, order, batch_size, fpr_limits=(0.3, 0.05)):
    maps, masks, scores, labels, index = (tensor[order] for tensor in batch)
    image, pixel = ImageMetrics(), PixelMetrics(fpr_limits)
    for rows in torch.arange(len(order)).split(batch_size):
        image.update(scores[rows], labels[rows], index[rows])
        pixel.update(maps[rows], masks[rows], index[rows])
    return image.compute() | pixel.compute()


def test_keys_and_values(batch):
    values = run(batch, list(range(9)), 9)
    result = pixel_metrics(batch[0], batch[1], (0.3, 0.05))
    assert list(values) == [
        *("image_auroc", "image_ap", "image_f1_max", "image_f1_max_threshold"),
        *("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_f1_max_threshold", "au_pro", "au_pro@0.05"),
    ]
    assert values["au_pro"] == result.au_pro[0.3]
    assert values["au_pro@0.05"] == result.au_pro[0.05]
    assert values["pixel_f1_max_threshold"] == result.f1_threshold


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_batch_size_order_and_duplicates_change_nothing(batch, batch_size):
    order = [8, 3, 0, 5, 5, 1, 7, 2, 4, 6, 0]
    assert run(batch, order, batch_size) == run(batch, list(range(9)), 9)


def test_what_cannot_be_computed_is_absent_with_a_reason(batch):
    maps, masks, scores, _, index = batch
    image, pixel = ImageMetrics(), PixelMetrics()
    image.update(scores, torch.zeros(9), index)
    pixel.update(maps, masks * IGNORE, index)
    assert image.compute() == pixel.compute() == {}
    assert set(image.reasons) == set(image.names)
    assert image.reasons["image_auroc"] == "needs both good and anomalous: got 9 and 0"
    assert pixel.reasons["au_pro"].endswith("no defect pixel in 9 images with a mask and 0 without")
    with pytest.raises(UndefinedMetricError, match="needs both normal and defect pixels"):
        pixel.ranking()
    image.reset()
    assert image.reasons == {}


def test_nothing_seen_is_a_reason_too():
    for metric in (ImageMetrics(), PixelMetrics()):
        assert metric.compute() == {}
        assert set(metric.reasons.values()) == {"no image was seen: call update() first"}
    with pytest.raises(UndefinedMetricError, match=r"no image was seen: call update\(\) first"):
        PixelMetrics().ranking()


def test_reset_forgets_and_reasons_go_when_there_are_values(batch):
    maps, masks, _, _, index = batch
    metric = PixelMetrics()
    metric.update(maps[:2], masks[:2], index[:2])
    assert metric.compute() == {}
    metric.update(maps[2:], masks[2:], index[2:])
    assert metric.compute()
    assert metric.reasons == {}
    metric.reset()
    metric.update(maps[4:], masks[4:], index[4:])
    assert metric.compute()["au_pro"] == pixel_metrics(maps[4:], masks[4:]).au_pro[0.3]


def test_ranking_gives_the_curves(batch):
    metric = PixelMetrics()
    metric.update(batch[0], batch[1], batch[4])
    fpr, pro = metric.ranking().pro_curve()
    assert np.interp(1.0, fpr, pro) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type_is_kept_exactly(batch, dtype):
    maps, masks, _, _, index = batch
    metric = PixelMetrics()
    metric.update(maps.to(dtype), masks.bool(), index)
    result = pixel_metrics(maps.to(dtype), masks)
    assert metric.compute()["pixel_f1_max_threshold"] == result.f1_threshold
    assert metric.compute()["pixel_auroc"] == result.auroc


def test_later_changes_to_the_batch_do_not_reach_the_state(batch):
    maps, masks, _, _, index = batch
    reused, metric = maps.clone(), PixelMetrics()
    metric.update(reused, masks, index)
    reused.zero_()
    assert metric.compute()["pixel_auroc"] == pixel_metrics(maps, masks).auroc


def test_scores_without_a_rank_are_refused_with_their_index(batch):
    maps, masks, scores, labels, index = (tensor.clone() for tensor in batch)
    scores[3], maps[5, 0, 2, 2] = torch.nan, torch.inf
    with pytest.raises(NonFiniteScoreError, match=r"1 of 9 .* image index 43"):
        ImageMetrics().update(scores, labels, index)
    with pytest.raises(NonFiniteScoreError, match=r"1 of 1080 .* image index 45"):
        PixelMetrics().update(maps, masks, index)


def test_wrong_shapes_and_limits_are_refused(batch):
    maps, masks, scores, labels, index = batch
    with pytest.raises(DataError, match=r"give \(B,\) each"):
        ImageMetrics().update(scores[:, None], labels, index)
    metric = PixelMetrics()
    with pytest.raises(DataError, match=r"give \(B, 1, H, W\)"):
        metric.update(maps[:, 0], masks[:, 0], index)
    metric.update(maps, masks, index)
    with pytest.raises(DataError, match=r"\(6, 10\) pixels after maps of \(12, 10\)"):
        metric.update(maps[:, :, :6], masks[:, :, :6], index)
    with pytest.raises(ConfigError, match="fpr_limits"):
        PixelMetrics((0.3, 2.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_memory_does_not_grow(batch):
    maps, masks, index = (batch[i].cuda() for i in (0, 1, 4))
    metric = PixelMetrics().cuda()
    metric.update(maps, masks, index)
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        metric.update(maps, masks, index)
    assert torch.cuda.memory_allocated() == before
    assert metric.compute()["pixel_auroc"] == pixel_metrics(batch[0], batch[1]).auroc
