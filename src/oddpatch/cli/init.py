"""`oddpatch init`: a starting set of a user's own configs."""

import shlex
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from oddpatch.cli.common import tell


def init(folder: Annotated[Path, typer.Argument(help="Folder to write; it may exist, its files are kept.")]) -> None:
    """Write a small set of configs of your own, to be changed and added to."""
    from oddpatch.errors import ConfigError
    from oddpatch.files import replacing

    with as_file(files("oddpatch.cli") / "starting") as starting:
        texts = {path.relative_to(starting): path.read_text(encoding="utf-8") for path in starting.rglob("*.yaml")}
    for path in sorted(texts):
        if (folder / path).exists():
            raise ConfigError(f"{folder / path} exists: choose another folder, or move it away")
    for path, text in sorted(texts.items()):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder / path) as file:
            file.write(text)
        tell(f"written: {folder / path}")
    tell(f"use them by: oddpatch train --config-dir {shlex.quote(str(folder))} experiment=first")
