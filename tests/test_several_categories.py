"""One model of several categories: what it is fitted to, and what is said of each of them."""

import csv
import json
import shutil
from collections import Counter

import numpy as np
import pytest
from conftest import make_dataset, restore_tiny_backbone, use_tiny_backbone
from omegaconf import OmegaConf
from sklearn.metrics import roc_auc_score
from test_pipeline import config, run, tiny

from oddpatch import pipeline
from oddpatch.data.datamodule import MVTecDataModule
from oddpatch.errors import ConfigError, DataError
from oddpatch.report.runs import find_runs, read_predictions, read_run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """`tile`, and `dark`, of fewer images and without one of the types."""
    folder = tmp_path_factory.mktemp("categories")
    make_dataset(folder)
    make_dataset(folder / "other", good=9, test_good=4)
    shutil.move(folder / "other" / "tile", folder / "dark")
    shutil.rmtree(folder / "dark/test/stain")
    shutil.rmtree(folder / "dark/ground_truth/stain")
    shutil.rmtree(folder / "other")
    return folder


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        out = tmp_path_factory.mktemp("run")
        run(
            tiny(
                root,
                out,
                "data.category=[tile,dark]",
                "metrics.image._target_=oddpatch.metrics.ImageMetrics",
                pictures=True,
            )
        )
        return out


def data_of(root, category, **settings):
    return MVTecDataModule(root, category, mean=[0.5] * 3, std=[0.2] * 3, resize=32, num_workers=0, **settings)


def rows_of(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_all_good_images_are_fitted_to_and_each_knows_its_category(root):
    data = data_of(root, ["tile", "dark"])
    data.setup()
    assert [sample.category for sample in data.train_samples] == ["tile"] * 12 + ["dark"] * 9
    assert len({sample.path for sample in data.test_samples}) == len(data.test_samples) == 13 + 8


def test_all_is_what_the_root_holds(root):
    data = data_of(root, "all")
    data.setup()
    assert data.several == ["dark", "tile"]


def test_each_category_gives_its_few_images(root):
    data = data_of(root, "all", shots=2)
    data.setup()
    assert [sample.category for sample in data.train_samples] == ["dark", "dark", "tile", "tile"]


def test_each_category_is_split_for_supervised_learning(root, tmp_path):
    data = data_of(root, ["tile", "dark"])
    cfg = OmegaConf.create({"learning": {"train_share": 0.75, "validation_share": 0.0, "seed": 0}})
    data.split, data.learns_from_defects = pipeline.write_split(cfg, data, tmp_path), True
    data.setup()
    assert Counter(sample.kind for sample in data.test_samples) == {
        "tile good": 4, "tile spot": 1, "tile stain": 1, "dark good": 3, "dark spot": 1
    }  # fmt: skip
    assert len(data.train_samples) + len(data.test_samples) == 25 + 17


@pytest.mark.parametrize(
    ("category", "settings", "message"),
    [
        (["tile", "tile"], {}, "tile is named twice"),
        (["tile", "nowhere"], {}, "no such category"),
        (["tile", "dark"], {"align": "auto"}, "set data.align=null"),
        (["tile", 7], {}, "in quotes"),
    ],
)
def test_what_cannot_work_is_refused_before_images_are_read(root, category, settings, message):
    with pytest.raises((ConfigError, DataError), match=message):
        data_of(root, category, **settings).setup()


def test_metrics_are_those_of_each_category_and_their_mean(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    found = metrics["categories"]
    assert list(found) == ["tile", "dark"]
    for name, one in found.items():
        rows = [row for row in rows_of(finished) if row["category"] == name]
        assert one["num_test_images"] == len(rows)
        scores, labels = ([float(row[key]) for row in rows] for key in ("score", "label"))
        assert one["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        called = np.array([row["is_anomalous"] == "1" for row in rows])
        assert one["image_fpr@conformal"] == called[np.array(labels) == 0].mean()
    for name in ("image_auroc", "pixel_auroc", "au_pro"):
        assert metrics["category_mean"][name] == pytest.approx(np.mean([one[name] for one in found.values()]))
    assert "image_f1_max_threshold" not in metrics["category_mean"]


def test_a_type_is_compared_with_the_good_images_of_its_category(finished):
    metrics, rows = json.loads((finished / "metrics.json").read_text()), rows_of(finished)
    assert set(metrics["image_auroc_by_defect_type"]) == {"tile spot", "tile stain", "dark spot"}
    own = [row for row in rows if row["category"] == "dark"]
    expected = roc_auc_score([int(row["label"]) for row in own], [float(row["score"]) for row in own])
    assert metrics["image_auroc_by_defect_type"]["dark spot"] == pytest.approx(expected)


def test_pixels_of_a_category_are_measured_as_if_it_were_tested_alone(finished, root, monkeypatch, tmp_path):
    use_tiny_backbone(monkeypatch)
    shutil.copytree(finished, tmp_path / "run")
    cfg = config(
        "eval",
        f"run={tmp_path / 'run'}",
        "+data.category=dark",
        "+data.num_workers=0",
        "callbacks.pictures=null",
        out=tmp_path / "eval",
    )
    job = pipeline.rebuild(cfg)
    job.test()
    together = json.loads((finished / "metrics.json").read_text())["categories"]["dark"]
    alone = json.loads((tmp_path / "eval/metrics.json").read_text())
    for name in ("image_auroc", "pixel_auroc", "pixel_ap", "au_pro", "test_set"):
        assert alone[name] == together[name], name


def test_the_report_has_a_row_of_each_category(finished, capsys):
    page = (finished / "report.html").read_text()
    assert page.count("mean of the categories") == 1
    assert "dark spot" in page
    assert len(list((finished / "figures").glob("typical_*"))) == 4


def test_a_table_of_runs_takes_each_category_as_a_run(finished):
    runs = find_runs([finished])
    assert [run.category for run in runs] == ["tile", "dark"]
    assert [len(read_predictions(run)) for run in runs] == [13, 8]
    assert runs[0].metrics["image_auroc"] == read_run(finished).metrics["categories"]["tile"]["image_auroc"]


def test_the_demo_shows_the_test_images_of_all(finished, monkeypatch):
    pytest.importorskip("streamlit")
    from oddpatch.demo.server import images_of

    restore_tiny_backbone(monkeypatch)
    shown = images_of(str(finished))
    assert [str(sample.path) for sample in shown] == [row["path"] for row in rows_of(finished)]
    assert Counter(sample.kind for sample in shown)["dark good"] == 4
