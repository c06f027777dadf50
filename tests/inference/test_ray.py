"""Inspecting on a cluster of two Ray nodes of this machine: the same results, also where a node is killed."""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path, PurePath

import pytest
from conftest import ROOT, make_dataset
from patience import PATIENCE, wait_until
from test_pipeline import run, tiny

from oddpatch import AnomalyDetector
from oddpatch.errors import CheckpointError, ResourceError
from oddpatch.inference.ray import inspect
from oddpatch.inference.sources import Frame

pytestmark = pytest.mark.slow
IMAGES = 96


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("ray")
    make_dataset(root, good=12, test_good=1, defects=IMAGES // 2)
    run(tiny(root, root / "run", "backbone=resnet18", "model.num_features=20"))
    (root / "tile/test/spot/003.png").write_bytes(b"no image")
    return root


def start(root, results, *arguments):
    sources = [root / "tile/test/spot", root / "tile/test/stain", root / "nowhere"]
    command = [sys.executable, "-m", "oddpatch.cli.main", "predict", root / "run", *sources, "--results", results]
    return subprocess.Popen(
        [*command, "--batch-size", "4", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(process):
    _, told = process.communicate(timeout=PATIENCE)
    return process.returncode, told


def records(path):
    """All but how long each took."""
    import pyarrow.parquet as pq

    table = pq.read_table(path).drop_columns("latency_ms")
    return [json.dumps(record) for record in table.to_pylist()]


def test_two_nodes_give_what_one_process_gives_also_if_one_is_killed(finished, tmp_path, ray_cluster):
    assert finish(start(finished, tmp_path / "here.parquet"))[0] == 2
    expected = records(tmp_path / "here.parquet")
    assert len(expected) == IMAGES + 1
    assert sum("not an image" in record for record in expected) == 1

    node = ray_cluster.add_node(num_cpus=1)
    address = ("--ray", ray_cluster.address, "--save", "map", "--out", tmp_path / "maps")
    process = start(finished, tmp_path / "ray.parquet", *address)
    wait_until(lambda: len(list((tmp_path / "maps").rglob("*.tiff"))) >= 8, process)
    ray_cluster.remove_node(node, allow_graceful=False)
    code, told = finish(process)
    assert code == 2, told
    assert told.splitlines()[-2:] == [
        f"2 images failed: see `error` in {tmp_path}/ray.parquet; --resume tries them again",
        f"{IMAGES} images: {told.splitlines()[-1].partition(': ')[2]}",
    ]
    assert records(tmp_path / "ray.parquet") == expected
    assert len(list((tmp_path / "maps").rglob("*.tiff"))) == IMAGES - 1


def unknown_there():
    """No worker can import this module."""


@pytest.mark.parametrize(
    ("load", "error", "told"),
    [
        (
            partial(AnomalyDetector.load, "nowhere"),
            CheckpointError,
            "^nowhere does not exist: give the folder of a finished run$",
        ),
        (unknown_there, ResourceError, "a Ray worker failed: ModuleNotFoundError: No module named .*: install"),
        (None, ResourceError, "a Ray worker failed: ImportError: an oddpatch of long ago: install on all machines"),
    ],
    ids=["ours", "theirs", "other oddpatch"],
)
def test_what_a_worker_raises_is_said_here(load, error, told, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("RAY_worker_niceness", "0")
    if load is None:  # it has another oddpatch
        (tmp_path / "oddpatch").mkdir()
        (tmp_path / "oddpatch/__init__.py").write_text('raise ImportError("an oddpatch of long ago")')
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(ROOT / "src")])
    frames = [Frame("a.png", Path("a.png"), output=PurePath("a.png"))]
    # A cluster that runs on this machine is not joined. The name is short, as those of sockets are.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        with pytest.raises(error, match=told):
            list(inspect(frames, load or unknown_there, "local", 4))
    assert "Traceback" not in capfd.readouterr().err
