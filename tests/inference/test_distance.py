"""Runs that are used with another distance: thresholds set again are those of a run that was fitted with it."""

import json

import numpy as np
import pytest
from conftest import make_dataset, use_tiny_backbone
from PIL import Image
from test_pipeline import run, tiny
from typer.testing import CliRunner

from oddpatch import AnomalyDetector
from oddpatch.cli.main import app
from oddpatch.errors import ConfigError
from oddpatch.export.exporting import export

pytestmark = pytest.mark.slow

PATCHCORE = ["model=patchcore", "model.selector=none", "model.finest_stride=4", "data.crop=null"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("distance")
    make_dataset(root)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        run(tiny(root, root / "euclidean", *PATCHCORE))
        run(tiny(root, root / "cosine", *PATCHCORE, "model.distance=cosine"))
        run(tiny(root, root / "cross", *PATCHCORE, "calibration=cross"))
        run(tiny(root, root / "padim"))
        yield root


def predict(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


@pytest.mark.parametrize("calibration", ["leave_one_out", "holdout"])
def test_scores_and_thresholds_are_those_of_a_run_with_that_distance(runs, calibration, tmp_path, monkeypatch, caplog):
    fitted = {"euclidean": runs / "euclidean", "cosine": runs / "cosine"}
    if calibration == "holdout":
        use_tiny_backbone(monkeypatch)
        settings = [*PATCHCORE, "calibration=holdout", "calibration.minimum=6"]
        for name in fitted:
            fitted[name] = tmp_path / name
            run(tiny(runs, fitted[name], *settings, f"model.distance={name}"))
    images = [str(path) for path in sorted(runs.glob("tile/test/*/*.png"))]
    expected = AnomalyDetector.load(fitted["cosine"])
    found = AnomalyDetector.load(fitted["euclidean"], distance="cosine")
    assert "set again on the" in caplog.text
    assert found.image_threshold == pytest.approx(expected.image_threshold, rel=1e-5)
    assert found.pixel_threshold == pytest.approx(expected.pixel_threshold, rel=1e-5)
    for one, other in zip(found(images), expected(images), strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-5)
        assert one.is_anomalous == other.is_anomalous
    caplog.clear()
    assert AnomalyDetector.load(fitted["cosine"], distance="cosine").image_threshold == expected.image_threshold
    assert not caplog.text


@pytest.mark.parametrize("why", ["cross", "missing"])
def test_without_a_way_to_set_them_again_nothing_is_decided(runs, tmp_path, why):
    folder = runs / ("cross" if why == "cross" else "euclidean")
    image = runs / "tile/test/good/000.png"
    if why == "missing":
        (runs / "tile/train/good/003.png").rename(tmp_path / "003.png")
    try:
        refused = predict(folder, image, "--distance", "cosine")
        decided = predict(folder, image, "--distance", "cosine", "--threshold", "1e9")
    finally:
        if why == "missing":
            (tmp_path / "003.png").rename(runs / "tile/train/good/003.png")
    assert isinstance(refused.exception, ConfigError)
    reason = "folds were fitted" if why == "cross" else "003.png is missing"
    assert reason in str(refused.exception)
    assert "give --threshold VALUE" in str(refused.exception)
    assert decided.exit_code == 0
    assert json.loads(decided.stdout.splitlines()[-1])["p_value"] is None


def test_other_methods_and_artifacts_refuse(runs):
    image = runs / "tile/test/good/000.png"
    assert "leave out --distance" in str(predict(runs / "padim", image, "--distance", "cosine").exception)
    assert "load the run's folder" in str(predict(export(runs / "padim").path, image, "--distance", "cosine").exception)


def test_explain_shows_both_maps_side_by_side(runs, tmp_path):
    image, out = runs / "tile/test/spot/000.png", tmp_path / "both.png"
    told = [
        CliRunner().invoke(app, ["explain", str(runs / name), str(image), "--distance", "cosine", "--out", str(out)])
        for name in ("euclidean", "cosine")
    ]
    assert [done.exit_code for done in told] == [0, 0], told[0].output
    for name in ("euclidean", "cosine"):
        score = AnomalyDetector.load(runs / name)(str(image)).score
        assert all(f"{name}  score {score:.6g}\n" in done.output for done in told)
    width, height = Image.open(out).size
    assert width > 2 * height
    assert len(np.unique(np.asarray(Image.open(out)).reshape(-1, 3), axis=0)) > 100


def test_explain_takes_one_or_the_other(runs):
    image = str(runs / "tile/test/spot/000.png")
    done = CliRunner().invoke(app, ["explain", str(runs / "cosine"), image, "--distance", "cosine", "--gif"])
    assert "leave out one of them" in str(done.exception)
