"""Without extras and without what only training needs, a run inspects images; what is missing is named in one line."""

import json
import re
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT, make_dataset
from test_pipeline import run, tiny

from oddpatch.errors import EXTRAS, TRAINING, in_one_line

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: Calls the command line where nothing that comes with an extra can be imported.
BLOCKED = """
import json, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
from oddpatch.cli.main import main
for command in json.loads(sys.argv[2]):
    sys.argv, code = ["oddpatch", *command], 0
    try:
        main()
    except SystemExit as error:
        code = error.code or 0
    print("exit", code, file=sys.stderr)
"""


#: Packages that have another name than what is imported.
NAMES = {
    "dotenv": "python-dotenv", "hydra": "hydra-core", "paho": "paho-mqtt", "prometheus_client": "prometheus-client",
}  # fmt: skip


def packages(requirements):
    """Names without versions."""
    return [re.split(r"[\[<>=]", text)[0] for text in requirements]


def test_the_extras_that_are_named_hold_the_packages():
    for module, extra in EXTRAS.items():
        assert NAMES.get(module, module) in packages(PROJECT["optional-dependencies"][extra])
        assert NAMES.get(module, module) not in packages(PROJECT["dependencies"])
    assert {NAMES.get(module, module) for module in TRAINING} < set(packages(PROJECT["dependencies"]))


def test_the_page_names_what_inspecting_needs():
    """The last of the dependencies are those that only training needs."""
    every = packages(PROJECT["dependencies"])
    training = every[every.index("typer") + 1 :]
    assert {NAMES.get(module, module) for module in TRAINING} <= set(training)
    page = (ROOT / "docs/install.md").read_text()
    named = re.search(r"pip install --no-deps oddpatch\n(pip install (?:[^`]*))```", page)
    assert named
    assert named[1].replace("\\\n", " ").split()[2:] == every[: every.index("typer") + 1]


def test_what_is_missing_is_told_with_its_extra():
    error = ModuleNotFoundError("No module named 'lightning'", name="lightning.pytorch")
    assert in_one_line(error) == "lightning.pytorch is not installed: pip install oddpatch"
    assert in_one_line(ModuleNotFoundError("No module named 'mine'", name="mine")) is None


@pytest.mark.slow
def test_a_run_is_used_without_extras_and_training(tmp_path):
    make_dataset(tmp_path)
    run(tiny(tmp_path, tmp_path / "run", "backbone=resnet18", "model=patchcore"))
    images, spot = tmp_path / "tile", str(tmp_path / "tile/test/spot/000.png")
    folder = str(tmp_path / "run")
    commands = [
        ["predict", folder, spot, "--save", "heatmap,overlay,mask,map", "--out", str(tmp_path / "out")],
        ["explain", folder, spot, "--out", str(tmp_path / "explained.png")],
        ["update", folder, str(images / "test/good"), "--out", str(tmp_path / "more")],
        ["report", folder, "--format", "html", "--output", str(tmp_path / "table.html")],
        ["compare", folder, folder],
        ["data", "check", str(tmp_path), "tile"],
        ["init", str(tmp_path / "own")],
        ["train"],
        ["eval", f"run={folder}"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, json.dumps([*EXTRAS, *TRAINING]), json.dumps(commands)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    codes = [int(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("exit ")]
    assert codes == [1, 0, 0, 0, 0, 0, 0, 2, 2], done.stderr
    assert done.stderr.count("error: hydra is not installed: pip install oddpatch") == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("extra", sorted(PROJECT["optional-dependencies"].keys() - {"dev"}))
def test_an_extra_is_explained(extra):
    assert f"`{extra}`" in (ROOT / "docs/install.md").read_text()
