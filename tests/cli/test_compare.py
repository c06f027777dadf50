"""`oddpatch compare` on runs whose scores are written by hand."""

import csv
import json

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from oddpatch.cli import main as cli
from oddpatch.metrics import ImageMetrics, PixelMetrics
from oddpatch.metrics.uncertainty.bootstrap import Confidence, image_metrics_by_draw, resample
from oddpatch.metrics.uncertainty.pixel_statistics import PixelStatistics
from oddpatch.report.runs import read_run

IMAGES = [("good", i) for i in range(8)] + [("scratch", i) for i in range(9)]
LABELS = np.array([int(kind != "good") for kind, _ in IMAGES])


def make_maps(seed, order):
    rng = np.random.default_rng(seed)
    masks = np.zeros((len(order), 24, 24), np.uint8)
    for i, place in enumerate(order):
        if LABELS[place]:
            cv2.circle(masks[i], (6 + place % 11, 12), 3, 1, -1)
    noise = np.random.default_rng(seed).normal(0, 1, (len(LABELS), 24, 24))[order]
    return (noise + rng.uniform(0.5, 1) * masks).astype(np.float32), masks


def write_run(
    folder, scores, order=None, root="/data", seed=None, limits=(0.3,), labels=LABELS, category="tile", **metrics
):
    """A run with its images in `order`; with a seed it has maps."""
    import torch

    order = np.arange(len(scores)) if order is None else np.asarray(order)
    folder.mkdir(parents=True)
    image = ImageMetrics()
    image.update(torch.tensor(scores), torch.tensor(labels), torch.arange(len(scores)))
    content = {
        **image.compute(),
        "num_train_images": 9,
        "num_test_images": len(scores),
        "weights": "w.pth",
        "absent": {},
        "fpr_limits": limits,
        "settings": {part: {"_target_": "oddpatch"} for part in ("model", "backbone", "data", "calibration")},
        **metrics,
    }
    content["run"] = {
        "model": "padim",
        "backbone": "tiny",
        "data": "custom",
        "category": category,
        "image_size": [24, 24],
    }
    if seed is not None:
        maps, masks = make_maps(seed, order)
        PixelStatistics.from_maps(maps, masks, limits).save(folder / "pixel_statistics.npz")
        pixel = PixelMetrics(limits)
        pixel.update(torch.tensor(maps)[:, None], torch.tensor(masks)[:, None], torch.arange(len(maps)))
        content |= pixel.compute()
    (folder / "metrics.json").write_text(json.dumps(content))
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "defect_type", "score", "p_value", "is_anomalous"])
        for i in order:
            kind, number = IMAGES[i]
            writer.writerow(
                [f"{root}/{category}/test/{kind}/{number:03}.png", labels[i], kind, repr(float(scores[i])), "", ""]
            )
    return folder


def oddpatch(monkeypatch, capsys, *arguments):
    """Exit code, output and error of the command line."""
    monkeypatch.setattr("sys.argv", ["oddpatch", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    told = capsys.readouterr()
    return exit_.value.code or 0, told.out, told.err


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return [(rng.normal(0, 1, len(LABELS)) + shift * LABELS).astype(np.float64) for shift in (0.5, 2.5)]


def test_differences_are_those_of_the_same_draws(tmp_path, monkeypatch, capsys, scores):
    a, b = write_run(tmp_path / "a", scores[0]), write_run(tmp_path / "b", scores[1], root="/elsewhere/tile")
    code, out, _ = oddpatch(monkeypatch, capsys, "compare", a, b, "--json", "--draws", 500, "--level", 0.9)
    told = json.loads(out)
    assert code == 0
    found = {metric["metric"]: metric for metric in told["metrics"]}
    assert list(found) == ["image_auroc", "image_ap", "image_f1_max"]
    weights = resample(LABELS, 500, 0)
    drawn = [image_metrics_by_draw(s, LABELS, weights)["image_auroc"] for s in scores]
    assert found["image_auroc"]["second"] == pytest.approx(roc_auc_score(LABELS, scores[1]))
    ends = np.quantile(drawn[1] - drawn[0], [0.05, 0.95])
    assert [found["image_auroc"]["low"], found["image_auroc"]["high"]] == pytest.approx(ends)
    assert found["image_auroc"]["p_value"] < 0.05
    assert 0 < found["image_auroc"]["delong_p_value"] < 0.05
    assert "pixel_statistics.npz" in told["absent"]["pixel metrics"]


def test_a_run_does_not_differ_from_itself_in_another_order(tmp_path, monkeypatch, capsys, scores):
    a = write_run(tmp_path / "a", scores[0], seed=3)
    b = write_run(tmp_path / "b", scores[0], order=np.random.default_rng(1).permutation(len(LABELS)), seed=3)
    found = json.loads(oddpatch(monkeypatch, capsys, "compare", a, b, "--json", "--draws", 200)[1])
    assert {metric["metric"] for metric in found["metrics"]} >= {"image_auroc", "pixel_auroc", "pixel_ap", "au_pro"}
    for metric in found["metrics"]:
        assert (metric["low"], metric["high"]) == pytest.approx((0, 0), abs=1e-12), metric["metric"]
        assert metric["p_value"] == 1.0
    assert found["metrics"][0]["delong_p_value"] is None  # without variance


def test_the_table_fits_80_columns(tmp_path, monkeypatch, capsys, scores):
    monkeypatch.setenv("COLUMNS", "80")
    a, b = write_run(tmp_path / "a", scores[0], seed=1), write_run(tmp_path / "b", scores[1], seed=2)
    _, out, _ = oddpatch(monkeypatch, capsys, "compare", a, b, "--draws", 100)
    table = [line for line in out.splitlines() if line.startswith(("metric", "image", "pixel", "au_pro"))]
    assert len(table) == 8
    assert max(map(len, table)) <= 80
    assert "DeLong's test of image AUROC: p =" in out
    assert "100 draws" in out


def test_au_pro_to_different_limits_is_not_compared(tmp_path, monkeypatch, capsys, scores):
    a = write_run(tmp_path / "a", scores[0], seed=1, limits=(0.3, 0.1))
    b = write_run(tmp_path / "b", scores[1], seed=2, limits=(0.05,))
    found = json.loads(oddpatch(monkeypatch, capsys, "compare", a, b, "--json", "--draws", 50)[1])
    assert "au_pro" not in {metric["metric"] for metric in found["metrics"]}
    assert found["absent"]["au_pro"] == "integrated to 0.3 in one run and to 0.05 in the other"


def test_other_images_are_refused_with_the_name_of_one(tmp_path, monkeypatch, capsys, scores):
    a = write_run(tmp_path / "a", scores[0])
    fewer = write_run(tmp_path / "fewer", scores[0], order=range(15))
    other = write_run(tmp_path / "other", scores[0], category="plate")
    changed = write_run(tmp_path / "changed", scores[0], labels=np.where(np.arange(17) == 8, 0, LABELS))
    twice = write_run(tmp_path / "twice", scores[0], order=[0, *range(17)])
    for run, told in (
        (fewer, "tile/test/scratch/007.png and 1 more in"),
        (other, "tile/test/good/000.png and 16 more in"),
        (changed, "tile/test/scratch/000.png is good in one run and anomalous in the other"),
        (twice, "has two images that are both tile/test/good/000.png"),
        (tmp_path / "nowhere", "metrics.json does not exist"),
    ):
        code, _, error = oddpatch(monkeypatch, capsys, "compare", a, run)
        assert code == 2
        assert told in error
        assert error.count("\n") == 1


def test_other_images_of_the_same_names_are_refused(tmp_path, monkeypatch, capsys, scores):
    a = write_run(tmp_path / "a", scores[0], test_set="ab")
    moved = write_run(tmp_path / "moved", scores[1], root="/elsewhere", test_set="ab")
    other = write_run(tmp_path / "other", scores[1], test_set="cd")
    assert oddpatch(monkeypatch, capsys, "compare", a, moved, "--draws", 20)[0] == 0
    code, _, error = oddpatch(monkeypatch, capsys, "compare", a, other, "--draws", 20)
    assert code == 2
    assert "have the same names and are others, by their sizes: test one again by oddpatch eval" in error
    assert error.count("\n") == 1


def test_broken_predictions_are_named(tmp_path, monkeypatch, capsys, scores):
    a, b = write_run(tmp_path / "a", scores[0]), write_run(tmp_path / "b", scores[1])
    (b / "predictions.csv").write_text("path,label\nx,1\n")
    assert "b/predictions.csv cannot be read" in oddpatch(monkeypatch, capsys, "compare", a, b)[2]
    (b / "predictions.csv").unlink()
    assert "b/predictions.csv does not exist" in oddpatch(monkeypatch, capsys, "compare", a, b)[2]


def test_one_class_leaves_the_image_metrics_out(tmp_path, scores):
    from oddpatch.report.comparison import compare_runs

    good = LABELS * 0
    runs = [read_run(write_run(tmp_path / name, scores[i], labels=good)) for i, name in enumerate("ab")]
    found, absent = compare_runs(runs[0], runs[1], Confidence(20))
    assert found == []
    assert absent["image metrics"] == "needs both good and anomalous: got 17 and 0"


@pytest.mark.parametrize("option", [("--draws", 0), ("--level", 2), ("--seed", -1)])
def test_settings_that_cannot_work_are_refused(tmp_path, monkeypatch, capsys, scores, option):
    a = write_run(tmp_path / "a", scores[0])
    code, _, error = oddpatch(monkeypatch, capsys, "compare", a, a, *option)
    assert code == 2
    assert f"{option[0].strip('-')}={option[1]}" in error
