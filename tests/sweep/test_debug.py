"""The settings to try a run with: a few images, a profile, a limit on the test."""

import json
from pathlib import Path

import pytest
import test_pipeline
from conftest import CONFIGS
from sklearn.metrics import roc_auc_score
from test_pipeline import config, predictions, run, tiny

from oddpatch.data.few import few
from oddpatch.data.layout import Sample
from oddpatch.errors import ConfigError
from oddpatch.hydra_entry import building

BACKBONES = sorted(path.stem for path in (CONFIGS / "backbone").glob("*.yaml"))
QUICK = ("dinov2_s", "dinov3_s", "effnet_lite0", "resnet18")
tiny_backbone = test_pipeline.tiny_backbone


def test_a_few_of_each_type_are_spread_and_in_order():
    samples = [Sample(Path(f"{i:02}"), i % 2, "spot" if i % 2 else "good", None) for i in range(20)]
    assert [str(sample.path) for sample in few(samples, 2)] == ["00", "01", "10", "11"]
    assert few(samples, 50) == samples


@pytest.mark.slow
def test_smoke_goes_through_everything_with_a_few_tiny_images(tiles, tmp_path, tiny_backbone):
    run(tiny(tiles, tmp_path, "debug=smoke", "data.train_images=10", "data.test_images=4", pictures=True))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["num_train_images"], metrics["num_test_images"]) == (10, 12)
    assert {"image_auroc", "pixel_auroc", "au_pro"} <= metrics.keys()


@pytest.mark.parametrize("choice", ["leave_one_out", "holdout", "cross", "none"])
def test_smoke_sets_the_threshold_as_any_run_does(tiles, tmp_path, choice):
    chosen = config("train", f"calibration={choice}", out=tmp_path).calibration
    smoke = config("train", "debug=smoke", f"calibration={choice}", out=tmp_path)
    assert smoke.calibration == chosen
    folds = building.make(chosen).folds(smoke.data.train_images)
    assert any(fold >= 0 for fold in folds) == (choice != "none")  # its images are enough for each


def test_a_few_images_are_at_least_one(tiles, tmp_path, tiny_backbone):
    with pytest.raises(ConfigError, match="test_images=0 must be at least 1"):
        run(tiny(tiles, tmp_path, "debug=smoke", "data.test_images=0"))


@pytest.mark.slow
def test_a_profile_tells_where_the_time_goes(tiles, tmp_path, tiny_backbone, capsys):
    run(tiny(tiles, tmp_path, "debug=profile", pictures=True))
    told = capsys.readouterr().out
    fit, test = told.split("test, ")
    assert fit.lstrip().startswith("fit, ")
    assert "run_training_epoch" in fit
    assert "run_training_epoch" not in test  # each stage has its own time
    assert "Pictures.teardown" in test
    table = [line for line in told.splitlines() if " %" in line]
    assert max(map(len, table)) <= 80
    files = sorted(path.name for path in tmp_path.glob("*profile*.txt"))
    assert files == [f"{stage}-profile.txt" for stage in ("fit", "test", "validate")]


def test_metrics_are_of_the_images_that_a_limited_test_has_seen(tiles, tmp_path, tiny_backbone):
    run(tiny(tiles, tmp_path, "trainer.limit_test_batches=2"))
    metrics, rows = json.loads((tmp_path / "metrics.json").read_text()), predictions(tmp_path)
    assert metrics["num_test_images"] == len(rows) == 10
    assert [row["path"][-12:] for row in rows[4:7]] == ["good/004.png", "spot/000.png", "spot/001.png"]
    truth, scores = [int(row["label"]) for row in rows], [float(row["score"]) for row in rows]
    assert metrics["image_auroc"] == pytest.approx(roc_auc_score(truth, scores))


@pytest.mark.parametrize("backbone", [pytest.param(b, marks=() if b in QUICK else pytest.mark.slow) for b in BACKBONES])
def test_smoke_works_with_every_backbone(backbone, tiles, tmp_path):
    cfg = config(
        "train", "data=mvtec", f"data.root={tiles}", "data.category=tile", f"backbone={backbone}", "debug=smoke",
        "data.train_images=4", "data.test_images=1", "backbone.weights=random", "trainer.accelerator=cpu", out=tmp_path,
    )  # fmt: skip
    cfg.callbacks = {"results": cfg.callbacks.results}
    job = run(cfg)
    assert "image_auroc" in json.loads((tmp_path / "metrics.json").read_text())
    assert job.data.preprocess.image_size == ((70, 70) if backbone.startswith("dinov2") else (64, 64))
