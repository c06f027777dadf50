"""Files: complete when they appear under their name, inside the folder they belong to, and read without surprises."""

import csv
import errno
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from oddpatch.errors import DataError
from oddpatch.temporary import placing

#: What makes a spreadsheet compute a cell, and the sign that keeps it a text.
_FORMULA, _TEXT = ("=", "+", "-", "@", "\t", "\r"), "'"
#: Deeper than any config.
_YAML_DEPTH = 50


def escape_on_terminal() -> None:
    """Have any name printed, escaped where need be, instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` for writing, and move it to `path` if the block ends without an error.

    Raises:
        ResourceError: it cannot be written; nothing is left of it.
    """
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "", "errors": "backslashreplace"}
    with placing(path) as partial, partial.open(mode, **text) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that appears under its name when it is complete, as `replacing` has it."""
    with replacing(path, "w" if isinstance(content, str) else "wb") as file:
        file.write(content)


def sha256(path: Path) -> str:
    """Hash of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(base: Path, name: str | Path, source: object) -> Path:
    """`base / name` for a name that a file gives: it must lie in `base`, links resolved, whether it exists or not.

    Args:
        source: the file that gives the name, for the message.

    Raises:
        DataError: it leads out of `base`.
    """
    path = base / name
    try:
        within = path.resolve().is_relative_to(base.resolve()) and ".." not in Path(name).parts
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise DataError(f"{source}: names {str(name)!r:.100}, which is too long for a file: shorten it") from error
        within = False  # links in a circle, a zero byte
    if not within:
        raise DataError(
            f"{source}: names {str(name)!r}, which leads out of {base}: correct it, or copy what a link leads to"
        )
    return path


def parse_json(text: str) -> Any:
    """As `json.loads`; nesting deeper than Python follows is a `ValueError` like any other fault of the text."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, as they are written: nothing is interpolated.

    Raises:
        DataError: it cannot be read, holds no settings, or aliases, by which a small file becomes an endless one.
    """
    import yaml
    from omegaconf import OmegaConf

    try:
        text = path.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):  # one at a time: reading deep nesting takes for ever
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _YAML_DEPTH:
                raise ValueError(
                    "it has aliases: write them out" if depth <= _YAML_DEPTH else "it is nested too deeply"
                )
        content = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except Exception as error:  # of the file, of YAML, and of OmegaConf, which has some for keys of odd types
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{path} cannot be read ({reason}): restore it, or remove it") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DataError(f"{path} holds no settings by name: restore it, or remove it")
    return {str(key): value for key, value in content.items()}


def shown(text: object) -> str:
    """A name or message in one line that changes no terminal: control characters and foreign bytes as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def to_cell(value: Any) -> Any:
    """A value for a CSV file, so that no spreadsheet takes a text for a formula: `=x` is written as `'=x`.

    A text that begins so already gets one more sign, so that `from_cell` gives every text back.
    """
    if isinstance(value, str) and value.lstrip(_TEXT).startswith(_FORMULA):
        return _TEXT + value
    return value


def write_cells(file: IO[str], columns: Iterable[str], rows: Iterable[Mapping[str, Any]], end: str = "\r\n") -> None:
    """Write a CSV file with a header, see `to_cell`; a row without a value has an empty cell."""
    writer = csv.DictWriter(file, list(columns), restval="", lineterminator=end)
    writer.writeheader()
    writer.writerows({name: to_cell(value) for name, value in row.items()} for row in rows)


def from_cell(text: str) -> str:
    """What `to_cell` was given."""
    return text[1:] if text.startswith(_TEXT) and text.lstrip(_TEXT).startswith(_FORMULA) else text
