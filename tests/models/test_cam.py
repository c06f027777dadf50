"""CAM against the released code's numbers and a plain computation."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyBackbone
from scipy.ndimage import zoom
from torch import nn
from vectors import vector

from oddpatch.errors import ConfigError
from oddpatch.inference.regions import find_regions
from oddpatch.models.cam import CAM
from oddpatch.types import Batch


@pytest.fixture
def released():
    """A model with the released weights, its features, and what it should give."""
    arrays = vector("cam")
    model = CAM([8, 24], [8, 16])
    with torch.no_grad():
        model.dense.weight.copy_(torch.from_numpy(arrays["weight"]))
        model.dense.bias.copy_(torch.from_numpy(arrays["bias"]))
    model.fit()
    last = torch.from_numpy(arrays["features"].astype(np.float32))
    return model.requires_grad_(False), [torch.zeros(len(last), 8, 12, 12), last], arrays


def scaled(heat):
    """The map of one image on [0, 1], as the released code has it."""
    return (heat - heat.min()) / (heat.max() - heat.min())


@pytest.mark.vector
def test_equals_the_released_code(released):
    model, features, expected = released
    np.testing.assert_allclose(model.logits(features).softmax(1), expected["probs"], rtol=0, atol=1e-5)
    score, heat = model(features, (96, 96))
    np.testing.assert_allclose(score, expected["probs"][:, 1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(scaled(heat[0, 0].numpy()), expected["location_anomaly_image0"], rtol=0, atol=1e-5)


@pytest.mark.vector
@pytest.mark.parametrize("share", [0.7, 0.8])
def test_boxes_equal_the_released_code(released, share):
    """That never lets a box begin at row or column 0 (a quirk): ours may."""
    model, features, arrays = released
    for heat, expected in zip(
        model(features, (96, 96))[1][:, 0].numpy(), arrays[f"boxes_at_0p{share * 10:.0f}"], strict=True
    ):
        regions, _ = find_regions(scaled(heat), share)
        left, top = (min(r.box[axis] for r in regions) for axis in (0, 1))
        right, bottom = (max(r.box[axis] + r.box[axis + 2] - 1 for r in regions) for axis in (0, 1))
        assert [max(left, 1), max(top, 1), right, bottom] == expected.tolist()


@pytest.mark.parametrize("pool", [1, 2])
def test_score_and_map_are_those_of_a_plain_computation(pool):
    model = CAM([5], [16], pool=pool, seed=3)
    model.fit()
    maps = torch.randn(2, 5, 3, 5, generator=torch.Generator().manual_seed(0))  # odd: windows at the border are cut
    score, heat = model([maps], (12, 20))
    weight, bias = model.dense.weight.detach().numpy(), model.dense.bias.detach().numpy()
    for k, image in enumerate(maps.numpy().astype(float)):
        windows = [
            image[:, y : y + pool, x : x + pool].max((1, 2)) for y in range(0, 3, pool) for x in range(0, 5, pool)
        ]
        logits = weight @ np.mean(windows, axis=0) + bias
        assert score[k].item() == pytest.approx(np.exp(logits[1]) / np.exp(logits).sum(), rel=1e-5)
        activation = np.tensordot(weight[1].astype(float), image, 1)
        expected = zoom(activation, 4, order=1, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(heat[k, 0].detach(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.image_score([maps], (12, 20)), score)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_the_last_convolutions_learn_and_nothing_else_of_the_backbone(count):
    backbone = TinyBackbone()
    CAM([8, 12, 16], [2, 4, 8], trained_layers=count).adapt_backbone(backbone)
    learning = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert learning == {f"steps.{2 - k}.{part}" for k in range(count) for part in ("weight", "bias")}


def test_batchnorm_of_a_network_stays_as_it_is():
    network: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    network.requires_grad_(False)
    CAM([4], [1], trained_layers=2).adapt_backbone(network)
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_the_loss_is_the_mean_over_images_with_a_defect_weighing_three_times():
    model = CAM([4], [8])
    maps = [torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(1))]
    label = torch.tensor([0, 1, 0, 0, 1, 0])
    criterion = nn.CrossEntropyLoss(torch.tensor([1.0, 3.0]), reduction="none")

    def loss(index):
        batch = Batch(torch.empty(0), torch.empty(0), label[index], torch.tensor(index), [])
        return model.loss([maps[0][index]], batch, criterion).item()

    probability = model.logits(maps).softmax(1).detach().numpy()
    expected = np.mean([-(1, 3)[y] * np.log(p[y]) for p, y in zip(probability, label, strict=True)])
    assert loss(list(range(6))) == pytest.approx(expected, rel=1e-5)
    assert (loss([0, 1]) * 2 + loss([2, 3, 4, 5]) * 4) / 6 == pytest.approx(expected, rel=1e-5)


def test_the_first_weights_come_from_the_seed():
    first, again, other = (CAM([9], [8], seed=seed).dense for seed in (0, 0, 1))
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)
    assert not torch.equal(first.weight, other.weight)
    assert first.weight.abs().max() <= 1 / 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"trained_layers": -1}, r"model\.trained_layers=-1 must be at least 0"),
     ({"pool": 0}, r"model\.pool=0 must be at least 1"),
     ({"trained_layers": 4}, r"model\.trained_layers=4: this backbone has 3 convolutions: choose 0\.\.3")],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        CAM([8, 12, 16], [2, 4, 8], **settings).adapt_backbone(TinyBackbone())
