"""Thresholds through whole runs: what is held out, what cross-fitting gives, and that eval keeps them."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import TinyBackbone, make_dataset
from test_pipeline import config, run, tiny, tiny_backbone  # noqa: F401

from oddpatch import pipeline
from oddpatch.calibration import Calibration, FoldDetectors
from oddpatch.errors import ConfigError
from oddpatch.metrics.pixel_statistics import PixelStatistics
from oddpatch.models.padim import PaDiM


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.usefixtures("tiny_backbone")
def test_held_out_images_give_the_threshold_and_are_not_fitted_to(tmp_path):
    make_dataset(tmp_path, good=45)
    job = run(tiny(tmp_path, tmp_path / "out"))
    assert (len(job.data.fitted), len(job.data.held_out)) == (25, 20)
    metrics = metrics_of(tmp_path / "out")
    assert metrics["num_train_images"] == 25
    thresholds = metrics["thresholds"]
    assert thresholds["num_images"] == 20
    assert thresholds["supported_fpr"] == pytest.approx(1 / 21)
    # Scored by hand with the fitted model:
    batch = [job.data._train[i] for i in job.data.held_out]
    with torch.no_grad():
        scores = job.module.model(torch.stack([item.image for item in batch])).score
    assert thresholds["image"] == pytest.approx(float(scores.max()), rel=1e-5)
    with (tmp_path / "out/predictions.csv").open() as file:
        for row in csv.DictReader(file):
            assert int(row["odd"]) == (float(row["score"]) > thresholds["image"])
            assert 1 / 21 < float(row["p_value"]) < 1


@pytest.mark.usefixtures("tiny_backbone")
def test_eval_keeps_the_thresholds(tmp_path):
    make_dataset(tmp_path, good=45)
    run(tiny(tmp_path, tmp_path / "run"))
    again = pipeline.rebuild(
        config("eval", f"run={tmp_path}/run", "callbacks.progress=null", "trainer.accelerator=cpu",
               "+data.num_workers=0", out=tmp_path / "again")
    )  # fmt: skip
    again.test()
    assert metrics_of(tmp_path / "again")["thresholds"] == metrics_of(tmp_path / "run")["thresholds"]


@pytest.mark.usefixtures("tiny_backbone")
def test_cross_fits_to_all_and_scores_each_image_by_a_detector_that_has_not_seen_it(tmp_path):
    make_dataset(tmp_path, good=13)
    plain = run(tiny(tmp_path, tmp_path / "plain", "calibration=none"))
    cross = run(tiny(tmp_path, tmp_path / "cross", "calibration=cross", "calibration.folds=3"))
    assert metrics_of(tmp_path / "plain")["thresholds"] is None
    one, other = metrics_of(tmp_path / "plain"), metrics_of(tmp_path / "cross")
    assert one["image_auroc"] == other["image_auroc"]
    assert one["pixel_auroc"] == pytest.approx(other["pixel_auroc"], abs=1e-9)
    # Refit by hand without the first fold:
    folds = np.array(cross.module.folds)
    images = torch.stack([cross.data._train[i].image for i in range(13)])
    features = TinyBackbone()(images)
    detector = type(plain.module.model.detector)(
        channels=[8, 12, 16], strides=[2, 4, 8], num_features=10, epsilon=0.01, seed=0
    )
    keep = torch.tensor(folds != 0)
    detector.update([f[keep] for f in features], torch.arange(13)[keep])
    detector.fit()
    wanted = detector([f[~keep] for f in features], (32, 32)).score
    found = cross.module.model.calibration.image_scores
    assert len(found) == 13
    assert all((found - value).abs().min() < 1e-3 * value for value in wanted)


def test_fold_detectors_put_predictions_back_in_order():
    torch.manual_seed(0)
    features = [torch.randn(9, 8, 4, 4)]
    folds = [0, 1, 2] * 3
    whole = FoldDetectors(PaDiM([8], [4], num_features=4, smoothing=0), folds)
    whole.update(features, torch.arange(9))
    whole.fit(lambda *_: None)
    together = whole(features, torch.arange(9), (8, 8))
    for i in range(9):
        alone = whole([features[0][i : i + 1]], torch.tensor([i]), (8, 8))
        torch.testing.assert_close(alone.score[0], together.score[i])
        torch.testing.assert_close(alone.anomaly_map[0], together.anomaly_map[i])


def test_too_few_good_images_are_all_fitted_and_the_log_says_so(caplog):
    assert Calibration("holdout").folds(39) == [-1] * 39
    assert "39 good images are too few for calibration=holdout" in caplog.text
    assert sum(fold == 0 for fold in Calibration("holdout").folds(40)) == 20
    assert sum(fold == 0 for fold in Calibration("holdout").folds(209)) == 42
    assert Calibration("none").folds(500) == [-1] * 500


@pytest.mark.usefixtures("tiny_backbone")
def test_validation_images_set_a_threshold_and_are_not_tested_on(tiles, tmp_path):
    job = run(tiny(tiles, tmp_path, "+data.validation=0.5"))
    assert len(job.data.validation_samples) == 6
    assert len(job.data.test_samples) == 7
    assert not {s.path for s in job.data.validation_samples} & {s.path for s in job.data.test_samples}
    metrics = metrics_of(tmp_path)
    threshold = float(job.module.model.calibration.f1_threshold)
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7
    hits = sum(float(r["score"]) >= threshold and r["label"] == "1" for r in rows)
    assert metrics["image_recall@validation"] == hits / sum(r["label"] == "1" for r in rows)


@pytest.mark.usefixtures("tiny_backbone")
def test_the_good_image_that_set_the_threshold_is_no_alarm(tmp_path):
    """The guarantee counts a new image that ties with it as good; so do the detector's and the report's figures."""
    folder = make_dataset(tmp_path, good=16)
    shutil.rmtree(folder / "test/good")
    shutil.copytree(folder / "train/good", folder / "test/good")
    out = tmp_path / "out"  # one at a time: the same image then has the same score to the last bit
    run(tiny(tmp_path, out, "calibration=holdout", "calibration.minimum=8", "data.batch_size=1"))
    metrics = metrics_of(out)
    threshold = metrics["thresholds"]["image"]
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    ties = [row for row in rows if float(row["score"]) == threshold]
    assert len(ties) == 1
    assert ties[0]["odd"] == "0"
    assert all((row["odd"] == "1") == (float(row["score"]) > threshold) for row in rows)
    alarms = sum(row["odd"] == "1" for row in rows if row["label"] == "0")
    assert metrics["image_fpr@conformal"] == alarms / 16
    assert metrics["operating"]["at_threshold"]["false_rejects"]["number"] == alarms


@pytest.mark.usefixtures("tiny_backbone")
def test_f1_max_thresholds_set_on_the_test_images_give_f1_max(tiles, tmp_path):
    run(tiny(tiles, tmp_path, f"+data.validation={tiles}/tile/test", "calibration=none", "data.batch_size=1"))
    metrics = metrics_of(tmp_path)
    assert metrics["image_f1@validation"] == metrics["image_f1_max"]
    # The pixel at the threshold is among those that F1-max counts.
    overlaps = metrics["operating"]["region_overlap"]
    assert overlaps["threshold"] < metrics["pixel_f1_max_threshold"]
    statistics = PixelStatistics.load(tmp_path / "pixel_statistics.npz")
    counted = statistics.defect_scores >= np.float32(metrics["pixel_f1_max_threshold"])
    regions = np.split(counted, np.cumsum(statistics.region_size)[:-1])
    assert np.float32(metrics["pixel_f1_max_threshold"]) in statistics.defect_scores
    assert overlaps["mean"] == pytest.approx(np.mean([region.mean() for region in regions]), abs=1e-12)


@pytest.mark.usefixtures("tiny_backbone")
def test_validation_from_a_folder(tiles, tmp_path):
    job = run(tiny(tiles, tmp_path, f"+data.validation={tiles}/tile/test"))
    assert job.module.model.calibration.f1_threshold == job.module.results["image_f1_max_threshold"]
    with pytest.raises(ConfigError, match=r"validation=1.5 must be a folder, or a share"):
        pipeline.build(tiny(tiles, tmp_path, "+data.validation=1.5"))
