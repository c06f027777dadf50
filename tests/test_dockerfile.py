"""The Dockerfile, where there is no engine to build it: what it copies exists, and its steps do what they are for."""

import json
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
from fnmatch import fnmatch

import pytest
from conftest import ROOT

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
#: (instruction, rest) of all, in order.
STEPS = [tuple(line.split(" ", 1)) for line in TEXT.replace("\\\n", " ").splitlines() if line and line[0] != "#"]


def steps(instruction):
    return [rest for name, rest in STEPS if name == instruction]


def copied():
    """(paths of the checkout, where to)."""
    for rest in steps("COPY"):
        if not rest.startswith("--from="):
            *sources, target = shlex.split(rest)
            yield sources, target


def test_what_is_copied_exists_and_is_not_ignored():
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignore[0] == "*"
    sources = [source for given, _ in copied() for source in given]
    assert all((ROOT / source).exists() for source in sources)
    assert sorted(sources) == sorted(line[1:] for line in ignore if line.startswith("!"))
    # What the link to the configs leads to is copied, too, to where it leads from there.
    link = ROOT / "src/oddpatch/configs"
    assert os.path.normpath(link.parent / link.readlink()) == str(ROOT / "configs")
    assert {target for _, target in copied()} == {"/source/", "/source/configs", "/source/src"}


def test_the_image_is_small_and_its_user_is_not_root():
    names = [name for name, _ in STEPS]
    assert names.count("FROM") == 2
    assert all(rest.startswith("python:3.12-slim") for rest in steps("FROM"))
    last = len(names) - names[::-1].index("FROM")
    assert not any(fnmatch(rest, "*pip install*") for name, rest in STEPS[last:] if name == "RUN")
    assert all("--no-cache-dir" in rest for rest in steps("RUN") if "pip install" in rest)
    (user,) = steps("USER")
    assert user == "oddpatch"
    assert names.index("USER") < names.index("ENTRYPOINT")
    (added,) = (rest for rest in steps("RUN") if "useradd" in rest)
    assert re.search(r"--uid 1000 oddpatch\b", added)


@pytest.mark.slow
def test_its_steps_install_what_it_starts(tmp_path):
    """In a folder that stands for the root of the image; packages that are here already are not fetched."""
    for sources, target in copied():
        place = tmp_path / target[1:]
        if target.endswith("/"):
            place.mkdir(parents=True, exist_ok=True)
            for source in sources:
                shutil.copy(ROOT / source, place)
        else:
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / sources[0], place, symlinks=True, ignore=ignored)
    environment = tmp_path / "opt/oddpatch"
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for step in steps("RUN"):
        command = shlex.split(re.sub(r"(?<![\w:/])/(opt|source|work)\b", rf"{tmp_path}/\1", step))
        if command[0] == "useradd" or "torch" in command:
            continue
        if command[0] == "python":
            command[0] = sys.executable
        if "install" in command:
            (packages,) = environment.glob("lib/python3*/site-packages")
            for old in packages.glob("setuptools*"):  # Python 3.11 puts one there that is older than ours
                shutil.rmtree(old)
            (packages / "here.pth").write_text("\n".join(site.getsitepackages()))
            command += ["--no-index", "--no-build-isolation", "--no-deps"]
        subprocess.run(command, check=True, env=clean, capture_output=True)
    path = f"{environment}/bin{os.pathsep}{os.environ['PATH']}"
    work = tmp_path / "work"
    work.mkdir()
    (entry,), (command,) = map(steps, ("ENTRYPOINT", "CMD"))
    (health,) = (json.loads(rest.partition("CMD ")[2]) for rest in steps("HEALTHCHECK"))
    for called in (json.loads(entry) + json.loads(command), [*json.loads(entry), "predict", "--help"], health):
        program = shutil.which(called[0], path=path)
        assert program.startswith(str(environment))
        subprocess.run([program, *called[1:]], cwd=work, env={**clean, "PATH": path}, check=True, capture_output=True)
