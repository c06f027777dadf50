"""What the terminal says at the end of a run."""

import json

import pytest
from conftest import make_dataset
from test_pipeline import run, tiny, tiny_backbone  # noqa: F401

from oddpatch.results.summary import further_commands, metric_name, oracle_gap


def test_what_to_do_next_fits_a_terminal_and_names_what_is_there(tmp_path, monkeypatch):
    folder = tmp_path / "outputs/padim-effnet_lite0/pcb/2026-01-31_12-00-00-000000 a"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["/somewhere/train.py"])
    monkeypatch.setattr("sys.executable", str(tmp_path / ".venv/bin/python"))
    without = further_commands(folder)
    assert without == [
        "BIN=.venv/bin",
        "RUN='outputs/padim-effnet_lite0/pcb/2026-01-31_12-00-00-000000 a'",
        '"$BIN/oddpatch" predict "$RUN" IMAGES --save overlay',
        '"$BIN/python" train.py data=custom data.root=FOLDER data.category=PART',
    ]
    (folder / "report.html").touch()
    assert next(line for line in further_commands(folder) if line not in without).endswith('open "$RUN/report.html"')
    assert max(map(len, further_commands(folder))) <= 78


def test_a_python_far_away_does_not_make_the_commands_longer(tmp_path, monkeypatch):
    far = tmp_path / "a folder" / ("x" * 100) / "bin"
    far.mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["/somewhere/train.py"])
    monkeypatch.setattr("sys.executable", str(far / "python"))
    folders, *commands = further_commands(tmp_path)
    assert folders == f"BIN='{far}'"
    assert max(map(len, commands[1:])) <= 78
    for name in ("python", "oddpatch"):
        (far / name).write_text("#!/bin/sh\n")
        (far / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(far))
    assert further_commands(tmp_path)[1:] == [
        'oddpatch predict "$RUN" IMAGES --save overlay',
        "python train.py data=custom data.root=FOLDER data.category=PART",
    ]


def test_names_of_metrics():
    named = {
        "au_pro@0.05": "AU-PRO@0.05", "au_spro@0.05": "AU-sPRO@0.05", "pixel_auroc@0.05": "pixel AUROC@0.05",
        "aupimo": "AUPIMO", "image_auroc": "image AUROC", "mine": "mine", "image_f1@conformal": None,
        "image_f1_max_threshold": None,
    }  # fmt: skip
    assert {key: metric_name(key) for key in named} == named


def test_the_gap_to_the_oracle_is_that_of_f1():
    metrics = {"image_f1_max": 0.9, "image_f1@conformal": 0.7, "pixel_f1_max": 0.5, "image_f1@validation": 0.8}
    assert oracle_gap(metrics) == {"image_f1": pytest.approx(0.2)}
    assert oracle_gap(metrics | {"seg_f1": 0.1})["pixel_f1"] == pytest.approx(0.4)
    assert oracle_gap({"image_f1_max": 0.9}) == {}


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("calibration", ["leave_one_out", "none"])
def test_further_metrics_are_added_by_name(tmp_path, capsys, calibration):
    make_dataset(tmp_path, good=12)
    chosen = "metrics=[default,aupimo,partial_auroc,at_threshold]"
    more = [f"calibration={calibration}", "calibration.target_fpr=0.2"][: 2 if calibration != "none" else 1]
    run(tiny(tmp_path, tmp_path / "out", chosen, "metrics.aupimo.fpr_bounds=[1e-3,1e-1]", *more))
    written, printed = json.loads((tmp_path / "out/metrics.json").read_text()), capsys.readouterr().out
    assert {"aupimo", "pixel_auroc@0.05"} <= written.keys()
    assert "AUPIMO" in printed
    of_threshold = {"seg_f1", "class_f1", "image_balanced_accuracy@conformal"}
    if calibration == "none":
        assert of_threshold <= written["absent"].keys()
        assert "fitted with calibration=none" in written["absent"]["seg_f1"]
        assert "oracle_gap" not in written["operating"]
        return
    assert of_threshold <= written.keys()
    assert written["image_balanced_accuracy@conformal"] == pytest.approx(
        (written["image_recall@conformal"] + 1 - written["image_fpr@conformal"]) / 2
    )
    gap = written["operating"]["oracle_gap"]
    assert gap["image_f1"] == pytest.approx(written["image_f1_max"] - written["image_f1@conformal"])
    assert gap["pixel_f1"] == pytest.approx(written["pixel_f1_max"] - written["seg_f1"])
    assert "image F1 below the oracle's" in printed
    assert "pixel F1 below the oracle's" in printed
    assert "balanced accuracy" in printed
    assert "below its maximum over all thresholds" in (tmp_path / "out/report.html").read_text()
