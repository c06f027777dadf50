"""Covariance estimates against scikit-learn and numpy."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from oddpatch.ops.shrinkage import least_variance_components, ledoit_wolf, sample_covariance


def samples(count, dim, offset=0.0):
    generator = torch.Generator().manual_seed(count + dim)
    return torch.randn(count, dim, generator=generator) * torch.linspace(3, 0.1, dim) + offset


@pytest.mark.parametrize(("count", "dim"), [(50, 4), (50, 50), (20, 90), (5, 1), (2, 7), (400, 30)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_ledoit_wolf_equals_scikit_learn(count, dim, offset):
    x = samples(count, dim, offset)
    expected = LedoitWolf().fit(x.double().numpy())
    covariance, shrinkage = ledoit_wolf(x)
    assert shrinkage == pytest.approx(expected.shrinkage_, rel=1e-6, abs=1e-12)
    np.testing.assert_allclose(covariance.numpy(), expected.covariance_, rtol=1e-6, atol=1e-9)


def test_shrinkage_stops_at_one():
    x = torch.cat([torch.eye(3), -torch.eye(3)])  # already a multiple of the identity
    expected = LedoitWolf().fit(x.double().numpy())
    covariance, shrinkage = ledoit_wolf(x)
    assert 0 <= shrinkage <= 1
    np.testing.assert_allclose(covariance.numpy(), expected.covariance_, atol=1e-12)


def test_sample_covariance_equals_numpy():
    x = samples(20, 6, 10.0)
    expected = np.cov(x.double().numpy(), rowvar=False) + 0.5 * np.eye(6)
    np.testing.assert_allclose(sample_covariance(x, 0.5).numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("retained", [0.01, 0.3, 0.9999])
@pytest.mark.parametrize(("count", "dim"), [(60, 20), (15, 40)])
def test_least_variance_components_are_the_last_of_pca(count, dim, retained):
    x = samples(count, dim)
    pca = PCA().fit(x.double().numpy())
    last = int((pca.explained_variance_ratio_.cumsum() > 1 - retained).argmax())
    kept = least_variance_components(x, retained).numpy()
    expected = pca.components_[max(last - 1, 0) : min(count - 1, dim)]
    assert kept.shape == expected.shape
    np.testing.assert_allclose(np.abs((kept * expected).sum(1)), 1, atol=1e-6)
