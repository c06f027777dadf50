"""Whole runs on several processes: models, scores, thresholds and metrics as on one, and each file written once."""

import csv
import json
import os
import shutil
import subprocess
import sys
from unittest import mock

import numpy as np
import psutil
import pytest
import torch
import torch.multiprocessing as mp
from conftest import CONFIGS, ROOT, TinyBackbone, make_dataset
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from patience import PATIENCE, wait_until
from PIL import Image

from oddpatch import pipeline
from oddpatch.hydra_entry import building
from oddpatch.learning import distributed

pytestmark = pytest.mark.slow  # each rank imports Lightning
METHODS = {
    "padim": ["model=padim", "model.num_features=10", "calibration=leave_one_out"],
    "padim_few": ["model=padim", "model.num_features=20", "calibration=leave_one_out"],
    "padim_folds": ["model=padim", "model.num_features=10", "calibration=cross", "calibration.folds=3"],
    "patchcore": ["model=patchcore", "calibration=leave_one_out"],
    "patchcore_held_out": ["model=patchcore", "calibration=holdout", "calibration.minimum=3"],
    "spade": ["model=spade", "model.k=2", "calibration=leave_one_out"],
    "gaussian": [
        "model=gaussian",
        "data.category=holes",
        "calibration=leave_one_out",
        "data.on_error=skip",
    ],  # one file to fit and one to test broken
    "views": ["model=padim", "model.num_features=10", "data.views={rotations:[90,180],flips:[horizontal]}",
              "calibration=cross", "calibration.folds=3"],
    "views_left_out": ["model=anomalydino", "model.finest_stride=1", "data.views={brightness:2}",
                       "calibration=leave_one_out"],
    "few": ["model=padim", "model.num_features=10", "data.category=few"],  # two images to fit, one to test
    "products": ["model=rad", "data.category=[tile,negative]", "calibration=leave_one_out"],
}  # fmt: skip


def config(method, data, out, *overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", [
            "data=mvtec", f"data.root={data}", "data.category=tile", "data.resize=32", "data.crop=32",
            "data.batch_size=2", "data.num_workers=0", "trainer.accelerator=cpu", "calibration=none",
            f"paths.output_dir={out}/{method}",
            "hydra.run.dir=.", *METHODS[method], *overrides,
        ])  # fmt: skip
    cfg.callbacks = {"results": cfg.callbacks.results}
    return cfg


def run(method, data, out, *overrides):
    original = building.make

    def make(part, **kwargs):
        is_backbone = str(part.get("_target_") if hasattr(part, "get") else None).startswith("oddpatch.backbones.")
        return TinyBackbone() if is_backbone else original(part, **kwargs)

    with mock.patch.object(building, "make", make):
        job = pipeline.build(config(method, data, out, *overrides))
    job.fit()
    job.calibrate()
    job.save()
    job.test()
    return job


def work(rank, world, data, out):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
    os.environ[distributed.STORE] = f"{out}/store"
    for method in METHODS:
        os.environ["WORLD_SIZE"] = str(world)  # Lightning takes it away at the end of each run
        job = run(method, data, out, "trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={world}")
        torch.save(
            {"results": job.module.result.metrics, "state": job.module.state_dict()}, out / f"{method}-{rank}.pt"
        )
    distributed.leave()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_dataset(root, good=13)
    holes = shutil.copytree(root / "tile", root / "holes")
    for path in (holes / "train/good/003.png", holes / "test/good/002.png"):
        path.write_bytes(path.read_bytes()[:300])
    for path in shutil.copytree(root / "tile", root / "negative").glob("t*/*/*.png"):
        Image.fromarray(255 - np.array(Image.open(path))).save(path)
    few = shutil.copytree(root / "tile", root / "few")
    for folder, kept in (("train/good", 2), ("test/good", 1), ("test/spot", 0), ("test/stain", 0)):
        for path in sorted((few / folder).iterdir())[kept:]:
            path.unlink()
    for folder in ("test/spot", "test/stain"):
        (few / folder).rmdir()
    shutil.rmtree(few / "ground_truth")
    return root


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    return out, {method: run(method, data, out, "data.batch_size=5") for method in METHODS}


@pytest.fixture(scope="module", params=[2, 3])
def together(request, data, alone, tmp_path_factory):
    out = tmp_path_factory.mktemp(f"ranks{request.param}")
    mp.spawn(work, args=(request.param, data, out), nprocs=request.param)
    return request.param, out


def rows(folder):
    with (folder / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", METHODS)
def test_several_processes_give_what_one_gives(alone, together, method):
    (one, jobs), (world, out) = alone, together
    expected, found = (json.loads((folder / method / "metrics.json").read_text()) for folder in (one, out))
    for name in ("timing", "peak_memory_bytes", "git_commit", "settings"):
        del expected[name], found[name]
    require_close(found, expected)
    for mine, theirs in zip(rows(one / method), rows(out / method), strict=True):
        assert mine["path"] == theirs["path"]
        assert float(theirs["score"]) == pytest.approx(float(mine["score"]), rel=1e-5)
        for name in ("is_anomalous", "product", "reason"):
            assert theirs.get(name) == mine.get(name)
    states = [torch.load(out / f"{method}-{rank}.pt") for rank in range(world)]
    for name, value in jobs[method].module.state_dict().items():
        # Relative to the largest: inverting a covariance of few images magnifies the rounding of small entries.
        atol = 1e-5 * float(value.nan_to_num().abs().max()) if value.numel() and value.is_floating_point() else 0
        if method == "products":  # distances of unit vectors that are nearly the same, which magnifies rounding
            atol = max(atol, 1e-6)
        torch.testing.assert_close(states[0]["state"][name], value, rtol=1e-5, atol=atol, equal_nan=True)
        for state in states:
            torch.testing.assert_close(state["state"][name], states[0]["state"][name], rtol=0, atol=0, equal_nan=True)
    assert all(state["results"] == states[0]["results"] for state in states)


def require_close(found, expected, where=""):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            if "latency" not in name:
                require_close(found[name], value, f"{where}.{name}")
    elif isinstance(expected, list):
        for value, other in zip(expected, found, strict=True):
            require_close(other, value, where)
    elif isinstance(expected, float):
        # Intervals of curves are read off at the edges of bins, which follow the scores.
        rel = 0.05 if ".confidence." in where else 1e-5
        # Two pixels whose scores differ by rounding change places: 1 / (288 abnormal * 13,024 normal * 0.05) each.
        atol = 3e-5 if ".au_pro" in where or ".pixel_" in where else 1e-9
        assert found == pytest.approx(expected, rel=rel, abs=atol), where
    else:
        assert found == expected, where


def command(data, *overrides):
    # No workers: docs/scaling.md says how a fork in a rank can hang.
    return [
        sys.executable, ROOT / "train.py", *overrides, "trainer=ddp", "trainer.accelerator=cpu", "data=mvtec",
        f"data.root={data}", "data.category=tile", "data.resize=32", "data.crop=32", "data.num_workers=0",
        "model.num_features=10", "backbone.weights=random", "callbacks.pictures=null",
    ]  # fmt: skip


def test_train_py_sweeps_over_runs_of_two_ranks(data, tmp_path):
    done = subprocess.run(
        command(data, "-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep", "hydra.sweep.subdir=${hydra.job.num}"),
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for job in ("0", "1"):
        files = {path.name for path in (tmp_path / "sweep" / job).rglob("*")}
        assert {"metrics.json", "predictions.csv", "fitted.ckpt", "train.log", "config.yaml"} <= files
        assert not [name for name in files if name.endswith(".partial")]
        assert len(rows(tmp_path / "sweep" / job)) == 13
        told = (tmp_path / "sweep" / job / "train.log").read_text()
        assert told.count("backbone.weights=random: the network") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}, "nothing is written elsewhere"
    assert "sync_dist" not in done.stderr


def test_train_py_ends_when_a_rank_is_killed(data, tmp_path):
    process = subprocess.Popen(
        command(data, f"hydra.run.dir={tmp_path}/run"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    ranks_of = psutil.Process(process.pid).children
    wait_until((tmp_path / "run/csv").exists, process)  # the Trainer is there, and both ranks have met
    family = ranks_of(recursive=True)
    victim = next(rank for rank in ranks_of() if rank.environ()["RANK"] == "1")
    victim.kill()
    told, _ = process.communicate(timeout=PATIENCE)  # or it hangs
    assert process.returncode == 1
    assert "rank 1 of 2 was killed by SIGKILL" in told
    assert "Traceback" not in told
    _, alive = psutil.wait_procs(family, timeout=PATIENCE)
    assert not alive
