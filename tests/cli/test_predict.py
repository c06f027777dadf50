"""`oddpatch predict`: clean JSON, files, exit codes, and files that cannot be read."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
from conftest import ROOT, make_dataset, make_read_only
from narrowing import present
from patience import PATIENCE, wait_until
from PIL import Image
from test_pipeline import run, tiny
from videos import write_video

from oddpatch.cli.main import main
from oddpatch.data import reading


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("predict")
    make_dataset(root, good=45)
    run(tiny(root, root / "run", "backbone=resnet18", "model.num_features=20"))
    return root


class Done(NamedTuple):
    returncode: int | str
    stdout: str
    stderr: str


@pytest.fixture
def predict(monkeypatch, capsys):
    """The command line in this process: to start one takes seconds."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["oddpatch", "predict", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(ended.value.code or 0, *capsys.readouterr())

    return call


def test_json_files_and_exit_codes(finished, tmp_path, predict):
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    for source, name in (("good/000", "one"), ("spot/000", "deep/two")):
        (images / f"{name}.png").write_bytes((finished / f"tile/test/{source}.png").read_bytes())
    (images / "broken.png").write_bytes(b"no image")
    done = predict(finished / "run", images, "--save", "heatmap,overlay,mask,map", "--out", tmp_path / "out",
                   "--threshold", "1e-6")  # fmt: skip
    assert done.returncode == 2, done.stderr
    records = {record["path"]: record for record in map(json.loads, done.stdout.splitlines())}
    assert len(records) == 3
    assert "not an image" in records[str(images / "broken.png")]["error"]
    anomalous = records[str(images / "deep/two.png")]
    assert anomalous["is_anomalous"] is True
    assert anomalous["latency_ms"] > 0
    assert 0 < anomalous["p_value"] < 1
    saved = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    kinds = ("heatmap.png", "mask.png", "map.tiff", "overlay.png")
    assert saved == {f"{stem}_{kind}" for stem in ("one", "deep/two") for kind in kinds}
    anomaly_map = tifffile.imread(tmp_path / "out/deep/two_map.tiff")
    assert anomaly_map.dtype == np.float32
    assert anomaly_map.shape == (48, 48)
    assert np.nanmax(anomaly_map) == pytest.approx(anomalous["score"], rel=0.1)
    assert Image.open(tmp_path / "out/one_overlay.png").size == (48, 48)

    (images / "broken.png").unlink()
    assert predict(finished / "run", images, "--threshold", "1e-6").returncode == 1
    assert predict(finished / "run", images, "--threshold", "1e9").returncode == 0


def test_a_video_frame_by_frame_and_resumed(finished, tmp_path, predict):
    good, bad = (np.asarray(Image.open(finished / f"tile/test/{name}/000.png")) for name in ("good", "spot"))
    video, results = tmp_path / "line.mp4", tmp_path / "results.jsonl"
    write_video(video, [good, bad, good, good], crf="1")
    done = predict(finished / "run", video, finished / "tile/test/good/000.png", "--save", "overlay",
                   "--out", tmp_path / "out", "--results", results)  # fmt: skip
    assert done.returncode == 1
    assert "5 images: " in done.stderr
    records = list(map(json.loads, results.read_text().splitlines()))
    assert [record["path"] for record in records[:4]] == [f"{video}#00000{number}" for number in range(4)]
    assert [record["is_anomalous"] for record in records][1] is True
    assert {path.name for path in (tmp_path / "out").rglob("line.mp4/*")} == {f"00000{k}_overlay.png" for k in range(4)}
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(lines[:2]))
    done = predict(finished / "run", video, finished / "tile/test/good/000.png", "--results", results, "--resume")
    assert "5 images (2 held already): " in done.stderr
    resumed = list(map(json.loads, results.read_text().splitlines()))
    assert [record["path"] for record in resumed] == [record["path"] for record in records]
    done = predict(finished / "run", video, "--ray", "auto")
    assert done.stderr == f"error: {video}: --ray inspects images: inspect the video without it\n"
    assert done.returncode == 2


def test_errors_are_one_line(finished, tmp_path, predict):
    for arguments, told in (
        ((finished / "run", tmp_path / "nowhere"), "nowhere: no such file or folder"),
        ((finished / "run", tmp_path), "no image in this folder"),
        ((finished / "run", tmp_path, tmp_path / "nowhere"), "no image in this folder; "),
        ((tmp_path / "norun", finished / "tile/test"), "does not exist: give the folder of a finished run"),
        ((finished / "run", finished / "tile/test", "--save", "maps"), "'maps' is not known: choose among heatmap"),
    ):
        done = predict(*arguments)
        assert done.returncode == 2
        assert told in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


@pytest.mark.slow
def test_a_pipe_gets_json_alone(finished):
    done = subprocess.run(
        [sys.executable, "-m", "oddpatch.cli.main", "predict", finished / "run", finished / "tile/test/good"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 5
    assert done.returncode in (0, 1)


@pytest.mark.slow
def test_a_run_without_threshold_says_why_and_how_to_get_one(tmp_path, predict):
    good = make_dataset(tmp_path / "data", good=4) / "test/good"
    settings = ["backbone=resnet18", "model=gaussian"]
    why = {
        "calibration=none": "it was fitted with calibration=none: train again with calibration=leave_one_out",
        "calibration=leave_one_out": "4 good images are too few, it takes at least 5: add good images and train again",
    }
    for calibration, reason in why.items():
        name = calibration.partition("=")[2]
        run(tiny(tmp_path / "data", tmp_path / name, *settings, calibration))
        done = predict(tmp_path / name, good)
        assert done.returncode == 2
        assert f"{name} has no threshold: {reason}, or give --threshold VALUE\n" in done.stderr
        assert predict(tmp_path / name, good, "--threshold", "1e9").returncode == 0
    make_dataset(tmp_path / "data", good=5)
    run(tiny(tmp_path / "data", tmp_path / "mended", *settings, "calibration=leave_one_out"))
    done = predict(tmp_path / "mended", good)
    assert done.returncode in (0, 1)
    assert json.loads(done.stdout.splitlines()[0])["p_value"] > 1 / 6


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_linked_folder_is_inspected(finished, tmp_path, predict):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/a.png").write_bytes((finished / "tile/test/good/000.png").read_bytes())
    (tmp_path / "parts/line2").symlink_to(finished / "tile/test/spot")
    done = predict(finished / "run", tmp_path / "parts", "--threshold", "1e-6")
    assert done.returncode == 1
    assert [record["path"] for record in lines(done.stdout)] == [
        str(tmp_path / "parts/a.png"), *(str(tmp_path / f"parts/line2/00{k}.png") for k in range(4)),
    ]  # fmt: skip


@pytest.fixture
def mixed(finished, tmp_path):
    """A good image, a defect of an unknown suffix, one without suffix, and a broken link."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for source, name in (("good/000", "a.png"), ("spot/000", "c.xyz"), ("spot/001", "d")):
        (folder / name).write_bytes((finished / f"tile/test/{source}.png").read_bytes())
    (folder / "gone.png").symlink_to("nowhere")
    return folder


def test_files_left_out_are_counted_and_named(finished, mixed, predict):
    done = predict(finished / "run", mixed, "--threshold", "1e9")
    assert done.returncode == 0
    assert len(lines(done.stdout)) == 1
    assert done.stderr.splitlines() == [
        f"warning: 1 left out, broken link: {mixed}/gone.png",
        f"warning: 1 left out, no suffix: {mixed}/d",
        f"warning: 1 left out, unknown suffix: {mixed}/c.xyz",
    ]
    assert predict(finished / "run", mixed, "--threshold", "1e9", "--strict").returncode == 2
    assert predict(finished / "run", mixed / "a.png", "--threshold", "1e9", "--strict").returncode == 0


def test_the_closing_line_counts_what_was_left_out(finished, mixed, predict, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    done = predict(finished / "run", mixed, "--threshold", "1e9")
    assert done.stdout.splitlines()[-1] == "1 image: 1 good, 3 left out"


def test_all_files_are_tried_if_asked(finished, mixed, predict):
    done = predict(finished / "run", mixed, "--threshold", "1e-6", "--all-files")
    assert [record["path"] for record in lines(done.stdout)] == [str(mixed / name) for name in ("a.png", "c.xyz", "d")]
    assert done.returncode == 1
    assert done.stderr == f"warning: 1 left out, broken link: {mixed}/gone.png\n"


def test_the_others_are_inspected_where_a_source_is_missing(finished, tmp_path, predict):
    (tmp_path / "empty").mkdir()
    good = finished / "tile/test/good/000.png"
    done = predict(finished / "run", good, tmp_path / "nonexist.png", tmp_path / "empty", "--threshold", "1e9")
    assert done.returncode == 2
    *errors, record = lines(done.stdout)
    assert errors == [
        {"path": f"{tmp_path}/nonexist.png", "error": f"{tmp_path}/nonexist.png: no such file or folder"},
        {"path": f"{tmp_path}/empty", "error": f"{tmp_path}/empty: no image in this folder"},
    ]
    assert (record["path"], record["is_anomalous"]) == (str(good), False)


def test_how_much_of_an_image_is_inspected_is_said(finished, tmp_path, predict):
    strip = tmp_path / "strip.png"
    Image.fromarray(np.full((48, 480, 3), 90, np.uint8)).save(strip)
    square = finished / "tile/test/good/000.png"
    done = predict(finished / "run", square, strip, "--json")
    shares = [json.loads(line)["inspected"] for line in done.stdout.splitlines()]
    assert shares == [1.0, pytest.approx(0.1, abs=0.005)]  # the run crops
    (line,) = [line for line in done.stderr.splitlines() if "inspected" in line]
    assert line.startswith(f"warning: 1 of 2 images were inspected in part, {strip} to 10.")
    assert "data.crop=null" in line
    assert "inspected" not in predict(finished / "run", square, "--json").stderr


def test_large_images_are_refused_by_a_limit_that_can_be_set(finished, predict):
    square = finished / "tile/test/good/000.png"
    refused = predict(finished / "run", square, "--max-pixels", "1000")
    assert refused.returncode == 2
    assert "set max_pixels=2304" in json.loads(refused.stdout)["error"]
    assert predict(finished / "run", square, "--max-pixels", "2304").returncode in (0, 1)


def test_a_name_too_long_for_what_is_saved_is_that_file_s_error(finished, tmp_path, predict):
    images = tmp_path / "images"
    images.mkdir()
    long = "x" * 248  # with .png as long as a name may be, with _overlay.png longer
    for name in ("a", long, "z"):
        (images / f"{name}.png").write_bytes((finished / "tile/test/good/000.png").read_bytes())
    done = predict(finished / "run", images, "--save", "overlay", "--out", tmp_path / "out", "--threshold", "1e9")
    assert done.returncode == 2
    records = {record["path"]: record for record in map(json.loads, done.stdout.splitlines())}
    told = f"{tmp_path}/out/{long}_overlay.png cannot be written (File name too long): choose a shorter name"
    assert records.pop(str(images / f"{long}.png")) == {"path": str(images / f"{long}.png"), "error": told}
    assert [record["is_anomalous"] for record in records.values()] == [False, False]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_overlay.png", "z_overlay.png"]


@pytest.mark.parametrize("kind", ["heatmap", "overlay", "mask", "map"])
def test_a_disk_that_cannot_be_written_is_told(finished, tmp_path, predict, small_disk, kind):
    make_read_only(small_disk)
    done = predict(finished / "run", finished / "tile/test/good/000.png", "--save", kind, "--out", small_disk)
    assert done.returncode == 2
    name = f"000_{kind}.{'tiff' if kind == 'map' else 'png'}"
    told = f"{small_disk}/{name} cannot be written (Read-only file system): choose another folder"
    assert done.stderr == f"error: {told}\n"


def test_a_pipe_among_the_sources_is_told_and_not_waited_for(finished, tmp_path, predict):
    os.mkfifo(tmp_path / "x.png")
    good = finished / "tile/test/good/000.png"
    for source in (tmp_path / "x.png", tmp_path):
        done = predict(finished / "run", source, good, "--threshold", "1e9")
        assert done.returncode == 2
        errors = [record["error"] for record in map(json.loads, done.stdout.splitlines()) if "error" in record]
        assert len(errors) == 1
        assert f"neither a file nor a folder: {tmp_path}/x.png" in errors[0]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_prediction_that_is_ended_leaves_whole_lines_and_files(finished, tmp_path, how, code):
    content = (finished / "tile/test/good/000.png").read_bytes()
    (tmp_path / "images").mkdir()
    for number in range(3000):
        (tmp_path / f"images/{number}.png").write_bytes(content)
    process = subprocess.Popen(
        [sys.executable, "-m", "oddpatch.cli.main", "predict", finished / "run", tmp_path / "images", "--batch-size",
         "1", "--save", "overlay", "--out", tmp_path / "out"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    first = present(process.stdout).readline()
    process.send_signal(how)
    rest, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert told == {143: "terminated\n", 130: "interrupted\n"}[code]
    records = [json.loads(line) for line in (first + rest).splitlines()]
    assert 1 <= len(records) < 3000
    for path in (tmp_path / "out").iterdir():
        assert path.suffix == ".png"
        Image.open(path).load()


def results_of(path):
    """Paths, scores and errors in a file of results."""
    if path.suffix == ".jsonl":
        rows = lines(path.read_text())
    elif path.suffix == ".csv":
        with path.open(newline="") as file:
            rows = [{**row, "score": row["score"] and float(row["score"])} for row in csv.DictReader(file)]
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    return [(row["path"], row.get("score") or None, row.get("error") or None) for row in rows]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_results_in_a_file_go_on_where_they_stopped(finished, tmp_path, predict, suffix):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        (images / f"{number}.png").write_bytes((finished / f"tile/test/spot/00{number}.png").read_bytes())
    broken = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(b"no image")
    path = tmp_path / f"results.{suffix}"
    options = (images, "--results", path, "--batch-size", "2")
    whole = lines(predict(finished / "run", finished / "tile/test/spot", "--batch-size", "2").stdout)

    done = predict(finished / "run", *options, "--threshold", "1e-6")
    assert done.returncode == 2
    assert done.stdout == ""
    told = f"{images}/1.png: not an image, or damaged beyond recognition: replace or remove it"
    assert done.stderr.splitlines() == [
        f"failed: {told}",
        f"1 image failed: see `error` in {path}; --resume tries them again",
        f"4 images: 3 anomalous, 1 failed; saved in {path}",
    ]
    names = [str(images / f"{number}.png") for number in range(4)]
    first = results_of(path)
    assert [name for name, _, _ in first] == names
    assert [error for _, _, error in first] == [None, told, None, None]
    assert [score for _, score, _ in first] == [
        None if k == 1 else pytest.approx(one["score"], rel=1e-5) for k, one in enumerate(whole)
    ]
    assert "exists: choose another name" in predict(finished / "run", *options).stderr

    (images / "1.png").write_bytes(broken)
    done = predict(finished / "run", *options, "--resume", "--threshold", "1e-6")
    assert done.returncode == 1
    assert done.stderr == f"4 images (3 held already): 4 anomalous; saved in {path}\n"
    names.append(names.pop(1))
    assert [(name, error) for name, _, error in results_of(path)] == [(name, None) for name in names]
    assert results_of(path)[:3] == [one for one in first if one[2] is None]
    done = predict(finished / "run", *options, "--resume", "--threshold", "1e-6")  # nothing is left to do
    assert (done.returncode, done.stderr) == (1, f"4 images (4 held already): 4 anomalous; saved in {path}\n")

    done = predict(finished / "run", *options, "--resume")
    assert done.returncode == 2
    assert f"{path} holds results at a threshold of 1e-06, and that of" in done.stderr


def test_results_that_cannot_be_written_or_gone_on_with_are_told_at_once(finished, tmp_path, predict):
    for arguments, told in (
        (("--resume",), "--resume goes on with a file of results: name it by --results FILE"),
        (("--results", tmp_path / "a.txt"), "the suffix sets the format of results: choose one of .jsonl, .csv"),
    ):
        done = predict(finished / "norun", finished / "tile/test", *arguments)
        assert done.returncode == 2
        assert told in done.stderr
        assert done.stderr.count("\n") == 1
    (tmp_path / "file").touch()
    done = predict(finished / "run", finished / "tile/test", "--results", tmp_path / "file/a.csv")
    assert done.returncode == 2
    assert f"{tmp_path}/file/a.csv cannot be written" in done.stderr


def test_a_file_that_does_not_answer_stops_no_other(finished, tmp_path, predict, monkeypatch):
    images = tmp_path / "images"
    for name in ("a", "gone/b", "gone/c", "gone/d", "gone/e", "z"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / f"{name}.png").write_bytes((finished / "tile/test/good/000.png").read_bytes())
    answered, read = threading.Event(), reading.read_bytes
    monkeypatch.setattr(reading, "read_bytes", lambda path: answered.wait(60) if "gone" in str(path) else read(path))
    done = predict(finished / "run", images, "--threshold", "1e9", "--timeout", "0.2", "--results", tmp_path / "r.csv")
    answered.set()
    assert done.returncode == 2
    found = results_of(tmp_path / "r.csv")
    errors = {name.rpartition("/")[2]: error for name, _, error in found}
    assert [name for name, error in errors.items() if error is None] == ["a.png", "z.png"]
    for name in "bcde":
        assert errors[f"{name}.png"].startswith(f"{images}/gone/{name}.png: not read")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_results_are_valid_however_a_prediction_ends(finished, tmp_path, predict, suffix, how):
    content = (finished / "tile/test/good/000.png").read_bytes()
    (tmp_path / "images").mkdir()
    for number in range(300):
        (tmp_path / f"images/{number:04}.png").write_bytes(content)
    path = tmp_path / f"results.{suffix}"
    arguments = ["predict", finished / "run", tmp_path / "images", "--results", path, "--save", "map", "--out",
                 tmp_path / "maps", "--threshold", "1e9"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "oddpatch.cli.main", *arguments], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    wait_until(lambda: len(list((tmp_path / "maps").glob("*"))) >= 60, process)
    process.send_signal(how)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[how], told
    done = predict(*arguments[1:], "--resume")
    assert done.returncode == 0, done.stderr
    found = results_of(path)
    assert [name for name, _, _ in found] == [str(tmp_path / f"images/{number:04}.png") for number in range(300)]
    assert len({round(score, 3) for _, score, _ in found}) == 1
    assert not list(tmp_path.rglob(".*.partial"))


@pytest.mark.slow
def test_a_prediction_that_nobody_reads_ends_quietly(finished, tmp_path):
    command = shlex.join(
        [sys.executable, "-m", "oddpatch.cli.main", "predict", f"{finished}/run", f"{finished}/tile/test"]
    )
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    line, code = done.stdout.splitlines()
    assert json.loads(line)["path"]
    assert code in ("141", "0", "1")  # 0 and 1 if all was written before `head` had ended
    assert done.stderr == ""
