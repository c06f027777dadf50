"""The launcher with tasks that cost nothing: results, errors, kills, sweeps, and that nothing is left running."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from omegaconf import OmegaConf
from patience import PATIENCE, wait_until

from oddpatch.errors import ConfigError
from oddpatch.learning.launcher import RankError, num_ranks, result_of

SCRIPT = """
import logging, os, signal, subprocess, sys, time
from pathlib import Path
import hydra
from omegaconf import DictConfig
from oddpatch.errors import DataError
from oddpatch.hydra_entry.endings import one_line_errors
from oddpatch.learning.launcher import on_every_device

@hydra.main(version_base="1.3", config_path=None, config_name="config")
@one_line_errors
@on_every_device
def main(cfg: DictConfig) -> float:
    rank, folder = os.environ["RANK"], Path(cfg.folder)
    logging.getLogger("task").info("rank %s of %s in %s", rank, os.environ["WORLD_SIZE"], cfg.out)
    print("printed by", rank)
    helper = subprocess.Popen(["sleep", "600"])  # a data loader
    (folder / f"{rank}-{cfg.what}.pids").write_text(f"{os.getpid()} {helper.pid}")
    if rank == "1" or cfg.what == "wait":
        if cfg.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if cfg.what == "refuse":
            raise DataError("a.png is broken: mend it")
        if cfg.what == "crash":
            return 1 / 0
    if cfg.what != "fine":
        time.sleep(600)
    helper.kill()
    return float(cfg.value)

if __name__ == "__main__":
    main()
"""
CONFIG = """
what: fine
value: 1.5
folder: ???
out: ${hydra:runtime.output_dir}
trainer: {devices: 2, strategy: ddp}
hydra: {run: {dir: "${folder}/run"}, sweep: {dir: "${folder}/sweep"}, job: {chdir: false}}
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    path = tmp_path / "task.py"
    path.write_text(SCRIPT.replace("config_path=None", f"config_path={str(tmp_path)!r}"))
    return path


def command(script, *overrides):
    return [sys.executable, script, *overrides, f"folder={script.parent}"]


def run(script, *overrides):
    return subprocess.run(command(script, *overrides), capture_output=True, text=True, check=False, timeout=PATIENCE)


def left_running(folder: Path, seconds=60.0):
    """Ranks and their helpers that are still there; they get a moment to go."""
    pids = [int(pid) for path in folder.glob("*.pids") for pid in path.read_text().split()]
    assert len(pids) >= 4
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (alive := [pid for pid in pids if is_alive(pid)]):
        time.sleep(0.05)
    return alive


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_run_prints_and_logs_once_and_leaves_one_folder(script):
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("printed by") == 1
    assert (script.parent / "run/task.log").read_text().count("rank 0 of 2") == 1
    assert "rank 1 of 2" not in (script.parent / "run/task.log").read_text()
    assert {path.name for path in script.parent.iterdir()} == {
        "config.yaml", "task.py", "run", "0-fine.pids", "1-fine.pids"
    }  # fmt: skip
    assert not left_running(script.parent)


def test_a_killed_rank_ends_the_run_at_once_with_one_line(script):
    done = run(script, "what=kill")
    assert done.returncode == 1
    assert "rank 1 of 2 was killed by SIGKILL (out of memory?)" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not left_running(script.parent)


@pytest.mark.slow
def test_an_error_the_user_can_mend_is_one_line(script):
    done = run(script, "what=refuse")
    assert done.returncode == 1
    assert "a.png is broken: mend it" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not left_running(script.parent)


@pytest.mark.slow
def test_another_error_shows_the_traceback_of_its_rank(script):
    done = run(script, "what=crash")
    assert done.returncode == 1
    assert "rank 1 of 2 failed" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert not left_running(script.parent)


@pytest.mark.parametrize("codes", [[3, 3], [0, 0]])
def test_ranks_that_ended_without_a_word_are_an_error(tmp_path, codes):
    with pytest.raises(RankError, match=re.escape(f"the 2 ranks ended with the exit codes {codes} and no message")):
        result_of(codes, tmp_path)


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_killed_rank(script):
    done = run(script, "-m", "what=kill,fine")
    assert done.returncode == 1
    assert (script.parent / "1-fine.pids").is_file()
    assert sorted(path.name for path in (script.parent / "sweep").iterdir()) == ["0", "1", "multirun.yaml"]
    assert not (script.parent / "run").exists()
    assert not left_running(script.parent)


@pytest.mark.parametrize(
    "how",
    [signal.SIGKILL, *(pytest.param(how, marks=pytest.mark.slow) for how in (signal.SIGINT, signal.SIGTERM))],
)
def test_ranks_end_with_the_process_that_the_user_started(script, how):
    process = subprocess.Popen(command(script, "what=wait"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: len([p for p in script.parent.glob("*.pids") if p.read_text()]) == 2, process)
    process.send_signal(how)
    assert process.wait(timeout=PATIENCE) != 0
    assert not left_running(script.parent)


@pytest.mark.parametrize(
    ("trainer", "size"),
    [
        ({"devices": 1}, 1),
        ({"devices": "auto"}, 1),
        ({"devices": 3, "strategy": "ddp"}, 3),
        ({"devices": [0, 2], "strategy": "ddp"}, 2),
    ],
)
def test_number_of_ranks(trainer, size):
    assert num_ranks(OmegaConf.create(trainer)) == size


@pytest.mark.parametrize(
    ("trainer", "told"),
    [
        ({"devices": 2}, "trainer.devices=2 asks for 2 processes: add trainer=ddp"),
        ({"devices": 0, "strategy": "ddp"}, "trainer.devices=0: give"),
        ({"devices": "two", "strategy": "ddp"}, "trainer.devices='two': give"),
        ({"devices": [], "strategy": "ddp"}, r"trainer.devices=\[\] names no device"),
        ({"devices": 2, "num_nodes": 2, "strategy": "ddp"}, "torchrun"),
        ({"devices": 1, "accelerator": "gpu"}, "torch finds no GPU on this machine: set trainer.accelerator=cpu"),
        ({"devices": 4, "accelerator": "cuda", "strategy": "ddp"}, "torch finds no GPU"),
    ],
)
def test_settings_that_cannot_work_are_refused(trainer, told, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(ConfigError, match=told):
        num_ranks(OmegaConf.create(trainer))


@pytest.mark.parametrize("devices", [4, [0, 2]])
def test_more_gpus_than_there_are_are_refused(devices, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    trainer = {"devices": devices, "accelerator": "gpu", "strategy": "ddp"}
    with pytest.raises(ConfigError, match=r"but this machine has 2 GPUs: set trainer\.devices=2"):
        num_ranks(OmegaConf.create(trainer))
    assert num_ranks(OmegaConf.create({**trainer, "devices": 2})) == 2


def test_more_processes_than_memory_holds_are_refused(script):
    done = run(script, "trainer.devices=999999")
    assert done.returncode == 1
    assert "trainer.devices=999999 processes need 500000 GiB of memory" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not list(script.parent.glob("*.pids"))


def test_inside_a_rank_nothing_is_launched_again(script, monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"})
    done = subprocess.run(
        command(script), capture_output=True, text=True, check=True, timeout=PATIENCE, env=dict(os.environ)
    )
    assert done.stdout.count("printed by 0") == 1
    assert not (script.parent / "1-fine.pids").exists()
