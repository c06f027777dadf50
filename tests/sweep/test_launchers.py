"""Real sweeps of tiny jobs, each in its process: in turn, side by side, on two Ray nodes, as submitted jobs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_dataset
from fakes import Fake
from hydra.core.utils import JobStatus
from narrowing import present
from patience import PATIENCE, wait_until
from sweeping import TINY, statuses, table

from oddpatch.sweep.record import Record

DISTURB = Path(__file__).parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_dataset(root)
    return f"data.root={root}", "data.category=tile"


@pytest.fixture
def start():
    """Starts sweeps, and sees to it that none is left over."""
    started = []

    def start_one(*arguments, **environment):
        started.append(_start(*arguments, **environment))
        return started[-1]

    yield start_one
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _start(folder, *overrides, **environment):
    command = [sys.executable, str(ROOT / "train.py"), "-m", *TINY, f"hydra.sweep.dir={folder}", *overrides]
    paths = os.pathsep.join([str(DISTURB), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process):
    told, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, told


def hold(folder):
    return f"+callbacks.hold={{_target_:disturb.Hold,here:{folder}/here,until:{folder}/go}}"


def is_alive(pid):
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.slow
def test_in_turn_a_job_that_is_killed_takes_no_other_with_it(start, data, tmp_path):
    die = "+callbacks.die={_target_:disturb.Die,when:false}"
    code, told = finish(
        start(tmp_path, *data, die, "callbacks.die.when=true,false", "logger=wandb", WANDB_MODE="offline")
    )
    assert code == 1
    assert statuses(tmp_path) == {"callbacks.die.when=True": "failed", "callbacks.die.when=False": "done"}
    assert "it was killed by SIGKILL: is there enough memory?" in table(tmp_path)[0]["reason"]
    assert "1 done, 1 failed" in told
    folder = tmp_path / table(tmp_path)[1]["job"]
    assert json.loads((folder / "metrics.json").read_text())["image_auroc"] == present(Record.read(folder)).objective
    # A run of W&B's own, whole and of the sweep's group.
    logs = [path.read_bytes() for path in folder.glob("wandb/offline-run-*/*.wandb")]
    assert len(logs) == 1
    assert tmp_path.name.encode() in logs[0]
    assert b"image_auroc" in logs[0]


@pytest.mark.slow
def test_a_sweep_that_is_ended_leaves_nothing_half_done_and_goes_on(start, data, tmp_path):
    sweep = (tmp_path, *data, hold(tmp_path), "seed=0,1")
    for times, signum in enumerate((signal.SIGINT, signal.SIGKILL), start=1):
        process = start(*sweep)
        wait_until(lambda times=times: len(list(tmp_path.glob("here.*"))) == times)
        # Ctrl-C reaches all processes of a terminal; the other comes as a surprise to one.
        os.killpg(process.pid, signum) if signum == signal.SIGINT else os.kill(process.pid, signum)
        assert finish(process)[0] == (130 if signum == signal.SIGINT else -9)
    (tmp_path / "go").touch()
    code, told = finish(start(*sweep))
    assert code == 0, told
    assert "runs again: it was killed" in told
    assert list(statuses(tmp_path).values()) == ["done", "done"]
    assert sorted(present(Record.read(path.parent)).attempt for path in tmp_path.glob("*/job.json")) == [1, 3]
    assert not any(is_alive(int(path.suffix[1:])) for path in tmp_path.glob("here.*"))
    assert not list(tmp_path.rglob(".*.partial"))


@pytest.mark.slow
def test_two_sweeps_into_one_folder_share_the_jobs(start, data, tmp_path):
    first, second = (start(tmp_path, *data, "seed=0,1,2") for _ in range(2))
    assert finish(first)[0] == 0
    assert finish(second)[0] == 0
    records = [present(Record.read(path.parent)) for path in tmp_path.glob("*/job.json")]
    assert [(record.status, record.attempt) for record in records] == [("done", 1)] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ("sweep=joblib", "hydra.launcher.n_jobs=2"),
        ("sweep=slurm", "hydra.launcher.cluster=local", "hydra.launcher.parameters.gpus_per_node=0"),
    ],
    ids=["joblib", "submitit"],
)
def test_side_by_side(start, data, tmp_path, launcher):
    pytest.importorskip({"sweep=joblib": "hydra_plugins.hydra_joblib_launcher"}.get(launcher[0], "submitit"))
    code, told = finish(start(tmp_path, *data, *launcher, "model.num_features=10,6000"))
    assert code == 1, told
    assert statuses(tmp_path) == {"model.num_features=10": "done", "model.num_features=6000": "failed"}
    assert table(tmp_path)[1]["reason"].startswith("num_features=6000 but this backbone gives")
    folder = tmp_path / table(tmp_path)[0]["job"]
    assert "image AUROC" in (folder / "console.log").read_text()
    assert not list(tmp_path.rglob("*%*")), "submitit has its own files where we say"


@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_node_loses_no_job(start, data, tmp_path, ray_cluster):
    node = ray_cluster.add_node(num_cpus=1)
    process = start(
        tmp_path, *data, "sweep=ray", f"hydra.launcher.address={ray_cluster.address}", "hydra.launcher.num_cpus=1",
        hold(tmp_path), "model.num_features=10,6000", "seed=0,1",
    )  # fmt: skip
    wait_until(lambda: len(list(tmp_path.glob("here.*"))) == 2)  # one on each node
    ray_cluster.remove_node(node, allow_graceful=False)
    held = [int(path.suffix[1:]) for path in tmp_path.glob("here.*")]
    wait_until(lambda: not all(is_alive(pid) for pid in held))  # else the lost job could still end well
    (tmp_path / "go").touch()
    code, told = finish(process)
    assert code == 1, told
    found = statuses(tmp_path)
    assert len(found) == 4
    assert {status for name, status in found.items() if "=6000" in name} == {"failed"}
    assert {status for name, status in found.items() if "=10" in name} == {"done"}, told
    attempts = [present(Record.read(path.parent)).attempt for path in tmp_path.glob("*/job.json")]
    assert sorted(attempts)[-1] == 2, "the job of the lost node runs again"
    assert told.count("was lost; its jobs run again on others") == 1
    assert "raylet" not in told, "Ray's own pages about it"
    threads = {present(Record.read(path.parent)).threads for path in tmp_path.glob("*/job.json")}
    assert threads == {"1"}


@pytest.mark.slow
def test_a_ray_cluster_that_ends_is_said_at_once(start, data, tmp_path, ray_cluster):
    process = start(
        tmp_path, *data, "sweep=ray", f"hydra.launcher.address={ray_cluster.address}", "hydra.launcher.num_cpus=1",
        hold(tmp_path), "seed=0,1",
    )  # fmt: skip
    wait_until(lambda: list(tmp_path.glob("here.*")))
    address = ray_cluster.address
    ray_cluster.shutdown()
    code, told = finish(process)
    assert code == 1, told
    assert f"Ray: the cluster at {address} has ended; 2 jobs not done" in told
    assert told.count("failed        the Ray cluster has ended") == 2
    assert "2 failed" in told
    assert "terminate" not in told, "Ray ends the process after a minute"


@pytest.mark.slow
def test_on_ray_each_job_has_a_gpu_and_one_that_is_lost_is_reported(monkeypatch):
    """GPUs as Ray counts them: it hands out their numbers whether there are any or not."""
    pytest.importorskip("ray")
    from oddpatch.cluster import cluster, need_of
    from oddpatch.errors import ConfigError
    from oddpatch.sweep.ray import run_jobs

    monkeypatch.setenv("PYTHONPATH", str(DISTURB))
    with cluster("local", {"num_cpus": 4, "num_gpus": 2}, ""):
        need = need_of("auto", "auto", "")
        assert need == (1, 2)
        assert need_of(0.5, "auto", "") == (0.5, 1)
        with pytest.raises(ConfigError, match="3 GPUs and 1 core, which no machine of the Ray cluster has"):
            need_of(3, 1, "")
        jobs = [Fake("a"), Fake("dies"), Fake("b"), Fake("c"), Fake("d")]
        first, lost, *others = run_jobs(jobs, need, max_retries=0, patience=5)
    for returned in (first, *others):
        threads, devices = returned.return_value
        assert threads == 2
        assert devices in ("0", "1")
    assert lost.status == JobStatus.FAILED
    with pytest.raises(Exception, match="its process or machine was lost"):
        _ = lost.return_value
