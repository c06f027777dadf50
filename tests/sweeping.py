"""Sweeps of tiny jobs for the tests."""

import csv
import json
import logging
import runpy
import sys
from pathlib import Path

from conftest import CONFIGS, ROOT, make_dataset
from hydra.core.global_hydra import GlobalHydra
from narrowing import present

from oddpatch.sweep.process import Ending

TINY = (
    "data=mvtec", "data.resize=32", "data.crop=32", "data.batch_size=5", "data.num_workers=0", "backbone=resnet18",
    "backbone.weights=random", "model.num_features=10", "trainer.accelerator=cpu", "callbacks.pictures=null",
    "callbacks.progress=null", "logger=none",
)  # fmt: skip

SETTINGS = {"model": {"_target_": "M"}, "backbone": {"_target_": "B"}, "data": {"_target_": "D"}, "calibration": {}}
RUN = {"model": "padim", "backbone": "resnet18", "data": "mvtec", "category": "tile", "image_size": [32, 32]}


class Stand:
    """Takes the place of `run_script`: writes a result, or ends as `endings` says for an override."""

    def __init__(self):
        self.ran, self.endings = [], {}

    def __call__(self, script, arguments, environment, console, folder):
        command = " ".join(arguments)
        self.ran.append((folder.name, command, environment))
        for text, ending in self.endings.items():
            if text in command and isinstance(ending, BaseException):
                raise ending
            if text in command:
                return ending
        metrics = {
            "image_auroc": 0.9,
            "num_train_images": 2,
            "num_test_images": 13,
            "weights": "random",
            "run": RUN,
            "settings": SETTINGS,
            "fpr_limits": [0.3],
        }
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return Ending(0, "")


def dataset(folder: Path) -> tuple[str, str]:
    """Overrides that choose a small dataset in `folder`."""
    make_dataset(folder / "data", good=2, test_good=1, defects=1)
    return f"data.root={folder}/data", "data.category=tile"


def sweep(monkeypatch, folder: Path, *overrides: str, tiny=TINY) -> int:
    """`python train.py -m OVERRIDES` in this process; gives the exit code."""
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *tiny, f"hydra.sweep.dir={folder}", *overrides])
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as error:
        return int(error.code or 0)
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers, root.level = handlers, level
    return 0


def basic_launcher():
    """Hydra's class; it is made anew when Hydra looks for plugins, which it does once."""
    from hydra.core.plugins import Plugins

    Plugins.instance()
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    return BasicLauncher


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of `sweep.csv`."""
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def statuses(folder: Path) -> dict[str, str]:
    """Status by what varies."""
    return {row["varies"]: row["status"] for row in table(folder)}


def loaded(*overrides: str):
    """Hydra's loader of configs and the config of a sweep."""
    from hydra import initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3", job_name="train"):
        hydra = present(GlobalHydra.instance().hydra)
        config = hydra.compose_config("train", [*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
        HydraConfig.instance().set_config(config)
        return hydra.config_loader, config
