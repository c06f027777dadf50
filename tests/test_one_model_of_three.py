"""One model of three products, and an image that is of none: what the run, predict, the report and artifacts say."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from conftest import use_tiny_backbone
from PIL import Image
from test_pipeline import config, run, tiny
from typer.testing import CliRunner

from oddpatch import AnomalyDetector, pipeline
from oddpatch.checkpoint import read_checkpoint, write_checkpoint
from oddpatch.cli.main import app
from oddpatch.errors import CheckpointError
from oddpatch.export.exporting import export
from oddpatch.factory import CHECKPOINT
from oddpatch.inference.recalibration import calibrate
from oddpatch.inference.records import read_records
from oddpatch.inference.update import good_images

pytestmark = pytest.mark.slow

COLORS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 210)}
STRANGER = (240, 230, 90)


def write(path, color, rng, defect=False):
    """A plate of a colour, a little brighter or darker than others, with noise and perhaps a small dark square."""
    image = np.array(color) * rng.uniform(0.95, 1.05) + rng.normal(0, 4, (48, 48, 3))
    mask = np.zeros((48, 48), np.uint8)
    if defect:
        y, x = rng.integers(8, 34, 2)
        mask[y : y + 6, x : x + 6] = 255
        image[mask > 0] *= 0.3
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    return mask


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("products"), np.random.default_rng(0)
    for name, color in COLORS.items():
        for i in range(14):
            write(folder / name / f"train/good/{i:03}.png", color, rng)
        for i in range(4):
            write(folder / name / f"test/good/{i:03}.png", color, rng)
            mask = write(folder / name / f"test/dent/{i:03}.png", color, rng, defect=True)
            truth = folder / name / f"ground_truth/dent/{i:03}_mask.png"
            truth.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(truth)
    write(folder / "blue/test/mixed_up/000.png", STRANGER, rng)
    shutil.copy(folder / "blue/test/mixed_up/000.png", folder / "stranger.png")
    return folder


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        out = tmp_path_factory.mktemp("run") / "run"
        settings = ["data.category=[red,green,blue]", "calibration.target_fpr=0.05"]
        run(tiny(root, out, *settings, pictures=True))
        yield out


def rows_of(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return {row["path"].split("/", 1)[-1]: row for row in csv.DictReader(file)}


def test_the_test_names_products_and_the_stranger(finished):
    rows = list(rows_of(finished).values())
    strangers = [row for row in rows if row["reason"]]
    assert [row["defect_type"] for row in strangers] == ["mixed_up"]
    assert strangers[0] | {"is_anomalous": "1", "product": "", "reason": "belongs to no product"} == strangers[0]
    assert all(row["product"] == row["category"] for row in rows if not row["reason"])


def test_rates_and_counts_are_those_of_the_decisions(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    rows = list(rows_of(finished).values())
    defective = [row["is_anomalous"] == "1" for row in rows if row["label"] == "1"]
    assert metrics["image_recall@conformal"] == pytest.approx(np.mean(defective))
    told = metrics["thresholds"]["product"]
    assert (told["names"], told["num_images"]) == (["red", "green", "blue"], 42)
    assert told["supported_fpr"] == pytest.approx(2 / 43)  # the second highest of 42


def test_the_report_says_it(finished):
    page = (finished / "report.html").read_text()
    assert "1 test image belongs to no product" in page
    assert "belongs to no product</title>" in page


@pytest.mark.parametrize("format_", ["jsonl", "csv", "parquet"])
def test_predict_gives_product_and_reason(finished, root, tmp_path, format_):
    results = tmp_path / f"results.{format_}"
    images = [str(root / "stranger.png"), str(root / "red/test/good/000.png")]
    done = CliRunner().invoke(app, ["predict", str(finished), *images, "--results", str(results)])
    assert done.exit_code == 1, done.output
    stranger, good = read_records(results)
    assert (stranger["is_anomalous"], stranger["reason"]) == (True, "belongs to no product")
    assert "product" not in stranger
    assert (good["product"], good.get("reason")) == ("red", None)
    drift = json.loads(CliRunner().invoke(app, ["drift", str(finished), str(results), "--json"]).output)
    assert (drift["parts"], drift["anomalous"]) == (2, 1)
    again = CliRunner().invoke(app, ["predict", str(finished), *images, "--results", str(results), "--resume"])
    assert "2 held already" in again.output, again.output


def test_a_line_for_people_says_it():
    from oddpatch.cli.common import line_of

    record = {"path": "a.png", "score": 1.5, "p_value": None, "regions": [], "is_anomalous": True}
    line = line_of({**record, "product": None, "reason": "belongs to no product"}, "anomalous")
    assert line == "anomalous        1.5  a.png  belongs to no product"


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_artifact_says_the_same(finished, root, kind):
    artifact = AnomalyDetector.load(export(finished, kind).path)
    reference = AnomalyDetector.load(finished)
    paths = [str(root / "stranger.png"), *map(str, sorted(root.glob("*/test/good/*.png")))]
    for found, expected in zip(artifact(paths), reference(paths), strict=True):
        assert (found.product, found.reason, found.is_anomalous) == (
            expected.product, expected.reason, expected.is_anomalous,
        )  # fmt: skip
    assert artifact(paths[0]).reason == "belongs to no product"


def test_eval_repeats_it(finished, tmp_path, monkeypatch):
    use_tiny_backbone(monkeypatch)
    pipeline.rebuild(config("eval", f"run={finished}", "callbacks.pictures=null", out=tmp_path / "eval")).test()
    assert (tmp_path / "eval/predictions.csv").read_text() == (finished / "predictions.csv").read_text()


def test_new_good_images_set_the_limit_of_products_too(finished, root, tmp_path, monkeypatch):
    use_tiny_backbone(monkeypatch)
    folder = tmp_path / "good"
    rng = np.random.default_rng(9)
    for i in range(20):
        write(folder / f"{i}.png", STRANGER, rng)
    image = str(folder / "0.png")
    assert AnomalyDetector.load(finished)(image).reason == "belongs to no product"
    done = calibrate(finished, good_images(folder), folder)
    assert f"{image} belongs to no product so far: is it good" in done.doubtful
    assert re.match(r"no image is of \w+( and \w+)?, and the thresholds are for all products", done.doubtful[0])
    assert AnomalyDetector.load(done.folder)(image).reason is None


def test_without_a_threshold_products_are_named_and_nobody_is_a_stranger(root, tmp_path, monkeypatch):
    use_tiny_backbone(monkeypatch)
    run(tiny(root, tmp_path / "run", "data.category=[red,green,blue]", "calibration=none"))
    rows = list(rows_of(tmp_path / "run").values())
    assert {row["reason"] for row in rows} == {""}
    assert {row["product"] for row in rows} == {*COLORS}


@pytest.mark.parametrize(
    ("name", "value"),
    [("names", ["red", 7]), ("names", ["red"]), ("product", 3), ("product", -1), ("tokens", None), ("good", None)],
)
def test_a_checkpoint_whose_products_do_not_go_together_is_refused(finished, tmp_path, name, value):
    content = read_checkpoint(finished / CHECKPOINT)
    state = content["state_dict"]
    if name == "names":
        content["oddpatch"]["products"] = value
    elif value is None:
        state[f"model.products.{name}"] = state[f"model.products.{name}"][:, None]
    else:
        state["model.products.product"] = state["model.products.product"].clone().fill_(value)
    write_checkpoint(content, tmp_path / "changed.ckpt")
    with pytest.raises(CheckpointError):
        AnomalyDetector.load(tmp_path / "changed.ckpt")
