"""The wheel, built from the sdist and installed into a new environment, does without a checkout what one does."""

import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import CONFIGS, ROOT, make_dataset

pytestmark = pytest.mark.slow

#: Calls what builds a package, without an environment of its own, for which it would need a network.
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
SMALL = ("data=custom", "data.category=tile", "data.resize=64", "data.num_workers=0", "trainer.accelerator=cpu",
         "callbacks.progress=null", "model.num_features=20")  # fmt: skip


def build(what, source, out):
    """The one file that is built of `source`."""
    subprocess.run([sys.executable, "-c", BUILD, what, str(out)], cwd=source, check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel), of a copy of this checkout."""
    place = tmp_path_factory.mktemp("built")
    source = place / "source"
    source.mkdir()
    shutil.copytree(
        ROOT / "src", source / "src", symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    shutil.copytree(CONFIGS, source / "configs")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (place / "sdist").mkdir()
    (place / "wheel").mkdir()
    sdist = build("build_sdist", source, place / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(place / "unpacked", filter="data")
    (unpacked,) = (place / "unpacked").iterdir()
    return sdist, build("build_wheel", unpacked, place / "wheel")


def test_the_packages_are_small_and_hold_the_configs(built):
    assert all(path.stat().st_size < 1e6 for path in built)
    with zipfile.ZipFile(built[1]) as archive:
        packed = {name.removeprefix("oddpatch/configs/"): archive.read(name) for name in archive.namelist()
                  if name.startswith("oddpatch/configs/")}  # fmt: skip
    assert packed == {path.relative_to(CONFIGS).as_posix(): path.read_bytes() for path in CONFIGS.rglob("*.yaml")}


@pytest.fixture(scope="module")
def place(built, tmp_path_factory):
    """An empty folder."""
    return tmp_path_factory.mktemp("empty folder")


@pytest.fixture(scope="module")
def oddpatch(built, place, tmp_path_factory):
    """Calls the installed `oddpatch` in the empty folder; gives what it printed."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python3*/site-packages")
    # What oddpatch needs is here already; paths in a .pth file do not bring the .pth files there along.
    (packages / "needed.pth").write_text("\n".join(site.getsitepackages()))
    python = environment / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(built[1])], check=True)
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "ODDPATCH_DATA_DIR")}

    def call(*arguments, code=0):
        done = subprocess.run(
            [environment / "bin/oddpatch", *map(str, arguments)],
            cwd=place, env=clean, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    found = [python, "-c", "import oddpatch; print(oddpatch.__file__)"]
    told = subprocess.run(found, cwd=place, env=clean, capture_output=True, text=True, check=True).stdout
    assert Path(told.strip()).parent == packages / "oddpatch"
    # A cluster that runs on this machine is not joined. The name is short, as those of sockets are.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as clean["RAY_TMPDIR"]:
        yield call


@pytest.fixture(scope="module")
def run(oddpatch, tmp_path_factory):
    """(folder of a run, images)."""
    root = tmp_path_factory.mktemp("images")
    make_dataset(root)
    oddpatch("train", *SMALL, f"data.root={root}", "hydra.run.dir=run")
    return "run", root / "tile"


def test_a_run_is_trained_and_used(oddpatch, run, place):
    folder, images = run
    trained = json.loads((place / folder / "metrics.json").read_text())
    assert (place / folder / "report.html").is_file()
    oddpatch("eval", f"run={folder}", "hydra.run.dir=again", "trainer.accelerator=cpu")
    assert json.loads((place / "again/metrics.json").read_text())["image_auroc"] == trained["image_auroc"]
    told = oddpatch("predict", folder, images / "test/spot", "--json", "--save", "overlay", code=1)
    assert told.count('"is_anomalous"') == 4
    assert len(list((place / "predictions").rglob("*.png"))) == 4
    oddpatch("report", folder, "again", "--format", "html", "--output", "table.html")
    oddpatch("compare", folder, "again")
    assert "PaDiM" in oddpatch("train", "--cfg", "job", "model=padim")


SWEEPS = {
    "basic": [],
    "joblib": ["sweep=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=oddpatch_submitit", "hydra.launcher.cluster=local"],
    "ray": ["sweep=ray", "hydra.launcher.num_cpus=1"],
}


@pytest.mark.parametrize("launcher", SWEEPS)
def test_a_sweep_runs_its_jobs_and_skips_them_when_it_is_called_again(oddpatch, run, launcher):
    settings = [*SMALL, f"data.root={run[1].parent}", "seed=0,1", f"hydra.sweep.dir={launcher}", *SWEEPS[launcher]]
    settings += ["callbacks.pictures=null", "callbacks.report=null"]
    assert "2 done" in oddpatch("train", "-m", *settings)
    if launcher == "basic":  # no launcher is asked for a job that is finished
        assert "2 skipped" in oddpatch("train", "-m", *settings)


def test_two_ranks_find_the_task(oddpatch, run, place):
    oddpatch("train", *SMALL, f"data.root={run[1].parent}", "trainer=ddp", "trainer.devices=2", "hydra.run.dir=ranks")
    one, two = (json.loads((place / name / "metrics.json").read_text()) for name in ("run", "ranks"))
    assert one["image_auroc"] == two["image_auroc"]


def test_configs_of_ones_own_are_added(oddpatch, run, place):
    oddpatch("init", "mine")
    (place / "parts").mkdir()
    shutil.copytree(run[1], place / "parts/housing")
    oddpatch("train", "--config-dir", "mine", "experiment=first", "data.resize=64", "hydra.run.dir=first")
    kept = (place / "first/.hydra/config.yaml").read_text()
    assert "coreset_ratio: 0.05" in kept
    assert "mine/data/parts.yaml exists" in oddpatch("init", "mine", code=2)
    assert "did you mean experiment=first?" in oddpatch("train", "--config-dir", "mine", "experiment=frst", code=1)
