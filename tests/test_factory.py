"""Fitted models are restored by what is needed to score, and no more."""

import pytest
from omegaconf import OmegaConf

from oddpatch.errors import ConfigError
from oddpatch.hydra_entry import building


def test_a_class_and_its_settings_are_checked_by_name():
    cfg = OmegaConf.create(
        {"model": {"_target_": "oddpatch.models.padim.PaDiM", "epsilom": 1}, "x": {"_target_": "a.B"}}
    )
    with pytest.raises(ConfigError, match=r"model\.epsilom: PaDiM has no such setting: did you mean model\.epsilon\?"):
        building.make(cfg.model, channels=[8], strides=[4])
    with pytest.raises(ConfigError, match=r"x: Error locating target 'a\.B'.*spelt right"):
        building.make(cfg.x)
