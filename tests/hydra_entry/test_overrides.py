"""Names and paths that are typed are read as typed: in a single run, in a sweep, in a job of it, and by eval.py."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from conftest import CONFIGS, ROOT, make_dataset
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from sweeping import TINY, Stand, statuses, sweep

from oddpatch.hydra_entry import building
from oddpatch.hydra_entry.overrides import as_typed, folder_name, literal, quoted
from oddpatch.sweep import job

#: What YAML or Hydra's grammar reads as something else, or not at all.
NAMES = [
    "7", "010", "0x10", "2024_01_15", "2024-01-15", "1e5", "1_000", "-5", "+5", ".5", "nan", "inf", "true",
    "False", "yes", "null", "~", "[x]", "{x}", "(x)", "root (2)", "a=b", "it's", 'say "x"', "部品", "grün",
    "a b", " a ", "a,b", "a:b", "a@b", "#1", "100%", "x$y", "${y}", "${data.root", "\\${y}", "a\\", "a\\'b",
    "*", "?", "!x", "&x", "|x", "-", "=", "'", '"', "$", "choice", "a\nb", "caf\udce9",
]  # fmt: skip
TOP = {"hydra", "data", "seed", "paths"}


@pytest.fixture(scope="module")
def hydra():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


def read(*arguments):
    """What the settings are in the end, after all of Hydra's and OmegaConf's readings."""
    return compose("train", as_typed(["data=custom", *arguments], TOP)).data


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_was_typed(name, hydra):
    data = read(f"data.category={name}", f"data.root=/parts/{name}")
    assert data.category == name
    assert data.root == f"/parts/{name}"
    assert OmegaConf.create(OmegaConf.to_yaml(data)).category == name


@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
@settings(max_examples=100, deadline=None)
def test_any_text_is_read_as_itself(text):
    value = OverridesParser.create().parse_override(f"x={quoted(text)}").value()
    assert OmegaConf.create({"x": value}).x == text
    assert OmegaConf.create({"x": literal(text)}).x == text


@pytest.mark.parametrize("name", [name for name in NAMES if "," not in name])
def test_names_of_a_sweep_are_what_was_typed(name):
    argument = as_typed(["-m", f"data.category=x,{name},y"], TOP)[1]
    override = OverridesParser.create().parse_override(argument)
    jobs = [f"data.category={text}" for text in override.sweep_string_iterator()]
    assert as_typed(jobs, TOP) == jobs, "a job's command line is read once more"
    values = [OverridesParser.create().parse_override(text).value() for text in jobs]
    assert [OmegaConf.create({"x": value}).x for value in values] == [
        "x",
        name.strip() if name.isspace() else name,
        "y",
    ]


@pytest.mark.parametrize(
    "argument",
    [
        "data.category='7'", 'data.root="it\'s"', "data.category='a,b'", "data.category=choice(a,b)", "data.split=null",
        "data.align={reference: a.png, method: translation}", "data.validation=0.3", "model.epsilon=1e-3", "-m",
        "data.root=${paths.data_dir}/x", "data.root=${oc.env:HOME}/x", "seed=1,2", "model=padim,patchcore", "--cfg",
    ],
)  # fmt: skip
def test_what_hydra_is_meant_to_read_is_left_to_it(argument, monkeypatch):
    read_so = OverridesParser.create().parse_override
    for found in (as_typed([argument], TOP)[0], as_typed(["-m", argument], TOP)[1]):
        if "=" in argument:
            assert read_so(found).value() == read_so(argument).value()
        else:
            assert found == argument


def test_several_categories_are_a_list_of_names(hydra):
    assert read("data.category=[7,it's, a b,x]").category == ["7", "it's", "a b", "x"]
    assert read("data.category=['a,b',c]").category == ["a,b", "c"]
    assert read("data.category=[x]").category == "[x]", "a folder may be called so"
    argument = as_typed(["-m", "data.category=[a,7],x,[true,b]"], TOP)[1]
    override = OverridesParser.create().parse_override(argument)
    jobs = [f"data.category={text}" for text in override.sweep_string_iterator()]
    assert as_typed(jobs, TOP) == jobs, "a job's command line is read once more"
    assert [read(job).category for job in jobs] == [["a", "7"], "x", ["true", "b"]]


def test_home_and_references(hydra, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    data = read("data.root=~/parts", "data.category=~", "data.split='~/a b.csv'", "data.roi=${data.root}/roi it's.png")
    assert (data.root, data.category, data.split) == ("/home/me/parts", "~", "/home/me/a b.csv")
    assert data.roi == "/home/me/parts/roi it's.png"


def test_a_folder_that_hydra_would_take_for_a_reference_is_built_from(tmp_path):
    cfg = OmegaConf.create({"part": {"_target_": "pathlib.PurePath"}, "cache": {"_target_": "builtins.dict"}})
    cfg.cache.folder = literal("${y}/\\${z}")
    assert building.make(cfg.cache) == {"folder": "${y}/\\${z}"}
    assert building.make({"_target_": "builtins.dict", "folder": "${y}"}) == {"folder": "${y}"}


def test_folders_of_runs_need_no_quotes():
    for name in NAMES:
        assert re.fullmatch(r"[\w.,+-]*", folder_name(name))
    assert folder_name("部品 (2)") == "部品__2_"
    assert folder_name(OmegaConf.create(["bottle", "a b"])) == "bottle+a_b"
    assert folder_name([f"category{number}" for number in range(30)]) == "30_categories"


@pytest.fixture
def stand(monkeypatch):
    found = Stand()
    monkeypatch.setattr(job, "run_script", found)
    return found


@pytest.mark.slow
def test_sweeps_over_odd_names(monkeypatch, tmp_path, stand):
    names = ["true", "7", "${y}", "it's b"]
    for name in names:
        make_dataset(tmp_path / "data", good=1, test_good=1, defects=1).rename(tmp_path / f"data/{name}")
    root = f"data.root={tmp_path}/data"
    given = f"data.category={','.join(names)}"
    assert sweep(monkeypatch, tmp_path / "s", root, given) == 0
    assert set(statuses(tmp_path / "s").values()) == {"done"}
    assert len(stand.ran) == len(names)
    assert sweep(monkeypatch, tmp_path / "s", root, "data.category=all") == 0
    assert len(stand.ran) == len(names), "all of them are not the same jobs"
    assert set(statuses(tmp_path / "s").values()) == {"skipped"}


@pytest.mark.slow
def test_runs_on_odd_names_and_their_folders(tmp_path):
    """Trained, tested again by a link to the folder that was printed, and swept, each in a process of its own."""
    name = "${y} it's (2)=b"
    make_dataset(tmp_path / "my data" / "a", good=4, test_good=2, defects=2).rename(tmp_path / f"my data/{name}")

    def run(program, *arguments):
        fixed = [text for text in TINY if program == "train.py" or text.startswith(("trainer", "callbacks", "logger"))]
        return subprocess.run(
            [sys.executable, ROOT / program, *arguments, *fixed],
            capture_output=True, text=True, check=True, cwd=tmp_path,
        )  # fmt: skip

    typed = ["calibration=none", f"data.root={tmp_path}/my data", f"data.category={name}"]
    done = run("train.py", *typed)
    guide = next(line.strip() for line in done.stdout.splitlines() if line.strip().startswith("RUN="))
    printed = shlex.split(guide)[0].removeprefix("RUN=")
    metrics = json.loads((tmp_path / printed / "metrics.json").read_text())
    assert metrics["run"]["category"] == name
    (tmp_path / "a=b's (2)").symlink_to(printed)
    again = run("eval.py", "run=a=b's (2)")
    tested = json.loads(((tmp_path / again.stdout.strip().splitlines()[-1]) / "metrics.json").read_text())
    assert tested["image_auroc"] == metrics["image_auroc"]
    swept = [*typed, "hydra.sweep.dir=my sweep's"]
    assert "1 done" in run("train.py", "-m", *swept).stdout
    assert "1 skipped" in run("train.py", "-m", *swept).stdout
