"""The report: everything measured is on the page, nothing is loaded from elsewhere, and a browser shows it."""

import base64
import csv
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from conftest import make_dataset, use_tiny_backbone
from finished_runs import make_result
from patience import PATIENCE
from PIL import Image
from rich.console import Console
from test_pipeline import run, tiny, tiny_backbone  # noqa: F401

from oddpatch.figures.histogram import draw_scores, score_ticks
from oddpatch.report.html import headlines, next_steps
from oddpatch.results.summary import HEADLINES, not_measured, print_summary


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Folder of a run; do not change it."""
    root = tmp_path_factory.mktemp("report")
    make_dataset(root, good=45)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        run(tiny(root, root / "run", "model=patchcore", pictures=True))
    return root / "run"


def test_the_page_tells_what_was_measured_and_loads_nothing(report):
    page = (report / "report.html").read_text()
    metrics = json.loads((report / "metrics.json").read_text())
    for name in ("image_auroc", "pixel_auroc", "au_pro"):
        assert f"{metrics[name]:.4f}" in page
        low, high = metrics["confidence"][name]
        assert f"{low:.3f} \u2013 {high:.3f}" in page
    assert f"{metrics['thresholds']['image']:.4g}" in page
    for part in ("spot", "stain", "nearest normal patch", "most anomalous patch", "peak memory", "coreset_ratio"):
        assert part in page
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(""", page)
    assert page.count("<figure>") >= 4 * 5
    assert "100.0% of the area of the images is inspected, at 32x32 pixels" in page


def test_the_page_runs_its_own_script_alone(report):
    page = (report / "report.html").read_text()
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == page.count("<script") == 1
    named = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{named}'" in page


def test_the_slider_counts_what_a_threshold_finds(report, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    with (report / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    threshold = json.loads((report / "metrics.json").read_text())["thresholds"]["image"]
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--dump-dom",
         f"file://{report}/report.html"],
        capture_output=True, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    above = [sum(row["label"] == label and float(row["score"]) > threshold for row in rows) for label in "01"]
    there = [sum(row["label"] == label for row in rows) for label in "01"]
    for name, found, count in zip(("alarms", "found"), above, there, strict=True):
        assert f'<b id="{name}">{found} of {count}</b>' in done.stdout
    for row in rows:
        assert f"{row['defect_type']} / {row['path'].rpartition('/')[2]}: {float(row['score']):.4g}" in done.stdout


def test_a_browser_opens_it_without_a_complaint(report, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=500,900",
         f"--user-data-dir={tmp_path}/profile", f"--screenshot={tmp_path}/page.png", f"file://{report}/report.html"],
        capture_output=True, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    assert np.array(Image.open(tmp_path / "page.png").convert("L")).std() > 5


@pytest.mark.usefixtures("tiny_backbone")
def test_with_good_images_only_the_page_gives_the_reasons(tmp_path):
    make_dataset(tmp_path, defects=0)
    run(tiny(tmp_path, tmp_path / "run", pictures=True))
    page = (tmp_path / "run/report.html").read_text()
    assert "Not measured: image AUROC, image average precision and image F1-max (oracle) (needs both good and" in page
    assert "no defective image among 5 test images" in page


def test_names_from_files_cannot_become_markup(tmp_path, tiny_backbone):  # noqa: F811
    folder = make_dataset(tmp_path)
    (folder / "test/spot/000.png").rename(folder / "test/spot/<img src=x>.png")
    (folder / "ground_truth/spot/000_mask.png").rename(folder / "ground_truth/spot/<img src=x>_mask.png")
    run(tiny(tmp_path, tmp_path / "run", "callbacks.pictures.worst=8", pictures=True))
    page = (tmp_path / "run/report.html").read_text()
    assert "<img src=x>" not in page
    assert "&lt;img src=x&gt;" in page


def test_headlines_are_what_people_compare():
    metrics = {"image_auroc": 0.5, "image_f1_max_threshold": 3.0, "au_pro@0.05": 0.2, "image_recall@conformal": 1.0}
    rows = headlines(make_result(metrics={**metrics, "mine": 0.7}, confidence={"image_auroc": [0.4, 0.6]}))
    assert [tuple(row.values()) for row in rows] == [
        ("image AUROC", 0.5, [0.4, 0.6]),
        ("AU-PRO@0.05", 0.2, None),
        ("mine", 0.7, None),
    ]


def test_each_reason_why_something_has_no_value_is_told_once():
    absent = dict.fromkeys(
        ("pixel_auroc", "pixel_f1_max_threshold", "au_pro", "au_pro@0.05"), "2 images without a mask"
    )
    assert not_measured({"image_auroc": "one class", **absent}) == [
        "image AUROC (one class)",
        "pixel AUROC, AU-PRO and AU-PRO@0.05 (2 images without a mask)",
    ]
    assert not_measured(dict.fromkeys(HEADLINES, "nothing was tested")) == ["all metrics (nothing was tested)"]


@pytest.mark.usefixtures("tiny_backbone")
def test_missing_masks_are_told_once_and_in_words(tmp_path, capsys):
    make_dataset(tmp_path, masks=False)
    run(tiny(tmp_path, tmp_path / "run", pictures=True))
    told = capsys.readouterr().out
    assert told.count("without a mask") == 1
    assert (
        "not measured: pixel AUROC, pixel average precision, pixel F1-max (oracle), AU-PRO and AU-PRO@0.05 (8" in told
    )
    page = (tmp_path / "run/report.html").read_text()
    assert page.count("8 defective images without a mask") == 1


@pytest.mark.usefixtures("tiny_backbone")
def test_a_page_without_maps_says_nothing_of_heat(tmp_path):
    make_dataset(tmp_path)
    run(tiny(tmp_path, tmp_path / "run", "model=gaussian", "calibration=none", pictures=True))
    page = (tmp_path / "run/report.html").read_text()
    assert "Anomalous images with the lowest scores" in page
    for word in ("Heat from", "(bright)", "Outlines at"):
        assert word not in page
    assert page.count("GaussianAD scores whole images only") == 1


class Table(HTMLParser):
    """Cells of the tables of a page, row by row."""

    def __init__(self, page):
        super().__init__()
        self.rows = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def test_no_table_has_more_columns_than_fit_on_a_phone(report):
    rows = Table((report / "report.html").read_text()).rows
    assert ["threshold", "recall", "false alarms"] in rows
    assert max(map(len, rows)) == 5
    spot = next(row for row in rows if row[0] == "spot")
    assert spot[1] == "4"


@pytest.mark.parametrize("scores", [[1.0], [2.0, 2.0], [1, 2, 1e4], [-3, 0, 4]])
def test_the_histogram_takes_any_scores(scores, tmp_path):
    draw_scores({"good": scores, "spot": [5.0]}, {"threshold": 3.0}).save(tmp_path / "scores.png")
    assert Image.open(tmp_path / "scores.png").size[0] == 480  # that of the curves


@pytest.mark.parametrize(
    ("low", "high", "logarithmic", "ticks"),
    [
        (26, 210, True, [50, 100, 200]),
        (5, 45, True, [5, 10, 20]),
        (13, 39, True, [20, 30]),
        (0.003, 90, True, [0.01, 0.1, 1, 10]),
        (1e-4, 1e6, True, [1e-4, 1e-2, 1, 1e2, 1e4, 1e6]),
        (18, 68, False, [20, 30, 40, 50, 60]),
        (-3, 4, False, [-2, 0, 2, 4]),
        (21.3, 36.1, False, [25, 30, 35]),
    ],
)
def test_ticks_are_round(low, high, logarithmic, ticks):
    assert score_ticks(low, high, logarithmic) == ticks


def test_ticks_of_scores_that_hardly_differ():
    assert len(score_ticks(99.9999999, 100.0000001, False)) == 1


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("model", ["padim", "patchcore", "gaussian"])
def test_a_run_on_good_images_alone_has_a_report(tmp_path, model, recwarn, capsys):
    make_dataset(tmp_path, good=20, defects=0, test_good=0)
    chosen = [] if model == "padim" else [f"model={model}"]
    job = run(tiny(tmp_path, tmp_path / "run", *chosen, "callbacks.pictures.worst=3", pictures=True))
    assert not [warning for warning in recwarn if "across ranks is zero" in str(warning.message)]
    assert capsys.readouterr().out.count("not measured") == 1
    page, thresholds = (tmp_path / "run/report.html").read_text(), job.module.result.thresholds.described
    text = " ".join(Text(page).parts)
    assert "20 good images fitted to, 0 images tested" in text
    assert "Not measured: all metrics (the dataset has no test images)." in text
    assert f"The threshold is the score of {thresholds['set_by'][0]}" in text
    shown = re.findall(r"good / (\d+) score (\S+) (sets the threshold|passed)", text)
    scores = sorted((-it.score, it.path[-7:-4]) for it in job.module.result.good)
    assert [stem for stem, _, _ in shown] == [stem for _, stem in scores[:6]]
    set_by = {Path(path).stem for path in thresholds["set_by"]}  # two, if each is the nearest to the other
    assert [said == "sets the threshold" for _, _, said in shown] == [stem in set_by for stem, _, _ in shown]
    run_folder = tmp_path / "run"
    save = "" if model == "gaussian" else " --save overlay"
    assert f"oddpatch predict {run_folder} FOLDER{save} " in text
    assert f"oddpatch eval run={run_folder} " in text
    assert "20 support a false-alarm rate of 4.76 %, the wanted 1 % takes 99." in text
    assert ("Heat from" in text) == (model != "gaussian")
    assert "Outlines at" not in text
    assert "nearest normal" not in page  # of an image that was fitted to, it would be its own


@pytest.mark.usefixtures("tiny_backbone")
def test_a_report_without_a_threshold_says_why(tmp_path):
    make_dataset(tmp_path, good=4, defects=0, test_good=0)
    for out, setting, told in (
        ("few", "calibration=leave_one_out", "There is no threshold: 4 good images are too few"),
        ("none", "calibration=none", "There is no threshold: it was fitted with calibration=none"),
    ):
        run(tiny(tmp_path, tmp_path / out, setting))
        text = " ".join(Text((tmp_path / out / "report.html").read_text()).parts)
        assert told in text
        assert "oddpatch eval" in text
        assert "oddpatch predict" not in text


def test_next_steps_end_where_defects_were_found():
    assert next_steps(make_result([1.0, 2.0], [0, 1]), Path("run")) == []
    steps = next_steps(make_result([1.0, 2.0], [0, 0]), Path("my run"))
    assert [command for _, command in steps] == ["oddpatch eval run='my run'"]


class Text(HTMLParser):
    """Words of a page, without its style."""

    def __init__(self, page):
        super().__init__()
        self.parts, self.hidden = [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.hidden = tag == "style"

    def handle_data(self, data):
        if not self.hidden:
            self.parts += data.split()


def lines_told(job, **settings):
    file = StringIO()
    print_summary(job.module.result, job.folder, console=Console(file=file, no_color=True, **settings))
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in file.getvalue().splitlines()]


def test_the_terminals_defect_types_stand_apart_from_the_threshold(tmp_path, tiny_backbone):  # noqa: F811
    folder, name = make_dataset(tmp_path, good=45), "scratch_" * 12
    for part in ("test", "ground_truth"):
        (folder / part / "stain").rename(folder / part / name)
    job = run(tiny(tmp_path, tmp_path / "run", "calibration=holdout"))
    narrow, piped = lines_told(job, force_terminal=True, width=80), lines_told(job)
    assert max(map(len, narrow[:-1])) <= 80
    title = ["type", "images", "image", "AUROC", "called", "anomalous", "median", "score"]
    for lines in (narrow, piped):
        header = [line.split() for line in lines].index(title)
        assert lines[header - 1] == ""
        assert "threshold (conformal)" in "".join(lines[:header])
        rows = [line.split() for line in lines[header + 1 :]]
        assert [row[0] for row in rows if len(row) >= 4][:2] == ["good", rows[1][0]]
        assert next(row for row in rows if row and row[0] == "spot")[1:3] == ["4", "1.0000"]
    assert [line.split()[0] for line in piped if name in line] == [name]  # in a file no name is broken
