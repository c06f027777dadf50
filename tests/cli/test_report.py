"""`oddpatch report` from the command line: every format, its files, and whole runs."""

import csv
import io
import json

import numpy as np
import pytest
from conftest import make_dataset
from finished_runs import write_all
from finished_runs import write_run as write_metrics
from PIL import Image
from sklearn.metrics import roc_curve
from test_compare import LABELS, oddpatch, write_run
from test_pipeline import run as run_job
from test_pipeline import tiny, tiny_backbone  # noqa: F401

from oddpatch.data.layout import fingerprint, scan
from oddpatch.report.columns import columns_of
from oddpatch.report.roc import image_curve, pixel_curve
from oddpatch.report.runs import find_runs, read_run


@pytest.fixture
def runs(tmp_path):
    """Two categories of one model, with scores and maps."""
    rng = np.random.default_rng(0)
    for seed, category in enumerate(("tile", "plate")):
        write_run(tmp_path / "runs" / category, rng.normal(0, 1, 17) + 2 * LABELS, seed=seed, category=category)
    return tmp_path / "runs"


@pytest.mark.parametrize("kind", ["terminal", "markdown", "csv", "latex", "json", "html"])
def test_every_format_goes_to_the_terminal_or_to_a_file(runs, tmp_path, monkeypatch, capsys, kind):
    code, out, _ = oddpatch(monkeypatch, capsys, "report", runs, "--format", kind)
    assert code == 0
    assert "tile" in out
    assert "plate" in out
    file = tmp_path / "new/table.txt"
    code, out, error = oddpatch(monkeypatch, capsys, "report", runs, "--format", kind, "--output", file)
    assert (code, out) == (0, "")
    assert f"written: {file}" in error.replace("\n", "")
    assert "plate" in file.read_text()


def test_metrics_are_chosen_and_defaults_are_those_that_are_there(runs, monkeypatch, capsys):
    out = oddpatch(monkeypatch, capsys, "report", runs, "--format", "csv")[1]
    assert {row["metric"] for row in csv.DictReader(io.StringIO(out))} == {"image_auroc", "pixel_auroc", "au_pro"}
    out = oddpatch(
        monkeypatch, capsys, "report", runs, "--format", "csv", "--metric", "image_ap", "--metric", "pixel_ap"
    )[1]
    assert {row["metric"] for row in csv.DictReader(io.StringIO(out))} == {"image_ap", "pixel_ap"}
    code, _, error = oddpatch(monkeypatch, capsys, "report", runs, "--metric", "imageauroc")
    assert code == 2
    assert "no run has the metric imageauroc: choose of" in error


def test_published_numbers_stand_beside_with_the_tolerance_asked_for(tmp_path, monkeypatch, capsys):
    write_all(tmp_path)
    arguments = ("report", tmp_path, "--metric", "image_auroc", "--published", "--format", "csv")
    found = {}
    for tolerance in (0.01, 0.2):
        rows = csv.DictReader(io.StringIO(oddpatch(monkeypatch, capsys, *arguments, "--tolerance", tolerance)[1]))
        found[tolerance] = [row["within_tolerance"] for row in rows if row["published_source"] == "patchcore_paper"]
    assert len(found[0.01]) == 18  # 15 categories and 3 averages
    assert set(found[0.2]) == {"True"}
    assert set(found[0.01]) == {"False"}


def test_results_json_has_the_published_form(runs, tmp_path, monkeypatch, capsys):
    file = tmp_path / "results.json"
    assert oddpatch(monkeypatch, capsys, "report", runs, "--results-json", file)[0] == 0
    told = json.loads(file.read_text())
    assert list(told)[:2] == ["plate", "tile"]
    assert set(told["tile"]) == {"cm", "prfs", "auc_img", "auc_pxl"}
    run = read_run(runs / "tile")
    (kept, alarms), (misses, found) = told["tile"]["cm"]
    assert (kept + alarms, misses + found) == (8, 9)
    precision, recall, f1, support = told["tile"]["prfs"]
    assert f1 == pytest.approx(run.metrics["image_f1_max"])
    assert f1 == pytest.approx(2 * precision * recall / (precision + recall))
    assert support is None
    assert told["tile"]["auc_pxl"] == run.metrics["pixel_auroc"]
    assert told["avg_auc_img"] == pytest.approx((told["tile"]["auc_img"] + told["plate"]["auc_img"]) / 2)
    assert told["misclassified"] == sum(told[name]["cm"][0][1] + told[name]["cm"][1][0] for name in ("tile", "plate"))
    assert {"model_params", "metric"} <= told.keys()


def test_results_json_refuses_several_models(runs, tmp_path, monkeypatch, capsys):
    write_metrics(tmp_path / "runs/other")
    code, _, error = oddpatch(monkeypatch, capsys, "report", runs, "--results-json", tmp_path / "r.json")
    assert code == 2
    assert "holds one model, these runs are of 2" in error
    assert not (tmp_path / "r.json").exists()


def test_roc_curves_are_scikit_learns_and_exact_at_the_bins(runs):
    run = read_run(runs / "tile")
    with (runs / "tile/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    curve, pixels = image_curve(run, "tile"), pixel_curve(run, "tile")
    assert curve is not None
    assert pixels is not None
    fpr, tpr, _ = roc_curve([int(row["label"]) for row in rows], [float(row["score"]) for row in rows])
    np.testing.assert_allclose(curve.fpr, fpr)
    np.testing.assert_allclose(curve.tpr, tpr)
    assert (pixels.fpr[0], pixels.tpr[0], pixels.fpr[-1], pixels.tpr[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(pixels.tpr, pixels.fpr) == pytest.approx(run.metrics["pixel_auroc"], abs=2e-3)


def test_the_roc_figure_is_a_picture_of_all_categories(runs, tmp_path, monkeypatch, capsys):
    file = tmp_path / "roc.png"
    assert oddpatch(monkeypatch, capsys, "report", runs, "--roc", file)[0] == 0
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 400
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # a line each, and its key
        assert (pixels == color).all(axis=2).sum() > 200


def test_a_whole_run_is_reported_with_its_intervals(tiles, tmp_path, tiny_backbone, monkeypatch, capsys):  # noqa: F811
    job = run_job(tiny(tiles, tmp_path / "run", "callbacks.results.confidence.draws=40"))
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    for name, (low, high) in metrics["confidence"].items():
        assert low <= metrics[name] + 1e-3, name
        assert metrics[name] - 1e-3 <= high, name
    assert set(metrics["confidence"]) == {
        "image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "au_pro",
        "au_pro@0.05",
    }  # fmt: skip
    assert metrics["confidence_settings"]["draws"] == 40
    assert metrics["test_set"] == fingerprint(scan(tiles, "tile").test, tiles / "tile")
    assert metrics["operating"]["average_latency_ms"] > 0
    assert metrics["operating"]["region_overlap"]["num_regions"] == 8
    assert metrics["operating"]["recall_at_false_alarm_rate"][2]["resolved"] is False  # of 5 good images
    (column,) = columns_of(find_runs([tmp_path]))
    value = column.value("own", "tile", "image_auroc")
    assert value is not None
    assert value.interval == tuple(metrics["confidence"]["image_auroc"])
    assert job.module.result.statistics.num_images == 13
    code, out, _ = oddpatch(monkeypatch, capsys, "compare", tmp_path / "run", tmp_path / "run", "--draws", 50)
    assert code == 0
    assert "pixel_auroc" in out


def test_without_masks_the_statistics_of_an_earlier_test_go_and_without_draws_the_intervals(tmp_path, tiny_backbone):  # noqa: F811
    make_dataset(tmp_path, masks=False)
    out = tmp_path / "run"
    out.mkdir()
    (out / "pixel_statistics.npz").write_bytes(b"of an earlier test")
    run_job(tiny(tmp_path, out, "callbacks.results.confidence.draws=0"))
    metrics = json.loads((out / "metrics.json").read_text())
    assert "confidence" not in metrics
    assert "region_overlap" not in metrics["operating"]
    assert not (out / "pixel_statistics.npz").exists()
