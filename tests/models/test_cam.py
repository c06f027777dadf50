"""CAM against the released code's numbers and a plain computation."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyBackbone
from scipy.ndimage import zoom
from torch import nn
from vectors import vector

from oddpatch.errors import ConfigError, DataError
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
     ({"trained_layers": 0, "place_channels": 0}, r"model\.place_channels=0: choose 1\.\.4096, or null"),
     ({"trained_layers": 0, "place_channels": 10**9}, r"model\.place_channels=1000000000: choose 1\.\.4096, or null"),
     ({"place_channels": 4}, r"the backbone must stay as it is: set model\.trained_layers=0"),
     ({"trained_layers": 4}, r"model\.trained_layers=4: this backbone has 3 convolutions: choose 0\.\.3")],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        CAM([8, 12, 16], [2, 4, 8], **settings).adapt_backbone(TinyBackbone())


# -- with places ------------------------------------------------------------------------------------------------------


def with_places(maps, pool=9, channels=6, **settings):
    """A model that was shown good maps [(B, C_l, h_l, w_l)] in two batches."""
    strides = [maps[0].shape[2] // one.shape[2] for one in maps]
    model = CAM([m.shape[1] for m in maps], strides, trained_layers=0, pool=pool, place_channels=channels, **settings)
    for index in torch.arange(len(maps[0])).split(5):
        model.update([m[index] for m in maps], index)
    model.fit()
    return model


def boards(count, seed, size=8):
    """Maps of the same place-by-place pattern, a little noisy and unevenly lit."""
    pattern = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(99))
    drawn = torch.Generator().manual_seed(seed)
    light = 0.3 * torch.randn(count, 3, 1, 1, generator=drawn)
    return pattern + light + 0.1 * torch.randn(count, 3, size, size, generator=drawn)


def test_with_places_score_and_map_are_those_of_a_plain_computation():
    good = [boards(12, seed=1), boards(12, seed=2, size=4)]
    model = with_places(good, pool=3, seed=5).requires_grad_(False)
    assert model.logits(good).shape == (12, 2)
    test = [boards(2, seed=3), boards(2, seed=4, size=4)]
    score, heat = model(test, (16, 16))

    def joined(maps):
        finer = nn.functional.interpolate(maps[1], size=(8, 8), mode="bilinear")
        return np.concatenate([maps[0], finer], axis=1).astype(float)

    shown, given = joined(good), joined(test)
    variance = shown.var(axis=0, ddof=1)
    deviation = np.sqrt(variance + 0.1 * variance.mean((1, 2), keepdims=True))
    odd = (given - shown.mean(axis=0)) / deviation
    odd = (odd - odd.mean((2, 3), keepdims=True)) / odd.std((2, 3), keepdims=True)
    weight, bias = model.convolution.weight[:, :, 0, 0].numpy(), model.convolution.bias.numpy()
    maps = np.maximum(np.einsum("dc,bchw->bdhw", weight, odd) + bias[:, None, None], 0)
    for k, image in enumerate(maps):
        windows = [image[:, y : y + 3, x : x + 3].max((1, 2)) for y in range(0, 8, 3) for x in range(0, 8, 3)]
        logits = model.dense.weight.numpy() @ np.mean(windows, axis=0) + model.dense.bias.numpy()
        assert score[k].item() == pytest.approx(np.exp(logits[1]) / np.exp(logits).sum(), rel=1e-4)
        activation = np.tensordot(model.dense.weight[1].numpy().astype(float), image, 1)
        np.testing.assert_allclose(heat[k, 0], zoom(activation, 2, order=1, mode="nearest", grid_mode=True), 1e-4, 1e-4)


def swapped(count, seed):
    """Boards of which two places show what belongs at the other: nothing on them is odd but where it is."""
    maps = boards(count, seed)
    for image, (a, b, c) in enumerate(torch.randint(8, (count, 3), generator=torch.Generator().manual_seed(seed))):
        rows, columns = torch.stack([a, (a + 4) % 8]), torch.stack([b, c])
        maps[image][:, rows, columns] = maps[image][:, rows, columns].flip(1)
    return maps


@pytest.mark.parametrize(("places", "least", "most"), [(True, 0.9, 1.0), (False, 0.3, 0.75)])
def test_with_places_it_finds_what_is_normal_elsewhere(places, least, most):
    good, defective = boards(80, seed=1), swapped(80, seed=2)
    model = with_places([good]) if places else CAM([3], [8], trained_layers=0, pool=9)
    maps, label = torch.cat([good, defective]), torch.arange(160) // 80
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        batch = Batch(torch.empty(0), torch.empty(0), label, torch.arange(160), [])
        model.loss([maps], batch, nn.CrossEntropyLoss(reduction="none")).backward()
        optimizer.step()
    model.fit()
    right = [model.image_score([m], (64, 64)) > 0.5 for m in (boards(40, seed=3), swapped(40, seed=4))]
    assert least <= ((~right[0]).float().mean() + right[1].float().mean()) / 2 <= most


def test_with_places_images_of_another_size_are_refused():
    model = with_places([boards(6, seed=1)])
    with pytest.raises(DataError, match="images give a grid of 7x7 places, CAM was fitted on 8x8"):
        model([boards(1, seed=2, size=7)], (56, 56))
    with pytest.raises(DataError, match=r"model\.place_channels needs at least 2 good images, it was given 1"):
        with_places([boards(1, seed=1)])


def test_without_places_good_images_are_not_asked_for():
    with pytest.raises(ConfigError, match="CAM learns by gradients: set learning=supervised"):
        CAM([3], [8]).update([boards(2, seed=1)], torch.arange(2))


def test_with_places_it_loads_what_it_saved():
    good = [boards(6, seed=1)]
    model, other = with_places(good), CAM([3], [1], trained_layers=0, pool=9, place_channels=6, seed=1)
    other.load_state_dict(model.state_dict())
    test = [boards(3, seed=2)]
    assert torch.equal(other(test, (64, 64)).anomaly_map, model(test, (64, 64)).anomaly_map)
