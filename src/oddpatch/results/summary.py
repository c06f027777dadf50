"""The tables that a run ends with on the terminal."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from oddpatch.files import shown
from oddpatch.results.test_result import TestResult
from oddpatch.wording import listed

#: What people compare, in the order they look at it; thresholds and the like are in metrics.json.
HEADLINES = {
    "image_auroc": "image AUROC",
    "image_ap": "image average precision",
    "image_f1_max": "image F1-max (oracle)",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel average precision",
    "pixel_f1_max": "pixel F1-max (oracle)",
    "au_pro": "AU-PRO",
}
#: What else people call a metric; of metrics with a limit, the part before it.
FURTHER = {
    "aupimo": "AUPIMO",
    "seg_f1": "SegF1",
    "class_f1": "ClassF1",
    "au_pro@": "AU-PRO@",
    "au_spro@": "AU-sPRO@",
    "pixel_auroc@": "pixel AUROC@",
}
#: What an image threshold was set on, and rates of the test images at it.
THRESHOLDS = {"conformal": "from good images left out of the fit", "validation": "F1-max of the validation images"}
RATES = {
    "recall": "recall",
    "fpr": "false alarms",
    "precision": "precision",
    "f1": "F1",
    "balanced_accuracy": "balanced accuracy",
}


def metric_name(key: str) -> str | None:
    """What people call a metric; None of thresholds and of rates at one, which nobody compares."""
    name, at, limit = key.partition("@")
    if at:
        return f"{FURTHER[name + at]}{limit}" if name + at in FURTHER else None
    return None if key.endswith("_threshold") else {**HEADLINES, **FURTHER}.get(key, key)


def oracle_gap(metrics: Mapping[str, float]) -> dict[str, float]:
    """By how much F1 at the threshold from good images falls short of F1-max, an oracle: of images and of pixels."""
    pairs = {"image_f1": ("image_f1_max", "image_f1@conformal"), "pixel_f1": ("pixel_f1_max", "seg_f1")}
    return {
        name: metrics[best] - metrics[here] for name, (best, here) in pairs.items() if {best, here} <= metrics.keys()
    }


def not_measured(absent: Mapping[str, str]) -> list[str]:
    """What has no value, a line for each reason: "pixel AUROC and AU-PRO (63 defective images without a mask)"."""
    names: dict[str, list[str]] = {}
    for key, reason in absent.items():
        if name := metric_name(key):
            names.setdefault(reason, []).append(name)
    return [
        f"{'all metrics' if {*found} >= {*HEADLINES.values()} else listed(found)} ({reason})"
        for reason, found in names.items()
    ]


def by_type(result: TestResult) -> list[dict[str, Any]]:
    """A row for each type of the test images, good first: count, AUROC, how many are called anomalous, median score."""
    threshold = next(iter(result.thresholds.sources.values()), None)
    rows = []
    for name, _ in sorted({(row.kind, row.label) for row in result.rows}, key=lambda it: (it[1], it[0])):
        own = [row for row in result.rows if row.kind == name]
        rows.append(
            {
                "name": name,
                "count": len(own),
                "auroc": result.auroc_by_type.get(name),
                "is_anomalous": None if threshold is None else sum(row.judged > threshold for row in own),
                "median": median(row.score for row in own),
            }
        )
    return rows


def by_category(result: TestResult) -> list[dict[str, Any]]:
    """A row for each of several categories, and their mean: images, and the metrics that any has, by name."""
    rows: list[dict[str, Any]] = [
        {"name": name, "count": one.num_test_images, "metrics": one.metrics} for name, one in result.by_category.items()
    ]
    if rows:
        rows.append({"name": "mean of the categories", "count": len(result.rows), "metrics": result.category_mean})
    shown_ = {key: name for row in rows for key in row["metrics"] if (name := metric_name(key))}
    if source := next(iter(result.thresholds.sources), None):
        shown_ |= {f"image_{key}@{source}": RATES[key] for key in ("recall", "fpr")}
    return [{**row, "metrics": {name: row["metrics"].get(key) for key, name in shown_.items()}} for row in rows]


def further_commands(folder: Path) -> list[str]:
    """What can be done with a run, as lines for a shell; folders, which may be long, are given once."""
    folder, programs = folder.resolve(), Path(sys.executable).parent
    lines = [f"RUN={quote(_from_here(folder))}"]
    python, oddpatch = "python", "oddpatch"
    if any(shutil.which(name) != str(programs / name) for name in (python, oddpatch)):
        lines.insert(0, f"BIN={quote(_from_here(programs))}")
        python, oddpatch = '"$BIN/python"', '"$BIN/oddpatch"'
    if (folder / "report.html").is_file():
        lines.append(f'{"open" if sys.platform == "darwin" else "xdg-open"} "$RUN/report.html"')
    lines.append(f'{oddpatch} predict "$RUN" IMAGES --save overlay')
    train = f"{python} train.py" if Path(sys.argv[0]).name == "train.py" else f"{oddpatch} train"
    return [*lines, f"{train} data=custom data.root=FOLDER data.category=PART"]


def _from_here(path: Path) -> str:
    """A path as a shell in this folder finds it: short where it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def print_summary(
    result: TestResult,
    folder: Path,
    timing: Mapping[str, float] | None = None,
    console: Console | None = None,
    *,
    guide: bool = False,
) -> None:
    """Print the metrics, those of each defect type, the time each stage took, and the run's folder.

    Args:
        result: of the test.
        folder: of the run.
        timing: seconds by stage; None for those of the result, which end with the test.
        console: to print on.
        guide: whether to say what can be done next, see `further_commands`.
    """
    console = console or Console()
    if not console.is_terminal:  # in a file no line is broken
        console.width = 10_000
    tables = [_metrics(result)]
    if rows := by_category(result):
        tables.append(_categories(rows))
    if len(rows := by_type(result)) > 1:
        tables.append(_types(rows))
    for table in tables:
        if table.row_count:
            console.print()
            console.print(table)
    console.print()
    for line in not_measured(result.absent):
        console.print(Text(shown(f"not measured: {line}")))
    stages = "  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in (timing or result.timing).items())
    console.print(Text(stages, style="dim"))
    if result.is_random:
        console.print(Text("random weights: these numbers say nothing about the method", style="bold red"))
    console.print(Text(shown(folder)), soft_wrap=True)
    if guide:
        console.print("\nNext:")
        for line in further_commands(folder):
            console.print(Text(shown(f"  {line}")), soft_wrap=True)


def _metrics(result: TestResult) -> Table:
    """What was measured on all images, and at the thresholds."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("", style="dim", overflow="fold")
    for key, value in result.metrics.items():
        if name := metric_name(key):
            note = f"limit {result.fpr_limits[0]:g}" if key == "au_pro" else ""
            table.add_row(name, f"{value:.4f}", note)
    for source, threshold in result.thresholds.sources.items():
        table.add_row(f"threshold ({source})", f"{threshold:.4g}", THRESHOLDS[source])
        for name, called in RATES.items():
            if (rate := result.metrics.get(f"image_{name}@{source}")) is not None:
                table.add_row(f"  {called}", f"{rate:.4f}", "")
        if source == "conformal":
            for name, gap in oracle_gap(result.metrics).items():
                called = f"  {name.partition('_')[0]} F1 below the oracle's"
                table.add_row(called, f"{gap:.4f}", "F1-max less F1 at the threshold from good images")
    return table


def _categories(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What `by_category` gives."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("category", overflow="fold")
    for title in ("images", *rows[0]["metrics"]):
        table.add_column(title, justify="right")
    for row in rows:
        values = ["" if value is None else f"{value:.4f}" for value in row["metrics"].values()]
        table.add_row(Text(shown(row["name"])), str(row["count"]), *values)
    return table


def _types(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What `by_type` gives."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("type", overflow="fold")
    judged = [] if rows[0]["is_anomalous"] is None else ["called anomalous"]
    for title in ("images", "image AUROC", *judged, "median score"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        anomalous = [] if row["is_anomalous"] is None else [str(row["is_anomalous"])]
        auroc = "" if row["auroc"] is None else f"{row['auroc']:.4f}"
        table.add_row(Text(shown(row["name"])), str(row["count"]), auroc, *anomalous, f"{row['median']:.4g}")
    return table
