"""What is not loaded by whom: one interpreter imports room after room, lightest first, and tells what it has loaded."""

import json
import subprocess
import sys

import pytest
from finished_runs import write_run

PADIM = {"_target_": "oddpatch.models.padim.PaDiM", "num_features": 550, "epsilon": 0.01, "smoothing": 4.0}
SCRIPT = """
import importlib, json, pkgutil, sys
from pathlib import Path
TOLD = ("torch", "cv2", "numpy", "scipy", "matplotlib", "matplotlib.pyplot", "lightning", "hydra", "omegaconf", "timm",
        "sklearn", "torchmetrics", "tifffile")
def told(name):
    print(json.dumps([name, [one for one in TOLD if one in sys.modules]]), flush=True)
import oddpatch.cli.main
told("command line")
from oddpatch.report.published import matches
from oddpatch.report.runs import read_run
assert matches(read_run(Path(sys.argv[1])))[0]
told("report")
import oddpatch.models
for found in pkgutil.iter_modules(oddpatch.models.__path__, "oddpatch.models."):
    importlib.import_module(found.name)
told("models")
import oddpatch.metrics
oddpatch.metrics.pixel_metrics
told("metrics")
import oddpatch.data.dataset, oddpatch.data.layout, oddpatch.data.decoding, oddpatch.data.transforms
told("data")
import oddpatch.api, oddpatch.factory
told("inference")
from oddpatch.figures import curves, drawing
told("figures")
from oddpatch.figures.canvas import Sheet
Sheet(2, 1).write(0, 0.5, "text")
told("drawing")
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Large libraries that are loaded after each step."""
    run = write_run(tmp_path_factory.mktemp("imports") / "a", model=PADIM)
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize(
    ("room", "unwanted"),
    [
        ("command line", {"torch", "cv2", "numpy", "matplotlib"}),
        ("report", {"torch", "matplotlib"}),
        ("models", {"lightning", "hydra", "timm", "cv2", "scipy"}),
        ("metrics", {"lightning", "hydra", "omegaconf", "sklearn", "torchmetrics"}),
        ("data", {"lightning", "hydra", "cv2", "tifffile"}),
        ("inference", {"lightning", "hydra"}),
        ("figures", {"lightning", "hydra", "matplotlib"}),
        ("drawing", {"lightning", "hydra", "matplotlib.pyplot"}),
    ],
)
def test_what_is_not_loaded(loaded, room, unwanted):
    assert unwanted & set(loaded[room]) == set()


def test_drawing_loads_matplotlib(loaded):
    """So that its absence before says something."""
    assert "matplotlib" in loaded["drawing"]
