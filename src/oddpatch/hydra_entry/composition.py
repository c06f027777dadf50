"""What a config is made of: errors in overrides told in one line with the nearest name, and the config printed."""

import difflib
import functools
import inspect
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Quote, QuotedString, Sweep
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import oddpatch
from oddpatch.ending import ending_when_told, go_on_unread, open_closed_streams
from oddpatch.environment import read_env
from oddpatch.errors import ConfigError, in_one_line
from oddpatch.files import escape_on_terminal, shown
from oddpatch.hydra_entry.overrides import as_typed, literal, quoted

#: What a user composes; in a checkout a link to the folder of that name at its top.
CONFIGS = Path(oddpatch.__file__).parent / "configs"
_EXTRA = "pip install 'oddpatch[sweep]'"


def explain_overrides(main: Callable[..., Any]) -> Callable[..., Any]:
    """Have a program made by `hydra.main` end with one line when what it was called with cannot be composed."""
    name = Path(inspect.getfile(inspect.unwrap(main))).stem

    @functools.wraps(main)
    def wrapped(*cfg: DictConfig) -> Any:
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints the error itself, in several lines
        open_closed_streams()
        go_on_unread()
        escape_on_terminal()
        sys.argv[1:] = as_typed(sys.argv[1:], top_level(CONFIGS / f"{name}.yaml"))
        terminal = Console(stderr=True)
        with ending_when_told(lambda word: terminal.print(word, style="red")):
            try:
                read_env()
                return main(*cfg)
            except Exception as error:
                if is_of_composition(error):
                    given = get_args_parser().parse_args(sys.argv[1:])
                    message = explain(error, given.overrides, CONFIGS, name, given.config_dir)
                elif (told := in_one_line(error)) is not None:
                    message = told
                else:
                    raise
            terminal.print(f"error: {shown(message)}", style="red", markup=False, highlight=False, soft_wrap=True)
            sys.exit(1)

    return wrapped


def is_of_composition(error: Exception) -> bool:
    """Whether a command line cannot be composed, for which Hydra raises errors of any type."""
    if isinstance(error, ConfigCompositionException | OverrideParseException):
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_by = str(frame.f_globals.get("__name__"))
    return raised_by.startswith(("hydra._internal.", "hydra.core.")) and "instantiate" not in raised_by


def explain(error: Exception, overrides: Iterable[str], configs: Path, name: str, own: str | Path | None = None) -> str:
    """One line about an error of composition: what was misspelt, and what is near it.

    Args:
        overrides: what the program was called with.
        configs: folder of the configs.
        name: of the primary config in it.
        own: folder of a user's own configs.
    """
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read ({_first_line(error)}): {_to_type(error.override, list(overrides))}"
    if "${" in str(Path.cwd()):  # Hydra reads it with the config
        return f"{Path.cwd()}: the name of the current folder has ${{ in it: change to another folder"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_choice(error)
    folders = [configs] if own is None else [configs, Path(own).absolute()]
    misspelt = next(_misspelt(overrides, folders, name), None)
    told = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return misspelt or told or f"{' '.join(overrides)}: cannot be composed: correct it"


def _to_type(override: str, overrides: Sequence[str]) -> str:
    """What to type in place of an override that Hydra's grammar does not take."""
    key, equals, value = override.partition("=")
    if equals:
        text = shlex.quote(f"{key}={QuotedString(literal(value), Quote.double).with_quotes()}")
        return f"if that is a text, type {text}; lists are 'KEY=[1,2]'"
    before = overrides[: overrides.index(override)] if override in overrides else []
    if before and "=" in before[-1]:
        return f"write KEY=VALUE; if it belongs to what is before it, type {shlex.quote(f'{before[-1]} {override}')}"
    return "write KEY=VALUE"


def top_level(config: Path) -> set[str]:
    """Names at the top of a primary config: its own and the groups of its defaults."""
    content: Any = OmegaConf.to_container(OmegaConf.load(config))
    groups = [part for part in content["defaults"] if isinstance(part, dict)]
    return {"hydra", *content, *(name.removeprefix("optional ") for group in groups for name in group)}


def _missing_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    if group in ("hydra/launcher", "hydra/sweeper"):
        return f"{group}={choice} is not installed: {_EXTRA}"
    options = list(error.options or [])
    near = difflib.get_close_matches(choice, options, n=1)
    hint = f"did you mean {group}={near[0]}? " if near else ""
    listed = f"there are {', '.join(options)}" if options else f"there is no group {group}"
    return f"{group}={choice}: no such choice: {hint}({listed})"


def _misspelt(overrides: Iterable[str], folders: Sequence[Path], name: str) -> Iterator[str]:
    """A line for each override whose key there is none of, told by a config of those that choose from groups."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    configs, *others = folders
    groups = {group for folder in folders for group in _groups(folder)}
    for override in parsed:
        key = override.key_or_group
        if not key:
            yield f"{override.input_line}: write KEY=VALUE"
        elif key in groups and not override.is_delete() and not isinstance(override.value(), str | list | Sweep):
            choices = ", ".join(sorted({path.stem for folder in folders for path in (folder / key).glob("*.yaml")}))
            yield f"{override.input_line}: {key} is chosen by name" + (f": there are {choices}" if choices else "")
    GlobalHydra.instance().clear()
    # Of a sweep, one value of each group will do: the choices of a group have much the same keys.
    chosen = [f"{o.get_key_element()}={_first_value(o)}" for o in parsed if o.key_or_group in groups]
    places = f"hydra.searchpath=[{','.join(quoted(str(folder)) for folder in others)}]"
    try:
        with initialize_config_dir(str(configs), version_base="1.3"):
            cfg = compose(name, [*chosen, places], return_hydra_config=True)
    except Exception as error:
        if not is_of_composition(error):
            raise
        return  # a choice is what is wrong, and Hydra's own words say how
    keys = set(_keys(cfg)) | groups
    for override in parsed:
        key = override.key_or_group
        if key in keys or override.is_add() or override.is_force_add():
            continue
        near = difflib.get_close_matches(key, keys, n=1)
        hint = f"did you mean {near[0]}?" if near else "--cfg job lists them, and a plus before it adds one"
        above, _, last = key.rpartition(".")
        if OmegaConf.select(cfg, above) == {}:  # the settings of a run to be tested again
            hint = f"type +{override.input_line}"
        elif above in keys and OmegaConf.select(cfg, above) is None and not override.is_delete():
            whole = f"{above}={{{last}:{_first_value(override)}}}"
            hint = f"{above} is null: set all of it at once, as {shlex.quote(whole)}"
        yield f"{override.input_line}: there is no setting {key}: {hint}"


def _first_value(override: Any) -> str:
    if not override.is_sweep_override():
        return str(override.get_value_element_as_str())
    return str(next(iter(override.sweep_string_iterator())))


def _groups(configs: Path) -> Iterator[str]:
    for path in sorted(configs.rglob("*.yaml")):
        if path.parent != configs:
            yield path.parent.relative_to(configs).as_posix()
    yield from ("hydra/launcher", "hydra/sweeper")


def _keys(cfg: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings."""
    if not OmegaConf.is_dict(cfg) or cfg._is_none() or cfg._is_missing():
        return
    for key in cfg:
        name = f"{prefix}{key}"
        yield name
        if not OmegaConf.is_interpolation(cfg, key) and not OmegaConf.is_missing(cfg, key):
            yield from _keys(cfg[key], f"{name}.")


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if not line.startswith(("Error parsing override", "See https"))]
    return lines[0] if lines else "it is not KEY=VALUE"


def need_extra(package: str) -> None:
    """Refuse, with the remedy, if a package of the extra `sweep` is not installed.

    Raises:
        ConfigError: it is not.
    """
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ConfigError(f"this sweep needs {package}, which is not installed: {_EXTRA}")
