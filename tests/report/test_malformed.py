"""Malformed and hostile files of a run through `oddpatch report` and `compare`: one line each, and texts stay texts."""

import csv
import io
import json
import sys
from typing import Any

import pytest
from finished_runs import write_run

from oddpatch.cli import main as cli
from oddpatch.files import to_cell
from oddpatch.report.formats import to_csv, to_latex, to_markdown
from oddpatch.report.runs import read_predictions, read_run
from oddpatch.report.table import build_report

ROWS = "path,label,defect_type,score,p_value,anomalous\n/d/bottle/test/good/1.png,0,good,0.1,,\n"
ROWS += "/d/bottle/test/bad/1.png,1,bad,0.9,,\n"


@pytest.fixture
def run(tmp_path):
    found = {"image_f1_max": 0.9, "image_f1_max_threshold": 0.5, "confidence": {"image_auroc": [0.9, 1.0]}}
    folder = write_run(tmp_path / "run", pixel_auroc=0.9, au_pro=0.9, **found)
    (folder / "predictions.csv").write_text(ROWS)
    return folder


def told(monkeypatch, capsys, *arguments):
    """Exit code and the lines on stderr of a command; a traceback would be an error of the test."""
    monkeypatch.setattr(sys, "argv", ["oddpatch", *map(str, arguments)])
    code: Any = 0
    try:
        cli.main()
    except SystemExit as error:
        code = error.code or 0
    return code, capsys.readouterr().err.splitlines()


def commands(run):
    yield "report", run, "--published", "--format", "latex"
    yield "report", run, "--format", "csv"
    yield "report", run, "--results-json", run.parent / "results.json"
    yield "compare", run, run, "--draws", "20"


def all_end_in_a_line(run, monkeypatch, capsys):
    for command in commands(run):
        code, lines = told(monkeypatch, capsys, *command)
        assert code in (0, 2), command
        assert code == 0 or len(lines) == 1, command


ODD = [None, 1.5, True, "x", [], [1], {}, {"a": {"b": [1]}}, float("nan"), -1]


@pytest.mark.parametrize(
    "key",
    [
        "run", "image_auroc", "absent", "num_train_images", "num_test_images", "weights", "confidence",
        "image_f1_max_threshold", "run.model", "run.category", "run.image_size", "run.experiment", "fpr_limits",
        "settings", "settings.model", "settings.backbone", "settings.data", "settings.calibration",
        "settings.model._target_", "settings.backbone.name", "settings.data.crop",
    ],
)  # fmt: skip
def test_metrics_of_another_type(run, key, monkeypatch, capsys):
    content = json.loads((run / "metrics.json").read_text())
    for value in ODD:
        changed = json.loads(json.dumps(content))
        *parts, name = key.split(".")
        place = changed
        for part in parts:
            place = place[part]
        place[name] = value
        (run / "metrics.json").write_text(json.dumps(changed))
        all_end_in_a_line(run, monkeypatch, capsys)


def test_the_form_of_patchcorevit_and_the_roc_need_image_auroc(run, monkeypatch, capsys):
    content = json.loads((run / "metrics.json").read_text())
    del content["image_auroc"]
    (run / "metrics.json").write_text(json.dumps(content))
    code, lines = told(
        monkeypatch, capsys, "report", run, "--metric", "au_pro", "--results-json", run.parent / "results.json"
    )
    assert (code, len(lines)) == (2, 1)
    assert str(run) in lines[0]
    code, lines = told(monkeypatch, capsys, "report", run, "--metric", "au_pro", "--roc", run.parent / "roc.png")
    assert (code, len(lines)) == (2, 1)
    assert "metrics.json lacks image_auroc" in lines[0]


@pytest.mark.parametrize("key", ["num_train_images", "run.image_size", "run.model", "run.category"])
def test_metrics_that_lack_something(run, key, monkeypatch, capsys):
    content = json.loads((run / "metrics.json").read_text())
    del (content["run"] if key.startswith("run.") else content)[key.removeprefix("run.")]
    (run / "metrics.json").write_text(json.dumps(content))
    for command in commands(run):
        code, lines = told(monkeypatch, capsys, *command)
        assert (code, len(lines)) == (2, 1)
        assert "metrics.json" in lines[0]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[]", "1", "nul", "", '{"num_test_images": 1e999}'])
def test_json_that_is_none(run, text, monkeypatch, capsys):
    (run / "metrics.json").write_text(text)
    for command in commands(run):
        code, lines = told(monkeypatch, capsys, *command)
        assert (code, len(lines)) == (2, 1)
        assert "metrics.json" in lines[0]


@pytest.mark.parametrize(
    "text", ["", "path\n", ROWS + "a,2,b,0.5,,\n", ROWS + "a,0,b,nan,,\n", ROWS + f"{'x' * 200_000},0,g,1,,\n", "\0"]
)
def test_predictions_that_are_none(run, text, monkeypatch, capsys):
    (run / "predictions.csv").write_text(text)
    all_end_in_a_line(run, monkeypatch, capsys)


# -- texts that are code elsewhere ------------------------------------------------------------------------------------

EVIL = "x\n\\input{/etc/passwd}\r\x1b[2J"
FORMULA = "=cmd|'/C calc'!A0"


def report_of(folder, model):
    write_run(folder, names=(model, FORMULA), weights="random")
    return build_report([read_run(folder)], ["image_auroc"])


def test_a_name_does_not_leave_a_comment_or_a_cell_of_latex(tmp_path):
    text = to_latex(report_of(tmp_path / "run", EVIL))
    assert "\\input" not in text.replace("\\textbackslash{}input", "").replace("x\\n\\input", "")
    for line in text.splitlines():
        assert line.isprintable()
        assert not line.lstrip().startswith("\\input")
    assert any(line.startswith("% ") and "x\\n\\input" in line for line in text.splitlines())


def test_no_cell_is_a_formula_and_numbers_stay_numbers(tmp_path):
    rows = list(csv.DictReader(io.StringIO(to_csv(report_of(tmp_path / "run", "=1+1")))))
    assert (rows[0]["model"], rows[0]["backbone"]) == ("'=1+1", f"'{FORMULA}")
    assert float(rows[0]["value"]) == 0.99


def test_markdown_holds_no_html_and_no_further_row(tmp_path):
    text = to_markdown(report_of(tmp_path / "run", "<script>\n| x |"))
    assert "<script>" not in text
    assert "\n| x |" not in text


def test_predictions_are_read_as_they_were(run):
    names = ["=a/b/c/d.png", "'=x", "+1", "plain", "'quoted'"]
    with (run / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [["path", "label", "defect_type", "score"], *([to_cell(n), 0, to_cell(n), 0.5] for n in names)]
        )
    found = read_predictions(read_run(run))
    assert [row.path for row in found] == names
    assert [row.defect_type for row in found] == names


def test_a_name_changes_no_terminal(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run\x1b[2J\x07"
    code, lines = told(monkeypatch, capsys, "report", folder)
    assert code == 2
    assert lines[0].isprintable()
    write_run(folder, names=("a\x1b[2Jb", "c"))
    monkeypatch.setattr(sys, "argv", ["oddpatch", "report", str(folder)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "\x1b[2J" not in capsys.readouterr().out
