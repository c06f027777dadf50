"""Options that several commands share, and how they print."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oddpatch.files import shown

if TYPE_CHECKING:
    from oddpatch.data.walk import LeftOut

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


def product_of(record: dict[str, Any]) -> str:
    """Of which of several products an image is, or that it is of none, as part of a line; empty for a model of one."""
    return "".join(f"  {shown(record[name])}" for name in ("product", "reason") if record.get(name))


def warn_of_left_out(left_out: "Iterable[LeftOut]") -> None:
    """Print a line on stderr for each reason why files or folders were not looked at."""
    from oddpatch.data.walk import summary

    for line in summary(left_out):
        tell(f"warning: {line}", err=True)


def split_names(text: str) -> list[str]:
    """Names that a text separates by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
