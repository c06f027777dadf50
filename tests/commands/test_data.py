"""`oddpatch data ...` on the command line: parsing, dry runs, summaries, errors."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import make_dataset
from PIL import Image
from typer.testing import CliRunner

from oddpatch.commands.data import app
from oddpatch.errors import ConfigError, DataError

COMMANDS = ["masks", "check", "extract-good", "convert", "split", "render", "from-unity", "stats"]


def run(*args):
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"oddpatch data {command}" in " ".join(result.output.split())


def test_start_loads_nothing_heavy():
    heavy = "('torch', 'cv2', 'numpy', 'matplotlib')"
    code = f"import sys, oddpatch.cli; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.fixture
def category(tmp_path):
    make_dataset(tmp_path / "data")
    return next(p.parent for p in (tmp_path / "data").rglob("train"))


def test_dry_runs_write_nothing_and_say_so(category, tmp_path):
    folder = category / "test"
    image = next((category / "ground_truth").rglob("*.png"))
    before = sorted(tmp_path.rglob("*"))
    for args in (
        ("masks", image, tmp_path / "out", "--rgb", "255,255,255"),
        ("extract-good", category, tmp_path / "out"),
        ("convert", "folder", folder, tmp_path / "out"),
        ("split", category, tmp_path / "s.json", "--shots", "2"),
        ("render", "pcb", tmp_path / "out", "--size", "96"),
        ("stats", category.parent, category.name, "--out", tmp_path / "s.png"),
    ):
        result = run(*args, "--dry-run")
        assert result.exit_code == 0
        assert "would write" in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_each_does_its_work_and_refuses_to_do_it_twice(category, tmp_path):
    out = tmp_path / "out"
    few = ("--train", 1, "--test-good", 0, "--test-per-defect", 0)
    mask = next((category / "ground_truth").rglob("*.png"))
    for args, made in (
        (("masks", mask, out / "m", "--rgb", "250,255,255", "--tolerance", "5"), f"m/{mask.stem}_mask.png"),
        (("convert", "folder", category / "test", out), "test/train/good"),
        (("split", category, out / "s.csv", "--train-share", "0.8"), "s.csv"),
        (("render", "pcb", out / "r", "--size", 96, *few), "r/train/good"),
        (("stats", category.parent, category.name, "--out", out / "s.png"), "s.png"),
        (("from-unity", out / "r/unity_solo", out / "u", "--test-share", 0), "u/train/good/step0.camera_solo.png"),
    ):
        assert run(*args).exit_code == 0
        assert (out / made).exists()
        with pytest.raises(DataError, match="exists"):
            run(*args)
    made = np.asarray(Image.open(out / f"m/{mask.stem}_mask.png"))
    np.testing.assert_array_equal(made > 0, np.asarray(Image.open(mask).convert("L")) >= 250)
    assert "12 copied" in run("extract-good", category / "train", out / "e").output
    assert "0 copied, 12 already there" in run("extract-good", category / "train", out / "e").output


def test_wrong_settings_are_one_line(category, tmp_path):
    for args in (
        ("masks", tmp_path, tmp_path / "o"),
        ("masks", tmp_path, tmp_path / "o", "--rgb", "red"),
        ("split", category, tmp_path / "s.json"),
        ("split", category, tmp_path / "s.json", "--folds", 3, "--fold", 3),
        ("convert", "coco", tmp_path, tmp_path / "o"),
    ):
        with pytest.raises(ConfigError) as error:
            run(*args)
        assert "\n" not in str(error.value)
