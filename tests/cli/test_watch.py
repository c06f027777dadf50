"""`oddpatch watch`: JSON lines, an orderly end, and errors before the model is loaded."""

import json
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from alarms import receiving
from conftest import ROOT, make_dataset
from narrowing import present
from patience import PATIENCE
from PIL import Image
from test_pipeline import run, tiny
from test_predict import Done
from videos import motion_jpeg, write_video

from oddpatch.cli.main import main
from oddpatch.cli.watch import summary
from oddpatch.watch import watcher


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, and the videos `good.mp4` and `line.mp4` of its test images."""
    root = tmp_path_factory.mktemp("watch")
    tile = make_dataset(root, good=45)
    run(tiny(root, root / "run", "backbone=resnet18", "model.num_features=20", "calibration.target_fpr=0.05"))
    good, bad = (np.asarray(Image.open(tile / "test" / name / "000.png")) for name in ("good", "spot"))
    write_video(root / "good.mp4", [good] * 5, crf="1")
    write_video(root / "line.mp4", [good, good, bad, good], crf="1")
    return root


@pytest.fixture
def watch(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["oddpatch", "watch", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(ended.value.code or 0, *capsys.readouterr())

    return call


def test_a_line_for_each_frame_and_a_summary(finished, watch):
    done = watch(finished / "run", finished / "line.mp4", "--fast")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["number"] for line in lines] == [0, 1, 2, 3]
    assert lines[2]["verdict"] == "reject"
    assert lines[2]["is_anomalous"] is True
    assert [line["path"] for line in lines] == [f"{finished / 'line.mp4'}#00000{number}" for number in range(4)]
    assert {"id", "source", "time", "delay", "score", "threshold", "p_value", "regions", "latency_ms"} <= lines[
        0
    ].keys()
    assert len({line["id"] for line in lines}) == 4
    assert all(abs(line["time"] - time.time()) < 100 and 0 <= line["delay"] < 60 for line in lines)
    first, last = done.stderr.splitlines()
    assert re.fullmatch(r".*line\.mp4: rejected above [\d.]+, warned of above [\d.]+", first)
    accepted = sum(line["verdict"] == "accept" for line in lines)
    assert re.search(rf"line\.mp4: 4 frames arrived: 4 judged \({accepted} accept, .*1 reject\), 0 dropped", last)
    assert last.endswith(", 0 skipped, 0 failed, 0 waiting; 0 reconnects")


def test_how_much_of_the_frames_is_inspected_is_said(finished, watch):
    write_video(finished / "strip.mp4", [np.full((48, 480, 3), 90, np.uint8)] * 2, crf="1")
    done = watch(finished / "run", finished / "strip.mp4", "--fast")
    assert [json.loads(line)["inspected"] for line in done.stdout.splitlines()] == [pytest.approx(0.1, abs=0.005)] * 2
    told = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert [line[:46] for line in told] == [
        "warning: 1 of 1 images were inspected in part,", "warning: 2 of 2 images were inspected in part,",
    ]  # fmt: skip
    assert "warning" not in watch(finished / "run", finished / "good.mp4", "--fast").stderr


def test_the_scores_are_those_of_predict(finished, watch, monkeypatch, capsys):
    lines = [json.loads(line) for line in watch(finished / "run", finished / "line.mp4", "--fast").stdout.splitlines()]
    monkeypatch.setattr(sys, "argv", ["oddpatch", "predict", str(finished / "run"), str(finished / "line.mp4")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    predicted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in predicted] == [line["path"] for line in lines]
    assert [line["score"] for line in predicted] == pytest.approx([line["score"] for line in lines], rel=1e-5)


def test_every_and_crop(finished, watch):
    done = watch(finished / "run", finished / "good.mp4", "--every", "80", "--crop", "4,4,40,40")
    assert done.returncode == 0
    numbers = [json.loads(line)["number"] for line in done.stdout.splitlines()]
    assert set(numbers) <= {0, 2, 4}
    assert "5 frames arrived" in done.stderr
    assert ", 2 skipped" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("rtsp://admin:hunter2@127.0.0.1/101",), "a password stands in the address of 127.0.0.1"),
        (("rtsp://${NOT_SET_AT_ALL}@127.0.0.1/101",), "NOT_SET_AT_ALL is not set: export NOT_SET_AT_ALL=..."),
        (("nowhere",), "nowhere: no such file, folder or device"),
        (("{root}/line.mp4", "--crop", "1,2,3"), "--crop 1,2,3: give X,Y,WIDTH,HEIGHT"),
        (("{root}/line.mp4", "--crop", "0,0,0,4"), "crop 0,0,0,4: give X,Y,WIDTH,HEIGHT"),
        (("{root}/line.mp4", "--every", "0"), "every 0 ms: give more than 0"),
        (("{root}/line.mp4", "--every", "5", "--when-still", "5"), "give one of them"),
        (("{root}/line.mp4", "--stillness", "0.1"), "--stillness 0.1 belongs to --when-still"),
        (("{root}/tile", "--every", "5"), "every image of a folder is judged: leave the trigger out"),
        (("{root}/tile", "--fast"), "only a video file can be read faster"),
        (("{root}/line.mp4", "--warn-score", "1e9"), "warn earlier"),
        (("{root}/line.mp4", "--warn", "1.5"), "1.5"),
        (("{root}/line.mp4", "--webhook", "nothing"), "--webhook"),
        (("{root}/line.mp4", "--serve", "nothing"), "nothing"),
    ],
)
def test_errors_are_one_line(finished, watch, arguments, told):
    done = watch(
        finished / "run",
        *(argument.format(root=finished) if argument[0] == "{" else argument for argument in arguments),
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert told in done.stderr
    assert "hunter2" not in done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere",), "no such file, folder or device"),
        (("torn.mp4",), "torn.mp4: cannot be read as a video ("),
        (("boards:", "--crop", "0,0,0,4"), "crop 0,0,0,4: give X,Y,WIDTH,HEIGHT"),
        ((".", "--when-still", "5"), "every image of a folder is judged: leave the trigger out"),
        (("boards:", "--give-up", "nan"), "give up after nan s: give more than 0"),
        (("boards:", "--warn", "1.5"), "warn=1.5: the rate of good parts"),
        (("boards:", "--warn", "0.1", "--warn-score", "5"), "give one of them"),
        (("boards:", "--warn-score", "nan"), "warn_score=nan is no score"),
        (("boards:", "--threshold", "high"), "threshold='high': choose auto, conformal, validation or a number"),
        (("boards:", "--threshold", "nan"), "threshold=nan is no score"),
        (("boards:", "--pixel-threshold", "nan"), "pixel_threshold=nan is no score"),
        (("boards:", "--target-fpr", "1"), "target_fpr=1.0 must lie between 0 and 1"),
        (("boards:", "--device", "gpu7"), "device='gpu7': choose cpu, cuda, or cuda:1"),
        (("boards:", "--device", "meta"), "device='meta': choose cpu, cuda, or cuda:1"),
        (("boards:", "--device", "cuda:77"), "device='cuda:77' cannot be used"),
        (("boards:", "--engine", "tensorrt"), "engine='tensorrt': choose one of torch, openvino"),
        (("boards:", "--pictures-mb", "5"), "--pictures-mb 5 belongs to --pictures"),
        (("boards:", "--pictures", "kept", "--pictures-mb", "0"), "--pictures-mb=0: choose 1 or more"),
        (("boards:", "--webhook", "http://h/?key=hunter2"), "--webhook: a secret stands in the address of h, as key"),
        (("boards:", "--mqtt", "mqtt://${NOT_SET_AT_ALL}@h"), "--mqtt: NOT_SET_AT_ALL is not set"),
        (("boards:", "--drift", "."), "--drift . holds no such state"),
        (("boards:", "--drift", "torn.mp4/drift.json"), "torn.mp4/drift.json cannot be written"),
        (("boards:", "--serve", "127.0.0.1"), "--serve=127.0.0.1: give HOST:PORT"),
        (("boards:", "--serve", "0.0.0.0:0"), "set ODDPATCH_WATCH_TOKEN"),
        (("boards:", "--serve", "{taken}"), "Address already in use: choose another address or port"),
    ],
)
def test_what_cannot_work_is_told_before_the_model_is_loaded(arguments, told, tmp_path, watch, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ODDPATCH_WATCH_TOKEN", raising=False)
    (tmp_path / "torn.mp4").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = watch("norun", *(argument.replace("{taken}", address) for argument in arguments))
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "hunter2" not in done.stderr


def test_an_address_that_was_taken_is_free_after_an_error(tmp_path, watch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for _ in range(2):
        assert "norun" in watch(tmp_path / "norun", "boards:", "--serve", f"127.0.0.1:{port}").stderr
    socket.create_server(("127.0.0.1", port)).close()


def test_a_secret_of_a_webhook_is_named_and_never_shown(finished, watch, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HOOK", "T0/hunter2")
    monkeypatch.setenv("no_proxy", "*")
    with receiving() as receiver:
        receiver.answers = [404, 404]
        address = f"http://127.0.0.1:{receiver.port}/services/${{HOOK}}"
        done = watch(
            finished / "run", finished / "line.mp4", "--fast", "--webhook", address, "--queue", tmp_path / "queue",
        )  # fmt: skip
    assert done.returncode == 0
    assert receiver.asked[0][2] == "/services/T0/hunter2"
    assert "answers 404" in caplog.text
    assert "hunter2" not in done.stdout + done.stderr + caplog.text
    assert all(b"hunter2" not in path.read_bytes() for path in (tmp_path / "queue").iterdir())


def test_drift_is_kept_from_one_watch_to_the_next(finished, watch, tmp_path):
    arguments = (finished / "run", finished / "good.mp4", "--fast", "--drift", tmp_path / "drift.json")
    for parts in (5, 10):
        done = watch(*arguments)
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "drift.json").read_text())["parts"][0] == parts
    (tmp_path / "drift.json").write_text("{}")
    done = watch(*arguments)
    assert done.returncode == 2
    assert re.search(
        r"drift\.json holds no such state \(.*\): name another file, or remove it$", done.stderr.splitlines()[-1]
    )


def test_pictures_are_kept(finished, watch, tmp_path):
    done = watch(finished / "run", finished / "line.mp4", "--fast", "--pictures", tmp_path / "kept")
    assert done.returncode == 0
    rejected = [line for line in map(json.loads, done.stdout.splitlines()) if line["verdict"] != "accept"]
    for line in rejected:
        assert len(list((tmp_path / "kept").glob(f"*_{line['verdict']}_{line['id']}*"))) == 2
    assert "pictures: " in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_ends_in_order(finished, tmp_path, which):
    with motion_jpeg() as camera:
        # The size of the pictures of the run's set is no matter to its preprocessing.
        command = [
            sys.executable,
            "-m",
            "oddpatch.cli.main",
            "watch",
            finished / "run",
            camera.address,
            "--every",
            "100",
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert json.loads(present(process.stdout).readline())["source"] == camera.address
        process.send_signal(which)
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert all(map(json.loads, output.splitlines()))
    counts = re.search(
        r"(\d+) frames? arrived: (\d+) judged.*?, (\d+) dropped, (\d+) skipped, (\d+) failed, (\d+) waiting", errors
    )
    arrived, *rest = map(int, present(counts).groups())
    assert arrived == sum(rest) > 0
    assert "terminated" not in errors


def test_the_summary_adds_up():
    status = watcher.Status(source="s", connection="stalled", since=0.0, error="no frame", arrived=3, dropped=1)
    status.verdicts[watcher.Verdict.ACCEPT] = 1
    status.verdicts[watcher.Verdict.FAILED] = 1
    told = "s: 3 frames arrived: 1 judged (1 accept), 1 dropped, 0 skipped, 1 failed, 0 waiting; 0 reconnects"
    assert summary(status) == told
