"""The tables that a run ends with on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from oddpatch.files import shown
from oddpatch.wording import listed

if TYPE_CHECKING:
    from oddpatch.learning.scoring import AnomalyModule

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
#: What an image threshold was set on, and rates of the test images at it.
THRESHOLDS = {"conformal": "from good images left out of the fit", "validation": "F1-max of the validation images"}
RATES = {"recall": "recall", "fpr": "false alarms", "precision": "precision", "f1": "F1"}


def metric_name(key: str) -> str | None:
    """What people call a key of the results; None of thresholds and the like, which nobody compares."""
    return key.replace("au_pro", "AU-PRO") if key.startswith("au_pro@") else HEADLINES.get(key)


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


def by_type(module: "AnomalyModule") -> list[dict[str, Any]]:
    """A row for each type of the test images, good first: count, AUROC, how many are called anomalous, median score."""
    thresholds = module.model.calibration.thresholds()
    threshold = next(iter(thresholds.values()), None)
    rows = []
    for name in sorted({image.defect_type for image in module.scored}, key=lambda name: (name != "good", name)):
        scores = [image.score for image in module.scored if image.defect_type == name]
        rows.append(
            {
                "name": name,
                "count": len(scores),
                "auroc": module.results.get("image_auroc_by_defect_type", {}).get(name),
                "is_anomalous": None if threshold is None else sum(score > threshold for score in scores),
                "median": median(scores),
            }
        )
    return rows


def print_summary(module: "AnomalyModule", folder: Path, console: Console | None = None) -> None:
    """Print the metrics, those of each defect type, the time each stage took, and the run's folder."""
    console = console or Console()
    if not console.is_terminal:  # in a file no line is broken
        console.width = 10_000
    tables = [_metrics(module)]
    if len(rows := by_type(module)) > 1:
        tables.append(_types(rows))
    for table in tables:
        if table.row_count:
            console.print()
            console.print(table)
    console.print()
    for line in not_measured(module.absent):
        console.print(Text(shown(f"not measured: {line}")))
    stages = "  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in module.timing.items())
    console.print(Text(stages, style="dim"))
    if module.model.backbone.weights_origin == "random":
        console.print(Text("random weights: these numbers say nothing about the method", style="bold red"))
    console.print(Text(shown(folder)), soft_wrap=True)


def _metrics(module: "AnomalyModule") -> Table:
    """What was measured on all images, and at the thresholds."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("", style="dim", overflow="fold")
    for key, value in module.results.items():
        if name := metric_name(key):
            note = f"limit {module.pixel_metrics.fpr_limits[0]:g}" if key == "au_pro" else ""
            table.add_row(name, f"{value:.4f}", note)
    for source, threshold in module.model.calibration.thresholds().items():
        table.add_row(f"threshold ({source})", f"{threshold:.4g}", THRESHOLDS[source])
        for name in ("recall", "fpr", "precision", "f1"):
            if (value := module.results.get(f"image_{name}@{source}")) is not None:
                table.add_row(f"  {RATES[name]}", f"{value:.4f}", "")
    return table


def _types(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What `by_type` gives."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("type", overflow="fold")
    for title in (
        "images",
        "image AUROC",
        *(["called anomalous"] if rows[0]["is_anomalous"] is not None else []),
        "median score",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        anomalous = [] if row["is_anomalous"] is None else [str(row["is_anomalous"])]
        auroc = "" if row["auroc"] is None else f"{row['auroc']:.4f}"
        table.add_row(Text(shown(row["name"])), str(row["count"]), auroc, *anomalous, f"{row['median']:.4g}")
    return table
