"""What the commands share: options, tables, a progress bar."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from oddpatch.cli.common import tell
from oddpatch.files import shown

if TYPE_CHECKING:
    from oddpatch.datatools.writing import Progress

DRY = typer.Option(False, "--dry-run", help="Say what would be written, and write nothing.")
FORCE = typer.Option(False, "--force", help="Replace what is there.")
SEED = typer.Option(0, help="Seed of what is drawn at random.")
WORKERS = typer.Option(None, help="Processes; one a core by default.")


def show_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table as wide as the terminal; one line a row, tab separated, where the output is a file or pipe."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        for row in rows:
            typer.echo("\t".join(shown(cell) for cell in row))
    elif rows:
        table = Table()
        for name in head:
            table.add_column(name, overflow="fold")  # a name cut short may be another's
        for row in rows:
            table.add_row(*[escape(shown(cell)) for cell in row])
        console.print(table)


def say(dry_run: bool, text: str) -> None:
    """Print what was written, or what would be."""
    tell(f"{'would write: ' if dry_run else ''}{text}")


@contextmanager
def progress_bar(title: str) -> Iterator["Progress"]:
    """A progress bar on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
