"""Curves over the number of good images."""

import pytest
from finished_runs import write_run

from oddpatch.errors import ConfigError
from oddpatch.report.columns import columns_of
from oddpatch.report.few_shot import curves_of, draw_shots
from oddpatch.report.runs import find_runs


def columns(folder):
    return columns_of(find_runs([folder]))


def test_runs_that_differ_in_shots_make_a_curve(tmp_path):
    for shots, values in ((1, (0.5, 0.7)), (4, (0.8, 0.8)), (None, (0.9,))):
        for seed, value in enumerate(values):
            for category, gain in (("bottle", 0), ("cable", 0.1)):
                write_run(
                    tmp_path / f"{shots}-{seed}-{category}", category, image_auroc=value - gain,
                    num_train_images=shots or 200, data={"shots": shots, "shots_seed": seed},
                )  # fmt: skip
    write_run(tmp_path / "tile", "tile", image_auroc=0.1, data={"shots": 1})  # with one shot only: left out
    (points,) = curves_of(columns(tmp_path), "image_auroc").values()
    assert [point.shots for point in points] == [1, 4, 200]
    assert [point.mean for point in points] == pytest.approx([0.55, 0.75, 0.85])
    assert [point.spread for point in points] == pytest.approx([0.02**0.5, 0, 0])
    draw_shots(columns(tmp_path), tmp_path / "shots.png")
    assert (tmp_path / "shots.png").read_bytes()[:4] == b"\x89PNG"


def test_other_differences_are_no_curve(tmp_path):
    write_run(tmp_path / "a", data={"shots": 1})
    write_run(tmp_path / "b", data={"shots": 2, "resize": 320})
    with pytest.raises(ConfigError, match=r"no runs with image_auroc differ in data\.shots alone: train with -m"):
        draw_shots(columns(tmp_path), tmp_path / "shots.png")
