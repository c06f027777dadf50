"""Fitted models are restored by what is needed to score, and no more."""

import pytest
import torch
from narrowing import stand_in
from omegaconf import OmegaConf

from oddpatch import factory
from oddpatch.errors import ConfigError
from oddpatch.hydra_entry import building
from oddpatch.models.products import Products


def test_a_class_and_its_settings_are_checked_by_name():
    cfg = OmegaConf.create(
        {"model": {"_target_": "oddpatch.models.padim.PaDiM", "epsilom": 1}, "x": {"_target_": "a.B"}}
    )
    with pytest.raises(ConfigError, match=r"model\.epsilom: PaDiM has no such setting: did you mean model\.epsilon\?"):
        building.make(cfg.model, channels=[8], strides=[4])
    with pytest.raises(ConfigError, match=r"x: Error locating target 'a\.B'.*spelt right"):
        building.make(cfg.x)


@pytest.fixture
def products():
    good = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    products = Products([4], [8], ["bolt", "nut"])
    products.labels = [0] * 4 + [1] * 4
    products.update([good], torch.arange(8))
    products.fit()
    return products


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("product", torch.zeros(3, dtype=torch.int64), "its products do not go together"),
        ("product", torch.zeros(8), "its products do not go together"),
        ("product", torch.full((8,), 2), "it holds images of products that it does not name"),
        ("product", torch.full((8,), -1), "it holds images of products that it does not name"),
    ],
)
def test_products_that_do_not_go_together_are_refused(products, name, value, told):
    factory._check_products(products)  # noqa: SLF001 - the step alone: what leads to it takes seconds
    setattr(products, name, value)
    with pytest.raises(ValueError, match=told):
        factory._check_products(products)  # noqa: SLF001 - the step alone: what leads to it takes seconds


def test_a_model_that_scores_something_else_than_an_image_is_refused():
    model = stand_in(
        preprocess=stand_in(image_size=(8, 8)), backbone=stand_in(forward=None), products=None,
        features=lambda image, forward: [], detector=lambda features, size: (torch.zeros(2), None),
    )  # fmt: skip
    with pytest.raises(ValueError, match="it does not score one image"):
        factory._try(model)  # noqa: SLF001 - the step alone: what leads to it takes seconds


def test_an_error_of_a_part_is_told_as_it_is():
    part = {"_target_": "oddpatch.models.calibration.Calibration", "method": "nothing"}
    cfg = OmegaConf.create({"model": {"_target_": "oddpatch.models.padim.PaDiM", "calibration": part}})
    with pytest.raises(ConfigError, match=r"^calibration\.method='nothing' is not known: choose"):
        building.make(cfg.model, channels=[8], strides=[4])
