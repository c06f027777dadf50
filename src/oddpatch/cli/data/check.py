"""`oddpatch data check`."""
# ruff: noqa: B008 - an option is declared by a call in the default, which is how Typer reads it

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from oddpatch.cli.common import tell

if TYPE_CHECKING:
    from oddpatch.datatools.checking import Finding

from oddpatch.cli.data.common import DRY, WORKERS, progress_bar, show_table
from oddpatch.wording import counted


def check(
    root: Path = typer.Argument(help="Folder of the categories, or a category."),
    category: str | None = typer.Argument(None, help="Category; all by default."),
    fix: Path | None = typer.Option(None, help="Write a copy of the category there, mended where that is safe."),
    as_json: bool = typer.Option(False, "--json", help="Print all findings as JSON."),
    verbose: bool = typer.Option(False, "--verbose", help="Print all findings, not three of a kind."),
    workers: int | None = WORKERS,
    dry_run: bool = DRY,
    force: bool = typer.Option(
        False, "--force", help="Replace what --fix wrote before, and let it leave out more than a tenth of the images."
    ),
) -> None:
    """All that is wrong with a dataset at once; exit code 0 if nothing is, 1 if something is, 2 after an error."""
    from oddpatch.datatools.checking import check, check_share, find_categories, mend
    from oddpatch.datatools.writing import check_folder
    from oddpatch.errors import ConfigError

    folders = find_categories(root, category)
    if fix and len(folders) > 1:
        raise ConfigError(f"--fix mends one category at a time: name one of {', '.join(p.name for p in folders)}")
    if fix:
        check_folder(fix, force)
    reports = []
    for folder in folders:
        with progress_bar(folder.name) as progress:
            reports.append(check(folder, workers, progress))
    if as_json:
        found = [
            {
                "category": str(r.category),
                "counts": r.counts,
                "inspected": r.inspected,
                "findings": [f._asdict() for f in r.findings],
            }
            for r in reports
        ]
        typer.echo(json.dumps(found, indent=2))
    else:
        for report in reports:
            counts = ", ".join(f"{name} {count}" for name, count in report.counts.items())
            tell(f"{report.category}: {counts}")
            tell(f"{report.category}: {report.inspected}")
            if verbose:
                show_table(("kind", "file", "what"), report.findings)
            else:
                show_table(("kind", "count", "first"), _by_kind(report.findings))
    if fix:
        if dry_run and not force:
            check_share(reports[0])
        if not dry_run:
            mend(reports[0], fix, force=force)
        left = counted(len(reports[0].dropped), "file"), counted(len(reports[0].rewritten), "mask")
        text = f"{fix}: without {left[0]}, {left[1]} rewritten"
        tell(f"{'would write: ' if dry_run else ''}{text}", err=as_json)
    total = sum(len(report.findings) for report in reports)
    tell(counted(total, "finding"), err=as_json)
    if total:
        raise typer.Exit(1)


def _by_kind(findings: "list[Finding]") -> list[tuple[str, int, str]]:
    """A row for each kind: how often, and the first three."""
    rows = []
    for kind in dict.fromkeys(finding.kind for finding in findings):
        found = [f"{f.path}: {f.detail}".removeprefix(": ") for f in findings if f.kind == kind]
        rows.append((kind, len(found), "; ".join(found[:3]) + ("; ..." if len(found) > 3 else "")))
    return rows
