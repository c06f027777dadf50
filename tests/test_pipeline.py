"""Whole runs through Hydra and Lightning on tiny data: what they write, that they repeat, and how they fail."""

import contextlib
import copy
import csv
import functools
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT, make_dataset, use_tiny_backbone
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from narrowing import present
from PIL import Image
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from oddpatch import factory, pipeline
from oddpatch.cli.data import app
from oddpatch.data.dataset import DatasetWrapper
from oddpatch.errors import CheckpointError, ConfigError, DataError, ResourceError, WeightsError
from oddpatch.models.spade import SPADE


@functools.cache
def composed(name, overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, list(overrides))


def config(name="train", *overrides, out):
    cfg = copy.deepcopy(composed(name, overrides))
    cfg.paths.output_dir = str(out)
    return cfg


def tiny(tiles, out, *overrides, pictures=False):
    """Drawing and resampling take most of the time of a tiny run, and are for those who look at what comes of them."""
    padim = [] if any(override.startswith("model=") for override in overrides) else ["model.num_features=10"]
    drawn = [] if pictures else ["callbacks.pictures=null"]
    cfg = config(
        "train", "data=mvtec", "data.category=tile", "data.resize=32", "data.crop=32",
        "data.batch_size=5", "data.num_workers=0", *padim, "callbacks.progress=null", *drawn,
        "backbone.weights=random", "trainer.accelerator=cpu", "callbacks.results.confidence.draws=20",
        *overrides, out=out,
    )  # fmt: skip
    if not any(override.startswith("data.root=") for override in overrides):
        cfg.data.root = str(tiles)
    return cfg


@pytest.fixture
def tiny_backbone(monkeypatch):
    """Every backbone that a config or a checkpoint asks for becomes the tiny one."""
    use_tiny_backbone(monkeypatch)


def run(cfg):
    job = pipeline.build(cfg)
    job.fit()
    job.calibrate()
    job.save()
    job.test()
    job.summary()
    return job


def inverted(mask):
    return 255 - mask


def on_purple(mask):
    return np.where(mask[..., None] > 0, [255, 255, 0], [60, 0, 80]).astype(np.uint8)


@pytest.mark.parametrize(("painted", "colour"), [(inverted, "0,0,0"), (on_purple, "255,255,0")])
def test_masks_that_mark_the_background_are_warned_of(tmp_path, tiny_backbone, caplog, painted, colour):
    make_dataset(tmp_path / "data")
    run(tiny(tmp_path / "data", tmp_path / "right"))
    assert "of its border, counts as defect" not in caplog.text
    folder = tmp_path / "data/tile/ground_truth"
    for path in folder.rglob("*.png"):
        Image.fromarray(painted(np.asarray(Image.open(path)))).save(path)
    run(tiny(tmp_path / "data", tmp_path / "wrong"))
    (warning,) = [r.message for r in caplog.records if "of its border, counts as defect" in r.message]
    assert warning.startswith("8 of 8 masks: ")
    remedy = warning.split("`")[1].removeprefix("oddpatch data ").replace("R,G,B", colour).split()
    new = str(tmp_path / "new")
    remedy = [{"ground_truth": str(folder), "NEW": new}.get(word, word) for word in remedy]
    assert CliRunner().invoke(app, remedy).exit_code == 0
    shutil.rmtree(folder)
    shutil.move(new, folder)
    run(tiny(tmp_path / "data", tmp_path / "mended"))
    numbers = {
        name: json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("right", "wrong", "mended")
    }
    assert numbers["mended"]["au_pro"] == numbers["right"]["au_pro"] != numbers["wrong"]["au_pro"]


def predictions(folder):
    with (folder / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_its_files_and_right_numbers(tiles, tmp_path, tiny_backbone, capsys):
    run(tiny(tiles, tmp_path, pictures=True))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    wanted = (
        "image_auroc image_ap image_f1_max pixel_auroc pixel_ap pixel_f1_max au_pro timing peak_memory_bytes weights"
    )
    assert set(wanted.split()) <= metrics.keys()
    assert set(metrics["image_auroc_by_defect_type"]) == {"spot", "stain"}
    rows = predictions(tmp_path)
    assert len(rows) == 13
    labels, scores = [int(r["label"]) for r in rows], [float(r["score"]) for r in rows]
    assert metrics["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert metrics["pixel_auroc"] > 0.9
    assert (tmp_path / "checkpoints/fitted.ckpt").is_file()
    assert list((tmp_path / "figures").glob("*.png"))
    told = capsys.readouterr().out
    assert "image AUROC" in told
    assert str(tmp_path) in told.replace("\n", "")


def test_eval_in_a_new_build_gives_the_same_scores_to_the_bit(tiles, tmp_path, tiny_backbone):
    run(tiny(tiles, tmp_path / "run"))
    again = pipeline.rebuild(
        config("eval", f"run={tmp_path}/run", "callbacks.progress=null", "trainer.accelerator=cpu",
               "+data.num_workers=0", "callbacks.pictures=null", out=tmp_path / "again")
    )  # fmt: skip
    again.test()
    assert predictions(tmp_path / "again") == predictions(tmp_path / "run")


def test_eval_says_how_many_images_the_run_was_fitted_to(tmp_path, tiny_backbone):
    """Whatever lies in train/good by then, and without those held out and those that could not be read."""
    folder = make_dataset(tmp_path, good=45)
    (folder / "train/good/007.png").write_bytes(b"no image")
    job = pipeline.build(tiny(tmp_path, tmp_path / "run", "calibration=holdout", "data.on_error=skip"))
    job.fit()
    job.save()
    job.test()
    expected = len([i for i in job.data.fitted if i != 7])
    assert 20 < expected < 45
    (folder / "train/good/044.png").unlink()
    again = pipeline.rebuild(
        config("eval", f"run={tmp_path}/run", "callbacks.progress=null", "trainer.accelerator=cpu",
               "+data.num_workers=0", "callbacks.pictures=null", out=tmp_path / "again")
    )  # fmt: skip
    again.test()
    for out in ("run", "again"):
        assert json.loads((tmp_path / out / "metrics.json").read_text())["num_train_images"] == expected
        assert f"{expected} good images fitted to" in (tmp_path / out / "report.html").read_text()


@pytest.mark.parametrize(
    "changed",
    ["data.batch_size=1", pytest.param("data.batch_size=13", marks=pytest.mark.slow), "data.num_workers=2"],
)
def test_loading_does_not_change_the_results(tiles, tmp_path, tiny_backbone, changed):
    run(tiny(tiles, tmp_path / "one"))
    run(tiny(tiles, tmp_path / "other", changed))
    one, other = predictions(tmp_path / "one"), predictions(tmp_path / "other")
    assert [r["path"] for r in one] == [r["path"] for r in other]
    np.testing.assert_allclose([float(r["score"]) for r in one], [float(r["score"]) for r in other], rtol=1e-5)


def test_without_masks_pixel_metrics_are_absent_with_a_reason(tmp_path, tiny_backbone):
    make_dataset(tmp_path, masks=False)
    job = run(tiny(tmp_path, tmp_path / "out"))
    assert "image_auroc" in job.module.result.metrics
    assert "pixel_auroc" not in job.module.result.metrics
    assert job.module.result.absent["pixel_auroc"] == "8 defective images without a mask"


def test_maps_are_made_only_if_somebody_needs_them(tmp_path, tiny_backbone, monkeypatch):
    """SPADE's are what takes long: not for labelled validation images, nor where there are no masks and no pictures."""
    make_dataset(tmp_path, masks=False)
    spade = ("model=spade", "model.k=3", "calibration=none", "+data.validation=0.5")
    made: list[torch.Tensor] = []
    original = SPADE.forward

    def score_and_note(self, *given):
        found = original(self, *given)
        made.extend(present(found.anomaly_map))
        return found

    monkeypatch.setattr(SPADE, "forward", score_and_note)
    run(tiny(tmp_path, tmp_path / "pictured", *spade, pictures=True))
    assert len(made) == len(predictions(tmp_path / "pictured"))
    made.clear()
    job = run(tiny(tmp_path, tmp_path / "bare", *spade))
    assert not made
    assert predictions(tmp_path / "bare") == predictions(tmp_path / "pictured")
    assert job.module.result.absent["au_pro"] == "4 defective images without a mask"
    make_dataset(tmp_path / "masked")
    run(tiny(tmp_path / "masked", tmp_path / "measured", *spade))
    assert len(made) == len(predictions(tmp_path / "measured"))


def test_with_good_images_only_every_metric_is_absent_with_a_reason(tmp_path, tiny_backbone):
    make_dataset(tmp_path, defects=0)
    job = run(tiny(tmp_path, tmp_path / "out"))
    assert not [k for k in job.module.result.metrics if k.endswith(("auroc", "pro"))]
    assert "good and anomalous" in job.module.result.absent["image_auroc"]
    assert len(predictions(tmp_path / "out")) == 5


def test_without_a_test_folder_the_fit_is_still_saved(tmp_path, tiny_backbone):
    shutil.rmtree(make_dataset(tmp_path) / "test")
    shutil.rmtree(tmp_path / "tile/ground_truth")
    job = run(tiny(tmp_path, tmp_path / "out"))
    assert (tmp_path / "out/checkpoints/fitted.ckpt").is_file()
    assert job.module.result.absent["image_auroc"] == "the dataset has no test images"
    assert json.loads((tmp_path / "out/metrics.json").read_text())["num_test_images"] == 0


def test_files_that_are_not_used_are_named_in_the_results(tmp_path, tiny_backbone):
    folder = make_dataset(tmp_path)
    (folder / "train/good/000.png").rename(folder / "train/good/000")
    (folder / "test/spot/x.xyz").touch()
    run(tiny(tmp_path, tmp_path / "out"))
    assert json.loads((tmp_path / "out/metrics.json").read_text())["left_out"] == [
        f"{folder}/train/good/000: no suffix", f"{folder}/test/spot/x.xyz: unknown suffix",
    ]  # fmt: skip
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("2 files left out") == 2  # in the head, and above their names
    assert f"{folder}/test/spot/x.xyz: unknown suffix" in page


def test_a_broken_test_file_is_named_and_can_be_skipped(tmp_path, tiny_backbone):
    folder = make_dataset(tmp_path)
    broken = folder / "test/good/002.png"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(DataError, match=r"test/good/002.png"):
        run(tiny(tmp_path, tmp_path / "out"))
    run(tiny(tmp_path, tmp_path / "skipped", "data.on_error=skip", pictures=True))
    metrics = json.loads((tmp_path / "skipped/metrics.json").read_text())
    assert metrics["num_test_images"] == 12
    assert len(metrics["skipped"]) == 1
    assert "002.png" in metrics["skipped"][0]


@pytest.mark.slow
def test_constant_images_give_finite_scores(tmp_path, tiny_backbone):
    folder = make_dataset(tmp_path)
    for path in folder.glob("train/good/*.png"):
        Image.new("RGB", (48, 48), (90, 90, 90)).save(path)
    job = run(tiny(tmp_path, tmp_path / "out", pictures=True))
    assert all(np.isfinite(image.score) for image in job.module.result.rows)


def test_too_many_features_fail_before_the_backbone_runs(tiles, tmp_path, tiny_backbone):
    with pytest.raises(ConfigError, match=r"^num_features=600 but this backbone gives 36"):
        pipeline.build(tiny(tiles, tmp_path, "model.num_features=600"))


@pytest.mark.parametrize("override", ["model=padmi", "model.num_featurs=3", "backbone=resnet19", "data.categry=x"])
def test_a_misspelt_key_fails_at_composition(tiles, tmp_path, override):
    with pytest.raises(Exception, match=r"padmi|num_featurs|resnet19|categry"):
        tiny(tiles, tmp_path, override)


def test_more_memory_than_there_is_fails_at_once(tiles, tmp_path, tiny_backbone, monkeypatch):
    monkeypatch.setattr("oddpatch.resources.available_memory", lambda device: 1000)
    job = pipeline.build(tiny(tiles, tmp_path))
    with pytest.raises(ResourceError, match=r"PaDiM needs .* only 1000 B is available: lower model.num_features"):
        job.fit()


def test_a_folder_that_cannot_be_written_fails_first(tiles, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/out cannot be written .*: set paths.output_dir"):
        pipeline.build(tiny(tiles, tmp_path / "file/out"))


def test_a_full_disk_leaves_no_half_checkpoint(tiles, tmp_path, tiny_backbone, monkeypatch):
    job = pipeline.build(tiny(tiles, tmp_path))
    job.fit()

    def full(content, file):
        file.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ResourceError, match=r"fitted.ckpt cannot be written .*No space left"):
        job.save()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def spoil(path, how):
    content = torch.load(path, weights_only=True)
    data = path.read_bytes()
    path.unlink()  # what is mapped into memory must not be written over
    if how == "truncated":
        path.write_bytes(data[:5000])
    elif how == "foreign":
        torch.save({"state_dict": {}}, path)
    elif how == "code":
        torch.save(torch.nn.Linear(1, 1), path)
    elif how != "missing":
        if how == "newer":
            content["oddpatch"]["format"] = 99
        if how == "older":
            content["oddpatch"]["format"] = 1
        if how == "target":
            content["oddpatch"]["config"]["model"]["_target_"] = "os.system"
        torch.save(content, path)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing", "does not exist"),
        ("truncated", "truncated or not a checkpoint"),
        ("foreign", "not written by oddpatch"),
        ("code", "truncated or not a checkpoint"),
        ("newer", "format 99.*update oddpatch"),
        ("older", "format 1.*train again"),
        ("target", "asks for 'os.system'"),
    ],
)
def test_a_checkpoint_that_cannot_be_loaded_says_why(tiles, tmp_path, tiny_backbone, how, told):
    job = pipeline.build(tiny(tiles, tmp_path))
    job.fit()
    spoil(job.save(), how)
    with pytest.raises(CheckpointError, match=told) as error:
        factory.restore(tmp_path)
    assert "\n" not in str(error.value)


class Mislabelled(DatasetWrapper):
    def __getitems__(self, indices):
        return [replace(present(item), label=1) for item in self.dataset.__getitems__(indices)]


def test_a_defect_among_the_training_images_is_refused(tiles, tmp_path, tiny_backbone):
    job = pipeline.build(tiny(tiles, tmp_path))
    job.data.wrap["train"] = Mislabelled
    with pytest.raises(DataError, match="not good: move it to test/"):
        job.fit()


def test_frozen_backbone_stays_in_eval_and_has_no_gradient(tiles, tmp_path, tiny_backbone):
    job = pipeline.build(tiny(tiles, tmp_path))
    job.module.train()
    assert not job.module.model.backbone.training
    assert not any(p.requires_grad for p in job.module.parameters())


@pytest.mark.slow  # for the imports
def test_train_py_ends_with_one_line_when_the_data_is_missing(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "data=mvtec", f"data.root={tmp_path}/nowhere", f"hydra.run.dir={tmp_path}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert "nowhere" in (done.stdout + done.stderr).replace("\n", "")


def test_missing_weights_name_the_file_and_two_ways_out(tiles, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cfg = tiny(tiles, tmp_path, "backbone=resnet18", "backbone.weights=pretrained")
    with pytest.raises(WeightsError, match=r"resnet18-f37072fd.pth .*is in none of .*torch.*backbone=effnet_lite0"):
        pipeline.build(cfg)


@pytest.mark.real
@pytest.mark.slow
def test_padim_on_the_real_bottle(real_bottle, tmp_path):
    cfg = config(
        "train", "data=mvtec", f"data.root={real_bottle}", "data.category=bottle", "callbacks.progress=null",
        "callbacks.pictures=null", "trainer.accelerator=cpu", out=tmp_path,
    )  # fmt: skip
    metrics = run(cfg).module.result.metrics
    assert metrics["image_auroc"] >= 0.995
    assert metrics["pixel_auroc"] >= 0.976
    assert metrics["au_pro"] >= 0.90


def latin(path):
    """The path with a byte in its name that is not UTF-8, as a zip from another system leaves it."""
    named = path.with_name(os.fsdecode(b"caf\xe9" + os.fsencode(path.name)))
    path.rename(named)
    return named


@pytest.mark.slow
def test_names_that_are_not_utf8_are_written_escaped(tmp_path, tiny_backbone):
    folder = make_dataset(tmp_path / "data")
    latin(folder / "train/good/000.png")
    latin(folder / "test/good/000.png")
    latin(folder / "test/spot/000.png")
    latin(folder / "ground_truth/spot/000_mask.png")
    for split in ("test", "ground_truth"):
        latin(folder / split / "stain")
    category = latin(folder)
    out = tmp_path / "out"
    run(tiny(tmp_path / "data", out, f"data.category='{category.name}'", "model=patchcore", pictures=True))
    rows = predictions(out)
    assert len(rows) == 13
    assert sum("caf\\udce9000.png" in row["path"] for row in rows) == 2
    assert {row["defect_type"] for row in rows} == {"good", "spot", "caf\\udce9stain"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["run"]["category"] == category.name
    assert metrics["image_auroc_by_defect_type"].keys() == {"spot", "caf\\udce9stain"}
    assert "caf\\udce9" in (out / "report.html").read_text(encoding="utf-8")
    assert list((out / "figures").glob("*dce9*.png"))
    with contextlib.redirect_stdout(io.StringIO()):
        settings = ("trainer.accelerator=cpu", "+data.num_workers=0", "callbacks.pictures=null")
        again = pipeline.rebuild(config("eval", f"run={out}", *settings, out=tmp_path / "again"))
        again.test()
    assert predictions(tmp_path / "again") == rows


def test_pictures_that_fail_lose_no_results(tiles, tmp_path, tiny_backbone, monkeypatch):
    monkeypatch.setattr("oddpatch.figures.run.draw_overview", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tiny(tiles, tmp_path, pictures=True))
    assert json.loads((tmp_path / "metrics.json").read_text())["pixel_auroc"] > 0.9
    assert len(predictions(tmp_path)) == 13
