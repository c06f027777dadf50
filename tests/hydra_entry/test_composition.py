"""Errors of composition in one line with the nearest name; the config printed; W&B's command line."""

import runpy
import sys

import pytest
import yaml
from conftest import CONFIGS, ROOT
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException

from oddpatch.errors import ConfigError
from oddpatch.hydra_entry import composition


def told(*overrides, name="train"):
    GlobalHydra.instance().clear()
    with pytest.raises(Exception) as error, initialize_config_dir(str(CONFIGS), version_base="1.3"):
        compose(name, list(overrides))
    return composition.explain(error.value, overrides, CONFIGS, name)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("modle=padim", "there is no setting modle: did you mean model?"),
        ("model.num_featurs=3", "did you mean model.num_features?"),
        ("model=padm", "no such choice: did you mean model=padim?"),
        ("backbone=resnet19", "did you mean backbone=resnet1"),
        ("data.categry=x", "did you mean data.category?"),
        ("trainer.max_epoch=2", "did you mean trainer.max_epochs?"),
        ("hydra.sweep.dri=x", "did you mean hydra.sweep.dir?"),
        ("~model.epsilo", "did you mean model.epsilon?"),
        (
            "data.views.rotations=[90,180]",
            "data.views is null: set all of it at once, as 'data.views={rotations:[90,180]}'",
        ),
        ("qqqqqqq=1", "--cfg job lists them"),
        ("model.epsilon=[1", "cannot be read"),
        ("model.epsilon", "write KEY=VALUE"),
        ("seed=it's", "type 'seed=\"it'\"'\"'s\"'"),
        ("seed=a(b", "type 'seed=\"a(b\"'; lists are 'KEY=[1,2]'"),
        ("model=null", "model=null: model is chosen by name: there are anomalydino, cam, "),
        ("model=5", "model=5: model is chosen by name: there are anomalydino, cam, "),
        ("=x", "write KEY=VALUE"),
        ("+=1", "write KEY=VALUE"),
        ("@x=1", "write KEY=VALUE"),
        ("hydra/launcher=nonsense", "hydra/launcher=nonsense is not installed: pip install 'oddpatch[sweep]'"),
    ],
)
def test_what_is_misspelt_is_told_with_what_is_near(override, hint):
    line = told(override)
    assert hint in line
    assert line.startswith(override[:5])
    assert "\n" not in line


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["model=null"], "error: model=null: model is chosen by name: there are anomalydino, cam"),
        (["~backbone="], "error: Could not delete 'backbone='"),
        (["+model=padim"], "error: model appears more than once"),
        (["-m", "--cfg", "job"], "error: Only one of --run, --multirun, --cfg"),
    ],
)
def test_what_hydra_raises_for_a_command_line_is_one_line(arguments, hint, monkeypatch, capsys):
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    assert error.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(hint)


def test_names_are_those_of_the_chosen_groups():
    assert "did you mean model.coreset_ratio?" in told("model=patchcore", "model.corset_ratio=0.1")
    assert "did you mean model.coreset_ratio?" in told("model=patchcore,padim", "model.corset_ratio=0.1,0.2")


def test_own_configs_are_known(tmp_path):
    own = tmp_path / "it's (mine)"
    (own / "experiment").mkdir(parents=True)
    (own / "experiment/first.yaml").write_text("# @package _global_\ndefaults:\n  - override /model: patchcore\n")
    overrides = ["experiment=first", "model.corset_ratio=1"]
    error = ConfigCompositionException("Could not override")
    line = composition.explain(error, overrides, CONFIGS, "train", own)
    assert line == "model.corset_ratio=1: there is no setting model.corset_ratio: did you mean model.coreset_ratio?"
    line = composition.explain(error, ["experiment=5"], CONFIGS, "train", own)
    assert "there are anomalydino_s14_448, " in line
    assert ", first, gaussian_b4, " in line


def test_what_the_shell_has_parted_is_told_whole():
    line = told("data.root=/my", "parts")
    assert "if it belongs to what is before it, type 'data.root=/my parts'" in line


def test_a_setting_of_the_run_that_is_tested_again_is_added():
    assert told("run=x", "data.root=/y", name="eval").endswith("there is no setting data.root: type +data.root=/y")


def test_a_sweep_without_its_package_says_how_to_install_it():
    composition.need_extra("omegaconf")
    with pytest.raises(ConfigError, match=r"needs ray_not_there, .*pip install 'oddpatch\[sweep\]'"):
        composition.need_extra("ray_not_there")


@pytest.mark.slow
def test_the_command_of_a_wandb_sweep_composes():
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    content = yaml.safe_load((ROOT / "sweeps/wandb.yaml").read_text())
    assert content["command"][-1] == "${args_no_hyphens}"
    drawn = {"metrics.pixel.fpr_limits": {"value": [0.3, 0.05]}}  # a list, which W&B writes with a space
    for name, given in content["parameters"].items():
        drawn[name] = {"value": given.get("value", given.get("values", [given.get("min")])[-1])}
    arguments = utils.create_sweep_command_args({"args": drawn})["args_no_hyphens"]
    overrides = [text for text in [*content["command"][:-1], *arguments] if "=" in text]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides)
    assert cfg.model._target_.endswith("PatchCore")
    assert cfg.model.coreset_ratio == content["parameters"]["model.coreset_ratio"]["min"]
    assert cfg.metrics.pixel.fpr_limits == [0.3, 0.05]
    assert cfg.logger.wandb.project == content["project"]
    assert cfg.objective == content["metric"]["name"]
    assert (ROOT / content["program"]).is_file()
