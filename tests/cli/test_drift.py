"""`oddpatch drift` on results of a tiny run, as predict writes them, and `oddpatch calibrate`."""

import json
import shutil

import numpy as np
import pytest
from conftest import make_dataset, write_image
from PIL import Image
from test_explain_update import fails, oddpatch
from test_pipeline import config, run, tiny

from oddpatch import AnomalyDetector, factory, pipeline
from oddpatch.drift.archive import load_good_scores
from oddpatch.inference.records import open_records

CHECKPOINT = "checkpoints/fitted.ckpt"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("drift")
    make_dataset(root, good=60)
    run(tiny(root, root / "run", "backbone=resnet18", "model.num_features=20"))
    return root


@pytest.fixture(scope="module")
def good(finished):
    return load_good_scores(finished / "run")[0]


def results(path, good, parts, change=None, failed=0, seed=0, **extra):
    """Results of parts like the good images; from `change` on their brightness is another."""
    rng, threshold = np.random.default_rng(seed), good.image_at(good.target_fpr).value
    with open_records(path) as file:
        for part in range(parts):
            place = rng.integers(len(good.image_scores))
            score = float(good.image_scores[place]) * (1 + 1e-6 * rng.normal())
            statistics = {name: float(values[place]) for name, values in good.statistics.items()}
            if change is not None and part >= change:
                statistics["brightness"] *= 1.2
            record = {
                "path": f"parts/{part:05}.png", "score": score, "threshold": threshold,
                "p_value": float(good.p_values(score)), "anomaly_score": 0.3, "is_anomalous": score > threshold,
                "regions": [], "inspected": 1.0, **statistics, "latency_ms": 1.0,
            }  # fmt: skip
            record |= {name: value(part) for name, value in extra.items()}
            file.write({"path": record["path"], "error": "gone"} if part < failed else record)
    return path


# -- drift ------------------------------------------------------------------------------------------------------------


def test_a_run_keeps_how_its_good_images_were_taken(finished, good):
    from oddpatch.data.light import measure

    calibration, about = factory.restore_calibration(finished / "run")
    assert set(good.statistics) == {"brightness", "sharpness"}
    for place, index in enumerate(calibration.image_index.tolist()):
        path = finished / about["train_images"][index]
        light = measure(np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1))
        assert (good.statistics["brightness"][place], good.statistics["sharpness"][place]) == tuple(light)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_drift_is_named_and_dated_in_every_format(finished, good, tmp_path, monkeypatch, capsys, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = results(tmp_path / f"parts.{suffix}", good, 500, change=300, failed=3)
    code, told, _ = oddpatch(monkeypatch, capsys, "drift", finished / "run", path, "--json")
    assert code == 1
    found = json.loads(told)
    assert (found["parts"], found["failed"]) == (500, 3)
    assert [name for name, stream in found["streams"].items() if stream["drift"]] == ["brightness"]
    drift = found["streams"]["brightness"]["drift"]
    assert 295 <= drift["since_number"] <= 305
    assert drift["since"] == f"parts/{drift['since_number'] - 1:05}.png"
    assert drift["now"] == pytest.approx(1.2 * drift["before"], rel=0.03)


def test_the_table_fits_a_terminal_and_the_picture_is_written(finished, good, tmp_path, monkeypatch, capsys):
    path = results(tmp_path / "parts.jsonl", good, 500, change=300, time=lambda part: 1_700_000_000.0 + part)
    out = tmp_path / "drift.png"
    code, told, _ = oddpatch(monkeypatch, capsys, "drift", finished / "run", path, "--out", out)
    assert code == 1
    assert max(map(len, told.replace(str(tmp_path), "").splitlines())) <= 80
    assert "rejected       <= " in told
    assert ", parts/0030" in told
    assert ", 2023-11-14 22:18" in told
    picture = np.asarray(Image.open(out))
    assert picture.shape[1] > 700
    assert (picture == [0xC4, 0x16, 0x1C]).all(axis=2).sum() > 50


def test_results_of_predict_are_taken_as_they_are(finished, tmp_path, monkeypatch, capsys):
    path = tmp_path / "parts.jsonl"
    assert (
        oddpatch(monkeypatch, capsys, "predict", finished / "run", finished / "tile/test/good", "--results", path)[0]
        < 2
    )
    code, told, _ = oddpatch(monkeypatch, capsys, "drift", finished / "run", path)
    assert code == 0
    assert "5 parts" in told
    # Of a copy of the run's checkpoint, and of an artifact, they are the same.
    assert oddpatch(monkeypatch, capsys, "drift", finished / "run" / CHECKPOINT, path)[1] == told


@pytest.mark.slow
def test_results_are_taken_to_an_artifact(finished, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    path, artifact = tmp_path / "parts.jsonl", tmp_path / "model.onnx"
    assert oddpatch(monkeypatch, capsys, "export", finished / "run", "--out", artifact)[0] == 0
    assert oddpatch(monkeypatch, capsys, "predict", artifact, finished / "tile/test/good", "--results", path)[0] < 2
    told = [oddpatch(monkeypatch, capsys, "drift", source, path) for source in (artifact, finished / "run")]
    assert told[0] == told[1]
    assert told[0][0] == 0


def test_half_a_last_line_is_left_out(finished, good, tmp_path, monkeypatch, capsys):
    for suffix in ("jsonl", "csv"):
        path = results(tmp_path / f"parts.{suffix}", good, 20)
        path.write_bytes(path.read_bytes()[:-5])
        code, told, _ = oddpatch(monkeypatch, capsys, "drift", finished / "run", path)
        assert code == 0
        assert "19 parts" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda line: line | {"p_value": 0.5}, "give the run, and the version of its calibration"),
        (lambda line: line | {"p_value": None}, "a p-value of nan"),
        (lambda line: line | {"threshold": 1e9}, "predict again at one threshold"),
        (
            lambda line: {name: value for name, value in line.items() if name != "sharpness"},
            "predict again with this version",
        ),
        (lambda line: [line], "after record 7: correct it, or predict again"),
        (lambda line: line | {"time": 5}, "one of the two has no time"),
    ],
)
def test_results_that_are_not_the_runs_are_refused(finished, good, tmp_path, monkeypatch, capsys, change, told):
    path = results(tmp_path / "parts.jsonl", good, 20)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[7] = change(lines[7])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert told in fails(monkeypatch, capsys, "drift", finished / "run", path)


def test_what_cannot_be_compared_is_refused(finished, good, tmp_path, monkeypatch, capsys):
    run_, path = finished / "run", results(tmp_path / "parts.jsonl", good, 20)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for arguments, told in (
        ([run_, empty], "holds no result"),
        ([run_, tmp_path / "gone.jsonl"], "no such file"),
        ([run_, tmp_path / "parts.txt"], "choose one of .jsonl, .csv, .parquet"),
        ([run_, path, "--out", tmp_path / "chart.svg"], "choose a name that ends with .png"),
        ([run_, path, "--defects", "0"], "defects=0.0 must lie between 0 and 1"),
        ([tmp_path, path], "give the folder of a finished run"),
    ):
        assert told in fails(monkeypatch, capsys, "drift", *arguments)


def test_a_run_without_calibration_has_nothing_to_compare(tmp_path, good, monkeypatch, capsys):
    make_dataset(tmp_path, good=8)
    run(tiny(tmp_path, tmp_path / "run", "backbone=resnet18", "model.num_features=20", "calibration=none"))
    path = results(tmp_path / "parts.jsonl", good, 5)
    assert "train again with calibration=leave_one_out" in fails(monkeypatch, capsys, "drift", tmp_path / "run", path)


# -- calibrate --------------------------------------------------------------------------------------------------------


@pytest.fixture
def confirmed(tmp_path):
    folder, rng = tmp_path / "confirmed", np.random.default_rng(9)
    for number in range(30):
        write_image(folder / f"{number:03}.png", rng)
    return folder


def calibrated(finished, confirmed, tmp_path, monkeypatch, capsys):
    out = tmp_path / "newer"
    code, told, warned = oddpatch(monkeypatch, capsys, "calibrate", finished / "run", confirmed, "--out", out)
    assert code == 0, warned
    return out, told, warned


def test_thresholds_are_set_on_the_images_as_the_run_scores_them(finished, confirmed, tmp_path, monkeypatch, capsys):
    before = (finished / "run" / CHECKPOINT).read_bytes()
    out, told, _ = calibrated(finished, confirmed, tmp_path, monkeypatch, capsys)
    assert (finished / "run" / CHECKPOINT).read_bytes() == before
    old, new = (AnomalyDetector.load(folder) for folder in (finished / "run", out))
    scores = sorted(old(path).score for path in confirmed.iterdir())
    np.testing.assert_allclose(new.scorer.calibration.image_scores, scores, rtol=1e-5)
    assert new.image_threshold == pytest.approx(scores[-1], rel=1e-5)
    assert new(finished / "tile/test/spot/000.png").score == old(finished / "tile/test/spot/000.png").score
    assert "holdout, 30 good images); 0.01 needs 99 good images, 30 support 0.0323" in told
    assert f"30 images of {confirmed}: threshold {new.image_threshold:.4g}, before {old.image_threshold:.4g}" in told
    assert f"written: {out}" in told


def test_the_next_one_has_a_name_of_its_own_and_remembers_the_last(finished, confirmed, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished / "run", tmp_path / "run")
    for version in (2, 3):
        base = tmp_path / "run" if version == 2 else tmp_path / "run-v2"
        code, told, _ = oddpatch(monkeypatch, capsys, "calibrate", base, confirmed)
        assert code == 0
        assert (tmp_path / f"run-v{version}" / CHECKPOINT).is_file()
    assert told.count("30 images of") == 2
    _, about = factory.restore_calibration(tmp_path / "run-v3")
    assert [step["images"] for step in about["calibrations"]] == [30, 30]
    assert about["calibrations"][1]["run"].endswith("run-v2")
    assert about["num_fitted"] == 60


def test_it_is_tested_predicted_and_watched_with_like_any_run(finished, confirmed, tmp_path, monkeypatch, capsys):
    out, _, _ = calibrated(finished, confirmed, tmp_path, monkeypatch, capsys)
    settings = ("trainer.accelerator=cpu", "+data.num_workers=0", "callbacks.pictures=null")
    job = pipeline.rebuild(config("eval", f"run={out}", *settings, out=tmp_path / "again"))
    job.test()
    assert job.module.model.calibration.image.num_images == 30
    path = tmp_path / "parts.jsonl"
    oddpatch(monkeypatch, capsys, "predict", out, finished / "tile/test/good", "--results", path)
    code, told, _ = oddpatch(monkeypatch, capsys, "drift", out, path)
    assert code == 0
    assert f"on {confirmed}" in told
    assert "give the run" in fails(monkeypatch, capsys, "drift", finished / "run", path)


def test_images_that_look_anomalous_are_named(finished, confirmed, tmp_path, monkeypatch, capsys):
    write_image(confirmed / "scratched.png", np.random.default_rng(1), defect=True)
    _, _, warned = calibrated(finished, confirmed, tmp_path, monkeypatch, capsys)
    assert "warning: " in warned
    assert f"{confirmed / 'scratched.png'} scores" in warned
    assert "above the threshold so far of" in warned


def test_what_cannot_be_calibrated_on_is_refused_and_nothing_is_left(
    finished, confirmed, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "newer"

    def refused(folder, *more):
        told = fails(monkeypatch, capsys, "calibrate", finished / "run", folder, "--out", out, *more)
        assert not out.exists()
        assert sorted(tmp_path.glob("newer*")) == []
        return told

    few = tmp_path / "few"
    few.mkdir()
    for number in range(4):
        shutil.copy(confirmed / f"{number:03}.png", few)
    assert "holds 4 good images, a threshold takes at least 5" in refused(few)
    assert "choose at least 1" in refused(confirmed, "--batch-size", "0")
    shutil.copy(finished / "tile/train/good/007.png", confirmed / "copy.png")
    assert "copy.png was fitted to" in refused(confirmed)
    assert "leave it out of" in refused(finished / "tile/train/good")
    (confirmed / "copy.png").write_bytes(b"no image")
    assert "not an image" in refused(confirmed)
    out.mkdir()
    assert "exists and is not overwritten" in fails(
        monkeypatch, capsys, "calibrate", finished / "run", confirmed, "--out", out
    )
