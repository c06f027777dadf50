"""`oddpatch data stats`."""
# ruff: noqa: B008 - an option is declared by a call in the default, which is how Typer reads it

import json
from pathlib import Path

import typer

from oddpatch.cli.common import tell
from oddpatch.cli.data.common import DRY, FORCE, progress_bar, show_table


def stats(
    root: Path = typer.Argument(help="Folder of the categories."),
    category: str = typer.Argument(help="Category."),
    out: Path | None = typer.Option(None, help="Picture to write.  [default: CATEGORY-stats.png]"),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
    dry_run: bool = DRY,
    force: bool = FORCE,
) -> None:
    """Distributions of image size, brightness, colour and defect area, as a table and a picture."""
    from oddpatch.datatools.statistics import check_format, collect, draw, table
    from oddpatch.datatools.writing import Output, check_targets

    path = out or Path(f"{category}-stats.png")
    check_format(path)
    check_targets([Output(path)], force)
    with progress_bar(category) as progress:
        found = collect(root, category, progress)
    rows = table(found)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        show_table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    if not dry_run:
        draw(found, path, category)
    tell(f"{'would write' if dry_run else 'written'}: {path}", err=as_json)
