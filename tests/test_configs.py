"""Every YAML under configs/ composes, and what it describes can be built."""

import pytest
import torch
from conftest import CONFIGS, TinyBackbone
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from oddpatch import pipeline

GROUPS = {
    group.name: sorted(path.stem for path in group.glob("*.yaml"))
    for group in CONFIGS.iterdir()
    if group.is_dir() and group.name not in ("hydra", "paths")
}
CHOICES = [(group, choice) for group, choices in GROUPS.items() for choice in choices]


def composed(*overrides, name="train"):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, [*overrides, "paths.output_dir=/tmp/out"])


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=["/".join(c) for c in CHOICES])
def test_every_choice_composes(group, choice):
    cfg = composed(f"{group}={choice}")
    for key in ("model", "backbone", "data", "trainer"):
        OmegaConf.to_container(cfg[key], resolve=True)


@pytest.mark.parametrize("choice", GROUPS["backbone"])
def test_every_backbone_can_be_built(choice):
    with torch.device("meta"):  # no numbers: the large ones would take gigabytes
        backbone = pipeline.make(composed(f"backbone={choice}").backbone, weights="random")
    assert len(backbone.channels) == len(backbone.strides) >= 1


@pytest.mark.parametrize("choice", GROUPS["model"])
def test_every_model_can_be_built(choice):
    tiny = TinyBackbone()
    settings = OmegaConf.to_container(composed(f"model={choice}").model, resolve=True)
    if "num_features" in settings:
        settings["num_features"] = 10
    if "maps" in settings:
        settings["maps"] = [2, 1]
    assert pipeline.make(settings, channels=tiny.channels, strides=[4, 8, 16]).required_memory(
        [(8, 16, 16), (12, 8, 8), (16, 4, 4)], 60
    )


@pytest.mark.parametrize("choice", GROUPS["data"])
def test_every_dataset_can_be_built(choice, tmp_path):
    data = pipeline.make(composed(f"data={choice}", f"paths.data_dir={tmp_path}").data, mean=[0.5] * 3, std=[0.5] * 3)
    assert data.preprocess.image_size


@pytest.mark.parametrize("choice", [c for c in GROUPS["logger"] if c != "wandb"])
def test_every_logger_and_the_trainer_can_be_built(choice, tmp_path):
    cfg = composed(f"logger={choice}", "trainer.accelerator=cpu")
    cfg.paths.output_dir = str(tmp_path)
    trainer = pipeline.build_trainer(cfg)
    assert len(trainer.loggers) == (0 if choice == "none" else 1)


def test_eval_composes():
    assert composed("run=/some/folder", name="eval").run == "/some/folder"
