"""What a report cannot show: one line with the reason."""

import pytest
from finished_runs import write_run

from oddpatch.errors import ConfigError
from oddpatch.report.columns import columns_of
from oddpatch.report.ranks import rank_methods
from oddpatch.report.roc import draw_roc
from oddpatch.report.runs import find_runs


def columns(tmp_path, *names):
    """Of runs of one category, each of a model of its own unless it has the name of another."""
    for number, name in enumerate(names):
        model = {"_target_": f"oddpatch.{name}"}
        folder = write_run(tmp_path / str(number), names=(name, "resnet18"), model=model, image_auroc=0.9)
        (folder / "predictions.csv").write_text("path,label,defect_type,score\na.png,0,good,0.1\nb.png,1,spot,0.9\n")
    return columns_of(find_runs([tmp_path]))


def test_methods_are_not_ranked_on_one_category(tmp_path):
    with pytest.raises(ConfigError, match="1 of 1 categories have image_auroc of all methods: ranks take two or more"):
        rank_methods(columns(tmp_path, "a", "b", "c"), "image_auroc")


def test_runs_on_good_images_alone_have_no_roc_curve(tmp_path):
    of_good = columns(tmp_path, "a")
    (tmp_path / "0/predictions.csv").write_text("path,label,defect_type,score\na.png,0,good,0.1\n")
    with pytest.raises(ConfigError, match="no run was tested on both good and anomalous images"):
        draw_roc(of_good, tmp_path / "roc.png")
    assert not (tmp_path / "roc.png").exists()
