"""Fitting, testing, saving and loading from Python, with the numbers of `train.py` and `eval.py`."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT, make_dataset, use_tiny_backbone
from PIL import Image
from test_pipeline import config, run, tiny
from typer.testing import CliRunner

from oddpatch import AnomalyDetector, factory, pipeline
from oddpatch.cli.main import app
from oddpatch.errors import ConfigError, DataError
from oddpatch.hydra_entry.calling import composed
from oddpatch.inference.update import good_images, update

SETTINGS = {
    "model": "patchcore", "data.resize": 32, "data.batch_size": 5, "data.num_workers": 0, "callbacks.pictures": None,
    "callbacks.progress": None, "backbone.weights": "random", "trainer.accelerator": "cpu", "model.coreset_ratio": 0.1,
}  # fmt: skip


@pytest.fixture
def tiny_backbone(monkeypatch):
    use_tiny_backbone(monkeypatch)


def good(tiles):
    return tiles / "tile/train/good"


def state(folder):
    model, _ = factory.restore(folder)
    return model.state_dict()


def assert_same_state(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name].nan_to_num(-1), second[name].nan_to_num(-1))] == []


def train_py(tiles, out, *overrides):
    given = [f"{key}={'null' if value is None else value}" for key, value in SETTINGS.items()]
    return tiny(tiles, out, *given, "data=custom", "~data.crop", *overrides)


def test_a_folder_of_good_parts_gives_what_train_py_gives(tiles, tmp_path, tiny_backbone):
    detector = AnomalyDetector.fit(good(tiles), **SETTINGS)
    detector.save(tmp_path / "saved")
    run(train_py(tiles, tmp_path / "trained"))
    assert_same_state(state(tmp_path / "saved"), state(tmp_path / "trained"))
    assert detector.image_threshold == AnomalyDetector.load(tmp_path / "trained").image_threshold
    assert not detector.result.rows
    assert detector.result.absent["image_auroc"] == "the dataset has no test images"
    path = tiles / "tile/test/spot/000.png"
    assert AnomalyDetector.load(tmp_path / "saved")(path).score == detector(path).score


def test_a_category_is_tested_on_too(tiles, tmp_path, tiny_backbone):
    detector = AnomalyDetector.fit(tiles / "tile", **SETTINGS)
    trained = run(train_py(tiles, tmp_path / "trained"))
    assert detector.result.metrics == trained.module.result.metrics
    assert detector.result.scores == trained.module.result.scores


@pytest.mark.slow
def test_train_py_itself_gives_the_same_to_the_bit(tiles, tmp_path):
    """With another process, the command line and a real backbone."""
    settings = {"model": "padim", "backbone": "effnet_lite0", "calibration": "holdout", "data.resize": 64, "seed": 3}
    detector = AnomalyDetector.fit(tiles / "tile", **settings)
    detector.save(tmp_path / "saved")
    overrides = [f"{key}={value}" for key, value in settings.items()]
    subprocess.run(
        [sys.executable, ROOT / "train.py", *overrides, "data=custom", f"data.root={tiles}", "data.category=tile",
         f"hydra.run.dir={tmp_path / 'trained'}"], check=True, capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    assert_same_state(state(tmp_path / "saved"), state(tmp_path / "trained"))
    unequal = ("timing", "peak_memory_bytes", "operating")
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("saved", "trained"))
    assert {key: first[key] for key in first if key not in unequal} == {
        key: second[key] for key in second if key not in unequal
    }
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("saved", "trained")]
    assert set(files[1]) - set(files[0]) == {".run.lock", "train.log"}
    assert (tmp_path / "saved/predictions.csv").read_text() == (tmp_path / "trained/predictions.csv").read_text()


@pytest.mark.parametrize("form", ["paths", "arrays", "pictures", "floats"])
def test_lists_of_paths_and_images_in_memory_give_what_the_folder_gives(tiles, tmp_path, tiny_backbone, form):
    paths = sorted(good(tiles).iterdir())
    arrays = [np.asarray(Image.open(path)) for path in paths]
    images = {
        "paths": paths[::-1],
        "arrays": arrays,
        "pictures": [Image.open(path) for path in paths],
        "floats": [array.astype(np.float64) / 255 for array in arrays],
    }[form]
    AnomalyDetector.fit(images, **SETTINGS).save(tmp_path / "saved")
    run(train_py(tiles, tmp_path / "trained"))
    saved, trained = state(tmp_path / "saved"), state(tmp_path / "trained")
    if form == "floats":  # they are added up in another unit, and may round the other way
        assert saved.keys() == trained.keys()
        for name, tensor in saved.items():
            torch.testing.assert_close(tensor, trained[name], rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)
    else:
        assert_same_state(saved, trained)


def test_deep_images_in_memory_keep_their_depth(tmp_path, tiny_backbone):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 4096, (40, 48), np.uint16) for _ in range(12)]
    for number, image in enumerate(images):
        path = tmp_path / f"good/{number:02}.tiff"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, image)
    detectors = [AnomalyDetector.fit(form, **SETTINGS) for form in (images, tmp_path / "good")]
    assert {detector.scorer.settings["full_scale"] for detector in detectors} == {4095}
    assert len({detector.image_threshold for detector in detectors}) == 1


@pytest.mark.slow
def test_all_commands_take_what_save_has_written(tiles, tmp_path, tiny_backbone):
    """Images in memory are in the run's folder, wherever that is."""
    AnomalyDetector.fit([np.asarray(Image.open(path)) for path in sorted(good(tiles).iterdir())], **SETTINGS).save(
        tmp_path / "first"
    )
    shutil.move(tmp_path / "first", tmp_path / "housing")
    call = CliRunner().invoke
    done = call(app, ["predict", str(tmp_path / "housing"), str(tiles / "tile/test/spot/000.png")])
    assert done.exit_code in (0, 1), done.output
    found = AnomalyDetector.load(tmp_path / "housing")(tiles / "tile/test/spot/000.png")
    assert json.loads(done.stdout)["score"] == found.score
    done = call(app, ["explain", str(tmp_path / "housing"), str(tiles / "tile/test/spot/000.png"), "--out",
                      str(tmp_path / "why.png")])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "not in" not in done.stderr
    (tmp_path / "more").mkdir()
    shutil.copy(tiles / "tile/test/good/000.png", tmp_path / "more")
    updated = update(tmp_path / "housing", good_images(tmp_path / "more"), tmp_path / "more")
    assert "set again on 13 good images" in updated.thresholds
    result = AnomalyDetector.load(updated.folder).evaluate(tiles / "tile", **{"callbacks.progress": None})
    assert result.metrics["image_auroc"] > 0.9
    done = call(app, ["report", str(tmp_path), "--format", "csv"])
    assert done.exit_code == 0, done.output
    assert "patchcore" in done.stdout


def test_evaluation_is_that_of_eval_py(tiles, tmp_path, tiny_backbone):
    detector = AnomalyDetector.fit(good(tiles), **SETTINGS)
    detector.save(tmp_path / "saved")
    loaded = AnomalyDetector.load(tmp_path / "saved")
    result = loaded.evaluate(tiles / "tile", **{"callbacks.pictures": None})
    trained = run(train_py(tiles, tmp_path / "trained"))
    assert result.metrics == trained.module.result.metrics
    (folder,) = (tmp_path / "saved/eval").iterdir()
    assert {"metrics.json", "predictions.csv", "report.html"} <= {path.name for path in folder.iterdir()}
    assert detector.evaluate(tiles / "tile", **{"callbacks.pictures": None}).metrics == result.metrics


def test_eval_py_says_that_good_parts_alone_are_nothing_to_test_on(tiles, tmp_path, tiny_backbone):
    AnomalyDetector.fit(good(tiles), **SETTINGS).save(tmp_path / "saved")
    with pytest.raises(DataError, match=r"train/good holds images of good parts alone.*: add \+data.root=FOLDER"):
        pipeline.rebuild(config("eval", f"run={tmp_path / 'saved'}", out=tmp_path / "eval"))


def test_what_a_caller_composed_and_drew_before_stays(tiles, tiny_backbone):
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    torch.manual_seed(1)
    wanted = torch.rand(2)
    torch.manual_seed(1)
    first = torch.rand(1)
    AnomalyDetector.fit(good(tiles), **SETTINGS)
    assert torch.equal(torch.cat([first, torch.rand(1)]), wanted)
    assert not HydraConfig.initialized()
    assert not GlobalHydra.instance().is_initialized()


def test_a_run_that_was_not_saved_leaves_nothing(tiles, tiny_backbone):
    detector = AnomalyDetector.fit(good(tiles), **SETTINGS)
    folder = detector.run
    assert folder is not None
    assert (folder / "metrics.json").is_file()
    del detector
    assert not folder.exists()


VALUES = {
    "text": "a b,c={d}", "reference": "${seed}", "number": "7", "none": None, "yes": True, "small": 1e-07,
    "numpy": np.float64(0.1), "whole": np.int64(3), "list": [1, "x, y", None], "mapping": {"a": [0.5, "é"]},
}  # fmt: skip


def test_values_arrive_as_they_were_given(tmp_path):
    with composed("train", {f"+mine.{key}": value for key, value in VALUES.items()}, tmp_path) as cfg:
        assert {key: cfg.mine[key] for key in cfg.mine} == VALUES


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"modle": "padim"}, "did you mean model"),
        ({"model": "patchcor"}, "did you mean model=patchcore"),
        ({"model.coreset_ratoi": 0.1}, "did you mean model.coreset_ratio"),
        ({"data.root": "x"}, "data.root follows from the images: leave it out"),
        ({"trainer": "ddp"}, "asks for 2 processes"),
        ({"learning": "supervised"}, "good parts alone cannot be learned from with gradients"),
    ],
)
def test_a_setting_that_cannot_work_is_one_line(tiles, tiny_backbone, settings, told):
    with pytest.raises(ConfigError) as error:
        AnomalyDetector.fit(good(tiles), **{**SETTINGS, **settings})
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_images_that_cannot_be_fitted_to_are_one_line(tiles, tmp_path, tiny_backbone):
    path, array = good(tiles) / "000.png", np.zeros((40, 40), np.uint8)
    make_dataset(tmp_path / "data", good=2, test_good=1, defects=1)
    shutil.copy(tmp_path / "data/tile/test/spot/000.png", tmp_path / "a.png")
    shutil.copy(tmp_path / "data/tile/ground_truth/spot/000_mask.png", tmp_path / "a_mask.png")
    for images, told in (
        (tmp_path / "nothing", "nothing: no such file or folder"),
        (tiles, "holds 1 categories (tile): give the folder of one"),
        ([path, array], "1 of 2 images are paths: give paths or images in memory, not both"),
        ([array, np.full((40, 40), 3.0)], "image 1 of those to fit to: "),
        ([], "there are no images"),
        (["a", "b"], "a: no such file or folder; b: no such file or folder"),
        (tmp_path, "looks like the mask of"),
    ):
        with pytest.raises(DataError) as error:
            AnomalyDetector.fit(images, **SETTINGS)
        assert told in str(error.value)


def test_a_run_is_not_saved_over_another_or_without_a_folder(tiles, tmp_path, tiny_backbone):
    detector = AnomalyDetector.fit(good(tiles), **SETTINGS)
    with pytest.raises(ConfigError, match=r"exists and is not overwritten: choose a new folder"):
        detector.save(tmp_path)
    model, _ = factory.restore(detector.run)
    with pytest.raises(ConfigError, match=r"has no run's folder"):
        AnomalyDetector(model).save(tmp_path / "new")
    with pytest.raises(DataError, match=r"is no category"):
        detector.evaluate(good(tiles))
