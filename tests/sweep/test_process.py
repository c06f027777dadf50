"""A job's process: how it ends is known, it is an ordinary program, and it ends with the one that started it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from narrowing import present
from patience import PATIENCE, wait_until

from oddpatch.errors import ConfigError
from oddpatch.locking import held_by, job_lock
from oddpatch.sweep import process


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs lines as a job of its own; gives how it ended and what it printed."""
    monkeypatch.setattr(process, "PRELOADED", [])

    def run(*lines, arguments=(), **environment):
        script, console = tmp_path / "script.py", tmp_path / "console.log"
        script.write_text("\n".join(lines))
        console.unlink(missing_ok=True)
        ending = process.run_script(script, arguments, environment, console, tmp_path)
        return ending, console.read_text()

    return run


def test_a_job_is_an_ordinary_program(run):
    lines = [
        "import multiprocessing, os, sys",
        "import atexit; atexit.register(print, 'goodbye')",
        "print(__name__, sys.argv[1:], os.environ['COLOUR'], multiprocessing.get_start_method())",
    ]
    ending, told = run(*lines, arguments=["a=1", "b"], COLOUR="green")
    assert ending == (0, "")
    default = subprocess.run(
        [sys.executable, "-c", "import multiprocessing; print(multiprocessing.get_start_method())"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert told.splitlines() == [f"__main__ ['a=1', 'b'] green {default}", "goodbye"]


@pytest.mark.parametrize(
    ("lines", "code", "reason"),
    [
        (["raise ValueError('first line\\nsecond')"], 1, "ValueError: first line"),
        (["from oddpatch.errors import ConfigError", "raise ConfigError('choose 1..3')"], 1, "choose 1..3"),
        (["try: 1 / 0", "except ZeroDivisionError: exit(3)"], 3, "ZeroDivisionError: division by zero"),
        (["import sys", "sys.exit(4)"], 4, "it ended with exit code 4"),
        (["import os", "os._exit(5)"], 5, "it ended with exit code 5"),
        (["import os", "os.kill(os.getpid(), 11)"], -11, "it was killed by SIGSEGV"),
        (["import os", "os.kill(os.getpid(), 9)"], -9, "it was killed by SIGKILL: is there enough memory?"),
        (["import os", "os.kill(os.getpid(), 2)", "import time; time.sleep(9)"], 130, "it was interrupted"),
        (["import sys", "sys.exit(0)"], 0, ""),
    ],
)  # fmt: skip
def test_how_a_job_ends_is_told_in_a_line(run, lines, code, reason):
    ending, told = run(*lines)
    assert ending == (code, reason)
    assert ("Traceback" in told) == (lines[-1].startswith("raise"))


def test_the_reason_of_an_error_is_its_own():
    assert process.explain(ConfigError("x=1 is wrong: choose 2")) == (1, "x=1 is wrong: choose 2")
    assert process.explain(OSError(28, "No space left")) == (1, "OSError: [Errno 28] No space left")
    assert process.explain(RuntimeError()) == (1, "RuntimeError: ")


def test_a_job_ends_with_the_sweep_and_holds_its_lock_until_then(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "try: time.sleep(60)\n"
        "finally:\n"
        "    time.sleep(1)\n"
        f"    pathlib.Path({str(tmp_path / 'tidied')!r}).touch()\n"
    )
    sweep = (
        "import sys; from pathlib import Path; from oddpatch.sweep import process\n"
        "from oddpatch.locking import job_lock\n"
        "process.PRELOADED = []\n"
        "if __name__ == '__main__':\n"
        "    with job_lock(Path(sys.argv[1])):\n"
        "        process.run_script(Path(sys.argv[1]) / 'script.py', [], {}, None, Path(sys.argv[1]))\n"
    )
    main = tmp_path / "sweep.py"
    main.write_text(sweep)
    told = (tmp_path / "stderr").open("w")
    started = subprocess.Popen([sys.executable, main, str(tmp_path)], stderr=told)
    wait_until((tmp_path / "pid").exists)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    assert present(held_by(tmp_path)).pid == int((tmp_path / "pid").read_text())  # the job, which tidies up
    with job_lock(tmp_path):
        assert (tmp_path / "tidied").exists()
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}/exe").exists()
    assert (tmp_path / "stderr").read_text() == ""


@pytest.mark.parametrize("kill", [os.killpg, os.kill])  # as a terminal does, and as `kill -INT` does
def test_ctrl_c_while_the_server_imports_is_one_line(tmp_path, kill):
    (tmp_path / "heavy.py").write_text(
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'importing')!r}).touch()\ntime.sleep(600)\n"
    )
    (tmp_path / "script.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    (tmp_path / "sweep.py").write_text(
        "import sys; from pathlib import Path; from oddpatch.sweep import process\n"
        "from oddpatch.ending import ending_when_told\n"
        "process.PRELOADED = ['heavy']\n"
        "if __name__ == '__main__':\n"
        "    with ending_when_told(lambda word: print(word, file=sys.stderr)):\n"
        "        process.run_script(Path('script.py'), [], {}, None, None)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    started = subprocess.Popen(
        [sys.executable, "sweep.py"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        env=environment, start_new_session=True,
    )  # fmt: skip
    wait_until((tmp_path / "importing").exists, started)
    kill(started.pid, signal.SIGINT)
    told, _ = started.communicate(timeout=PATIENCE)  # until the server has gone, too
    assert (started.returncode, told) == (130, "interrupted\n")
    assert not (tmp_path / "ran").exists()
