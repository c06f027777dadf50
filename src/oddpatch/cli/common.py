"""Options that several commands share."""

from typing import Annotated

import typer

Trust = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PACKAGE",
        help="Package of your own whose classes the checkpoint may name: its code runs. May be repeated.",
    ),
]
