"""Which product an image is of, and how often one of them is taken for a stranger."""

import numpy as np
import pytest
import torch
from narrowing import present
from scipy.spatial.distance import cdist

from oddpatch.errors import DataError
from oddpatch.metrics.good_scores import GoodScores
from oddpatch.models.products import Products

NAMES = ["bolt", "nut", "washer"]


def drawn(count, product, seed, vary=0.1):
    """Maps (n, 16, 2, 2) of images of a product, which differ by `vary`, the products by 1."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randn(16, generator=torch.Generator().manual_seed(100 + product))
    return (middle + vary * torch.randn(count, 16, generator=generator))[..., None, None].expand(-1, -1, 2, 2).clone()


def fitted(counts=(10, 10, 10), vary=(0.1, 0.1, 0.1), seed=0, order=None):
    maps = torch.cat([drawn(n, i, seed + i, vary[i]) for i, n in enumerate(counts)])
    labels = [i for i, n in enumerate(counts) for _ in range(n)]
    products = Products([16], [8], NAMES)
    products.labels = labels
    order = torch.arange(len(maps)) if order is None else order
    for part in order.split(7):
        products.update([maps[part]], part)
    products.fit()
    return products, maps, np.array(labels)


def reference(tokens, labels, new, without=None):
    """Ratio and product by SciPy."""
    far = cdist(new, tokens / np.linalg.norm(tokens, axis=1, keepdims=True))
    if without is not None:
        far[np.arange(len(new)), without] = np.inf
    nearest = np.array([far[:, labels == i].min(axis=1) for i in range(3)])  # (products, B)
    first, second = np.sort(nearest, axis=0)[:2]
    return first / second, nearest.argmin(axis=0)


def unit(maps):
    tokens = maps.mean(dim=(2, 3)).double().numpy()
    return tokens / np.linalg.norm(tokens, axis=1, keepdims=True)


def test_ratios_are_those_of_scipy():
    products, maps, labels = fitted(vary=(0.1, 0.3, 0.05))
    new = torch.cat([drawn(3, i, 50 + i) for i in range(4)])  # the last is of no product
    for given, index in ((new, None), (maps, torch.arange(30))):
        ratio, product = products.match([given], index)
        expected, nearest = reference(unit(maps), labels, unit(given), None if index is None else index.numpy())
        np.testing.assert_allclose(ratio, expected, rtol=1e-4)
        np.testing.assert_array_equal(product, nearest)


def test_neither_order_nor_batches_change_what_is_fitted():
    one, _, _ = fitted()
    other, _, _ = fitted(order=torch.randperm(30, generator=torch.Generator().manual_seed(3)))
    for name in ("tokens", "source", "product"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_all_views_of_an_image_are_left_out():
    products, maps, _ = fitted()
    views = Products([16], [8], NAMES)
    views.labels = products.labels
    for turned in (maps, maps * 1.01):  # the same class token
        views.update([turned], torch.arange(30))
    views.fit()
    assert torch.allclose(views.match([maps], torch.arange(30))[0], products.match([maps], torch.arange(30))[0])


def test_the_only_image_of_a_product_can_be_left_out():
    products, maps, _ = fitted(counts=(10, 10, 1))
    assert products.match([maps[-1:]], torch.tensor([20]))[0] > 0.5  # as far from both others


def test_copies_of_one_image_leave_ratios_finite():
    products, maps, _ = fitted(vary=(0, 0, 0))
    assert products.match([maps])[0].isfinite().all()


def test_a_defect_moves_an_image_less_than_another_product_does():
    products, _, _ = fitted()
    odd = drawn(5, 1, 77)
    odd[:, :4] *= 1.5
    stranger = drawn(5, 9, 78)
    assert products.match([odd])[0].max() < 0.5 < products.match([stranger])[0].min()


def test_without_images_nothing_is_fitted():
    with pytest.raises(DataError, match="add images"):
        Products([16], [8], NAMES).fit()


def test_good_images_are_taken_for_strangers_at_the_stated_rate():
    """Of products so alike that good images are not clearly of one; the threshold is set on 60, each left out."""
    vary, target, rates = (1.0, 1.2, 0.9), 0.1, []
    for seed in range(0, 3000, 10):
        products, maps, _ = fitted(counts=(20, 20, 20), vary=vary, seed=seed)
        products.calibrate(products.match([maps], torch.arange(60))[0])
        scores = GoodScores(
            np.zeros(60), np.empty(0), np.nan, target, None, products=tuple(NAMES), product_ratios=products.good.numpy()
        )
        threshold = present(scores.product_at(target))
        new = torch.cat([drawn(10, i, 100_000 + seed + i, one) for i, one in enumerate(vary)])
        rates.append(float((products.match([new])[0] > threshold.value).float().mean()))
    error = np.std(rates) / len(rates) ** 0.5
    assert abs(np.mean(rates) - threshold.fpr) < 3 * error + 0.005, (np.mean(rates), threshold.fpr, error)
    assert threshold.fpr == pytest.approx(6 / 61)
