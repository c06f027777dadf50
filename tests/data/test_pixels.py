"""`data.transform`: the same everywhere, refused where it would move pixels, warned of where it is random."""

import csv
import json
import logging

import cv2
import numpy as np
import pytest
import torch
from conftest import make_dataset, use_tiny_backbone
from test_pipeline import config, run, tiny

from oddpatch import AnomalyDetector, pipeline
from oddpatch.checkpoint import read_checkpoint, write_checkpoint
from oddpatch.data import pixels
from oddpatch.data.pixels import PixelTransform
from oddpatch.errors import CheckpointError, ConfigError, DataError
from oddpatch.export.exporting import export
from oddpatch.factory import CHECKPOINT

pytest.importorskip("albumentations")
CLAHE = {"_target_": "albumentations.CLAHE", "clip_limit": [2, 2], "tile_grid_size": [4, 4], "p": 1}


def noise(seed=0, side=32):
    return torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_it_is_what_opencv_gives():
    image = noise()
    lab = cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(2, (4, 4)).apply(lab[..., 0])
    expected = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    np.testing.assert_array_equal(PixelTransform(CLAHE)(image).permute(1, 2, 0), expected)


def test_floats_stay_floats_in_a_batch_too():
    transform = PixelTransform({"_target_": "albumentations.InvertImg", "p": 1})
    batch = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(transform(batch), 1 - batch)


@pytest.mark.parametrize(
    ("settings", "random"),
    [
        (CLAHE, False),
        ({**CLAHE, "p": 0.5}, True),
        ({"_target_": "albumentations.CLAHE", "p": 1}, True),  # draws its limit
        ({"_target_": "albumentations.ToGray"}, True),  # p is 0.5
        ({"_target_": "albumentations.Compose", "transforms": [CLAHE]}, False),
        ({"_target_": "albumentations.Compose", "transforms": [CLAHE, {**CLAHE, "p": 0.99}]}, True),
    ],
)
def test_a_random_one_is_known(settings, random):
    transform = PixelTransform(settings)
    assert transform.random is random
    assert bool(transform.warning) is random
    assert PixelTransform(transform.settings).settings == transform.settings


def test_what_a_random_one_does_depends_on_the_image_alone():
    transform = PixelTransform({"_target_": "albumentations.RandomBrightnessContrast", "p": 1})
    first, second = noise(1), noise(2)
    expected = transform(first)
    transform(second)
    assert torch.equal(transform(first), expected)
    shifts = [float((transform(noise(i)).float() - noise(i).float()).mean()) for i in range(8)]
    assert np.std(shifts) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_target_": "albumentations.HorizontalFlip", "p": 1}, "moves none"),
        ({"_target_": "albumentations.TextImage", "font_path": "/etc/passwd", "p": 1}, "moves none"),
        ({"_target_": "albumentations.Lambda", "p": 1}, "moves none"),
        ({"_target_": "os.system", "command": "true"}, "os.system is no transform of albumentations"),
        ({"_target_": "albumentations.os.system"}, "is no transform of albumentations"),
        ({**CLAHE, "clip": 3}, "'clip' are not valid"),
        ({**CLAHE, "p": 3}, "less than or equal to 1"),
        ({"_target_": "albumentations.FDA", "p": 1}, "cannot be used"),
        ({"_target_": "albumentations.Compose", "transforms": [CLAHE], "bbox_params": None}, "takes transforms"),
        ({"p": 1}, "give the name of a transform"),
    ],
)
def test_others_are_refused_in_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        PixelTransform(settings)
    assert "\n" not in str(error.value)


def test_without_albumentations_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(pixels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'oddpatch\[augment\]'"):
        PixelTransform(CLAHE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("transform")
    make_dataset(root)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        run(tiny(root, root / "plain"))
        run(tiny(root, root / "run", "data.transform={_target_: albumentations.InvertImg, p: 1}"))
        yield root


def scores_of(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return {row["path"]: float(row["score"]) for row in csv.DictReader(file)}


def test_predict_and_eval_do_what_the_run_did(finished, tmp_path):
    scores = scores_of(finished / "run")
    assert scores != scores_of(finished / "plain")
    detector = AnomalyDetector.load(finished / "run")
    assert {path: detector(path).score for path in scores} == pytest.approx(scores, rel=1e-6)
    cfg = config("eval", f"run={finished / 'run'}", "callbacks.pictures=null", out=tmp_path / "eval")
    pipeline.rebuild(cfg).test()
    assert scores_of(tmp_path / "eval") == scores
    settings = json.loads((finished / "run/metrics.json").read_text())["settings"]
    assert settings["data"]["transform"] == {"name": "InvertImg", "p": 1}


def test_an_artifact_of_it_is_refused(finished):
    with pytest.raises(ConfigError, match=r"InvertImg \(data.transform\), which an artifact does not"):
        export(finished / "run")


def test_a_random_one_is_warned_of_in_training_and_in_predict(finished, tmp_path, caplog):
    run(tiny(finished, tmp_path / "random", "+data.transform._target_=albumentations.ToGray"))
    assert "data.transform is random (ToGray)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        AnomalyDetector.load(tmp_path / "random")
    assert caplog.text.count("data.transform is random (ToGray)") == 1


def test_a_checkpoint_cannot_ask_for_other_code(finished, tmp_path):
    content = read_checkpoint(finished / "run" / CHECKPOINT)
    content["oddpatch"]["preprocess"]["transform"] = {"name": "os.system", "command": f"touch {tmp_path}/ran"}
    write_checkpoint(content, tmp_path / "changed.ckpt")
    with pytest.raises((CheckpointError, ConfigError), match="no transform of albumentations"):
        AnomalyDetector.load(tmp_path / "changed.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_transform_that_fails_on_an_image_is_one_line(monkeypatch):
    inverted = PixelTransform({"_target_": "albumentations.InvertImg", "p": 1})
    monkeypatch.setattr("albumentations.InvertImg.apply", lambda self, img, **settings: img[:1])
    told = (
        r"^data\.transform=InvertImg fails: it gives \(1, 2, 3\) uint8 of \(2, 2, 3\) uint8: set data\.transform=null"
    )
    with pytest.raises(DataError, match=told):
        inverted(torch.zeros(3, 2, 2, dtype=torch.uint8))
