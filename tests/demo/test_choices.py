"""What the page offers can be composed, and works without a network where it says so."""

import pytest
from conftest import CONFIGS
from hydra import compose, initialize_config_dir

from oddpatch.demo import choices
from oddpatch.models import calibration


def test_methods_are_those_that_good_images_alone_suffice_for():
    offered = choices.methods()
    assert list(offered)[:2] == ["padim", "patchcore"]
    assert offered["padim"] == "PaDiM"
    assert offered["mh_patchcore"] == "MH-PatchCore"
    assert {path.stem for path in (CONFIGS / "model").glob("*.yaml")} - offered.keys() == {
        "cam", "musc", "patchcore_ensemble",
    }  # fmt: skip
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        learning = {name: compose("train", [f"model={name}"]).learning._target_ for name in offered}
    assert set(learning.values()) == {"oddpatch.learning.one_epoch.OneEpoch"}


def test_backbones_whose_weights_are_installed_come_first():
    offered = choices.backbones()
    installed = [name for name, told in offered.items() if told.endswith("(installed)")]
    assert installed == list(offered)[: len(installed)] == ["effnet_lite0", "effnet_lite1", "effnet_lite2"]
    assert not any(name.startswith("ensemble") for name in offered)


def test_the_fewest_images_are_those_that_a_threshold_takes():
    page = pytest.importorskip("oddpatch.demo.page")
    assert page.FEWEST == calibration.FEWEST
