"""Projections against scikit-learn and against what they promise."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA

from oddpatch.errors import ConfigError
from oddpatch.ops.projection import (
    DistanceSketch,
    fit_sketch,
    principal_directions,
    random_projection,
    semi_orthogonal,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_random_projection_keeps_distances() -> None:
    points = torch.randn(60, 800, generator=seeded())
    projected = random_projection(points, 300, seeded(1))
    assert projected.shape == (60, 300)
    ratios = pdist(projected) / pdist(points)
    assert abs(np.square(ratios).mean() - 1) < 0.03
    assert abs(ratios - 1).max() < 0.25
    assert projected.equal(random_projection(points, 300, seeded(1)))


@pytest.mark.parametrize("dim", [50, 296])
def test_random_projection_never_enlarges(dim: int) -> None:
    points = torch.randn(10, 50, generator=seeded())
    assert random_projection(points, dim, seeded()) is points


def test_random_projection_keeps_the_float_type() -> None:
    assert random_projection(torch.ones(3, 50, dtype=torch.float64), 5, seeded()).dtype == torch.float64


def test_semi_orthogonal_columns_are_orthonormal() -> None:
    matrix = semi_orthogonal(200, 30, seeded())
    assert matrix.shape == (200, 30)
    torch.testing.assert_close(matrix.mT @ matrix, torch.eye(30), atol=1e-6, rtol=0)
    assert matrix.equal(semi_orthogonal(200, 30, seeded()))
    assert not matrix.equal(semi_orthogonal(200, 30, seeded(1)))


def test_semi_orthogonal_signs_are_free() -> None:
    # Without fixed signs LAPACK makes the first entry of a 1x1 Q always the same.
    signs = {semi_orthogonal(1, 1, seeded(seed)).sign().item() for seed in range(10)}
    assert signs == {-1.0, 1.0}


@pytest.mark.parametrize("columns", [0, 6])
def test_semi_orthogonal_of_impossible_shape(columns: int) -> None:
    with pytest.raises(ConfigError, match=r"choose 1\.\.5"):
        semi_orthogonal(5, columns, seeded())


def test_principal_directions_hold_as_much_variance_as_pca() -> None:
    points = (torch.randn(500, 40, generator=seeded()) * torch.linspace(0, -8, 40).exp()).double()
    points -= points.mean(0)
    basis = principal_directions(points, 6)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(6).double(), atol=1e-12, rtol=0)
    reference = PCA(6).fit(points)
    variance = (points @ basis).var(0)
    np.testing.assert_allclose(variance[:4], reference.explained_variance_[:4], rtol=1e-3)
    assert variance.sum() > 0.98 * reference.explained_variance_.sum()


@pytest.mark.parametrize("dim", [20, 300])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_sketch_never_exceeds_a_distance(dim: int, offset: float) -> None:
    points = torch.randn(1500, dim, generator=seeded()) * torch.linspace(0, -6, dim).exp() + offset
    sketch = fit_sketch(points, 1_000_000)
    sketched = sketch(points)
    assert sketched.shape == (1500, sketch.dim)
    assert sketched.abs().max() < 10  # centred: products of large numbers would cancel
    true = pdist(points.double())
    assert (pdist(sketched.double()) <= true + 1e-6 * sketched.norm(dim=1).max().item()).all()
    # and comes close to those that matter, the small ones
    small = true < np.quantile(true, 0.01)
    assert np.median((pdist(sketched.double()) / true)[small]) > 0.9


def test_sketch_keeps_the_length_of_what_is_left_over() -> None:
    sketch = DistanceSketch(torch.tensor([0.0, 1.0, 0.0]).double(), torch.tensor([[1.0], [0.0], [0.0]]).double())
    assert sketch(torch.tensor([[5.0, 4.0, 4.0], [5.0, 1.0, 0.0]])).tolist() == [[5.0, 5.0], [5.0, 0.0]]


def test_sketch_is_small_only_where_few_directions_matter() -> None:
    flat = torch.randn(2000, 300, generator=seeded())
    assert fit_sketch(flat, 1_000_000).dim == 300
    assert fit_sketch(flat * torch.linspace(0, -8, 300).exp(), 1_000_000).dim <= 64
    assert fit_sketch(flat * torch.linspace(0, -8, 300).exp(), 10).dim == 300  # not worth the while


def test_tolerance_bounds_the_rounding_of_a_matrix_product() -> None:
    points = torch.randn(400, 96, generator=seeded()) * 50 + 20
    sketch = DistanceSketch(torch.zeros(96, dtype=torch.float64), None)
    a, b = sketch(points[:200]), sketch(points[200:] * 0.01)
    product = (a.square().sum(1)[:, None] + torch.addmm(b.square().sum(1), a, b.mT, alpha=-2)).double()
    exact = (a.double()[:, None] - b.double()).square().sum(2)
    bound = sketch.tolerance(a.double().norm(dim=1), b.double().norm(dim=1).max())
    error = (product - exact).abs()
    assert (error <= bound[:, None]).all()
    assert error.max() > 0
    assert bound.max() < 1e-4 * exact.max()


def test_more_orthonormal_columns_than_rows_are_refused():
    with pytest.raises(ConfigError, match=r"4 orthonormal columns of 3 rows do not exist: choose 1\.\.3"):
        semi_orthogonal(3, 4, torch.Generator())


def test_a_projection_to_nothing_is_refused():
    with pytest.raises(ConfigError, match="dim=0: choose at least 1"):
        random_projection(torch.zeros(5, 4), 0, seeded())
