"""Every command and setting that README and docs name can be typed as it stands there; the pages make a site."""

import contextlib
import copy
import functools
import re
import shlex
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import typer
from conftest import CONFIGS, ROOT
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import HydraException
from omegaconf import OmegaConf

from oddpatch.cli.main import app
from oddpatch.hydra_entry.composition import top_level
from oddpatch.hydra_entry.overrides import as_typed

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))
PROGRAMS = r"python (?:train|eval)\.py|oddpatch|python (?:benchmarks|tests)/\w+\.py|torchrun|make|wandb sweep|ray"
#: Programs of others, whose arguments are theirs.
OTHERS = {"aws", "cd", "docker", "git", "mv", "ray", "wandb"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
#: Settings in running text, such as `model.k=5` or `trainer=ddp trainer.devices=2`.
GROUPS = (
    r"model|backbone|data|calibration|learning|trainer|cache|logger|metrics(?!\.json)|callbacks|paths|hydra|experiment|debug"
    "|sweep"
)
SETTINGS = re.compile(rf"['+]?(?:(?:{GROUPS})(?:\.\w+)*|seed|objective|resume)=\S+.*")
#: A setting that is named without a value.
NAMED = re.compile(rf"(?:{GROUPS.removesuffix('|sweep')})(?:\.[a-z_]\w*)+")


def commands():
    """(page, command or settings) of all, once each; what is no command stands in a block of a language, as ```text."""
    found: dict[Any, Any] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(ROOT).as_posix()
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for block in [block for language, block in blocks if language in ("", "bash")]:
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.split("&&", re.split(" # | > ", line)[0]):
                    command = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", part.strip())  # variables of the environment
                    if command:
                        found[name, command] = None
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        for code in re.findall(r"`([^`]+)`", prose):
            command = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", " ".join(code.split()))
            if "there is no setting" in command or "=NAME" in command:
                continue
            command = f"{command}=0" if NAMED.fullmatch(command) else command
            if re.match(rf"(?:{PROGRAMS}) ", command) or SETTINGS.fullmatch(command):
                found[name, command] = None
    return list(found)


COMMANDS = commands()


@pytest.fixture(scope="module", autouse=True)
def composing():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


def one_job(overrides):
    """The overrides of one job of a sweep."""
    for override in OverridesParser.create().parse_overrides(overrides):
        if not override.is_sweep_override():
            yield override.input_line
        elif isinstance(interval := override.value(), IntervalSweep):
            yield f"{override.get_key_element()}={interval.start}"
        else:
            yield f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


def composed(program, arguments):
    typed = [argument for argument in arguments if argument not in ("...", "OVERRIDES")]
    given = get_args_parser().parse_args(as_typed(typed, top_level(CONFIGS / f"{program}.yaml"))).overrides
    overrides = OverridesParser.create().parse_overrides(list(one_job(given)))
    groups = [o for o in overrides if (CONFIGS / o.key_or_group).is_dir() or o.key_or_group.startswith("hydra/")]
    cfg = copy.deepcopy(chosen(program, tuple(o.input_line for o in groups)))
    ConfigLoaderImpl._apply_overrides_to_config(  # noqa: SLF001 - what composing does; it takes a second each time
        [o for o in overrides if o not in groups], cfg
    )


@functools.cache
def chosen(program, groups):
    """What Hydra composes of some choices; many commands share one, and it takes its time."""
    return compose(program, list(groups), return_hydra_config=True)


def parse(arguments):
    """Have typer read a command line, without running it."""
    command, context, name = typer.main.get_command(app), None, "oddpatch"
    with contextlib.suppress(typer.Exit):  # --help
        while hasattr(command, "resolve_command"):
            context = command.make_context(name, list(arguments), parent=context)
            rest = [*context._protected_args, *context.args]  # noqa: SLF001 - as click's own groups do
            name, command, arguments = command.resolve_command(context, rest)
        command.make_context(name, list(arguments), parent=context)


def check_settings(page, overrides):
    """Settings in running text are of the page's method, or of the method or kind of sweep that has them."""
    if overrides[0].startswith("+"):  # what a run that is tested again has otherwise
        return composed("eval", ["run=FOLDER", *overrides])
    method = page.rpartition("/")[2].removesuffix(".md")
    others = [f"model={name}" for name in MODELS if method not in MODELS or name.startswith(method)]
    errors = []
    others += ["learning=supervised", "sweep=ray", "sweep=slurm", "sweep=optuna"]
    for choice in [[], *([name] for name in others)][method in MODELS :]:
        try:
            return composed("train", [*choice, *overrides])
        except HydraException as error:
            errors.append(error)
    raise errors[0]


def test_commands_are_found():
    without = {page.relative_to(ROOT).as_posix() for page in PAGES} - {page for page, _ in COMMANDS}
    assert len(COMMANDS) > 100
    assert {page.rpartition("/")[0] for page in without} <= {"docs/reference"}


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}-{command}" for page, command in COMMANDS])
def test_a_documented_command_can_be_typed(page, command):
    words = shlex.split(command)
    if words[:2] == ["docker", "run"]:  # what the image named `oddpatch` runs
        words = words[words.index("oddpatch") :]
    if words[:2] in (["oddpatch", "train"], ["oddpatch", "eval"]):
        if "NAME" not in command:
            composed(words[1], own_aside(words[2:]))
    elif words[0] == "oddpatch":
        try:
            parse(words[1:])
        except Exception as error:
            # What is named in running text, such as `oddpatch report --published`, may lack its arguments.
            if type(error).__name__ != "MissingParameter" or f"`{command}`" not in (ROOT / page).read_text():
                raise
    elif "train.py" in words or "eval.py" in words:
        position = next(i for i, word in enumerate(words) if word in ("train.py", "eval.py"))
        composed(words[position].removesuffix(".py"), words[position + 1 :])
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)
    elif words[:2] == ["wandb", "sweep"]:
        assert (ROOT / words[2]).is_file()
    elif words[:2] == ["pip", "install"]:
        extras = re.search(r"oddpatch\[(.*)\]", command)
        assert not extras or set(extras[1].split(",")) <= EXTRAS.keys()
    elif words[0] == "python":
        source = (ROOT / words[1]).read_text()
        assert all(f'"{word}"' in source for word in words[2:] if word.startswith("--"))
    elif words[0] not in OTHERS:
        check_settings(page, words)


def own_aside(words):
    """Arguments without a folder of configs of one's own, and what is chosen from it."""
    return [] if "--config-dir" in words else words


TABLES = [path for path in PAGES if path.parent.name == "methods"]


@pytest.mark.parametrize("page", TABLES, ids=[path.stem for path in TABLES])
def test_settings_of_a_method_are_composed_with_the_default_that_is_told(page):
    table = page.read_text(encoding="utf-8").partition("| setting | default |")[2].partition("\n\n")[0]
    told: dict[str, str] = {}
    for first, second in re.findall(r"^\| (`.*?) \| (.*?) \|", table, re.MULTILINE):
        names = re.findall(r"`(\w+)`", first)
        default = re.sub(r" \([^)]*\)$", "", second).replace("`", "")
        told |= zip(names, default.split(", ") if len(names) > 1 else [default], strict=True)
    model: Any = OmegaConf.to_container(compose("train", [f"model={page.stem}", "data=mvtec"]).model)
    words = {None: "null", True: "true", False: "false"}
    assert {
        name: words[value] if isinstance(value := model[name], bool | type(None)) else str(value) for name in told
    } == told
    assert model.keys() == told.keys() | {"_target_"}


def test_every_page_is_in_the_menu():
    menu = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert menu == {path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.is_relative_to(ROOT / "docs")}


@pytest.mark.slow
def test_the_site_is_built_and_no_link_in_it_leads_nowhere(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "AnomalyDetector" in (tmp_path / "site/reference/detector/index.html").read_text(encoding="utf-8")
    asked = {
        url
        for page in tmp_path.rglob("*.html")
        for url in re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text(encoding="utf-8")
        )
    }
    assert all(url.startswith("https://oddpatch.github.io/oddpatch/") for url in asked), asked  # needs no other server
