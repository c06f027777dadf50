"""What `.env` may set, and in what surroundings git runs."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from oddpatch import environment
from oddpatch.environment import VARIABLES, git_commit, read_env
from oddpatch.errors import ConfigError


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of nothing, of which the package believes to be."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "pyproject.toml").write_text("")
    (root / ".env.example").write_text("")
    monkeypatch.setattr(environment, "checkout", lambda: root)
    for name in VARIABLES:
        monkeypatch.setenv(name, "before")  # so that all are put back
        monkeypatch.delenv(name)
    return root


def test_what_may_be_set_is_what_the_example_lists():
    assert tuple(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.M)) == VARIABLES


def test_listed_variables_are_taken_over_and_those_set_stand(checkout, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (checkout / ".env").write_text(
        "ODDPATCH_DATA_DIR=/d a ta\nWANDB_MODE=online\n# WANDB_ENTITY=me\nHF_HOME='${HOME}'\n"
    )
    read_env()
    assert os.environ["ODDPATCH_DATA_DIR"] == "/d a ta"
    assert os.environ["WANDB_MODE"] == "offline"
    assert os.environ["HF_HOME"] == "${HOME}"
    assert "WANDB_ENTITY" not in os.environ


@pytest.mark.parametrize("name", ["LD_PRELOAD", "GIT_CONFIG_COUNT", "PYTHONPATH", "PATH", "oddpatch_data_dir"])
def test_others_are_refused_and_nothing_is_set(checkout, name, monkeypatch):
    (checkout / ".env").write_text(f"ODDPATCH_DATA_DIR=/data\n{name}=x\n")
    before = dict(os.environ)
    with pytest.raises(ConfigError, match=f"{name}.*export NAME=VALUE") as error:
        read_env()
    assert "\n" not in str(error.value)
    assert dict(os.environ) == before


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", bytes(range(256))])
def test_a_binary_file_is_one_line(checkout, content):
    (checkout / ".env").write_bytes(content)
    with pytest.raises(ConfigError, match=r"\.env") as error:
        read_env()
    assert "\n" not in str(error.value)


def test_the_file_of_the_current_folder_is_not_read(tmp_path, monkeypatch):
    """Each program, in a folder that is someone else's."""
    (tmp_path / ".env").write_text("LD_PRELOAD=/x.so\nODDPATCH_DATA_DIR=/elsewhere\nGIT_CONFIG_COUNT=1\n")
    script = (
        "import os; from oddpatch.environment import read_env; read_env(); print(os.environ.get('ODDPATCH_DATA_DIR'))"
    )
    env = {key: value for key, value in os.environ.items() if key != "ODDPATCH_DATA_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() != "/elsewhere"
    for program in ("train.py", "eval.py", "src/oddpatch/cli/main.py"):
        assert "load_dotenv" not in (ROOT / program).read_text()


def test_git_runs_nothing_that_the_environment_or_the_checkout_asks_for(checkout, tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        return subprocess.run(["git", *identity, *arguments], cwd=checkout, check=True, capture_output=True, text=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "x")
    commit = git("rev-parse", "HEAD").stdout.strip()
    assert git_commit() == commit
    evil = tmp_path / "evil.sh"
    evil.write_text(f"#!/bin/sh\ntouch {tmp_path}/CANARY\n")
    evil.chmod(0o755)
    git("config", "core.fsmonitor", str(evil))
    for key, value in (("COUNT", "1"), ("KEY_0", "core.fsmonitor"), ("VALUE_0", str(evil))):
        monkeypatch.setenv(f"GIT_CONFIG_{key}", value)
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", str(evil))
    assert git_commit() == commit
    (checkout / ".env.example").write_text("changed")
    assert git_commit() == f"{commit}+changes"
    assert not (tmp_path / "CANARY").exists()


def test_outside_a_checkout_git_is_not_run(monkeypatch, tmp_path):
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: pytest.fail("git was run"))
    monkeypatch.setattr(environment, "checkout", lambda: None)
    assert git_commit() is None
    monkeypatch.setattr(environment, "checkout", lambda: tmp_path)  # an archive of the source, without its history
    assert git_commit() is None
