"""Gaussian-AD against scikit-learn, and its errors."""

import re

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from oddpatch.errors import ConfigError, DataError
from oddpatch.models.gaussian import GaussianAD

CHANNELS, STRIDES = [5, 9, 40], [2, 4, 8]


def features(count, seed=0):
    """Maps whose averages are correlated over channels, and far from the origin."""
    mixing = torch.Generator().manual_seed(7)
    drawn = torch.Generator().manual_seed(seed)
    maps = []
    for channels, stride in zip(CHANNELS, STRIDES, strict=True):
        matrix = torch.randn(channels, channels, generator=mixing) * torch.linspace(2, 0.05, channels)
        base = torch.randn(count, channels, generator=drawn) @ matrix.T + 3
        maps.append(
            base[:, :, None, None] + 0.2 * torch.randn(count, channels, 16 // stride, 16 // stride, generator=drawn)
        )
    return maps


def fitted(count=30, batch=8, order=None, **settings):
    detector = GaussianAD(CHANNELS, STRIDES, **settings)
    order = torch.arange(count) if order is None else order
    maps = features(count)
    for index in order.split(batch):
        detector.update([f[index] for f in maps], index)
    detector.fit()
    return detector


def reference(train, test, settings):
    total = np.zeros(len(test[0]))
    for good, scored in zip(train, test, strict=True):
        good, scored = good.double().mean((2, 3)).numpy(), scored.double().mean((2, 3)).numpy()
        if "npca" in settings:
            pca = PCA().fit(good)
            last = int((pca.explained_variance_ratio_.cumsum() > 1 - settings["npca"]).argmax())
            kept = pca.components_[max(last - 1, 0) : len(good) - 1]  # the next one has no variance, and is arbitrary
            good, scored = (good - pca.mean_) @ kept.T, (scored - pca.mean_) @ kept.T
        if settings.get("shrinkage") == "epsilon":
            covariance = np.cov(good, rowvar=False) + settings["epsilon"] * np.eye(good.shape[1])
        else:
            covariance = LedoitWolf().fit(good).covariance_
        shift = scored - good.mean(0)
        total += np.sqrt(np.einsum("ni,ij,nj->n", shift, np.linalg.inv(covariance), shift))
    return total


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shrinkage": "epsilon", "epsilon": 0.3},
        {"npca": 0.05},
        {"npca": 0.6, "shrinkage": "epsilon", "epsilon": 0.01},
    ],
)
def test_equals_scikit_learn(settings):
    test = features(6, seed=1)
    prediction = fitted(**settings)(test, (16, 16))
    assert prediction.anomaly_map is None
    np.testing.assert_allclose(prediction.score.numpy(), reference(features(30), test, settings), rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 30])
def test_neither_batch_size_nor_order_nor_repetition_change_the_fit(batch):
    one = fitted(batch=8)
    shuffled = torch.cat([torch.randperm(30, generator=torch.Generator().manual_seed(1)), torch.tensor([7, 0])])
    other = fitted(batch=batch, order=shuffled)
    for name, buffer in one.named_buffers():
        assert torch.equal(buffer, dict(other.named_buffers())[name]), name


def test_npca_keeps_fewer_directions():
    full, reduced = fitted(), fitted(npca=0.05)
    assert full.whitening_2.shape == (40, 40)
    assert reduced.whitening_2.shape[0] < 30
    assert reduced.whitening_2.shape[1] == 40


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"shrinkage": "oas"}, "shrinkage='oas': choose one of ledoit_wolf, epsilon"),
        ({"epsilon": -1}, "epsilon=-1"),
        ({"npca": 1}, "npca=1 .* choose between 0 and 1"),
    ],
)
def test_wrong_settings(settings, told):
    with pytest.raises(ConfigError, match=told):
        GaussianAD(CHANNELS, STRIDES, **settings)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images(count):
    detector = GaussianAD(CHANNELS, STRIDES)
    if count:
        detector.update(features(1), torch.arange(1))
    with pytest.raises(DataError, match=rf"at least 2 good images.*given {count}"):
        detector.fit()


def test_images_all_alike_are_refused():
    detector = GaussianAD(CHANNELS, STRIDES)
    detector.update([f[:1].repeat(5, 1, 1, 1) for f in features(1)], torch.arange(5))
    with pytest.raises(ConfigError, match=r"covariance of stage 0 is not positive definite: .* model\.epsilon"):
        detector.fit()


def test_required_memory_covers_what_is_fitted():
    needed, remedy = GaussianAD(CHANNELS, STRIDES).required_memory([(5, 8, 8), (9, 4, 4), (40, 2, 2)], 30)
    assert needed >= 4 * (25 + 81 + 1600)
    assert "backbone.layers" in remedy


@pytest.mark.parametrize("settings", [{}, {"npca": 0.01}, {"shrinkage": "epsilon", "epsilon": 0.0}])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_the_remedy_for_a_stage_that_does_not_vary_works(settings, scale):
    maps = [scale * m for m in features(6)]
    maps[1] = maps[1][:1].repeat(6, 1, 1, 1)

    def fit(**settings):
        detector = GaussianAD(CHANNELS, STRIDES, **settings)
        detector.update(maps, torch.arange(6))
        detector.fit()
        return detector

    with pytest.raises(ConfigError, match="not positive definite: set ") as error:
        fit(**settings)
    named = dict(re.findall(r"model\.(\w+)=([\w.+-]+\w)", str(error.value)))
    mended = fit(shrinkage=named["shrinkage"], epsilon=float(named["epsilon"]))
    assert named.get("npca") == ("null" if "npca" in settings else None)
    score = mended([scale * m for m in features(4, seed=3)], (16, 16)).score
    assert score.isfinite().all()
    assert score.unique().numel() == 4
