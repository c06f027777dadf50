"""Options that several commands share, and how they print."""

from typing import Annotated

import typer

from oddpatch.files import shown

Trust = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PACKAGE",
        help="Package of your own whose classes the checkpoint may name: its code runs. May be repeated.",
    ),
]


def tell(text: object, err: bool = False) -> None:
    """Print one line, which may hold the names of files: they change no terminal."""
    typer.echo(shown(text), err=err)
