"""Names and paths on the command line are the text that was typed, whatever Hydra's grammar would read in it.

Hydra reads `data.category=7` as a number, `true` as a truth value and `${y}` as a reference, and cannot read `it's` or
`root (2)`. So values of settings that are names or paths are quoted for it where need be, before it parses them.
"""

import os
import re
from collections.abc import Collection, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

#: Settings that are a path: `~` at its beginning is the home folder.
PATHS = (
    "run", "data.root", "data.split", "data.roi", "data.align", "data.align.reference", "data.validation",
    "backbone.weights", "paths.data_dir", "paths.output_dir", "cache.folder", "hydra.run.dir", "hydra.sweep.dir",
)  # fmt: skip
CATEGORY = "data.category"
#: As its value: every category that `data.root` holds.
ALL = "all"
#: Settings that are a name.
NAMES = (CATEGORY, "hydra.sweep.subdir", "logger.wandb.project", "logger.wandb.name")
#: What a path may also be: `null` for none, a mapping, or a number.
_NULL = re.compile(r"null", re.IGNORECASE)
_OTHERWISE = {
    "data.split": _NULL,
    "data.roi": _NULL,
    "data.align": re.compile(r"null|auto|\{.*\}", re.IGNORECASE | re.DOTALL),
    "data.validation": re.compile(r"null|[+-]?[\d.]+(e[+-]?\d+)?", re.IGNORECASE),
    "logger.wandb.name": _NULL,
}
_OVERRIDE = re.compile(rf"(\+{{0,2}})({'|'.join(map(re.escape, PATHS + NAMES))})=(.*)", re.DOTALL)
_FUNCTION = re.compile(r"(choice|glob|range|interval|shuffle|sort|tag|str|extend_list)\s*\(.*\)", re.DOTALL)
_QUOTED = re.compile(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*""", re.DOTALL)
#: One value of a sweep `a,b`, quoted for Hydra or not.
_VALUE = re.compile(rf"(?:{_QUOTED.pattern}|([^,]*))(?:,|$)", re.DOTALL)
#: One model for all of these. A single name in brackets is a name.
_LIST = re.compile(r"\[([^\[\]]+,[^\[\]]+)\]", re.DOTALL)
_VALUE_OR_LIST = re.compile(rf"(?:{_LIST.pattern}|{_QUOTED.pattern}|([^,]*))(?:,|$)", re.DOTALL)
#: Of several names in the name of a folder, which has room for 255 bytes.
_LONGEST = 80
_REFERENCE = re.compile(r"(\\*)\$\{((?:\.|[a-z_][\w.]*:|\w+)(?=[^}]*\}))?")
#: What Hydra escapes where it writes a value, and would not if it were quoted.
_SPECIAL = re.compile(r"[\\()\[\]{}:=,\s]")


def as_typed(arguments: Sequence[str], known: Collection[str] = ()) -> list[str]:
    """A command line whose names and paths Hydra reads as the text that they are; all else is left as it is.

    What is quoted for Hydra already, its functions such as `choice(a,b)`, and references to settings stand. With `-m`,
    commas part the values of a sweep.

    Args:
        arguments: of the program.
        known: settings at the top of the config; `${NAME}` of any other is text.
    """
    sweep = any(argument in ("-m", "--multirun", "hydra.mode=MULTIRUN") for argument in arguments)
    return [_argument(argument, sweep, known) for argument in arguments]


def _argument(argument: str, sweep: bool, known: Collection[str]) -> str:
    match = _OVERRIDE.fullmatch(argument)
    if match is None:
        return argument
    plus, key, text = match.groups()
    if _FUNCTION.fullmatch(text) or (key in _OTHERWISE and _OTHERWISE[key].fullmatch(text)):
        return argument
    parts = _parts(text, _VALUE_OR_LIST if key == CATEGORY else _VALUE) if sweep else [text]
    return f"{plus}{key}={','.join(_value(part, key, known) for part in parts)}"


def _parts(text: str, value: "re.Pattern[str]" = _VALUE) -> list[str]:
    """Values of a sweep, or of a list."""
    found = [match.group() for match in value.finditer(text)]
    return [part.removesuffix(",") for part in (found if text.endswith(",") or len(found) < 2 else found[:-1])]


def _value(text: str, key: str, known: Collection[str]) -> str:
    if key == CATEGORY and (several := _LIST.fullmatch(text)):
        return f"[{','.join(_value(part.strip(), '', known) for part in _parts(several.group(1)))}]"
    if _QUOTED.fullmatch(text):
        if key not in PATHS or text.strip()[1] != "~":
            return text
        text = str(OverridesParser.create().parse_override(f"x={text}").value())
    return quoted(os.path.expanduser(text) if key in PATHS else text, known)  # noqa: PTH111


def quoted(text: str, known: Collection[str] = ()) -> str:
    """A value that Hydra reads as exactly `text`: the text itself where it does so anyway, else in quotes.

    Args:
        text: any.
        known: settings that `${NAME}` in it refers to; of any others it is text.
    """
    return text if _is_plain(text) else QuotedString(_escape(text, known), Quote.single).with_quotes()


def _is_plain(text: str) -> bool:
    if _SPECIAL.search(text):
        return False
    try:
        value = OverridesParser.create().parse_override(f"x={text}").value()
    except (HydraException, OmegaConfBaseException):
        return False
    return isinstance(value, str) and value == text


def literal(text: str) -> str:
    """`text` such that OmegaConf finds no reference in it."""
    return _escape(text, ())


def _escape(text: str, known: Collection[str]) -> str:
    def escape(match: "re.Match[str]") -> str:
        backslashes, name = match.group(1), match.group(2) or ""
        if known and (name == "." or name.endswith(":") or name in known):
            return match.group()
        return rf"{backslashes}{backslashes}\{match.group()[len(backslashes) :]}"

    return _REFERENCE.sub(escape, text)


def folder_name(text: object) -> str:
    """A name, or several, as part of a folder's name that needs no quotes, neither for the shell nor for Hydra."""
    if isinstance(text, Sequence) and not isinstance(text, str):
        together = "+".join(map(str, text))
        text = together if len(together) <= _LONGEST else f"{len(text)}_categories"
    return re.sub(r"[^\w.,+-]", "_", str(text))
