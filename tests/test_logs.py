"""Log messages where the output is no terminal, and errors that are told in one line."""

import contextlib
import logging
import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from omegaconf import OmegaConf

from oddpatch.errors import ConfigError, in_one_line
from oddpatch.logs import LogFile, console_handler


def test_a_message_is_one_line_however_long(capsys):
    path = "/data/" + "a long name/" * 20 + os.fsdecode(b"caf\xe9.png")
    logger = logging.Logger("long")
    logger.addHandler(console_handler())
    logger.warning("%s is broken: mend it", path)
    logger.info("second")
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("caf\\udce9.png is broken: mend it")
    assert told[0].startswith("WARNING  /data/a long name/")
    assert told[1] == "INFO     second"


def test_a_log_file_on_a_full_disk_is_told_once(small_disk, capfd):
    log = LogFile(str(small_disk / "train.log"))
    for _ in range(3):
        log.handle(logging.makeLogRecord({"msg": "x" * 200_000}))
    full = f"{small_disk}/train.log cannot be written (No space left on device): messages are lost, the run goes on\n"
    assert capfd.readouterr().err == full
    with contextlib.suppress(OSError):  # as logging does at the end
        log.close()


def test_the_log_of_a_run_is_such_a_file():
    handlers = yaml.safe_load((ROOT / "configs/hydra/job_logging/rich.yaml").read_text())["handlers"]
    assert handlers["file"]["class"] == f"{LogFile.__module__}.{LogFile.__qualname__}"


def test_errors_of_libraries_that_a_user_can_mend_are_one_line():
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    with pytest.raises(Exception, match="nowhere") as error:
        OmegaConf.create({"data": {"root": "${nowhere}"}}).data.root  # noqa: B018
    assert in_one_line(error.value) == "data.root: Interpolation key 'nowhere' not found"
    assert in_one_line(MisconfigurationException("No GPU\nhere")) == "trainer: No GPU here"
    assert in_one_line(ConfigError("a=1: no")) == "a=1: no"
    assert in_one_line(ValueError("a bug")) is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--cfg", "job", "model.nothing_like_it=1"], "error: model.nothing_like_it=1: there is no setting "),
        (["hydra.run.dir=out/${y}"], "out/${y}: has ${ in its name: set hydra.run.dir to another folder"),
        (["seed=a(b"], "if that is a text, type 'seed=\"a(b\"'"),
    ],
)
def test_what_cannot_be_composed_is_one_line(arguments, told, tmp_path):
    said_once(arguments, told, tmp_path)


@pytest.mark.parametrize("name", ["${y}", "${now:%Y}"])
@pytest.mark.parametrize("arguments", [["hydra.run.dir=out"], ["-m", "seed=0,1", "hydra.sweep.dir=out"]])
def test_a_folder_whose_name_looks_like_a_reference_is_refused_in_one_line(arguments, name, tmp_path):
    (tmp_path / name).mkdir()
    kind = arguments[-1].partition("=")[0]
    said_once(arguments, f"{tmp_path}/{name}/out: has ${{ in its name: set {kind} to another folder", tmp_path / name)
    assert not list((tmp_path / name).iterdir())


def test_a_current_folder_whose_name_hydra_cannot_read_is_told_in_one_line(tmp_path):
    (tmp_path / "a${").mkdir()
    told = f"{tmp_path}/a${{: the name of the current folder has ${{ in it: change to another folder"
    said_once(["seed=1"], told, tmp_path / "a${")


def said_once(arguments, told, folder):
    command = [sys.executable, ROOT / "train.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 1
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not done.stdout


def test_names_in_our_messages_change_no_terminal(capsys):
    handler = console_handler()
    for name, text in (("oddpatch.x", "\\x1b[2J\\x07"), ("other", "\x1b[2J\x07")):
        handler.handle(logging.LogRecord(name, logging.WARNING, "", 0, "%s", ("\x1b[2J\x07",), None))
        assert capsys.readouterr().out == f"WARNING  {text}\n"
