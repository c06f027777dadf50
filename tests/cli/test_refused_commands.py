"""What commands refuse before they begin: one line, exit code 2, and nothing written."""

import importlib.util
import sys

import pytest
from conftest import make_dataset
from narrowing import stand_in

from oddpatch.cli.main import main
from oddpatch.inference.detector import AnomalyDetector


@pytest.fixture
def refusal(monkeypatch, capsys, tmp_path):
    """The line that a command ends with, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["oddpatch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr().err
        assert ended.value.code == 2
        assert told.count("\n") == 1
        return told

    return call


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["bench", "nowhere"], "nowhere does not exist: give the folder of a finished run, or an artifact"),
        (["bench", "nowhere", "--batch-size", "1,0"], "--batch-size=1,0: give numbers of 1 or more, such as 1,8"),
        (["bench", "nowhere", "--batch-size", "x"], "--batch-size=x: give numbers of 1 or more, such as 1,8"),
        (["explain", "run", "a.png", "--distance", "cosine", "--gif"], "leave out one of them"),
        (["reproduce", "padim", "--tolerance", "-1"], "tolerance=-1.0 must be 0 or more, such as 0.01"),
    ],
)
def test_settings_that_cannot_work(refusal, arguments, told, tmp_path):
    assert told in refusal(*arguments)
    assert not list(tmp_path.iterdir())


def test_a_starting_set_does_not_overwrite_another(refusal, tmp_path):
    (tmp_path / "own/data").mkdir(parents=True)
    (tmp_path / "own/data/parts.yaml").write_text("mine")
    assert "parts.yaml exists: choose another folder, or move it away" in refusal("init", "own")
    assert (tmp_path / "own/data/parts.yaml").read_text() == "mine"


def test_one_category_is_mended_at_a_time(refusal, tmp_path):
    for name in ("a", "b"):
        make_dataset(tmp_path, good=1).rename(tmp_path / name)
    told = refusal("data", "check", tmp_path, "--fix", tmp_path / "fixed")
    assert "--fix mends one category at a time: name one of a, b" in told
    assert not (tmp_path / "fixed").exists()


def test_ray_without_its_data_names_the_extra(refusal, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pandas" else find(name, *rest)
    )
    told = refusal("predict", "run", "images", "--ray", "local")
    assert "--ray needs Ray Data: pip install 'oddpatch[sweep]'" in told


@pytest.mark.parametrize(
    ("threshold", "told"),
    [
        (None, "run has no threshold: it was fitted with none, or give --threshold VALUE"),
        (1.0, "--save=heatmap: the run has no pixel threshold: give --pixel-threshold VALUE, or save map"),
    ],
)
def test_a_run_without_a_threshold_says_how_to_get_one(refusal, monkeypatch, tmp_path, threshold, told):
    absent = stand_in(calibration=stand_in(absent="it was fitted with none"))
    detector = stand_in(image_threshold=threshold, pixel_threshold=None, scorer=absent)
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(AnomalyDetector, "load", lambda *args, **settings: detector)
    images = make_dataset(tmp_path, good=1) / "train/good"
    assert told in refusal("predict", "run", images, "--save", "heatmap")
