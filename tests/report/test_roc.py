"""The figure of all runs' ROC curves."""

from typing import Any

from finished_runs import write_run

from oddpatch.report.columns import columns_of
from oddpatch.report.roc import draw_roc, image_curve, line_styles
from oddpatch.report.runs import find_runs


def write_predictions(folder):
    rows = ["path,label,defect_type,score", *(f"{i}.png,{i % 2},spot,{i * 7 % 5}" for i in range(9))]
    (folder / "predictions.csv").write_text("\n".join(rows) + "\n")


def test_a_run_looks_the_same_in_both_panels():
    """The panel of the pixels may lack some runs, so that places in it say nothing."""
    names = [f"run {i}" for i in range(12)]
    styles = line_styles([*names, "run 3"])
    assert list(styles) == names
    assert len({tuple(style.items()) for style in styles.values()}) == 12


def test_a_run_without_pixels_does_not_move_the_others_colours(tmp_path, monkeypatch):
    drawn: list[Any] = []

    def note(sheet, left, top, width, *, color, linestyle, linewidth):
        drawn.append((color, linestyle))

    for model in ("gaussian", "padim", "patchcore"):
        folder = write_run(tmp_path / model, names=(model, "resnet18"), model={"_target_": f"oddpatch.{model}"})
        write_predictions(folder)
    of_pixels = lambda run, name: None if "gaussian" in name else image_curve(run, name)  # noqa: E731
    monkeypatch.setattr("oddpatch.report.roc.pixel_curve", of_pixels)
    monkeypatch.setattr("oddpatch.figures.canvas.Sheet.stroke", note)
    draw_roc(columns_of(find_runs([tmp_path])), tmp_path / "roc.png")
    images, pixels = drawn[:3], drawn[3:]
    assert len(set(images)) == 3
    assert pixels == images[1:]
