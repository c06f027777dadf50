"""Numbers that a whole run writes, against what is computed by hand from its images and maps."""

import csv
import json
import re
import shutil
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import make_dataset, use_tiny_backbone
from test_pipeline import run, tiny

from oddpatch import pipeline
from oddpatch.errors import DataError
from oddpatch.metrics.uncertainty.pixel_statistics import PixelStatistics

MIN_AREA, TARGET_FPR = 7, 0.3
SETTINGS = (
    "calibration=holdout", "calibration.minimum=8", f"calibration.min_area={MIN_AREA}",
    f"calibration.target_fpr={TARGET_FPR}", "data.validation=0.25",
)  # fmt: skip
#: Seconds that a batch takes on the clock of `finished`.
TRAIN, VALIDATION, TEST = 100, 10, 7


class Clock(L.Callback):
    """Stands for the clock of the module; every batch takes as long as its stage says."""

    def __init__(self):
        self.now = 0

    def on_train_batch_start(self, *_):
        self.now += TRAIN

    def on_validation_batch_start(self, *_):
        self.now += VALIDATION

    def on_test_batch_start(self, *_):
        self.now += TEST


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Root of the data, the job and the folder of a run with both thresholds of images and one of pixels."""
    root = tmp_path_factory.mktemp("finished")
    make_dataset(root / "data", good=20)
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        for module in ("scoring", "one_epoch"):
            patch.setattr(f"oddpatch.learning.{module}.time", SimpleNamespace(perf_counter=lambda: clock.now))
        job = pipeline.build(tiny(root / "data", root / "run", *SETTINGS))
        trainer: Any = job.trainer
        trainer.callbacks.append(clock)
        job.fit()
        job.calibrate()
        job.test()
    return root / "data", job, root / "run"


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def predictions(folder):
    with (folder / "predictions.csv").open() as file:
        return [
            (row["path"], int(row["label"]), row["defect_type"], float(row["score"])) for row in csv.DictReader(file)
        ]


def require_same(found, expected, root):
    """Rows of the same images below their roots, with the same label, type and score."""
    assert [(path.removeprefix(str(root[0])), *rest) for path, *rest, _ in found] == [
        (path.removeprefix(str(root[1])), *rest) for path, *rest, _ in expected
    ]
    np.testing.assert_allclose([row[-1] for row in found], [row[-1] for row in expected], rtol=1e-5)


def of_good(module):
    return [(image.path, image.label, image.defect_type, image.score) for image in module.result.good]


def test_rows_after_a_skipped_file_are_those_of_their_images(finished, tmp_path, monkeypatch):
    """Rows numbered by their place, and not by the index of the image, would all be shifted."""
    data, whole, folder = finished
    use_tiny_backbone(monkeypatch)
    shutil.copytree(data, tmp_path / "data")
    # One that is tested and one that sets the threshold: the fit is the same.
    gone = [whole.data.test_samples[1].path, whole.data.train_samples[whole.data.held_out[1]].path]
    for path in gone:
        (tmp_path / "data" / path.relative_to(data)).write_bytes(b"no image")
    job = run(tiny(tmp_path / "data", tmp_path / "run", *SETTINGS, "data.on_error=skip"))
    roots = tmp_path / "data", data
    expected = [row for row in predictions(folder) if row[0] != str(gone[0])]
    assert len({row[-1] for row in expected}) == len(expected) == len(whole.data.test_samples) - 1
    require_same(predictions(tmp_path / "run"), expected, roots)
    require_same(of_good(job.module), [row for row in of_good(whole.module) if row[0] != str(gone[1])], roots)
    assert len(job.module.result.good) == 7


def test_min_area_decides_the_pixel_threshold(finished):
    _, job, folder = finished
    images = torch.stack([job.data.train_image(i) for i in job.data.held_out])
    with torch.no_grad():
        maps = job.module.model(images).anomaly_map.flatten(1).double().numpy()  # (8, 32 * 32)
    reached = np.sort(np.sort(maps)[:, -1 - MIN_AREA])
    wanted = reached[6]  # of 8: with the new image they are 9, of which 30 % are 2 whole ones
    thresholds = metrics_of(folder)["thresholds"]
    assert thresholds["min_area"] == MIN_AREA
    assert thresholds["pixel"] == pytest.approx(wanted, rel=1e-5)
    assert wanted < 0.999 * np.sort(maps.max(axis=1))[6], "it would be the same without"
    assert sum((maps > thresholds["pixel"] * (1 + 1e-5)).sum(axis=1) > MIN_AREA) == 1


def test_operating_figures_are_those_at_the_calibrated_thresholds(finished):
    _, _, folder = finished
    metrics = metrics_of(folder)
    thresholds, operating = metrics["thresholds"], metrics["operating"]
    assert len({thresholds["image"], thresholds["pixel"], thresholds["validation"]}) == 3
    rows = predictions(folder)
    good, anomalous = ([score for _, label, _, score in rows if label == wanted] for wanted in (0, 1))
    found = operating["at_threshold"]
    assert found["threshold"] == thresholds["image"]
    assert found["false_rejects"]["number"] == sum(score > thresholds["image"] for score in good)
    assert found["escapes"]["number"] == sum(score <= thresholds["image"] for score in anomalous)
    assert (found["false_rejects"]["total"], found["escapes"]["total"]) == (len(good), len(anomalous))
    regions = operating["region_overlap"]
    assert (regions["method"], regions["threshold"]) == ("calibrated", thresholds["pixel"])
    statistics = PixelStatistics.load(folder / "pixel_statistics.npz")
    above = np.split(statistics.defect_scores > np.float64(thresholds["pixel"]), np.cumsum(statistics.region_size)[:-1])
    assert regions["num_regions"] == len(above) == len(anomalous)
    assert regions["mean"] == pytest.approx(np.mean([region.mean() for region in above]), abs=1e-12)


def test_latency_is_that_of_the_test(finished):
    _, job, folder = finished
    count = len(job.data.test_samples)
    metrics = metrics_of(folder)
    assert metrics["operating"]["average_latency_ms"] == pytest.approx(1000 * TEST * -(-count // 5) / count)
    assert (metrics["timing"]["embed"], metrics["timing"]["test"]) == (TRAIN * 3, TEST * -(-count // 5))


def test_neither_fit_nor_test_computes_features_with_gradients(tmp_path, monkeypatch):
    """A backbone runs another network with them than without, equal up to rounding only."""
    use_tiny_backbone(monkeypatch)
    make_dataset(tmp_path / "data")
    job = pipeline.build(tiny(tmp_path / "data", tmp_path / "run", "calibration=none"))
    compute, modes = job.module.compute_features, []

    def watched(batch):
        modes.append(torch.is_grad_enabled())
        return compute(batch)

    job.module.compute_features = watched
    job.fit()
    fitted = len(modes)
    job.test()
    assert 0 < fitted < len(modes)
    assert not any(modes)


@pytest.mark.parametrize("model", ["padim", "dfm", "rad", "pyod"])
def test_features_that_are_no_numbers_are_refused_by_the_names_of_their_images(model, tmp_path, monkeypatch):
    make_dataset(tmp_path / "data", good=8)
    use_tiny_backbone(monkeypatch)
    few = ["model.num_features=20"] if model == "padim" else []
    job = pipeline.build(tiny(tmp_path / "data", tmp_path / "run", f"model={model}", "calibration=none", *few))
    compute = job.module.compute_features

    def with_nan(batch):
        features = compute(batch)
        for row, index in enumerate(batch.index.tolist()):
            if index in (2, 5):
                features[-1][row, 0, 1, 1] = torch.nan
        return features

    job.module.compute_features = with_nan
    first = sorted((tmp_path / "data/tile/train/good").iterdir())[2]
    told = f"{first}: its features and those of 1 more image are NaN, infinite or too large: check the weights of the"
    with pytest.raises(DataError, match=re.escape(told)):
        job.fit()
    assert not list((tmp_path / "run").rglob("*.safetensors"))
