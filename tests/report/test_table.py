"""Columns, averages and every format of the table, over runs that are written by hand."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from finished_runs import MVTEC, PATCHCORE, WIDE_RESNET, write_all, write_run
from narrowing import present
from rich.console import Console

from oddpatch.errors import CheckpointError, ConfigError
from oddpatch.report.columns import Share, Value, columns_of
from oddpatch.report.datasets import DATASETS, TEXTURES, dataset_of
from oddpatch.report.formats import print_terminal, to_csv, to_json, to_latex, to_markdown
from oddpatch.report.page import heat_style, to_html
from oddpatch.report.runs import FinishedRun, find_runs, identity, read_run
from oddpatch.report.table import build_report


def test_runs_are_found_at_any_depth_and_evaluations_within_them_are_not(tmp_path):
    write_run(tmp_path / "sweep/0-a")
    write_run(tmp_path / "sweep/deep/er/1-b")
    write_run(tmp_path / "sweep/0-a/eval/later")
    assert [run.folder.name for run in find_runs([tmp_path])] == ["0-a", "1-b"]
    again = find_runs([tmp_path / "sweep/0-a", tmp_path / "sweep/0-a/eval/later", tmp_path / "sweep/0-a/."])
    assert [run.folder.name for run in again] == ["0-a", "later"]
    with pytest.raises(ConfigError, match=r"nowhere holds no metrics.json"):
        find_runs([tmp_path / "nowhere"])


def test_a_broken_file_is_named(tmp_path):
    for text, told in (("{", "cannot be read"), ("[1]", "not written by oddpatch"), ('{"a": 1}', "not written by")):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(CheckpointError, match=told) as error:
            read_run(tmp_path)
        assert "\n" not in str(error.value)


def test_a_run_that_nothing_names_is_refused(tmp_path):
    folder = write_run(tmp_path / "run")
    content = json.loads((folder / "metrics.json").read_text())
    for key in ("run", "settings", "fpr_limits"):
        (folder / "metrics.json").write_text(json.dumps({**content, key: None}))
        with pytest.raises(CheckpointError, match=f"{key} is not as oddpatch writes it: test the run again"):
            read_run(folder)


@pytest.mark.parametrize(
    ("path", "category", "wanted"),
    [
        ("/data/mvtec/bottle/test/good/000.png", "bottle", "bottle/test/good/000.png"),
        ("bottle/test/good/000.png", "bottle", "bottle/test/good/000.png"),
        ("/scratch/data/scratch/test/scratch/1.png", "scratch", "scratch/test/scratch/1.png"),
        ("/d/pcb/test/defective/bent/1.png", "pcb", "pcb/test/defective/bent/1.png"),
        ("/d/renamed/test/good/1.png", "pcb", "renamed/test/good/1.png"),
    ],
)
def test_an_image_is_the_same_wherever_its_dataset_lies(path, category, wanted):
    assert identity(path, FinishedRun(Path(), {"run": {"category": category}})) == wanted


def test_datasets_are_recognised_by_their_test_images_too():
    assert dataset_of("bottle", 83) == "mvtec_ad"
    assert dataset_of("bottle", 12) == "own"
    assert dataset_of("pcb1", 200) == "visa"
    assert dataset_of("vial", 140) == "mvtec_ad2"
    assert dataset_of("housing", 83) == "own"
    assert sum(size.train for size in MVTEC.values()) == 3629  # as MVTec AD's authors count
    assert sum(size.test for size in MVTEC.values()) == 1725
    visa = DATASETS["visa"].categories.values()
    assert (sum(size.train for size in visa), sum(size.test for size in visa)) == (8659, 2162)
    second = DATASETS["mvtec_ad2"].categories.values()
    assert (sum(size.train for size in second), sum(size.test for size in second)) == (2528, 1084)


def test_columns_are_settings_and_their_labels_say_what_differs(tmp_path):
    write_run(tmp_path / "a", "bottle", data={"batch_size": 1})
    write_run(tmp_path / "b", "cable", backbone={**WIDE_RESNET, "engine": "torch", "precision": "fp32"})
    write_run(tmp_path / "c", model={**PATCHCORE, "coreset_ratio": 0.01})
    write_run(tmp_path / "d", calibration={"method": "holdout", "fraction": 0.2, "minimum": 20})
    write_run(tmp_path / "e", names=("padim", "resnet18"))
    write_run(tmp_path / "f", names=("padim", "resnet18"), weights="random")
    columns = columns_of(find_runs([tmp_path]))
    assert [[run.folder.name for run in column.runs] for column in columns] == [["e"], ["f"], ["a", "b"], ["c"], ["d"]]
    assert [column.label for column in columns[2:]] == [
        "patchcore wide_resnet50, coreset_ratio=0.1",
        "patchcore wide_resnet50, coreset_ratio=0.01",
        "patchcore wide_resnet50, holdout=0.2, coreset_ratio=0.1",
    ]
    assert [column.is_random for column in columns] == [False, True, False, False, False]


def test_averages_are_given_only_where_every_category_is_there(tmp_path):
    write_all(tmp_path)
    (column,) = columns_of(find_runs([tmp_path]))
    places = {category: 0.9 + place / 1000 for place, category in enumerate(MVTEC)}
    everything = column.average("mvtec_ad", MVTEC, "image_auroc")
    textures = column.average("mvtec_ad", sorted(TEXTURES), "image_auroc")
    assert isinstance(everything, Value)
    assert isinstance(textures, Value)
    assert everything.mean == pytest.approx(sum(places.values()) / 15)
    assert textures.mean == pytest.approx(sum(places[name] for name in TEXTURES) / 5)
    assert column.average("mvtec_ad", [*MVTEC, "pcb"], "image_auroc") == Share(15, 16)
    assert column.average("mvtec_ad", MVTEC, "pixel_auroc") == Share(0, 15)


def test_incomplete_averages_say_of_how_many(tmp_path):
    write_all(tmp_path, skip=("wood", "zipper"))
    write_run(tmp_path / "own", "housing")
    rows = {(row.dataset, row.name): row for row in build_report(find_runs([tmp_path]), ["image_auroc"]).grids[0].rows}
    assert rows["mvtec_ad", "average"].cells[0].text == "13 of 15"
    assert rows["mvtec_ad", "textures"].cells[0].text == "4 of 5"
    assert rows["mvtec_ad", "objects"].cells[0].text == "9 of 10"
    assert rows["own", "housing"].cells[0].text == "0.9900"
    assert ("own", "average") not in rows  # of one category


def test_several_seeds_are_averaged_and_counted(tmp_path):
    for seed, value in enumerate((0.9, 0.92, 0.97)):
        write_run(tmp_path / str(seed), image_auroc=value, model={**PATCHCORE, "seed": seed})
    (column,) = columns_of(find_runs([tmp_path]))
    mean = column.value("mvtec_ad", "bottle", "image_auroc")
    assert mean is not None
    assert (mean.mean, mean.runs, mean.spread) == (pytest.approx(0.93), 3, pytest.approx(0.0360555))
    write_run(tmp_path / "single/run", confidence={"image_auroc": [0.8, 1.0]})
    (single,) = columns_of(find_runs([tmp_path / "single"]))
    assert single.value("mvtec_ad", "bottle", "image_auroc") == Value(0.99, interval=(0.8, 1.0))


def test_runs_of_two_datasets_with_one_category_name_are_not_averaged(tmp_path):
    """A folder of one's own may be called `bottle` too: its number of test images is another."""
    write_run(tmp_path / "public", "bottle", image_auroc=0.9)
    write_run(tmp_path / "own", "bottle", image_auroc=0.5, num_test_images=40)
    write_run(tmp_path / "other", "cable", image_auroc=0.7, num_test_images=40)
    runs = find_runs([tmp_path])
    (column,) = columns_of(runs)
    assert column.value("mvtec_ad", "bottle", "image_auroc") == Value(0.9)
    assert column.value("own", "bottle", "image_auroc") == Value(0.5)
    rows = build_report(runs, ["image_auroc"]).grids[0].rows
    assert [(row.dataset, row.label, row.cells[0].text) for row in rows] == [
        ("mvtec_ad", "bottle", "0.9000"),
        ("mvtec_ad", "objects, 10", "1 of 10"),
        ("mvtec_ad", "all, 15", "1 of 15"),
        ("own", "bottle", "0.5000"),
        ("own", "cable", "0.7000"),
        ("own", "all, 2", "0.6000"),
    ]


def test_own_datasets_of_one_category_name_are_told_apart_wherever_they_lie(tmp_path):
    write_run(tmp_path / "0", "housing", image_auroc=0.9, test_set="ab", data={"root": "/line_1"})
    write_run(tmp_path / "1", "housing", image_auroc=0.8, test_set="ab", data={"root": "/moved"})
    write_run(tmp_path / "2", "housing", image_auroc=0.5, test_set="cd", data={"root": "/line_2"})
    write_run(tmp_path / "3", "lid", image_auroc=0.6, test_set="ef", data={"root": "/line_2"})
    runs = find_runs([tmp_path])
    columns = columns_of(runs)
    assert len(columns) == 1
    report = build_report(runs, ["image_auroc"])
    rows = {row.label: row.cells[0].text for row in report.grids[0].rows}
    expected = {"housing (/line_1)": "0.8500", "housing (/line_2)": "0.5000", "lid": "0.6000", "all, 3": "0.6500"}
    assert rows == expected
    for text in (to_csv(report), to_json(report), to_markdown(report), to_html(report)):
        assert "housing (/line_2)" in text


def test_own_images_that_have_changed_where_they_are_are_told_apart(tmp_path):
    write_run(tmp_path / "0", "housing", image_auroc=0.9, test_set="0123456789")
    write_run(tmp_path / "1", "housing", image_auroc=0.7, test_set="abcdef0123")
    write_run(tmp_path / "2", "housing", image_auroc=0.5)
    rows = build_report(find_runs([tmp_path]), ["image_auroc"]).grids[0].rows
    assert [row.label for row in rows] == [
        "housing (/data, test set 01234567)", "housing (/data, test set abcdef01)",
        "housing (/data, test set unknown)", "all, 3",
    ]  # fmt: skip


@pytest.fixture
def report(tmp_path):
    """Two models on two datasets with published numbers, one of the models with random weights."""
    write_all(tmp_path / "wr50", pixel_auroc=0.981)
    write_run(tmp_path / "bad", "bottle", weights="random", image_auroc=0.4)
    write_run(tmp_path / "own", "part_a|b", absent={"pixel_auroc": "no masks"})
    return build_report(find_runs([tmp_path]), ["image_auroc", "pixel_auroc"], with_published=True)


def test_random_weights_are_marked_everywhere(report):
    written = io.StringIO()
    print_terminal(report, Console(file=written, width=80))
    for text in (written.getvalue(), to_markdown(report), to_html(report)):
        assert "0.4000†" in text
        assert "random weights: not a result" in text
    assert r"0.4000$\dagger$" in to_latex(report)
    assert {row["random_weights"] for row in csv.DictReader(io.StringIO(to_csv(report)))} == {"True", "False"}


@pytest.mark.parametrize("width", [80, 45])
def test_the_terminal_is_not_too_narrow_for_any_column(report, width):
    written = io.StringIO()
    print_terminal(report, Console(file=written, width=width))
    text = written.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for heading in report.headings:
        assert re.search(rf"^{heading.key}: ", text, re.MULTILINE)
        assert any(heading.key in line.split() for line in text.splitlines())
    for line in text.splitlines():  # what is compared is repeated in every part
        if re.fullmatch(r"[\d a-z]*\d[a-z][\d a-z]*", line.strip()):
            assert "2" in line.split()


def test_markdown_is_a_table_of_equal_rows(report):
    lines = [line for line in to_markdown(report).splitlines() if line.startswith("|")]
    counts = {len(re.findall(r"(?<!\\)\|", line)) for line in lines[:19]}
    assert counts == {len(report.grids[0].headings) + 2}
    assert "part_a\\|b" in "".join(lines)


def test_latex_has_as_many_cells_in_every_row_and_escapes(report):
    text = to_latex(report)
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and not line.startswith(r"\multicolumn")]
    first = rows[: len(report.grids[0].rows) + 1]
    assert {line.count("&") for line in first} == {len(report.grids[0].headings)}
    assert r"metal\_nut" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2


def test_csv_and_json_hold_full_precision_and_the_same(report):
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    told = json.loads(to_json(report))
    assert len(rows) == len(told["records"])
    cable = [row for row in rows if row["category"] == "cable" and row["metric"] == "image_auroc"]
    assert {float(row["value"]) for row in cable} == {0.901}
    paper = next(row for row in cable if row["published_source"] == "patchcore_paper")
    assert float(paper["difference"]) == pytest.approx(0.901 - 0.994)
    assert paper["within_tolerance"] == "False"
    assert [len(column["folders"]) for column in told["columns"]] == [1, 16]


def luminance(color):
    """Relative luminance of an sRGB colour as WCAG 2 defines it."""
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_html_is_well_formed_self_contained_and_readable(report):
    page = to_html(report)
    body = present(re.search(r"<body>.*</body>", page, re.DOTALL)).group().replace("<br>", "<br/>")
    ET.fromstring(body)
    assert "http" not in page
    assert "<script" not in page
    assert 'name="viewport"' in page
    for step in range(101):
        style = re.fullmatch(r"background: rgb\((.*)\); color: (#\w+)", heat_style(step / 100))
        background, text = present(style).groups()
        lightness = luminance(tuple(map(int, background.split(", ")))) + 0.05
        black, white = lightness / 0.05, 1.05 / lightness
        assert (black if text == "#000" else white) == max(black, white) >= 4.5
    assert luminance((255, 255, 255)) == pytest.approx(1)


def test_a_metric_that_no_run_has_is_refused(tmp_path):
    write_run(tmp_path / "a")
    with pytest.raises(ConfigError, match="no run has the metric pixel_auroc: choose of image_auroc"):
        build_report(find_runs([tmp_path]), ["pixel_auroc"])
    with pytest.raises(ConfigError, match="tolerance=-1"):
        build_report(find_runs([tmp_path]), ["image_auroc"], tolerance=-1)
