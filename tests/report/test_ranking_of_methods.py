"""Comparison of methods over categories, against published tables and a worked example."""

import itertools

import numpy as np
import pytest
from finished_runs import MVTEC, PATCHCORE, write_run
from PIL import Image
from scipy.stats import chi2
from typer.testing import CliRunner

from oddpatch.cli.main import app
from oddpatch.errors import ConfigError
from oddpatch.report.columns import columns_of
from oddpatch.report.ranks import draw_ranks, rank_methods, rank_values
from oddpatch.report.runs import find_runs

#: Table 6 of Demsar (2006): AUC of C4.5, C4.5+m, C4.5+cf and C4.5+m+cf on 14 data sets.
DEMSAR = np.array([
    [.763, .768, .771, .798], [.599, .591, .590, .569], [.954, .971, .968, .967], [.628, .661, .654, .657],
    [.882, .888, .886, .898], [.936, .931, .916, .931], [.661, .668, .609, .685], [.583, .583, .563, .625],
    [.775, .838, .866, .875], [1.0, 1.0, 1.0, 1.0], [.940, .962, .965, .962], [.619, .666, .614, .669],
    [.972, .981, .9751, .975], [.957, .978, .946, .970],
])  # fmt: skip


def test_the_worked_example_of_demsar():
    found = rank_values(DEMSAR, ["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"])
    ranks = dict(zip(found.names, found.mean_ranks, strict=True))
    assert ranks == pytest.approx({"C4.5": 3.143, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}, abs=6e-4)
    assert found.names[0] == "C4.5+m+cf"
    # 2.569 sqrt(4 * 5 / (6 * 14)) = 1.25: at 5 % none of the pairs differs, as is said there.
    assert found.critical_difference == pytest.approx(1.25, abs=5e-3)
    assert found.groups == ((0, 3),)


@pytest.mark.parametrize(
    ("methods", "quantile"),
    [(3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102), (10, 3.164)],
)
def test_the_critical_values_are_those_printed(methods, quantile):
    """Table 5(a) of Demsar (2006), whose last digit is not always rounded."""
    values = np.random.default_rng(0).random((20, methods))
    found = rank_values(values, [str(i) for i in range(methods)])
    assert found.critical_difference / np.sqrt(methods * (methods + 1) / 120) == pytest.approx(quantile, abs=1e-3)


def test_friedman_by_its_formula_and_groups_by_every_pair():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(15, 6)) + np.array([0, 0.2, 1.5, 1.6, 3.0, 0.1])
    found = rank_values(values, list("abcdef"))
    ranks = np.argsort(np.argsort(-values, axis=1), axis=1) + 1.0
    statistic = 12 * 15 / (6 * 7) * (np.sum(ranks.mean(0) ** 2) - 6 * 7**2 / 4)
    assert found.p_value == pytest.approx(chi2(5).sf(statistic))
    together = {pair for first, last in found.groups for pair in itertools.combinations(range(first, last + 1), 2)}
    near = {(i, j) for i, j in itertools.combinations(range(6), 2)
            if found.mean_ranks[j] - found.mean_ranks[i] < found.critical_difference}  # fmt: skip
    assert together == near
    assert 1 < len(found.groups) < 6


def test_methods_that_are_all_alike():
    found = rank_values(np.ones((4, 3)), list("abc"))
    assert (found.p_value, found.groups) == (1.0, ((0, 2),))
    assert "do not differ" in found.lines[0]


@pytest.fixture
def runs(tmp_path):
    """Four methods on six categories, one of which the last lacks."""
    rng = np.random.default_rng(0)
    for place, ratio in enumerate((0.1, 0.2, 0.3, 0.4)):
        for category in list(MVTEC)[: 6 if place < 3 else 5]:
            value = 0.9 - 0.1 * place + 0.01 * float(rng.random())
            folder = tmp_path / f"runs/{ratio}/{category}"
            write_run(folder, category, model={**PATCHCORE, "coreset_ratio": ratio}, image_auroc=value)
    return tmp_path / "runs"


def test_the_columns_of_a_report_are_ranked_on_what_all_have(runs, tmp_path):
    found = rank_methods(columns_of(find_runs([runs])), "image_auroc")
    assert found.num_categories == 5
    assert found.left_out == (sorted(list(MVTEC)[:6], key=list(MVTEC).index)[5],)
    assert [name[-3:] for name in found.names] == ["0.1", "0.2", "0.3", "0.4"]
    assert list(found.mean_ranks) == [1, 2, 3, 4]
    draw_ranks(found, tmp_path / "cd.png")
    assert Image.open(tmp_path / "cd.png").width > 900
    with pytest.raises(ConfigError, match="2 of the columns have image_auroc: ranks take three or more"):
        rank_methods(columns_of(find_runs([runs / "0.1", runs / "0.2"])), "image_auroc")
    with pytest.raises(ConfigError, match="0 of the columns have pixel_auroc"):
        rank_methods(columns_of(find_runs([runs])), "pixel_auroc")


def test_the_command_writes_the_picture_and_says_what_it_shows(runs, tmp_path):
    told = CliRunner().invoke(app, ["report", str(runs), "--critical-difference", str(tmp_path / "cd.png")])
    assert told.exit_code == 0, told.output
    assert "(Friedman, p = " in told.output
    assert "two differ if their mean ranks are 2.098 apart (Nemenyi, 95%)" in " ".join(told.output.split())
    assert (tmp_path / "cd.png").is_file()
