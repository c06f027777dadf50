"""Options that several commands share, and how they print."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oddpatch.files import shown
from oddpatch.wording import counted

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


def line_of(record: dict[str, Any], verdict: str) -> str:
    """The result of one image for people, from what `oddpatch.inference.records` has of it."""
    if "error" in record:
        return f"{verdict}  {shown(record['error'])}"
    p_value = "" if record["p_value"] is None else f"  p {record['p_value']:.3f}"
    regions = f"  {counted(len(record['regions']), 'region')}" if record["regions"] else ""
    product = "".join(f"  {shown(record[name])}" for name in ("product", "reason") if record.get(name))
    return f"{verdict}  {record['score']:9.4g}{p_value}  {shown(record['path'])}{product}{regions}"


def warn_of_left_out(left_out: "Iterable[LeftOut]") -> None:
    """Print a line on stderr for each reason why files or folders were not looked at."""
    from oddpatch.data.walk import summary

    for line in summary(left_out):
        tell(f"warning: {line}", err=True)


def split_names(text: str) -> list[str]:
    """Names that a text separates by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
