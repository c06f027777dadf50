"""What every command of `oddpatch` has in common: its exit codes, and how it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

COMMANDS = """
import sys, time
from oddpatch.cli import main as cli
from oddpatch.errors import DataError
@cli.app.command()
def talk(lines: int = 100_000):
    for number in range(lines):
        cli.typer.echo(f"line {number}")
@cli.app.command()
def crash():
    cli.typer.echo("first")
    raise ZeroDivisionError("a mistake of ours")
@cli.app.command()
def refuse():
    raise DataError("a.png is broken: mend it")
@cli.app.command()
def anomalous():
    raise cli.typer.Exit(1)
@cli.app.command()
def wait():
    cli.typer.echo("waiting")
    time.sleep(600)
cli.main()
"""


def command(*arguments):
    return [sys.executable, "-c", COMMANDS, *arguments]


def call(*arguments, **settings):
    pipes = {"stdout": subprocess.PIPE, **settings}
    return subprocess.run(command(*arguments), stderr=subprocess.PIPE, text=True, check=False, **pipes)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["talk", "--lines", "2"], 0, ""),
        (["anomalous"], 1, ""),
        (["refuse"], 2, "error: a.png is broken: mend it\n"),
        (["crash"], 2, "ZeroDivisionError: a mistake of ours\n"),
        (["talk", "--lines", "many"], 2, "Invalid value for '--lines'"),
        (["no-such-command"], 2, "No such command 'no-such-command'"),
    ],
)
def test_every_error_is_2(arguments, code, told):
    done = call(*arguments)
    assert done.returncode == code
    assert told in done.stderr
    assert ("Traceback" in done.stderr) == (arguments == ["crash"])


@pytest.mark.parametrize("lines", ["1", "100000"])
def test_a_full_device_is_an_error_in_one_line(lines):
    with Path("/dev/full").open("w") as full:
        done = call("talk", "--lines", lines, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "error: the output: No space left on device: free disk space, or choose another folder\n"


def test_a_standard_output_that_is_closed_is_an_error_in_one_line():
    done = call("talk", preexec_fn=lambda: os.close(1), stdout=None)
    assert done.returncode == 2
    assert done.stderr == "error: the output: Bad file descriptor: it is closed, send it to a file or to /dev/null\n"


@pytest.mark.parametrize("doing", [["talk"], ["talk", "--lines", "1"], ["crash"]])
def test_a_reader_that_has_gone_ends_a_command_quietly(doing):
    reading, writing = os.pipe()
    os.close(reading)
    done = call(*doing, stdout=writing)
    os.close(writing)
    assert done.returncode == (2 if doing == ["crash"] and "ZeroDivisionError" in done.stderr else 141)
    assert "BrokenPipe" not in done.stderr
    assert done.stderr == "" or doing == ["crash"]


@pytest.mark.parametrize(
    ("how", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_signals_end_a_command_with_one_word(how, code, word):
    process = subprocess.Popen(command("wait"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(how)
    _, told = process.communicate(timeout=PATIENCE)
    assert (process.returncode, told) == (code, f"{word}\n")
