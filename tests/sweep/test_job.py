"""What happens to a job: run, skipped, run again, left to another sweep. The jobs themselves are stood in for."""

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
from conftest import make_dataset
from hydra.core.utils import JobReturn, JobStatus
from narrowing import present
from omegaconf import OmegaConf
from sweeping import Stand, basic_launcher, dataset, statuses, sweep, table

import oddpatch
from oddpatch import temporary
from oddpatch.errors import ConfigError
from oddpatch.locking import Holder, JobBusyError, NoLocksError, held_by, hold, job_lock
from oddpatch.sweep import identity, job
from oddpatch.sweep.process import Ending
from oddpatch.sweep.record import Record

pytestmark = pytest.mark.slow


@pytest.fixture
def stand(monkeypatch):
    found = Stand()
    monkeypatch.setattr(job, "run_script", found)
    return found


@pytest.fixture
def root(tmp_path):
    return dataset(tmp_path)


def test_a_failed_job_is_told_and_stops_no_other(monkeypatch, tmp_path, stand, root, capsys):
    stand.endings["seed=1"] = Ending(1, "num_features=600 is too many")
    assert sweep(monkeypatch, tmp_path / "s", *root, "seed=0,1,2") == 1
    assert statuses(tmp_path / "s") == {"seed=0": "done", "seed=1": "failed", "seed=2": "done"}
    told = capsys.readouterr().out
    assert "num_features=600 is too many" in told
    assert "2 done, 1 failed" in told
    assert "random weights: not a result" in told  # the report
    page = (tmp_path / "s/sweep.html").read_text()
    assert "seed=1" in page
    assert "too many" in page


def test_the_row_of_a_failed_job_says_what_it_was_of(monkeypatch, tmp_path, stand, root):
    stand.endings["seed=1"] = Ending(1, "it has failed")
    assert sweep(monkeypatch, tmp_path / "s", *root, "seed=0,1") == 1
    done, failed = ([row[name] for name in ("model", "backbone", "data", "category")] for row in table(tmp_path / "s"))
    assert failed == done == ["padim", "resnet18", "mvtec", "tile"]


def test_a_job_is_a_single_run_of_its_own(monkeypatch, tmp_path, stand, root):
    assert sweep(monkeypatch, tmp_path / "my sweep", *root, "seed=3", "hydra.job.name=x") == 0
    (name, command, environment) = stand.ran[0]
    assert re.fullmatch(r"padim-resnet18-tile-[0-9a-f]{8}", name)
    assert f"hydra.run.dir='{tmp_path}/my sweep/{name}'" in command
    assert "seed=3" in command
    assert "hydra.job.name=x" in command
    assert "hydra.sweep" not in command
    assert "MULTIRUN" not in command
    assert environment["WANDB_RUN_GROUP"] == "my sweep"


def test_what_is_finished_is_skipped_and_counts_as_well(monkeypatch, tmp_path, stand, root):
    stand.endings["seed=1"] = Ending(-9, "it was killed by SIGKILL")
    assert sweep(monkeypatch, tmp_path / "s", *root, "seed=0,1") == 1
    stand.endings.clear()
    assert sweep(monkeypatch, tmp_path / "s", *root, "seed=0,1") == 0
    assert statuses(tmp_path / "s") == {"seed=0": "skipped", "seed=1": "done"}
    assert len(stand.ran) == 3
    assert [row["image_auroc"] for row in table(tmp_path / "s")] == ["0.9", "0.9"]
    assert sweep(monkeypatch, tmp_path / "s", *root, "seed=0,1", "resume=false") == 0
    assert set(statuses(tmp_path / "s").values()) == {"done"}


def test_what_has_changed_runs_again(monkeypatch, tmp_path, stand, root):
    def change(what, folder):
        record = present(Record.read(folder))
        if what == "data":
            os.utime(next((tmp_path / "data/tile/train/good").glob("*.png")), ns=(1, 1))
        elif what == "code":
            monkeypatch.setattr(identity, "code_hash", lambda: "other")
        elif what == "result":
            (folder / "metrics.json").unlink()
        else:
            record.status = what
            record.write(folder)
            (
                folder / f".predictions.csv.{temporary.host_code()}-{2**22 + 1}.partial"
            ).touch()  # no process has that number

    assert sweep(monkeypatch, tmp_path / "s", *root) == 0
    folder = next((tmp_path / "s").glob("padim*"))
    for times, what in enumerate(("data", "code", "result", "running", "interrupted", "failed"), start=2):
        change(what, folder)
        assert sweep(monkeypatch, tmp_path / "s", *root) == 0
        assert len(stand.ran) == times, what
        assert present(Record.read(folder)).attempt == times
        assert not list(folder.glob(".*.partial"))
    assert sweep(monkeypatch, tmp_path / "s", *root) == 0
    assert len(stand.ran) == times


def test_an_earlier_result_does_not_outlive_a_failed_run(monkeypatch, tmp_path, stand, root):
    assert sweep(monkeypatch, tmp_path / "s", *root) == 0
    stand.endings["seed"] = stand.endings["model"] = Ending(1, "no")
    assert sweep(monkeypatch, tmp_path / "s", *root, "resume=false") == 1
    assert not list((tmp_path / "s").glob("*/metrics.json"))


def test_a_job_without_a_result_has_failed(monkeypatch, tmp_path, stand, root):
    stand.endings["model"] = Ending(0, "")
    assert sweep(monkeypatch, tmp_path / "s", *root) == 1
    assert table(tmp_path / "s")[0]["reason"] == "it left no metrics.json"


@pytest.mark.parametrize("text", ["", "[1]", "[" * 100_000, b"\xff", '{"image_auroc": 0.9}'])
def test_a_job_whose_metrics_cannot_be_read_has_failed(monkeypatch, tmp_path, stand, root, text):
    def damaged(script, arguments, environment, console, folder):
        (folder / "metrics.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        return Ending(0, "")

    monkeypatch.setattr(job, "run_script", damaged)
    assert sweep(monkeypatch, tmp_path / "s", *root) == 1
    (row,) = table(tmp_path / "s")
    assert row["status"] == "failed"
    assert "metrics.json" in row["reason"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", "doen"), ("identity", {"config": 1, "code": [], "data": None}), ("identity", None),
        ("overrides", "x"), ("overrides", [1]),
        ("reason", None), ("objective", [0.9]), ("objective", "0.9"), ("objective", float("nan")),
        ("seconds", None), ("attempt", "1"), ("attempt", True), ("host", 7), ("other", 1),
    ],
)  # fmt: skip
def test_a_record_of_other_types_counts_as_not_run(tmp_path, name, value, caplog):
    Record("done", identity.Identity("a", "b", None), ["seed=1"], objective=1).write(tmp_path)
    assert present(Record.read(tmp_path)).objective == 1
    content = json.loads((tmp_path / "job.json").read_text())
    (tmp_path / "job.json").write_text(json.dumps({**content, name: value}))
    assert Record.read(tmp_path) is None
    assert "job.json" in caplog.messages[-1]


@pytest.mark.parametrize("data", [b"", b"[]", b"[" * 100_000, b"\xff\xfe", b'{"status": "done"}', b"nul"])
def test_a_record_that_is_none_counts_as_not_run(tmp_path, data, caplog):
    (tmp_path / "job.json").write_bytes(data)
    assert Record.read(tmp_path) is None
    assert "job.json" in caplog.messages[-1]


@pytest.mark.parametrize("data", [b"[" * 4096, b'{"host": "x", "pid": "y"}', b'{"host": 1, "pid": [2]}', b"\xff"])
def test_a_lock_that_does_not_say_who_holds_it(tmp_path, data):
    with job_lock(tmp_path):
        (tmp_path / ".lock").write_bytes(data)
        assert held_by(tmp_path) == Holder("an unknown host", 0)


def test_a_holder_of_an_impossible_number_is_dead():
    assert Holder(socket.gethostname(), 2**70).is_dead()


def test_a_job_of_another_sweep_is_left_to_it(monkeypatch, tmp_path, stand, root):
    assert sweep(monkeypatch, tmp_path / "s", *root) == 0
    folder = next((tmp_path / "s").glob("padim*"))
    record = present(Record.read(folder))
    record.status = "running"
    record.write(folder)
    with job_lock(folder):
        assert sweep(monkeypatch, tmp_path / "s", *root) == 0
    row = table(tmp_path / "s")[0]
    assert (row["status"], len(stand.ran)) == ("skipped", 1)
    assert f"process {os.getpid()} on" in row["reason"]


def test_ctrl_c_ends_the_sweep(monkeypatch, tmp_path, stand, root):
    stand.endings["seed=1"] = KeyboardInterrupt()
    assert sweep(monkeypatch, tmp_path / "s", *root, "seed=0,1,2") == 130
    assert statuses(tmp_path / "s") == {"seed=0": "done", "seed=1": "not run", "seed=2": "not run"}
    stand.endings.clear()
    assert sweep(monkeypatch, tmp_path / "s", *root, "seed=0,1,2") == 0
    assert statuses(tmp_path / "s") == {"seed=0": "skipped", "seed=1": "done", "seed=2": "done"}


def test_a_launcher_that_fails_loses_no_job(monkeypatch, tmp_path, stand, root):
    basic = basic_launcher()
    original = basic.launch

    def launch(self, job_overrides, initial_job_idx):
        original(self, job_overrides[:1], initial_job_idx)
        raise OSError("the network is down")

    monkeypatch.setattr(basic, "launch", launch)
    assert sweep(monkeypatch, tmp_path / "s", *root, "seed=0,1") == 1
    assert statuses(tmp_path / "s") == {"seed=0": "done", "seed=1": "failed"}
    assert "the network is down" in table(tmp_path / "s")[1]["reason"]


def test_a_job_that_is_lost_has_failed_though_it_had_finished_before(monkeypatch, tmp_path, stand, root):
    assert sweep(monkeypatch, tmp_path / "s", *root) == 0
    lost = JobReturn(status=JobStatus.FAILED, _return_value=job.JobError("its machine was lost"))
    monkeypatch.setattr(basic_launcher(), "launch", lambda self, job_overrides, initial_job_idx: [lost])
    assert sweep(monkeypatch, tmp_path / "s", *root, "resume=false") == 1
    assert (table(tmp_path / "s")[0]["status"], table(tmp_path / "s")[0]["reason"]) == (
        "failed",
        "its machine was lost",
    )


def test_batches_go_on_after_a_failure(monkeypatch, tmp_path, stand, root):
    stand.endings["seed=0"] = Ending(1, "no")
    assert sweep(monkeypatch, tmp_path / "s", *root, "seed=0,1,2", "hydra.sweeper.max_batch_size=1") == 1
    assert list(statuses(tmp_path / "s").values()) == ["failed", "done", "done"]


def test_a_misspelt_job_stops_the_sweep_before_any_runs(monkeypatch, tmp_path, stand, root, capsys):
    assert sweep(monkeypatch, tmp_path / "s", *root, "model=padim,padm") == 1
    assert "did you mean model=padim?" in capsys.readouterr().err
    assert not stand.ran


def test_a_folder_that_cannot_be_written_is_told_at_once(monkeypatch, tmp_path, stand, root, capsys):
    (tmp_path / "file").touch()
    assert sweep(monkeypatch, tmp_path / "file/s", *root) == 1
    assert "file/s cannot be written (Not a directory): set hydra.sweep.dir" in capsys.readouterr().err
    assert not stand.ran


def test_the_data_of_a_job_may_hold_broken_links_and_loops(tmp_path):
    (tmp_path / "a.png").touch()
    before = identity.data_fingerprint(tmp_path)
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "self").symlink_to(".")
    assert identity.data_fingerprint(tmp_path) == before
    (tmp_path / "b.png").touch()
    assert identity.data_fingerprint(tmp_path) != before


def test_identity_is_of_settings_data_and_code(tmp_path, tiles, monkeypatch):
    cfg = OmegaConf.create({"data": {"root": str(tiles), "category": "tile"}, "seed": 0, "resume": True})

    def changed(*settings: Any) -> Any:
        return OmegaConf.merge(cfg, *settings)

    first = identity.identify(cfg)
    assert first.change_from(first) is None
    assert identity.identify(changed({"resume": False})) == first
    assert identity.identify(changed({"seed": 1})).change_from(first) == "the config has changed"
    absent = identity.identify(changed({"data": {"category": "none"}}))
    assert absent.data is None
    split = tmp_path / "split.json"
    split.write_text("{}")
    named = changed({"data": {"split": str(split)}})
    before = identity.identify(named)
    split.write_text("{...}")
    assert identity.identify(named).change_from(before) == "the data has changed"
    (tmp_path / "models").mkdir()
    (tmp_path / "models/padim.py").write_text("pass")
    monkeypatch.setattr(oddpatch, "__file__", str(tmp_path / "__init__.py"))
    identity.code_hash.cache_clear()
    assert identity.identify(cfg).change_from(first) == "the code has changed"
    identity.code_hash.cache_clear()


HOLD = "import sys, time; from pathlib import Path; from oddpatch.locking import {0}\nlock = {0}(Path(sys.argv[1]))"
SIGNED = "\nprint('held', flush=True)\n"


def test_identity_is_of_all_categories_of_a_run(root, tmp_path):
    make_dataset(tmp_path / "more").rename(tmp_path / "data/other")

    def of(category):
        return identity.identify(
            OmegaConf.create({"data": {"root": str(tmp_path / "data"), "category": category}})
        ).data

    before = of(["tile", "other"]), of("all"), of("tile")
    assert None not in before
    assert of(["tile", "nowhere"]) is None
    (tmp_path / "data/other/train/good/000.png").unlink()
    assert [now == then for now, then in zip((of(["tile", "other"]), of("all"), of("tile")), before, strict=True)] == [
        False, False, True,
    ]  # fmt: skip


@pytest.fixture
def owner(tmp_path):
    """Starts a process that runs lines and prints "held" at some point."""
    started = []

    def start(code):
        started.append(subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE))
        assert present(started[-1].stdout).readline() == b"held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_lock_is_exclusive_and_goes_with_its_owner(tmp_path, owner):
    with job_lock(tmp_path), pytest.raises(JobBusyError, match=f"process {os.getpid()} on"), job_lock(tmp_path):
        pass
    other = owner(HOLD.format("job_lock") + "\nlock.__enter__()" + SIGNED + "time.sleep(60)")
    assert present(held_by(tmp_path)).pid == other.pid
    other.kill()
    other.wait()
    assert held_by(tmp_path) is None
    with job_lock(tmp_path):
        pass


def test_a_lock_does_not_live_on_in_a_process_that_its_owner_forked(tmp_path, owner):
    fork = "\nimport os\nif os.fork() == 0:\n    print('held', flush=True)\n    time.sleep(20)\ntime.sleep(60)"
    other = owner(HOLD.format("hold") + fork)
    assert present(held_by(tmp_path)).pid == other.pid
    other.kill()
    other.wait()
    assert held_by(tmp_path) is None


def test_the_job_of_a_sweep_that_died_is_waited_for(tmp_path, owner):
    """It holds the folder a little longer; one that goes on is left alone."""
    other = owner(HOLD.format("hold") + SIGNED + "time.sleep(60)")
    with pytest.raises(JobBusyError, match=f"process {other.pid} on"), job_lock(tmp_path, patience=0.2):
        pass
    threading.Timer(0.5, other.kill).start()
    with job_lock(tmp_path):
        assert other.wait(5) != 0


def test_two_runs_do_not_write_into_one_folder(tmp_path, owner):
    other = owner(HOLD.format("hold") + SIGNED + "time.sleep(60)")
    with pytest.raises(ConfigError, match=f"process {other.pid} on .* writes there: wait until"):
        hold(tmp_path)


def test_another_machines_process_is_not_called_dead():
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    assert Holder(socket.gethostname(), int(gone.stdout)).is_dead()
    assert not Holder("elsewhere", int(gone.stdout)).is_dead()
    assert not Holder(socket.gethostname(), os.getpid()).is_dead()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(NoLocksError, match="without locks"), job_lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_not_taken_for_one_without_locks(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(IsADirectoryError), job_lock(tmp_path):
        pass
