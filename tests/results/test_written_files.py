"""The files of a test are functions of its result: whatever else is written, and in whatever order."""

import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_dataset, use_tiny_backbone
from finished_runs import make_result
from test_pipeline import config, run, tiny

from oddpatch import pipeline
from oddpatch.hydra_entry import building
from oddpatch.metrics.configured import RESERVED
from oddpatch.report.columns import columns_of
from oddpatch.report.runs import read_predictions, read_run
from oddpatch.results.files import to_json, write_results

WRITERS = ("log", "results", "pictures", "report")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A job whose callbacks are listed the other way round."""
    root = tmp_path_factory.mktemp("finished")
    make_dataset(root / "data", good=20)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        cfg = tiny(root / "data", root / "run", "model=patchcore", pictures=True)
        cfg.callbacks = {name: cfg.callbacks[name] for name in reversed(WRITERS)}
        yield run(cfg), cfg


def test_callbacks_write_the_same_in_any_order(finished, tmp_path):
    job, cfg = finished
    written = []
    for number, order in enumerate((WRITERS, WRITERS[::-1], ("pictures", "report", "results", "log"))):
        folder = tmp_path / str(number)
        for name in order:
            callback = building.make(cfg.callbacks[name])
            callback.folder = folder / "figures" if name == "pictures" else folder
            callback.write(job.module.result, SimpleNamespace(loggers=[]))
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        written.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
    assert len(written[0]) > 15
    assert written[0] == written[1] == written[2]
    # Those of the run itself are these, listed in another order.
    for name, content in written[0].items():
        assert (job.folder / name).read_bytes() == content, name


def test_metrics_json_holds_the_result_and_no_metric_can_hide_in_it(finished):
    job, _ = finished
    result, written = job.module.result, json.loads((job.folder / "metrics.json").read_text())
    assert written == json.loads(json.dumps(to_json(result)))
    assert {key: written[key] for key in result.metrics} == result.metrics
    assert written.keys() == result.metrics.keys() | set(RESERVED)
    assert written["confidence"].keys() <= result.metrics.keys()
    assert "layer_dim" in written["settings"]["model"]  # a default that the config does not name
    assert written["settings"]["model"]["coreset_ratio"] == job.module.model.detector.coreset_ratio
    assert written["fpr_limits"] == [0.3, 0.05]


def test_rows_are_those_of_predictions_csv(finished):
    job, _ = finished
    with (job.folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    wanted = [
        (row.path, str(row.label), repr(row.p_value), str(int(row.is_anomalous))) for row in job.module.result.rows
    ]
    assert [(row["path"], row["label"], row["p_value"], row["is_anomalous"]) for row in rows] == wanted
    assert [row.index for row in job.module.result.rows] == list(range(len(rows)))


def test_a_result_of_nothing_is_written_and_statistics_of_an_earlier_one_go(tmp_path):
    (tmp_path / "pixel_statistics.npz").touch()
    names = {"model": "m", "backbone": "b", "data": "d", "category": "c", "image_size": [8, 8]}
    parts = {part: {"_target_": "t"} for part in ("model", "backbone", "data", "calibration")}
    write_results(make_result(config={"run": names}, settings=parts), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "predictions.csv"]
    assert read_predictions(read_run(tmp_path)) == []


def test_without_pictures_the_report_has_none(finished, tmp_path):
    job, cfg = finished
    out = tmp_path / "run"
    run(tiny(cfg.data.root, out, "callbacks.pictures=null", "callbacks.results=null", "calibration=none"))
    page = (out / "report.html").read_text()
    assert "<img" not in page
    assert re.search(r"image AUROC</span>\s*<b>1\.0000", page)
    assert "confidence interval" not in page  # which results would have asked for
    assert not (out / "metrics.json").exists()
    assert job.module.result.examples is not None


def test_a_users_metrics_are_measured_logged_and_written(finished, tmp_path, capsys):
    _, cfg = finished
    own = [
        "+metrics.spread._target_=own_metrics.Spread", "+metrics.highest._target_=own_metrics.Highest",
        "+metrics.theirs._target_=torchmetrics.classification.BinaryAUROC", "~metrics.pixel", "objective=spread",
        "callbacks.report=null", "logger=csv", "calibration=none",
    ]  # fmt: skip
    again = run(tiny(cfg.data.root, tmp_path, *own))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    rows = again.module.result.rows
    highest = [max(row.score for row in rows if row.label == label) for label in (0, 1)]
    assert metrics["spread"] == again.measured("spread") == pytest.approx(highest[1] - highest[0], rel=1e-6)
    assert metrics["anomalous"] > metrics["good"] > 0
    assert metrics["absent"]["both"] == "it is a Tensor (2,), not one number"
    assert 0 <= metrics["theirs"] <= 1
    assert not [key for key in metrics if key.startswith(("pixel", "au_pro"))]
    assert not (tmp_path / "pixel_statistics.npz").exists()
    assert not (tmp_path / "figures/pro.png").exists()
    (logged,) = csv.DictReader((tmp_path / "csv/metrics.csv").open())
    assert float(logged["spread"]) == pytest.approx(metrics["spread"], rel=1e-5)
    assert "spread " in capsys.readouterr().out
    assert read_run(tmp_path).fpr_limit is None


def test_without_any_metric_scores_are_written(finished, tmp_path):
    _, cfg = finished
    again = run(tiny(cfg.data.root, tmp_path, "metrics.image=null", "~metrics.pixel", "callbacks.report=null"))
    assert len(read_predictions(read_run(tmp_path))) == len(again.module.result.rows) == 13
    assert again.measured("image_auroc") is None
    assert not [key for key in again.module.result.metrics if "@" not in key]


def test_a_test_of_a_run_has_the_settings_of_the_run(finished, tmp_path):
    job, _ = finished
    changes = [
        "+data.on_error=skip",
        "metrics.pixel.fpr_limits=[0.1]",
        "callbacks.progress=null",
        "callbacks.report=null",
    ]
    again = pipeline.rebuild(config("eval", f"run={job.folder}", *changes, "trainer.accelerator=cpu", out=tmp_path))
    again.test()
    first, second = read_run(job.folder), read_run(tmp_path)
    assert second.settings == {**first.settings, "data": {**first.settings["data"], "on_error": "skip"}}
    assert (first.fpr_limit, second.fpr_limit) == (0.3, 0.1)
    assert len(columns_of([first, second])) == 1
    np.testing.assert_array_equal(again.module.result.scores, job.module.result.scores)
    assert [image.score for image in again.module.result.good] == [image.score for image in job.module.result.good]
