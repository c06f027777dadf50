"""`oddpatch data ...` on the command line: parsing, dry runs, summaries, errors."""

import json

import numpy as np
import pytest
from conftest import make_dataset
from PIL import Image
from typer.testing import CliRunner

from oddpatch.cli.data import app
from oddpatch.data.layout import scan
from oddpatch.errors import ConfigError, DataError

COMMANDS = ["masks", "check", "extract-good", "convert", "split", "render", "from-unity", "align", "stats"]


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
        (("masks", mask, out / "m", "--rgb", "250,255,255", "--tolerance", "5"), f"m/{mask.name}"),
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
    selected = np.asarray(Image.open(out / f"m/{mask.name}"))
    np.testing.assert_array_equal(selected > 0, np.asarray(Image.open(mask).convert("L")) >= 250)
    assert "12 copied" in run("extract-good", category / "train", out / "e").output
    assert "0 copied, 12 already there" in run("extract-good", category / "train", out / "e").output


def test_wrong_settings_are_one_line(category, tmp_path):
    for args in (
        ("masks", tmp_path, tmp_path / "o"),
        ("masks", tmp_path, tmp_path / "o", "--rgb", "red"),
        ("split", category, tmp_path / "s.json"),
        ("split", category, tmp_path / "s.json", "--folds", 3, "--fold", 3),
        ("convert", "imagenet", tmp_path, tmp_path / "o"),
    ):
        with pytest.raises(ConfigError) as error:
            run(*args)
        assert "\n" not in str(error.value)


def test_render_names_no_option_it_has_not(tmp_path):
    (tmp_path / "pcb").mkdir()
    (tmp_path / "pcb/mine.png").touch()
    for dry in ((), ("--dry-run",)):
        with pytest.raises(DataError, match="remove it or choose another") as refused:
            run("render", "pcb", tmp_path / "pcb", *dry)
        assert "--force" not in str(refused.value)


def test_render_takes_a_mix_of_defects(tmp_path):
    few = ("--train", 1, "--test-good", 0, "--size", 96, "--workers", 1)
    mix = "missing_objects=2, misplaced_objects=1"
    assert "test/scratch 0" in run("render", "pcb", tmp_path / "pcb", *few, "--defects", mix, "--dry-run").output
    for scene in ("pcb", "toolbox"):
        run("render", scene, tmp_path / scene, *few, "--defects", mix)
        made = {p.name: len(list(p.iterdir())) for p in (tmp_path / scene / "test").iterdir()}
        assert made == {"missing_objects": 2, "misplaced_objects": 1}
    # The images are those of a mix with more of each.
    run("render", "pcb", tmp_path / "more", *few, "--test-per-defect", 2)
    name = "test/missing_objects/step0.camera_solo_1.png"
    assert (tmp_path / "more" / name).read_bytes() == (tmp_path / "pcb" / name).read_bytes()
    for wrong, message in (
        ("scratch", "NAME=NUMBER"),
        ("scratch=-1", "NAME=NUMBER"),
        ("dent=3", "pcb has missing_obj"),
    ):
        with pytest.raises(ConfigError, match=message):
            run("render", "pcb", tmp_path / "no", *few, "--defects", wrong)


def test_align_writes_a_category_and_tells_the_quality(tmp_path):
    source, out = tmp_path / "board", tmp_path / "out"
    few = ("--train", 2, "--test-good", 1, "--size", 160, "--workers", 1)
    run("render", "pcb", source, *few, "--defects", "misplaced_objects=2")
    reference = ("--reference", source / "train/good/step0.camera_solo.png")
    dry = run("align", source, out, *reference, "--dry-run")
    assert not out.exists()
    assert "would write" in dry.output
    told = {line.split("\t")[0]: line.split("\t")[1:] for line in dry.output.splitlines() if "\t" in line}
    assert len(told) == 5
    assert told["train/good/step0.camera_solo.png"] == ["1.000", "0.0", "0.00"]
    assert all(float(quality) > 0.6 for quality, *_ in told.values())
    run("align", source, out, *reference)
    assert not set(scan(tmp_path, "out").warnings) - set(scan(tmp_path, "board").warnings)
    before, after = (np.asarray(Image.open(folder / "train/good/step0.camera_solo.png")) for folder in (source, out))
    np.testing.assert_array_equal(before, after)
    for path in (out / "ground_truth").rglob("*.png"):
        assert set(np.unique(np.asarray(Image.open(path)))) == {0, 255}
    manifest = json.loads((out / "oddpatch_manifest.json").read_text())
    assert [f["quality"] for f in manifest["files"]] == pytest.approx([float(q) for q, *_ in told.values()], abs=1e-3)
    with pytest.raises(DataError, match="exists"):
        run("align", source, out, *reference)


def test_align_refuses_what_does_not_register(tmp_path):
    source = tmp_path / "board"
    run("render", "pcb", source, "--train", 2, "--test-good", 0, "--size", 160, "--workers", 1, "--test-per-defect", 0)
    noise = np.random.default_rng(0).integers(0, 256, (160, 160), np.uint8)
    Image.fromarray(noise).save(source / "train/good/noise.png")
    reference = ("--reference", source / "train/good/step0.camera_solo.png")
    with pytest.raises(DataError, match=r"noise\.png: registers with quality 0\.0\d, below 0\.6 \(1 of 3") as error:
        run("align", source, tmp_path / "out", *reference)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    result = run("align", source, tmp_path / "out", *reference, "--skip")
    assert "2 of 3 images" in result.output
    assert len(list((tmp_path / "out/train/good").iterdir())) == 2


def test_aligned_images_keep_depth_and_colour(tmp_path):
    folder = tmp_path / "part/train/good"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    grey = np.kron(rng.integers(0, 256, (12, 12)), np.ones((10, 10))).astype(np.uint8)
    Image.fromarray(grey).save(folder / "grey.png")
    deep = (grey.astype(np.uint16) << 8) + rng.integers(0, 256, grey.shape).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.tiff")
    colour = np.stack([grey, grey // 2, 255 - grey], axis=-1)
    Image.fromarray(colour).save(folder / "colour.bmp")
    run("align", tmp_path / "part", tmp_path / "out", "--reference", folder / "grey.png", "--method", "translation")
    for name, expected in (("grey", grey), ("deep", deep), ("colour", colour)):
        written = np.asarray(Image.open(tmp_path / f"out/train/good/{name}.png"))
        assert written.dtype == expected.dtype
        assert written.shape == expected.shape
        scale = 257 if name == "deep" else 1
        assert np.abs(written.astype(float) - expected).mean() < 2.5 * scale  # moved by a hundredth of a pixel or so


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("masks", "source", "target"), "choose either --rgb, or --labels and --instances"),
        (("masks", "source", "target", "--rgb", "1,2,3", "--instances"), "choose either --rgb, or"),
        (("masks", "source", "target", "--instances", "--rename", "old"), "--rename 'old' is not OLD=NEW"),
        (("render", "pcb", "target", "--defects", "short"), "--defects 'short': give each type once, as NAME=NUMBER"),
        (("render", "pcb", "target", "--size", 1), r"size=1 is out of range: choose \d+\.\.\d+"),
        (("render", "pcb", "target", "--train", -1), "train=-1 is negative: give 0 or more images"),
        (
            ("extract-good", "source", "target", "--split", 1),
            r"split=1\.0: choose a share between 0 and 1, such as 0\.8",
        ),
    ],
)
def test_options_that_cannot_work_are_refused_and_nothing_is_written(tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    with pytest.raises(ConfigError, match=told):
        run(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
