"""What a project needs beside its source agrees with it: versions, workflows, templates, links."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from planted_faults import FAULTS

import oddpatch

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def jobs(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].items()


def test_the_version_is_said_alike_everywhere():
    assert oddpatch.__version__ == PROJECT["version"]
    assert yaml.safe_load(text("CITATION.cff"))["version"] == PROJECT["version"]
    assert re.search(rf"^## {re.escape(PROJECT['version'])} - ", text("CHANGELOG.md"), re.MULTILINE)


def test_results_of_runs_are_not_kept():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    kept = [file for file in listed.stdout.splitlines() if {"outputs", "multirun"} & set(file.split("/")[:-1])]
    assert kept == []


def test_the_versions_of_python_that_are_promised_are_tested():
    promised = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert PROJECT["requires-python"] == f">={promised[0]},<3.{int(promised[-1].partition('.')[2]) + 1}"
    tested = dict(jobs(ROOT / ".github/workflows/test.yml"))
    assert all(tested[job]["strategy"]["matrix"]["python"] == promised for job in ("test", "wheel"))


def test_planted_faults_follow_the_source():
    for fault in FAULTS:
        assert (ROOT / "src/oddpatch" / fault.path).read_text(encoding="utf-8").count(fault.old) == 1, fault.name
        assert (ROOT / "tests" / fault.tests.split()[0]).is_file(), fault.name
    counted = f"planted_faults.py               # {len(FAULTS)} faults, in every room"
    assert counted in text("CONTRIBUTING.md")


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_a_workflow_runs_what_exists(path):
    targets = re.findall(r"^(\w+):", text("Makefile"), re.MULTILINE)
    for _, job in jobs(path):
        assert job["timeout-minutes"] if job.get("runs-on") and "needs" not in job else True
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            for target, arguments in re.findall(r'make (\w+)(?: ARGS="([^"]*)")?', step.get("run", "")):
                assert target in targets
                assert all((ROOT / word).exists() for word in arguments.split() if "/" in word)


def test_a_release_is_published_without_a_password_and_only_by_its_own_job():
    path = ROOT / ".github/workflows/release.yml"
    assert "secrets." not in path.read_text(encoding="utf-8")
    allowed = {name: job.get("permissions") for name, job in jobs(path)}
    assert allowed == {"build": None, "publish": {"id-token": "write"}}


def test_the_form_for_a_fault_asks_for_what_finds_it():
    form = yaml.safe_load(text(".github/ISSUE_TEMPLATE/fault.yml"))
    assert {part["id"] for part in form["body"]} == {"command", "happened", "versions"}
    assert all(part["validations"]["required"] for part in form["body"])


def test_hooks_are_the_checks():
    (local,) = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    for hook in local["hooks"]:
        words = [word.replace(".venv/bin", "$(BIN)") for word in hook["entry"].split() if word[0] != "-"]
        assert " ".join(words) in text("Makefile")


@pytest.mark.parametrize("page", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES])
def test_links_lead_somewhere(page):
    content = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", content):
        if target.startswith(("https://", "http://")):
            continue
        name, _, heading = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if heading:
            assert heading in headings(linked), target


def headings(path: Path) -> set[str]:
    """The anchors that GitHub gives to headings."""
    found = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


#: Of libraries, which have no public way.
FOREIGN = {"_MLFLOW_AVAILABLE", "tempfile.TemporaryDirectory._rmtree"}


@pytest.mark.parametrize("path", [*ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")], ids=lambda p: p.name)
def test_no_test_imports_or_replaces_what_is_private(path):
    """Attributes are ruff's to see (SLF001); names that are imported, and those that monkeypatch is given, are not."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("oddpatch"):
            assert not [alias.name for alias in node.names if alias.name.startswith("_")], node.lineno
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr":
            names = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            private = {name for name in names if name.split(".")[-1].startswith("_") and not name.endswith("__")}
            assert private <= FOREIGN
