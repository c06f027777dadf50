"""What a sweep ends with: a table on the terminal, `sweep.csv`, `sweep.html` and the report over its runs."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from oddpatch.errors import CheckpointError, OddpatchError
from oddpatch.files import replacing, shown, write_cells, write_whole
from oddpatch.report.formats import print_terminal
from oddpatch.report.page import to_html
from oddpatch.report.runs import is_number, read_run
from oddpatch.report.table import DEFAULT_METRICS, build_report, title_of
from oddpatch.report.templates import render
from oddpatch.sweep.outcome import Outcome, Status

log = logging.getLogger(__name__)

STYLES: dict[Status, str] = {"done": "green", "failed": "bold red", "skipped": "dim", "not run": "yellow"}
#: In the order people look at them; others follow by name.
_FIRST = ("image_auroc", "pixel_auroc", "au_pro", "image_ap", "image_f1_max", "pixel_ap", "pixel_f1_max")
_SHOWN = 3  # columns of metrics in sweep.html
_NAMES = ("model", "backbone", "data", "category")


def count(outcomes: Sequence[Outcome]) -> str:
    """'6 done, 1 failed, 1 skipped'."""
    counts = Counter(outcome.status for outcome in outcomes)
    return ", ".join(f"{counts[status]} {status}" for status in STYLES if counts[status]) or "no jobs"


def print_table(outcomes: Sequence[Outcome], objective: str, console: Console | None = None) -> None:
    """Print what became of each job; what went wrong comes last, where it is seen."""
    console = console or Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("job", overflow="fold")
    table.add_column("", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column(title_of(objective), overflow="fold")
    order = list(STYLES)[::-1]
    names = varying(outcomes)
    for outcome in sorted(outcomes, key=lambda outcome: order.index(outcome.status)):
        value = outcome.objective
        told = f"{value:.4f}" if value is not None else outcome.reason
        seconds = f"{outcome.record.seconds:.0f} s" if outcome.record and outcome.status == "done" else ""
        status = Text(outcome.status, style=STYLES[outcome.status])
        table.add_row(Text(shown(names[outcome.job.folder])), status, seconds, Text(shown(told)))
    console.print()
    console.print(table)
    console.print(Text(f"\n{count(outcomes)}", style="bold"))


def varying(outcomes: Sequence[Outcome]) -> dict[Path, str]:
    """What tells each job from the others: the overrides that not all of them have; else its folder's name."""
    told = {outcome.job.folder: outcome.job.told for outcome in outcomes}
    common = set.intersection(*(set(texts) for texts in told.values())) if told else set()
    return {folder: " ".join(t for t in texts if t not in common) or folder.name for folder, texts in told.items()}


def rows(outcomes: Sequence[Outcome], folder: Path) -> list[dict[str, Any]]:
    """One row for each job, with every number of its `metrics.json`."""
    found = []
    names = varying(outcomes)
    for outcome in outcomes:
        metrics = _metrics(outcome)
        named = metrics.get("run") or outcome.job.names  # a job that has failed has left no metrics
        record = outcome.record
        found.append(
            {
                "job": _relative(outcome.job.folder, folder),
                "status": outcome.status,
                "reason": outcome.reason,
                **{name: named.get(name, "") for name in _NAMES},
                **_numbers(metrics),
                "seconds": record.seconds if record else "",
                "host": record.host if record else "",
                "cuda_visible_devices": (record.cuda_visible_devices or "") if record else "",
                "weights": metrics.get("weights", ""),
                "varies": names[outcome.job.folder],
                "overrides": " ".join(outcome.job.told),
            }
        )
    return found


def _metrics(outcome: Outcome) -> Mapping[str, Any]:
    if not outcome.finished:
        return {}
    try:
        return read_run(outcome.job.folder).metrics
    except CheckpointError as error:
        log.warning("%s; its numbers are missing from the tables", shown(error))
        return {}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in metrics.items() if is_number(value)}
    return {name: numbers[name] for name in (*_FIRST, *sorted(numbers.keys() - set(_FIRST))) if name in numbers}


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def write_csv(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write all rows; a job without a number has an empty cell."""
    columns = list(dict.fromkeys(name for row in table for name in row))
    # A name of the last columns is in every row, so that metrics come before them.
    last = ["seconds", "host", "cuda_visible_devices", "weights", "varies", "overrides"]
    with replacing(path) as file:
        write_cells(file, [name for name in columns if name not in last] + last, table)


def write_html(table: Sequence[Mapping[str, Any]], counted: str, path: Path, reported: bool) -> None:
    """Write a page of all jobs with links to their folders, and to the report if there is one."""
    metrics = [name for name in _FIRST if any(name in row for row in table)][:_SHOWN]
    title = f"Sweep {path.parent.name}"
    page = render(
        "sweep.html", title=title, count=counted, rows=table, metrics=metrics, title_of=title_of, reported=reported
    )
    write_whole(path, page)


def conclude(outcomes: Sequence[Outcome], folder: Path, objective: str) -> None:
    """Write `sweep.csv`, `sweep.html` and `report.html`; print the report of the finished runs, and all jobs below."""
    table = rows(outcomes, folder)
    write_csv(table, folder / "sweep.csv")
    reported = print_report([outcome.job.folder for outcome in outcomes if outcome.finished], folder / "report.html")
    write_html(table, count(outcomes), folder / "sweep.html", reported)
    print_table(outcomes, objective)
    Console().print(Text(shown(folder / "sweep.html")), soft_wrap=True)


def print_report(folders: Sequence[Path], page: Path) -> bool:
    """Print and write what `oddpatch report --published` says of finished jobs; False if it says nothing."""
    try:
        runs = [read_run(folder) for folder in folders]
        if not any(name in run.metrics for run in runs for name in DEFAULT_METRICS):
            return False
        report = build_report(runs, with_published=True)
        print_terminal(report)
        write_whole(page, to_html(report, f"Sweep {page.parent.name}"))
    except OddpatchError as error:
        # The jobs are what a sweep is for, and their outcome is still to be shown.
        log.warning("there is no report: %s", error)
        return False
    return True
