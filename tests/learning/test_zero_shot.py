"""Fitting to test images without their labels."""

import csv
import json
import shutil

import pytest
from conftest import use_tiny_backbone
from test_pipeline import run, tiny

from oddpatch.errors import ConfigError


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
    use_tiny_backbone(monkeypatch)


def zero_shot(tiles, out, *overrides):
    return run(tiny(tiles, out, "model=musc", "model.finest_stride=1", *overrides))


def test_test_images_judge_each_other(tiles, tmp_path):
    job = zero_shot(tiles, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert job.module.num_fitted == len(list((tiles / "tile/test").glob("*/*.png"))) == 13
    assert metrics["image_auroc"] > 0.9
    assert metrics["run"]["model"] == "MuSc (zero-shot)"
    assert not [key for key in metrics if key.startswith("image_") and "@" in key]


def test_labels_are_not_looked_at(tiles, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(tiles, copy)
    for image in (copy / "tile/test/good").glob("*.png"):
        image.rename(copy / "tile/test/spot" / f"moved_{image.name}")
    shutil.rmtree(copy / "tile/ground_truth")
    zero_shot(tiles, tmp_path / "a")
    zero_shot(copy, tmp_path / "b")

    def scores(folder):
        return sorted(round(float(row["score"]), 4) for row in csv.DictReader((folder / "predictions.csv").open()))

    assert scores(tmp_path / "a") == scores(tmp_path / "b")


def test_a_threshold_is_refused(tiles, tmp_path):
    with pytest.raises(ConfigError, match="learning=zero_shot knows of none: set calibration=none"):
        zero_shot(tiles, tmp_path, "calibration=holdout")
