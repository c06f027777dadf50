"""Whole runs with an alignment, a region and a split: all that scoring needs is in the checkpoint."""

import csv
import json
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import make_dataset
from PIL import Image
from test_pipeline import config, run, tiny_backbone
from test_pipeline import tiny as with_pictures

from oddpatch import pipeline
from oddpatch.data.decoding import read_image
from oddpatch.datatools.splitting import split_folds, write_split
from oddpatch.errors import ConfigError, DataError
from oddpatch.inference.detector import AnomalyDetector
from oddpatch.inference.outputs import to_record
from oddpatch.inference.sources import Frame

__all__ = ["tiny_backbone"]  # a fixture


QUICK = ("callbacks.pictures=null", "callbacks.report=null")


def tiny(root, out, *overrides):
    return with_pictures(root, out, *QUICK, *overrides)


def scores(folder):
    with (folder / "predictions.csv").open() as file:
        return {row["path"]: float(row["score"]) for row in csv.DictReader(file)}


def evaluate(folder, out, *overrides):
    job = pipeline.rebuild(
        config("eval", f"run={folder}", "callbacks.progress=null", "trainer.accelerator=cpu", "+data.num_workers=0",
               *QUICK, *overrides, out=out)
    )  # fmt: skip
    job.test()
    return job


@pytest.fixture
def category(tmp_path):
    """Tiles with something to register to: a fixed pattern of rectangles, shifted by some pixels in each image."""
    folder = make_dataset(tmp_path / "data", good=12)
    rng = np.random.default_rng(7)
    pattern = np.zeros((48, 48), np.uint8)
    for _ in range(25):
        y, x = rng.integers(0, 42, 2)
        pattern[y : y + 5, x : x + 5] = rng.integers(40, 255)
    for path in sorted(folder.rglob("train/good/*.png")) + sorted(folder.rglob("test/*/*.png")):
        tile = np.asarray(Image.open(path)).astype(int) // 3 + pattern[..., None] * 2 // 3
        moved = np.roll(tile, rng.integers(-2, 3, 2), (0, 1))
        Image.fromarray(moved.clip(0, 255).astype(np.uint8)).save(path)
    return folder


def test_a_region_is_in_the_checkpoint_and_what_lies_outside_does_not_count(tmp_path, tiny_backbone):
    root = tmp_path / "data"
    folder = make_dataset(root)
    region = np.zeros((48, 48), np.uint8)
    region[:, :24] = 200
    Image.fromarray(region).save(folder / "roi.png")
    Image.fromarray(region).save(folder / "stray.png")
    job = run(tiny(root, tmp_path / "run", f"data.roi={folder}/roi.png", "data.resize=48", "data.crop=48"))
    masks = next(iter(job.data.test_dataloader())).mask[0, 0]
    assert (masks[:, 24:] == 255).all()
    assert set(masks[:, :24].unique().tolist()) <= {0, 1}
    (folder / "roi.png").write_bytes(b"not read again")
    evaluate(tmp_path / "run", tmp_path / "same")
    for tested in ("run", "same"):
        (left_out,) = json.loads((tmp_path / tested / "metrics.json").read_text())["left_out"]
        assert left_out == f"{folder}/stray.png: beside train and test, where no images are read"
    assert scores(tmp_path / "same") == scores(tmp_path / "run")
    assert (
        json.loads((tmp_path / "same/metrics.json").read_text())["pixel_auroc"]
        == job.module.result.metrics["pixel_auroc"]
    )
    # Far from the region anything may happen.
    for path in folder.rglob("test/*/*.png"):
        image = np.asarray(Image.open(path)).copy()
        image[:, 40:] = 255
        Image.fromarray(image).save(path)
    evaluate(tmp_path / "run", tmp_path / "changed")
    np.testing.assert_allclose(
        list(scores(tmp_path / "changed").values()), list(scores(tmp_path / "run").values()), rtol=1e-5
    )
    Image.fromarray(region[:, ::-1].copy()).save(tmp_path / "other.png")
    with pytest.raises(ConfigError, match="align and roi as they were") as error:
        evaluate(tmp_path / "run", tmp_path / "no", f"+data.roi={tmp_path}/other.png")
    assert len(str(error.value)) < 600


def noise():
    """An image that registers to no other."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8))


def test_an_alignment_is_in_the_checkpoint(category, tmp_path, tiny_backbone, caplog):
    reference = category / "train/good/000.png"
    copy = tmp_path / "reference.png"
    copy.write_bytes(reference.read_bytes())
    align = f"data.align={{reference: {copy}, method: translation, min_quality: 0.15}}"
    job = run(tiny(category.parent, tmp_path / "run", align, "data.resize=48", "data.crop=40"))
    assert "from outside a picture" not in caplog.text
    plain = run(tiny(category.parent, tmp_path / "plain", "data.resize=48", "data.crop=40"))
    copy.unlink()
    evaluate(tmp_path / "run", tmp_path / "same")
    assert scores(tmp_path / "same") == scores(tmp_path / "run")
    assert scores(tmp_path / "plain") != scores(tmp_path / "run")
    assert job.module.result.metrics["pixel_auroc"] > plain.module.result.metrics["pixel_auroc"]
    detector = AnomalyDetector.load(tmp_path / "run")
    for path in sorted(category.glob("test/spot/*.png")):
        found = detector(path)
        assert found.score == pytest.approx(scores(tmp_path / "run")[str(path)], rel=1e-5)
        # The map lies on the original: the square's shift, of up to 2 pixels, is the image's.
        mask = np.asarray(Image.open(category / f"ground_truth/spot/{path.stem}_mask.png")) > 0
        around = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))) > 0
        assert around.flat[np.nanargmax(found.anomaly_map)]
        scorer: Any = detector.scorer
        registration = scorer.model.preprocess.register(read_image(path))
        assert found.aligned == registration.told >= 0.15
        assert to_record(Frame(path.name, path), found)["aligned"] == registration.told
    with pytest.raises(DataError, match="registers to the reference image with quality 0"):
        detector(noise())
    assert AnomalyDetector.load(tmp_path / "plain")(path).aligned is None


def test_an_image_that_does_not_register_is_named_or_skipped(category, tmp_path, tiny_backbone):
    noise().save(category / "test/good/anomalous.png")
    align = f"data.align={{reference: {category}/train/good/000.png, method: translation, min_quality: 0.15}}"
    settings = [align, "data.resize=48", "data.crop=40", "calibration=none"]
    with pytest.raises(
        DataError, match=r"anomalous\.png: registers to the reference image with quality 0\.\d\d"
    ) as error:
        run(tiny(category.parent, tmp_path / "a", *settings))
    assert "\n" not in str(error.value)
    job = run(tiny(category.parent, tmp_path / "b", *settings, "data.on_error=skip"))
    assert any("anomalous.png" in line for line in job.data.skipped())


def test_a_fold_is_trained_and_tested_on(tiles, tmp_path, tiny_backbone):
    folder = tiles / "tile"
    assigned = split_folds(folder, 3, 0)
    write_split(tmp_path / "folds.json", assigned, folder, {"folds": 3}, force=False)
    settings = [f"data.split={tmp_path}/folds.json", "data.fold=2", "calibration=none"]
    run(tiny(tiles, tmp_path / "run", *settings))
    wanted = {str(folder / a.path) for a in assigned if a.part == "fold2"}
    assert set(scores(tmp_path / "run")) == wanted
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["num_train_images"] == sum(a.part != "fold2" and a.defect_type == "good" for a in assigned)
    evaluate(tmp_path / "run", tmp_path / "same")
    assert scores(tmp_path / "same") == scores(tmp_path / "run")
    with pytest.raises(ConfigError, match="folds 0, 1, 2"):
        run(tiny(tiles, tmp_path / "no", settings[0]))


def test_a_reference_that_was_chosen_is_in_the_checkpoint(tmp_path, tiny_backbone, category, caplog):
    out = tmp_path / "run"
    job = run(tiny(tmp_path / "data", out, "data.align=auto", "data.resize=48", "data.crop=48"))
    assert "strips which alignment moves in from outside a picture count in its score: set data.crop" in caplog.text
    told = json.loads((out / "metrics.json").read_text())["alignment"]
    assert job.data.preprocess.alignment is not None
    assert told["reference"] == str(job.data.reference.path)
    assert told["quality"] > 0.6
    again = evaluate(out, tmp_path / "again")
    assert again.data.preprocess.settings()["align"] == job.data.preprocess.settings()["align"]
    assert scores(tmp_path / "again") == scores(out)


def test_images_that_were_not_aligned_are_not_when_tested_again(tmp_path, tiny_backbone, caplog):
    make_dataset(tmp_path / "data")
    out = tmp_path / "run"
    run(tiny(tmp_path / "data", out, "data.align=auto"))
    assert "data.align=auto: images are not aligned, because" in caplog.text
    told = json.loads((out / "metrics.json").read_text())["alignment"]
    assert told["reference"] is None
    assert told["reason"]
    evaluate(out, tmp_path / "again")
    assert scores(tmp_path / "again") == scores(out)
