"""Published recipes: what they take, what is said where something is missing, and the verdict on their numbers."""

import csv
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from finished_runs import MVTEC, write_run
from omegaconf import OmegaConf
from PIL import Image
from typer.testing import CliRunner

from oddpatch.cli.main import app
from oddpatch.errors import ConfigError
from oddpatch.hydra_entry.calling import composed
from oddpatch.report.published import published
from oddpatch.report.runs import read_run
from oddpatch.sweep import reproduction
from oddpatch.sweep.reproduction import Finding, NothingPublishedError, Recipe, all_reproduced, judge, prepare

TEN = next(p for p in published() if p.variant == "PatchCore-10%" and p.sources[0].source_id == "patchcore_paper")
RECIPE = Recipe("patchcore_wr50_10", tuple(MVTEC), (0, 1, 2))


def value(category, metric="image_auroc"):
    return TEN.values["mvtec_ad", category, metric]


@pytest.fixture
def bottle(tmp_path):
    """A folder of datasets, with a bottle of MVTec AD of as many test images as were published on."""
    base = tmp_path / "data/mvtec/bottle"
    for kind, count in (("train/good", 3), ("test/good", 20), ("test/broken", 63)):
        (base / kind).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(base / kind / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def weights(monkeypatch):
    """Every weight is at hand."""
    monkeypatch.setattr(reproduction, "find_weights", lambda backbone: None)


def test_recipes_are_found_by_name_or_by_what_it_begins_with():
    known = reproduction.recipes_named("all")
    assert len(known) > 40
    assert reproduction.recipes_named("spade_wr50") == ["spade_wr50"]
    assert reproduction.recipes_named("procon") == [name for name in known if name.startswith("procon_")] != []
    with pytest.raises(ConfigError, match=r"there is no recipe patchcore_wr51: choose all or .*patchcore_wr50_1"):
        reproduction.recipes_named("patchcore_wr51")


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("name", "seeds"),
    [
        ("patchcore_wr50_10", (0, 1, 2)),
        ("patchcore_ensemble", (0, 1, 2)),
        ("procon_b14_1", (0, 1, 2)),
        ("padim_r18", (0, 1, 2)),
        ("spade_wr50", (0,)),
        ("rad_b16", (0,)),
        ("anomalydino_s14_448", (0,)),  # keeps every patch
        ("padim_effnet_b5", (0,)),  # keeps every feature
    ],
)
def test_a_method_that_draws_numbers_runs_with_three_seeds(bottle, name, seeds):
    recipe = prepare(name, bottle)
    assert recipe == Recipe(name, ("bottle",), seeds)
    command = recipe.command(bottle / "out", bottle)
    assert command[:2] == ["-m", f"experiment={name}"]
    assert f"seed={','.join(map(str, seeds))}" in command
    assert "data.category=bottle" in command


@pytest.mark.usefixtures("weights")
def test_few_shot_recipes_run_with_other_images(bottle):
    recipe = prepare("anomalydino_s14_672_shots", bottle)
    assert (recipe.seeds, recipe.seeded_by) == ((0, 1, 2), "data.shots_seed")
    assert "data.shots_seed=0,1,2" in recipe.command(bottle / "out", bottle)
    assert prepare("subspacead_g14_shots", bottle).seeds == (42, 43, 44)  # from the paper's on


def test_runs_with_other_images_are_one_number(tmp_path):
    name, rows = "anomalydino_s14_672_shots", []
    with composed("train", {"experiment": name, "paths.data_dir": "/data"}, tmp_path) as cfg:
        settings: dict[str, Any] = {
            part: OmegaConf.to_container(cfg[part], resolve=True) for part in ("model", "backbone", "data")
        }
    for category in MVTEC:
        for seed, value in enumerate((0.95, 0.96, 0.98)):
            job = f"{category}-{seed}"
            data = {**settings["data"], "category": category, "shots_seed": seed}
            run = {"model": "anomalydino", "backbone": "dinov2_s", "data": "mvtec", "category": category}
            changed = {"data": data, "run": {**run, "image_size": [672, 672]}, "num_train_images": 1}
            write_run(tmp_path / job, category, **{**settings, **changed}, image_auroc=value)
            rows.append({"job": job, "status": "done", "reason": "", "category": category, "varies": job})
    write_table(tmp_path, rows)
    findings = judge(Recipe(name, tuple(MVTEC), (0, 1, 2), "data.shots_seed"), tmp_path, 0.01)
    (mean,) = (f for f in findings if f.difference is not None)  # the paper's row of all images is another matter
    assert (mean.category, mean.published) == ("average", 0.966)
    assert mean.ours == pytest.approx(np.mean((0.95, 0.96, 0.98)))
    assert mean.verdict == "reproduced"


@pytest.mark.usefixtures("weights")
def test_rows_of_a_dataset_without_known_categories_disturb_nothing(bottle):
    assert prepare("padim_r18_anomalib", bottle).categories == ("bottle",)  # whose source has ShanghaiTech (STC) too


def test_missing_data_and_weights_are_said(bottle, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    assert "no pretrained weights for wide_resnet50_2" in prepare("spade_wr50", bottle).obstacle
    absent = prepare("padim_lite0", tmp_path / "nowhere").obstacle
    assert "no such data folder" in absent
    assert "get the owner's images at https://www.mvtec.com" in absent
    (bottle / "mvtec/bottle/test/good/0.png").unlink()
    assert "holds bottle, not with the images that were published on" in prepare("padim_lite0", bottle).obstacle
    shutil.rmtree(bottle / "mvtec/bottle")
    assert "holds no category" in prepare("padim_lite0", bottle).obstacle
    with pytest.raises(NothingPublishedError, match="lunar_r34: no published numbers are known"):
        prepare("lunar_r34", bottle)


def finished(folder, categories=tuple(MVTEC), off=None, lost=()):
    """What a sweep leaves: a run of each category and seed with the published number, and its table."""
    rows = []
    for category in categories:
        for seed in range(3):
            job = f"{category}-{seed}"
            if category not in lost:
                metrics = {"image_auroc": min(value(category) + (off or {}).get(category, 0.001 * (seed - 1)), 1.0)}
                write_run(folder / job, category, **metrics)
            status, reason = ("failed", "out of memory") if category in lost else ("done", "")
            rows.append({"job": job, "status": status, "reason": reason, "category": category, "varies": job})
    write_table(folder, rows)


def write_table(folder, rows):
    with (folder / "sweep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def of_paper(findings, category, metric="image_auroc"):
    (one,) = (f for f in findings if f.category == category and f.metric == metric and "patchcore_paper" in f.source)
    return one


def test_numbers_are_those_of_the_runs_and_of_the_paper(tmp_path):
    finished(tmp_path)
    findings = judge(RECIPE, tmp_path, 0.01)
    found = of_paper(findings, "carpet")
    runs = [read_run(tmp_path / f"carpet-{seed}").metrics["image_auroc"] for seed in range(3)]
    assert (found.runs, found.published) == (3, value("carpet"))
    assert found.ours == pytest.approx(np.mean(runs))
    assert found.difference == pytest.approx(np.mean(runs) - value("carpet"))
    mean = of_paper(findings, "average")
    assert mean.published == value("average")
    assert mean.ours == pytest.approx(np.mean([of_paper(findings, c).ours for c in MVTEC]))
    assert {f.verdict for f in findings if "patchcore_paper" in f.source} == {"reproduced"}


def test_what_is_off_or_lost_is_not_reproduced(tmp_path):
    finished(tmp_path / "off", off={"carpet": -0.02})
    findings = judge(RECIPE, tmp_path / "off", 0.01)
    assert of_paper(findings, "carpet").verdict == "not reproduced"
    assert of_paper(findings, "carpet").why.startswith("off by more than 0.01")
    assert of_paper(findings, "tile").verdict == "reproduced"
    assert not all_reproduced(findings)
    finished(tmp_path / "lost", lost=["carpet"])
    findings = judge(RECIPE, tmp_path / "lost", 0.01)
    assert [f.why for f in findings if f.verdict == "not run"] == [f"carpet-{i}: out of memory" for i in range(3)]
    assert (of_paper(findings, "average").verdict, of_paper(findings, "average").why) == (
        "not compared",
        "14 of 15 categories",
    )
    assert not all_reproduced(findings)


def test_the_exit_code_is_of_what_was_compared():
    good = Finding("a", difference=0.0, verdict="reproduced")
    assert all_reproduced([good, Finding("a", verdict="not compared")])
    assert not all_reproduced([good, Finding("b", verdict="not compared")])
    assert not all_reproduced([good, Finding("b", why="no weights")])
    assert not all_reproduced([good, good._replace(verdict="not reproduced")])
    assert not all_reproduced([])


@pytest.mark.usefixtures("weights")
def test_the_command_writes_one_table(bottle, tmp_path, monkeypatch):
    ran = []

    def run(recipe, folder, data):
        ran.append(recipe.name)
        finished(folder, recipe.categories)

    monkeypatch.setattr(reproduction, "run", run)
    arguments = ["reproduce", "patchcore_wr50_10", "--data", str(bottle), "--out", str(tmp_path / "out")]
    told = CliRunner().invoke(app, [*arguments, "--tolerance", "0.05"])
    assert (told.exit_code, ran) == (0, ["patchcore_wr50_10"]), told.output
    assert "patchcore_wr50_10: bottle; seeds 0, 1, 2" in told.output
    with (tmp_path / "out/reproduced.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["verdict"] for row in rows} == {"reproduced", "not compared"}
    assert {row["why"] for row in rows if row["category"] == "average"} == {"1 of 15 categories"}
    shutil.rmtree(tmp_path / "out")
    assert CliRunner().invoke(app, [*arguments, "--tolerance", "0"]).exit_code == 1
    nothing = CliRunner().invoke(app, ["reproduce", "lunar_r34", "--data", str(bottle)])
    assert isinstance(nothing.exception, ConfigError)
    assert "there is nothing to compare with" in str(nothing.exception)


@pytest.mark.slow
@pytest.mark.real
def test_the_packaged_network_gives_the_figures_of_the_readme(real_bottle, tmp_path):
    """PaDiM with three seeds, as a user calls it; a second call runs nothing again."""
    call = [sys.executable, "-m", "oddpatch.cli.main", "reproduce", "padim_lite0", "--data", str(real_bottle.parent),
            "--out", str(tmp_path)]  # fmt: skip
    first = subprocess.run(call, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    with (tmp_path / "reproduced.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["category"] == "bottle"]
    assert {row["metric"]: row["verdict"] for row in rows} == dict.fromkeys(
        ("image_auroc", "pixel_auroc", "au_pro"), "reproduced"
    )
    assert {row["runs"] for row in rows} == {"3"}
    again = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout.count("is finished: skipped")) == (0, 3)
