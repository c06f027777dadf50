"""SubspaceAD against the released code's numbers and a plain computation."""

import numpy as np
import pytest
import torch
from methods import CHANNELS, SIZE, STRIDES, features
from vectors import fitted, vector, vector_maps

from oddpatch.errors import ConfigError, DataError
from oddpatch.models.subspacead import SubspaceAD

LAYERS = [1, 2, 3]  # that it averages


@pytest.mark.vector
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_equals_the_released_code(batch):
    train, test, expected = vector_maps("train", LAYERS), vector_maps("test", LAYERS), vector("subspacead")
    detector = fitted(SubspaceAD([24] * 3, [4] * 3, finest_stride=1), train, batch)
    score, heat = detector(test, (40, 48))
    assert detector.basis.shape[1] == expected["ev99_k"]
    np.testing.assert_allclose(detector.mean, expected["ev99_mean"], rtol=1e-5, atol=1e-6)
    patches, grid = detector.patches(test)
    np.testing.assert_allclose(
        detector.score_patches(patches).view(4, *grid), expected["ev99_patch"], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(heat[:, 0], expected["ev99_map"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(score, expected["ev99_score"], rtol=1e-5)
    unblurred = SubspaceAD([24] * 3, [4] * 3, finest_stride=1, smoothing=0)
    np.testing.assert_allclose(
        fitted(unblurred, train)(test, (40, 48)).anomaly_map[:, 0], expected["ev99_map_unblurred"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.vector
def test_two_shots_and_another_share_equal_the_released_code():
    expected = vector("subspacead")
    detector = SubspaceAD([24] * 3, [4] * 3, variance=0.95, finest_stride=1)
    score, _ = fitted(detector, [m[:2] for m in vector_maps("train", LAYERS)])(vector_maps("test", LAYERS), (40, 48))
    assert detector.basis.shape[1] == expected["ev95_shot2_k"]
    np.testing.assert_allclose(score, expected["ev95_shot2_score"], rtol=1e-5)


def test_maps_of_unlike_channels_are_joined():
    detector = fitted(SubspaceAD(CHANNELS, STRIDES, finest_stride=4, smoothing=0), features(12))
    joined = [f.repeat_interleave(16 // f.shape[2], 2).repeat_interleave(16 // f.shape[3], 3) for f in features(12)]
    patches = torch.cat(joined, 1).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(patches, rowvar=False))
    held = values[::-1].cumsum() / values.sum()
    rank = int((held < 0.99).sum()) + 1
    assert detector.basis.shape == (24, rank)
    expected = vectors[:, -rank:] @ vectors[:, -rank:].T
    np.testing.assert_allclose(detector.basis @ detector.basis.T, expected, atol=1e-5)


def test_an_offset_a_thousand_times_the_spread_costs_no_digits():
    plain, shifted = (fitted(SubspaceAD([6], [4], finest_stride=1), [features(9)[0] + by]) for by in (0, 4096))
    torch.testing.assert_close(plain.basis @ plain.basis.mT, shifted.basis @ shifted.basis.mT, rtol=0, atol=1e-2)


@pytest.mark.parametrize("settings", [{"variance": 1}, {"variance": 0}, {"top": 0}, {"top": 1.5}])
def test_shares_are_shares(settings):
    with pytest.raises(ConfigError, match=r"is a share: choose above 0 and below 1"):
        SubspaceAD(CHANNELS, STRIDES, **settings)


def test_without_images_or_without_variance_it_says_so():
    with pytest.raises(DataError, match="at least one good image"):
        SubspaceAD(CHANNELS, STRIDES).fit()
    with pytest.raises(DataError, match="all of the good images have the same features"):
        fitted(SubspaceAD([3], [8]), [torch.ones(4, 3, 4, 4)])


def test_a_patch_in_the_subspace_scores_nothing():
    detector = fitted(SubspaceAD([6], [4], finest_stride=1), [features(9)[0]])
    inside = detector.mean + 3 * detector.basis.sum(1)
    assert detector.score_patches(inside.view(1, 1, -1)).item() < 1e-8
    assert detector(features(2)[:1], SIZE).score.shape == (2,)
