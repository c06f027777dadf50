"""`oddpatch export`, `bench`, and `predict` with an artifact."""

import json

import pytest
from conftest import make_dataset, use_tiny_backbone
from test_pipeline import run, tiny
from typer.testing import CliRunner

from oddpatch.cli import bench as benching
from oddpatch.cli.main import app
from oddpatch.errors import CheckpointError, ConfigError
from oddpatch.export import exporting
from oddpatch.inference.bench import measure, size_on_disk

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    make_dataset(root, good=20)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        run(tiny(root, root / "run"))
        invoke("export", root / "run")
        yield root


def invoke(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def test_export_tells_what_it_compared(place):
    told = invoke("export", place / "run", "--out", place / "part.onnx")
    assert f"written: {place / 'part.onnx'}, " in told
    assert "MB, float32" in told
    assert "scores differ by" in told
    assert "no decision changed" in told


def test_changed_decisions_are_listed(place, monkeypatch):
    measured = exporting.compare
    odd = place / "tile/test/good/000.png"
    monkeypatch.setattr(exporting, "compare", lambda *given: measured(*given)._replace(changed=[odd]))
    told = invoke("export", place / "run", "--precision", "float16", "--max-changed-decisions", 1)
    assert f"changed decision: {odd}" in told
    assert (place / "run/model-float16.onnx").is_file()


def test_predict_takes_an_artifact_as_it_takes_a_run(place):
    image = place / "tile/test/spot/000.png"
    ours, theirs = (
        json.loads(invoke("predict", model, image, code=1)) for model in (place / "run", place / "run/model.onnx")
    )
    assert theirs["score"] == pytest.approx(ours["score"], rel=1e-5)
    assert theirs["regions"][0]["box"] == ours["regions"][0]["box"]


def test_an_artifact_is_measured(place):
    path = place / "run/model.onnx"
    found = measure(path, 2)
    assert (found.engine, found.batch, found.size) == ("onnxruntime", 2, path.stat().st_size)
    assert 0 < found.p50 <= found.p95
    assert found.rate == pytest.approx(2 / found.p50)
    assert found.start_up > 0
    assert found.memory > 50e6
    assert size_on_disk(place / "run") == (place / "run/checkpoints/fitted.ckpt").stat().st_size


def test_bench_has_a_line_for_each_engine_and_batch(place, monkeypatch):
    monkeypatch.setattr(benching, "measure_apart", lambda model, batch, engine: {
        "engine": engine or "own", "batch": batch, "start_up": 1.5, "p50": 0.02, "p95": 0.04, "rate": 50.0 * batch,
        "memory": 300e6, "size": 7e6,
    })  # fmt: skip
    told = invoke("bench", place / "run", place / "run/model.onnx", "--engine", "torch,openvino", "--batch-size", "1,8")
    rows = [line.split()[1:] for line in told.splitlines()[1:]]
    assert [row[:2] for row in rows] == [
        ["torch", "1"], ["torch", "8"], ["openvino", "1"], ["openvino", "8"], ["own", "1"], ["own", "8"]
    ]  # fmt: skip
    assert rows[1] == ["torch", "8", "20.0", "40.0", "400.0", "1.50", "300", "7.0"]


def test_bench_starts_a_process_for_each(place):
    found = benching.measure_apart(place / "run/model.onnx", 1, "")
    assert found["engine"] == "onnxruntime"
    with pytest.raises(CheckpointError, match=r"missing\.onnx cannot be read"):
        benching.measure_apart(place / "missing.onnx", 1, "")


@pytest.mark.parametrize("given", ["0", "1,x", "-2"])
def test_batches_that_cannot_be_are_refused(place, given):
    with pytest.raises(ConfigError, match=f"--batch-size={given}: give numbers of 1 or more"):
        invoke("bench", place / "run", "--batch-size", given)


def test_a_model_that_is_not_there_is_refused_before_any_is_measured(place, capsys):
    with pytest.raises(CheckpointError, match="nowhere does not exist: give the folder of a finished run, or an artif"):
        CliRunner().invoke(app, ["bench", str(place / "run"), "nowhere"], catch_exceptions=False)
