"""Programs that are told to end: their exit codes, their last words, and what they leave."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from patience import PATIENCE, wait_until

SCRIPT = """
import os, sys, time, tempfile
from oddpatch import ending
ending.GRACE = 0.3 if sys.argv[2] == "ignore" else 20
with ending.ending_when_told(lambda word: print(word, file=sys.stderr)), tempfile.TemporaryDirectory(dir=sys.argv[1]):
    if sys.argv[2] == "child":
        child = os.fork()
    os.write(1, f"ready {os.getpid()}\\n".encode())  # in one piece, also where output is not buffered
    if sys.argv[2] == "swallow":
        class Swallow:
            def __del__(self):
                time.sleep(600)
        Swallow()
        time.sleep(600)
    if sys.argv[2] == "complain":
        class Complain:
            def __del__(self):
                raise RuntimeError("a worker was killed")  # as torch's loaders, whose workers were told to end, too
        kept = Complain()
    if sys.argv[2] == "ignore":
        while True:
            try:
                time.sleep(600)
            except KeyboardInterrupt:
                pass
    if sys.argv[2] == "import":
        import importlib.machinery
        class Slow(importlib.machinery.ExtensionFileLoader):
            def create_module(self, spec):
                print("inside", flush=True)
                for _ in range(3):
                    time.sleep(0.1)
                print("created", flush=True)
        try:
            Slow("slow", "slow.so").create_module(None)
            time.sleep(600)
        except KeyboardInterrupt:
            print("raised", flush=True)
            raise
    if sys.argv[2] == "exit":
        try:
            print("inside", flush=True)
            time.sleep(600)
        except KeyboardInterrupt:
            sys.exit(1)  # as Lightning does
    if sys.argv[2] == "error":
        try:
            print("inside", flush=True)
            time.sleep(600)
        except KeyboardInterrupt:
            raise RuntimeError("while it is put away")
    time.sleep(600)
"""


def start(command, **settings):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT,
        **settings,
    )  # fmt: skip


def until(process, text):
    """Read what a process prints until a line has `text` in it."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError("".join(lines))


def end(process, how):
    """Send a signal; exit code and the rest of what is printed."""
    process.send_signal(how)
    told, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, told


@pytest.mark.parametrize("doing", ["wait", "exit", "error"])
@pytest.mark.parametrize(
    ("how", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_exit_code_says_what_ended_a_program(tmp_path, doing, how, code, word):
    process = start([sys.executable, "-c", SCRIPT, tmp_path, doing])
    until(process, "ready" if doing == "wait" else "inside")
    returned, told = end(process, how)
    assert (returned, told) == (code, f"{word}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("how", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_that_is_swallowed_ends_the_program_all_the_same(tmp_path, how, code, word):
    process = start([sys.executable, "-c", SCRIPT, tmp_path, "ignore"])
    until(process, "ready")
    returned, told = end(process, how)
    assert returned == code
    assert told.splitlines()[-1] == word


@pytest.mark.parametrize(
    ("how", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_in_a_destructor_is_raised_again_after_it(tmp_path, how, code, word):
    process = start([sys.executable, "-c", SCRIPT, tmp_path, "swallow"])
    until(process, "ready")
    assert end(process, how) == (code, f"{word}\n")
    assert not list(tmp_path.iterdir())  # put away, not just left


def test_what_destructors_complain_of_is_no_news_once_a_program_was_told_to_end(tmp_path):
    process = start([sys.executable, "-c", SCRIPT, tmp_path, "complain"])
    until(process, "ready")
    assert end(process, signal.SIGTERM) == (143, "terminated\n")


def test_native_code_is_loaded_to_the_end_before_a_signal_is_raised(tmp_path):
    """A library that is initialised aborts the process where an exception comes in between."""
    process = start([sys.executable, "-c", SCRIPT, tmp_path, "import"])
    until(process, "inside")
    assert end(process, signal.SIGTERM) == (143, "created\nraised\nterminated\n")


def test_a_signal_to_a_forked_child_is_no_news_to_its_parent(tmp_path):
    process = start([sys.executable, "-c", SCRIPT, tmp_path, "child"])
    until(process, "ready")
    until(process, "ready")
    (child,) = psutil.Process(process.pid).children()
    child.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    assert end(process, signal.SIGTERM)[0] == 143


HANDING_OVER = """
import multiprocessing, os, socket, sys, time
from multiprocessing import resource_sharer
from oddpatch import ending

def hand_over(queue):
    queue.put(resource_sharer.DupFd(os.open(os.devnull, os.O_RDONLY))._id[0])
    time.sleep(1)

with ending.ending_when_told(print):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=hand_over, args=(queue,))
    worker.start()
    address = queue.get()
    with socket.socket(socket.AF_UNIX) as reader:
        reader.connect(address)  # and ends before it has read anything
    worker.join()
"""


def test_a_data_loader_that_hands_over_a_tensor_to_an_ended_process_says_nothing():
    process = start([sys.executable, "-c", HANDING_OVER])
    told, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, told) == (0, "")


@pytest.mark.parametrize(
    ("reader", "told"),
    [
        ("gone", ""),
        ("full", "the output cannot be written (No space left on device): messages are lost, the run goes on\n"),
    ],
)
def test_a_run_goes_on_where_its_output_cannot_be_printed(tmp_path, reader, told):
    script = (
        "import logging, sys; from oddpatch import ending, logs\n"
        "ending.go_on_unread()\n"
        "logging.getLogger().addHandler(logs.console_handler())\n"
        "for _ in range(3): logging.warning('here'); print('there', flush=True)\n"
        "sys.stdout.write('to the end')\n"
        "open('done', 'w').close()\n"
    )
    if reader == "gone":
        reading, output = os.pipe()
        os.close(reading)
    else:
        output = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run([sys.executable, "-c", script], stdout=output, stderr=subprocess.PIPE, text=True, check=False,
                          cwd=tmp_path)  # fmt: skip
    os.close(output)
    assert (done.returncode, done.stderr) == (0, told)
    assert (tmp_path / "done").exists()


TINY = (
    "data=mvtec", "data.category=tile", "data.resize=32", "data.crop=32", "data.batch_size=5", "model=padim",
    "model.num_features=10", "backbone=resnet18", "backbone.weights=random", "trainer.accelerator=cpu",
    "callbacks.progress=null", "callbacks.pictures=null",
)  # fmt: skip


def train(tiles, out, *overrides):
    flags = [text for text in overrides if text.startswith("-")]
    settings = [*TINY, f"data.root={tiles}", *(text for text in overrides if text not in flags)]
    return start([sys.executable, "train.py", *flags, *settings], start_new_session=True)


def waiting(where, swallow=False, seconds=600):
    settings = f"where: {where}, swallow: {str(swallow).lower()}, seconds: {seconds}"
    return f"+callbacks.wait={{_target_: waiting.Wait, {settings}}}"


def left_running(process, patience=60):
    """Processes of the session that a test has started, but for those that end within `patience` seconds.

    A helper of multiprocessing ends when it notices that its parent has: a moment after it.
    """

    def runs(p):
        try:
            return os.getsid(p.pid) == process.pid and p.status() != psutil.STATUS_ZOMBIE
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False

    _, alive = psutil.wait_procs([p for p in psutil.process_iter() if runs(p)], timeout=patience)
    return [p for p in alive if runs(p)]


def nothing_half_written(folder: Path):
    assert not [path for path in folder.rglob(".*") if path.name != ".hydra" and path.suffix in (".partial", ".draft")]
    assert not list(folder.rglob("metrics.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "overrides", "swallow"),
    [
        ("fit", ["data.num_workers=2"], False),
        ("test", ["data.num_workers=0"], False),
        ("fit", ["data.num_workers=0"], True),
    ],
)
def test_termination_of_a_run(tiles, tmp_path, where, overrides, swallow):
    process = train(tiles, tmp_path, f"hydra.run.dir={tmp_path}/run", waiting(where, swallow), *overrides)
    until(process, f"waiting in {where}")
    returned, told = end(process, signal.SIGTERM)
    assert returned == 143
    assert told.count("terminated") == 1
    assert "Traceback" not in told
    nothing_half_written(tmp_path)
    assert not left_running(process)


@pytest.mark.slow
def test_a_run_and_a_sweep_come_to_their_end_though_nobody_reads(tiles, tmp_path):
    for flags in ([f"hydra.run.dir={tmp_path}/run"], ["-m", "seed=0", f"hydra.sweep.dir={tmp_path}/sweep"]):
        process = train(tiles, tmp_path, "data.num_workers=0", *flags)
        process.stdout.readline()
        process.stdout.close()  # of stdout and stderr
        assert process.wait(PATIENCE) == 0
    assert len(list(tmp_path.rglob("metrics.json"))) == 2
    for log in tmp_path.rglob("train.log"):
        assert "Broken" not in log.read_text()


@pytest.mark.slow
def test_termination_of_a_sweep_ends_its_job(tiles, tmp_path):
    process = train(tiles, tmp_path, "-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep", waiting("fit"),
                    "data.num_workers=2")  # fmt: skip
    until(process, "waiting in fit")
    returned, told = end(process, signal.SIGTERM)
    assert returned == 143
    assert "Traceback" not in told
    assert told.splitlines()[-1] == "terminated"
    nothing_half_written(tmp_path)
    (record,) = (json.loads(path.read_text()) for path in tmp_path.rglob("job.json"))
    assert record["status"] == "interrupted"
    assert not left_running(process)


@pytest.mark.slow
def test_termination_of_a_run_ends_its_ranks(tiles, tmp_path):
    process = train(tiles, tmp_path, f"hydra.run.dir={tmp_path}/run", waiting("fit"), "data.num_workers=1",
                    "trainer=ddp", "trainer.devices=2")  # fmt: skip
    until(process, "waiting in fit")
    ranks = psutil.Process(process.pid).children(recursive=True)
    returned, told = end(process, signal.SIGTERM)
    assert returned == 143
    assert "Traceback" not in told
    assert told.count("terminated") == 1
    nothing_half_written(tmp_path)
    gone, alive = psutil.wait_procs(ranks, timeout=PATIENCE)
    assert gone
    assert not alive


@pytest.mark.slow
def test_a_data_loader_that_is_killed_ends_the_run_in_one_line(tiles, tmp_path):
    process = train(tiles, tmp_path, f"hydra.run.dir={tmp_path}/run", waiting("fit", seconds=3), "data.num_workers=2",
                    "data.batch_size=1")  # fmt: skip
    until(process, "waiting in fit")
    loader = psutil.Process(process.pid).children()[0]
    loader.kill()
    told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    (line,) = [line for line in told.splitlines() if "was killed" in line]
    assert "a process that prepares images was killed (DataLoader worker" in line
    assert "lower data.num_workers or data.batch_size" in line
    assert "Traceback" not in told
    nothing_half_written(tmp_path)
    assert not left_running(process)


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(tiles, tmp_path):
    first = train(tiles, tmp_path, f"hydra.run.dir={tmp_path}/run", waiting("fit"), "data.num_workers=0")
    until(first, "waiting in fit")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    second = train(tiles, tmp_path, f"hydra.run.dir={tmp_path}/run", "seed=1")
    told, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 1
    assert told.count("\n") == 1
    assert f"{tmp_path}/run: process {first.pid} on " in told
    assert "writes there: wait until it has ended, or set hydra.run.dir to another folder" in told
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    first.kill()
    first.communicate()
    third = train(tiles, tmp_path, f"hydra.run.dir={tmp_path}/run", "data.num_workers=0")  # a killed run holds nothing
    told, _ = third.communicate(timeout=PATIENCE)
    assert third.returncode == 0, told


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_rendering_that_is_ended_leaves_no_process_and_the_next_one_no_draft(tmp_path, how):
    def render(*arguments):
        return start([sys.executable, "-m", "oddpatch.cli.main", "data", "render", "pcb", tmp_path / "board",
                      *arguments], start_new_session=True)  # fmt: skip

    process = render("--train", "2000", "--size", "320", "--workers", "2")
    wait_until(lambda: list(tmp_path.rglob("*.png")), process)
    returned, told = end(process, how)
    assert returned == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[how]
    assert "Traceback" not in told
    assert bool(list(tmp_path.iterdir())) == (how == signal.SIGKILL)
    wait_until(lambda: not left_running(process))
    again = render("--train", "1", "--test-good", "1", "--test-per-defect", "0", "--size", "96")
    told, _ = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, told
    assert [path.name for path in tmp_path.iterdir()] == ["board"]
