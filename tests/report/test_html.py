"""The report: everything measured is on the page, nothing is loaded from elsewhere, and a browser shows it."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import make_dataset
from PIL import Image
from test_pipeline import run, tiny, tiny_backbone  # noqa: F401

from oddpatch.report.histogram import draw_scores
from oddpatch.report.html import headlines


@pytest.fixture
def report(tmp_path, tiny_backbone):  # noqa: F811
    make_dataset(tmp_path, good=45)
    run(tiny(tmp_path, tmp_path / "run", "model=patchcore"))
    return tmp_path / "run"


def test_the_page_tells_what_was_measured_and_loads_nothing(report):
    page = (report / "report.html").read_text()
    metrics = json.loads((report / "metrics.json").read_text())
    for name in ("image_auroc", "pixel_auroc", "au_pro"):
        assert f"{metrics[name]:.4f}" in page
        low, high = metrics["confidence"][name]
        assert f"{low:.3f} \u2013 {high:.3f}" in page
    assert f"{metrics['thresholds']['image']:.4g}" in page
    for part in ("spot", "stain", "nearest normal patch", "oddest patch", "peak memory", "coreset_ratio"):
        assert part in page
    assert not re.search(r"""(src|href)=["'](?!data:)|<script|@import|url\(""", page)
    assert page.count("<figure>") >= 4 * 5


def test_a_browser_opens_it_without_a_complaint(report, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=500,900",
         f"--user-data-dir={tmp_path}/profile", f"--screenshot={tmp_path}/page.png", f"file://{report}/report.html"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    assert np.array(Image.open(tmp_path / "page.png").convert("L")).std() > 5


@pytest.mark.usefixtures("tiny_backbone")
def test_with_good_images_only_the_page_gives_the_reasons(tmp_path):
    make_dataset(tmp_path, defects=0)
    run(tiny(tmp_path, tmp_path / "run"))
    page = (tmp_path / "run/report.html").read_text()
    assert "needs good and anomalous" in page or "good and anomalous" in page
    assert "fit with calibration=holdout" in page


def test_names_from_files_cannot_become_markup(tmp_path, tiny_backbone):  # noqa: F811
    folder = make_dataset(tmp_path)
    (folder / "test/spot/000.png").rename(folder / "test/spot/<img src=x>.png")
    (folder / "ground_truth/spot/000_mask.png").rename(folder / "ground_truth/spot/<img src=x>_mask.png")
    run(tiny(tmp_path, tmp_path / "run", "callbacks.pictures.worst=8"))
    page = (tmp_path / "run/report.html").read_text()
    assert "<img src=x>" not in page
    assert "&lt;img src=x&gt;" in page


def test_absent_metrics_carry_their_reason():
    rows = headlines({"image_auroc": 0.5, "absent": {"pixel_auroc": "no masks"}, "au_pro@0.05": 0.2})
    assert [(row["name"], row["value"], row["reason"]) for row in rows] == [
        ("image AUROC", 0.5, None),
        ("pixel AUROC", None, "no masks"),
        ("AU-PRO@0.05", 0.2, None),
    ]


@pytest.mark.parametrize("scores", [[1.0], [2.0, 2.0], [1, 2, 1e4], [-3, 0, 4]])
def test_the_histogram_takes_any_scores(scores, tmp_path):
    draw_scores({"good": scores, "spot": [5.0]}, {"threshold": 3.0}).save(tmp_path / "scores.png")
    assert Image.open(tmp_path / "scores.png").size[0] > 500
