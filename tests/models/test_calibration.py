"""Thresholds through whole runs: what is held out, what cross-fitting gives, and that eval keeps them."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import TinyBackbone, make_dataset
from test_pipeline import config, run, tiny, tiny_backbone  # noqa: F401

from oddpatch import AnomalyDetector, pipeline
from oddpatch.errors import ConfigError
from oddpatch.hydra_entry import building
from oddpatch.learning.folds import FoldDetectors
from oddpatch.metrics.uncertainty.pixel_statistics import PixelStatistics
from oddpatch.models.base import Detector
from oddpatch.models.calibration import Calibration
from oddpatch.models.padim import PaDiM


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.usefixtures("tiny_backbone")
def test_held_out_images_give_the_threshold_and_are_not_fitted_to(tmp_path):
    make_dataset(tmp_path, good=45)
    job = run(tiny(tmp_path, tmp_path / "out", "calibration=holdout"))
    assert (len(job.data.fitted), len(job.data.held_out)) == (25, 20)
    metrics = metrics_of(tmp_path / "out")
    assert metrics["num_train_images"] == 25
    thresholds = metrics["thresholds"]
    assert thresholds["num_images"] == 20
    assert thresholds["supported_fpr"] == pytest.approx(1 / 21)
    # Scored by hand with the fitted model:
    images = [job.data.train_image(i) for i in job.data.held_out]
    with torch.no_grad():
        scores = job.module.model(torch.stack(images)).score
    assert thresholds["image"] == pytest.approx(float(scores.max()), rel=1e-5)
    with (tmp_path / "out/predictions.csv").open() as file:
        for row in csv.DictReader(file):
            assert int(row["is_anomalous"]) == (float(row["score"]) > thresholds["image"])
            assert 1 / 21 < float(row["p_value"]) < 1


@pytest.mark.usefixtures("tiny_backbone")
def test_the_confident_promise_is_stated_and_kept(tmp_path, caplog):
    make_dataset(tmp_path, good=60)
    chosen = ["calibration.target_fpr=0.05", "calibration.promise=confident"]
    with caplog.at_level("INFO"):
        run(tiny(tmp_path, tmp_path / "out", *chosen))
    found = metrics_of(tmp_path / "out")["thresholds"]
    assert (found["promise"], found["num_needed"], found["num_images"]) == ("confident", 59, 60)
    assert found["promised_fpr"] == found["fpr_bound_95"] <= 0.05
    assert "0.0487 with 95 % confidence (confident promise, leave_one_out, 60 good images)" in caplog.text
    assert "60 support" not in caplog.text
    assert "The confident promise of 5 %" in (tmp_path / "out/report.html").read_text()
    # A fitted model keeps it, at any rate.
    detector = AnomalyDetector.load(tmp_path / "out", target_fpr=0.01)
    assert (detector.scorer.calibration.promise, detector.scorer.calibration.image_at(0.01).num_needed) == (
        "confident",
        299,
    )
    with pytest.raises(ConfigError, match=r"calibration\.promise='sure'"):
        Calibration("holdout", promise="sure")  # type: ignore[arg-type]


@pytest.fixture
def forwards(monkeypatch):
    """How many images the backbone has seen."""
    seen, forward = [], TinyBackbone.forward

    def count(self, images):
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(TinyBackbone, "forward", count)
    return seen


class Watcher(L.Callback):
    """Keeps what callbacks see of the good images."""

    def __init__(self):
        self.seen = {}

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        assert batch.image.shape[-1] == 0, "nothing was decoded"
        for i, index in enumerate(batch.index.tolist()):
            assert trainer.datamodule.train_samples[index].path == Path(batch.path[i])
            assert trainer.datamodule.train_image(index).shape == (3, 32, 32)
            self.seen[index] = (outputs.score[i].item(), outputs.anomaly_map[i])


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("model", ["padim", "patchcore"])
def test_every_good_image_is_fitted_to_and_scored_as_if_it_had_been_left_out(tmp_path, forwards, caplog, model):
    make_dataset(tmp_path, good=9)
    # A good image that is none: it sets the threshold, and stands out.
    (tmp_path / "tile/train/good/004.png").write_bytes((tmp_path / "tile/test/stain/002.png").read_bytes())
    overrides = [] if model == "padim" else ["model=patchcore", "model.selector=none"]
    caplog.set_level("INFO")
    job = pipeline.build(tiny(tmp_path, tmp_path / "out", *overrides))
    watcher = Watcher()
    trainer: Any = job.trainer
    trainer.callbacks.append(watcher)
    job.fit()
    forwards.clear()
    job.calibrate()
    assert not forwards, "features are computed once"
    assert job.module.kept is None
    job.save()
    job.test()
    module = job.module
    assert [image.path for image in module.result.good] == [str(sample.path) for sample in job.data.train_samples]
    assert [watcher.seen[i][0] for i in range(9)] == [image.score for image in module.result.good]
    images = torch.stack([job.data.train_image(i) for i in range(9)])
    features = TinyBackbone()(images)
    for i in (0, 4, 8):
        keep = torch.arange(9) != i
        cfg = tiny(tmp_path, tmp_path / "out", *overrides)
        refitted = building.make(cfg.model, channels=[8, 12, 16], strides=[2, 4, 8])
        refitted.update([f[keep] for f in features], torch.arange(9)[keep])
        refitted.fit()
        wanted = refitted([f[i : i + 1] for f in features], (32, 32))
        assert module.result.good[i].score == pytest.approx(wanted.score.item(), rel=1e-3)
        torch.testing.assert_close(watcher.seen[i][1], wanted.anomaly_map[0], rtol=1e-3, atol=1e-4)
    thresholds = metrics_of(tmp_path / "out")["thresholds"]
    assert thresholds["method"] == "leave_one_out"
    assert thresholds["num_images"] == metrics_of(tmp_path / "out")["num_train_images"] == 9
    assert thresholds["supported_fpr"] == pytest.approx(0.1)
    assert thresholds["image"] == max(image.score for image in module.result.good)
    assert thresholds["set_by"] == ["tile/train/good/004.png"]
    assert module.threshold_set_by == [str(tmp_path / "tile/train/good/004.png")]
    assert "the threshold is the score of " + module.threshold_set_by[0] in caplog.text
    if model == "padim":  # the distance to the nearest patch rises less
        assert f"{module.threshold_set_by[0]} scores" in caplog.text
        assert "it looks unlike the rest, is it good?" in caplog.text


class Foreign(PaDiM):
    """A method whose author has not thought of leaving images out."""

    score_left_out = Detector.score_left_out


@pytest.mark.usefixtures("tiny_backbone")
def test_a_method_that_cannot_leave_an_image_out_is_fitted_to_folds(tmp_path, forwards, caplog):
    make_dataset(tmp_path, good=7)
    found = {}
    for name, overrides in {
        "foreign": [f"model._target_={__name__}.Foreign"],
        "cross": ["calibration=cross"],
    }.items():
        job = pipeline.build(tiny(tmp_path, tmp_path / name, *overrides))
        job.fit()
        forwards.clear()
        job.calibrate()
        assert not forwards
        found[name] = job.module.model.calibration.image_scores
    assert torch.equal(found["foreign"], found["cross"])
    assert len(found["cross"]) == 7
    assert "Foreign cannot leave one image out: each of 5 folds is scored by a fit without it" in caplog.text


@pytest.mark.usefixtures("tiny_backbone")
def test_skipped_files_are_neither_fitted_nor_scored_and_may_leave_too_few(tmp_path, caplog):
    make_dataset(tmp_path, good=7)
    (tmp_path / "tile/train/good/002.png").write_bytes(b"broken")
    job = run(tiny(tmp_path, tmp_path / "six", "data.on_error=skip"))
    assert job.module.model.calibration.image_index.sort().values.tolist() == [0, 1, 3, 4, 5, 6]
    for name in ("003", "004"):
        (tmp_path / f"tile/train/good/{name}.png").write_bytes(b"broken")
    run(tiny(tmp_path, tmp_path / "four", "data.on_error=skip"))
    assert metrics_of(tmp_path / "four")["thresholds"] is None
    assert "fewer than 5 good images could be used: add good images and train again" in caplog.text


@pytest.mark.usefixtures("tiny_backbone")
def test_a_gallery_that_is_too_small_without_an_image_is_refused_at_once(tmp_path, forwards):
    make_dataset(tmp_path, good=9)
    for k, calibration, left in ((9, "leave_one_out", 8), (8, "cross", 7)):
        job = pipeline.build(
            tiny(tmp_path, tmp_path / "out", "model=spade", f"model.k={k}", f"calibration={calibration}")
        )
        forwards.clear()
        with pytest.raises(ConfigError, match=f"k={k} images to retrieve but the gallery has {left}"):
            job.fit()
        assert forwards == [1], "only the shapes of the features were asked for"


@pytest.mark.usefixtures("tiny_backbone")
def test_eval_keeps_the_thresholds(tmp_path):
    make_dataset(tmp_path, good=45)
    run(tiny(tmp_path, tmp_path / "run"))
    again = pipeline.rebuild(
        config("eval", f"run={tmp_path}/run", "callbacks.progress=null", "trainer.accelerator=cpu",
               "+data.num_workers=0", "callbacks.pictures=null", out=tmp_path / "again")
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
    images = torch.stack([cross.data.train_image(i) for i in range(13)])
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
    assert (
        "39 good images are too few for calibration=holdout, which takes at least 40: train again with" in caplog.text
    )
    for method in ("leave_one_out", "cross"):
        assert Calibration(method).folds(4) == [-1] * 4
        assert sorted(Calibration(method, folds=7).folds(5)) == [0, 1, 2, 3, 4]
        assert set(Calibration(method).folds(23)) == {0, 1, 2, 3, 4}
    assert "4 good images are too few, it takes at least 5: add good images and train again" in caplog.text
    Calibration("leave_one_out").folds(1)
    assert "1 good image is too few" in caplog.text
    assert sum(fold == 0 for fold in Calibration("holdout").folds(40)) == 20
    assert sum(fold == 0 for fold in Calibration("holdout").folds(209)) == 42
    assert Calibration("none").folds(500) == [-1] * 500


@pytest.mark.usefixtures("tiny_backbone")
def test_validation_images_set_a_threshold_and_are_not_tested_on(tiles, tmp_path):
    job = run(tiny(tiles, tmp_path, "data.validation=0.5", pictures=True))
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
    assert ties[0]["is_anomalous"] == "0"
    assert all((row["is_anomalous"] == "1") == (float(row["score"]) > threshold) for row in rows)
    alarms = sum(row["is_anomalous"] == "1" for row in rows if row["label"] == "0")
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
    job = run(tiny(tiles, tmp_path, f"data.validation={tiles}/tile/test"))
    assert job.module.model.calibration.f1_threshold == job.module.result.metrics["image_f1_max_threshold"]
    with pytest.raises(ConfigError, match=r"validation=1.5 must be a folder, or a share"):
        pipeline.build(tiny(tiles, tmp_path, "data.validation=1.5"))
