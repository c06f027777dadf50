"""Whole runs on images that a crop would cut, or that hold fewer bits than their files: nothing is passed over."""

import json

import numpy as np
import pytest
from conftest import make_dataset
from PIL import Image
from test_pipeline import run, tiny, tiny_backbone  # noqa: F401

from oddpatch import AnomalyDetector


def write_strips(root, rng):
    """Line scans of 32x320 pixels with their defects near the left end."""
    for part, count in (("train/good", 12), ("test/good", 6), ("test/spot", 6)):
        for number in range(count):
            pixels = 100 + 20 * np.sin(np.arange(320) / 5)[None, :, None] + rng.normal(0, 5, (32, 320, 3))
            mask = np.zeros((32, 320), np.uint8)
            if part == "test/spot":
                mask[12:20, 20 + 5 * number : 32 + 5 * number] = 255
                pixels[mask > 0] = [250, 240, 60]
                path = root / f"tile/ground_truth/spot/{number}_mask.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(path)
            path = root / f"tile/{part}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def test_defects_at_the_end_of_a_line_scan_are_found(tmp_path, tiny_backbone, caplog):  # noqa: F811
    write_strips(tmp_path, np.random.default_rng(0))
    run(tiny(tmp_path, tmp_path / "whole", "data=custom", "~data.crop", "model=patchcore", "model.coreset_ratio=1"))
    whole = json.loads((tmp_path / "whole/metrics.json").read_text())
    assert whole["run"]["image_size"] == [32, 320]
    assert whole["inspected"] == {"mean": 1.0, "min": 1.0}
    assert whole["image_auroc"] == 1.0
    assert whole["pixel_auroc"] > 0.95
    caplog.clear()
    run(tiny(tmp_path, tmp_path / "cropped", "model=patchcore", "model.coreset_ratio=1"))
    cropped = json.loads((tmp_path / "cropped/metrics.json").read_text())
    assert cropped["inspected"] == {"mean": 0.1, "min": 0.1}
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert any(line.startswith("10.0% of the area of the images is inspected") for line in warned)
    assert any(line.startswith("6 of 6 masks: no defect pixel is left") for line in warned)
    detector = AnomalyDetector.load(tmp_path / "cropped", threshold=0.0)
    assert detector(str(tmp_path / "tile/test/spot/0.png")).inspected == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("bits", [10, 12])
def test_bits_of_the_sensor_do_not_change_what_is_found(tmp_path, tiny_backbone, bits):  # noqa: F811
    make_dataset(tmp_path / "eight")
    for path in (tmp_path / "eight").rglob("*.png"):
        deep = tmp_path / "deep" / path.relative_to(tmp_path / "eight")
        deep.parent.mkdir(parents=True, exist_ok=True)
        if "ground_truth" in path.parts:
            deep.write_bytes(path.read_bytes())
            continue
        grey = np.asarray(Image.open(path).convert("L"))
        Image.fromarray(grey).save(path)
        Image.fromarray(np.round(grey * ((2**bits - 1) / 255)).astype(np.uint16)).save(deep)
    values = []
    for name in ("eight", "deep"):
        job = run(tiny(tmp_path / name, tmp_path / f"run-{name}", "calibration=none"))
        values.append(json.loads((tmp_path / f"run-{name}/metrics.json").read_text()))
    assert job.data.preprocess.full_scale == 2**bits - 1
    for metric in ("image_auroc", "pixel_auroc", "au_pro"):
        assert values[1][metric] == pytest.approx(values[0][metric], abs=2e-3), metric
    eight = AnomalyDetector.load(tmp_path / "run-eight", threshold=0.0)
    deep = AnomalyDetector.load(tmp_path / "run-deep", threshold=0.0)
    for name in ("good/000", "spot/000"):
        path = tmp_path / f"deep/tile/test/{name}.png"
        as_8_bit = eight(str(tmp_path / f"eight/tile/test/{name}.png")).score
        assert deep(str(path)).score == pytest.approx(as_8_bit, rel=0.01)
        assert deep(np.asarray(Image.open(path)).astype(np.uint16)).score == deep(str(path)).score


@pytest.mark.real
@pytest.mark.slow
def test_a_blob_at_the_edge_of_a_real_bottle_counts(tmp_path, real_bottle):
    good = sorted((real_bottle / "bottle/train/good").iterdir())
    (tmp_path / "parts/bottle/train/good").mkdir(parents=True)
    (tmp_path / "parts/bottle/test/good").mkdir(parents=True)
    (tmp_path / "parts/bottle/test/blob").mkdir(parents=True)
    for path in good[:24]:
        (tmp_path / "parts/bottle/train/good" / path.name).symlink_to(path)
    pixels = np.array(Image.open(good[24]))
    Image.fromarray(pixels).save(tmp_path / "parts/bottle/test/good/a.png")
    pixels[:44, 400:444] = [20, 120, 20]
    Image.fromarray(pixels).save(tmp_path / "parts/bottle/test/blob/a.png")
    settings = ["data=custom", "~data.crop", "data.category=bottle", "data.resize=256", "model=patchcore"]
    run(tiny(tmp_path / "parts", tmp_path / "run", *settings, "backbone.weights=pretrained", "calibration=none"))
    rows = {line.split(",")[2]: float(line.split(",")[3]) for line in
            (tmp_path / "run/predictions.csv").read_text().splitlines()[1:]}  # fmt: skip
    assert rows["blob"] > 1.5 * rows["good"]
