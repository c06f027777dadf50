"""The table that a run ends with on the terminal."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from oddpatch.module import AnomalyModule

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


def print_summary(module: "AnomalyModule", folder: Path, console: Console | None = None) -> None:
    """Print the metrics, those of each defect type, the time each stage took, and the run's folder."""
    console = console or Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right")
    table.add_column("", style="dim", overflow="fold")
    further = {k: k.replace("au_pro", "AU-PRO") for k in module.results if k.startswith("au_pro@")}
    for key, name in {**HEADLINES, **further}.items():
        if key in module.results:
            value = module.results[key]
            note = f"limit {module.pixel_metrics.fpr_limits[0]:g}" if key == "au_pro" else ""
            table.add_row(name, f"{value:.4f}", note)
        elif key in module.absent:
            table.add_row(name, "-", module.absent[key])
    thresholds = module.model.calibration.thresholds()
    for source, threshold in thresholds.items():
        table.add_row(f"threshold ({source})", f"{threshold:.4g}", THRESHOLDS[source])
        for name in ("recall", "fpr", "precision", "f1"):
            if (value := module.results.get(f"image_{name}@{source}")) is not None:
                table.add_row(f"  {RATES[name]}", f"{value:.4f}", "")
    by_type = module.results.get("image_auroc_by_defect_type", {})
    if len(by_type) > 1:
        counts = {name: sum(image.defect_type == name for image in module.scored) for name in by_type}
        for name, value in by_type.items():
            table.add_row(Text(f"  {name}"), f"{value:.4f}", f"image AUROC, {counts[name]} images")
    console.print()
    console.print(table)
    stages = "  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in module.timing.items())
    console.print()
    console.print(Text(stages, style="dim"))
    if module.model.backbone.weights_origin == "random":
        console.print(Text("random weights: these numbers say nothing about the method", style="bold red"))
    console.print(Text(str(folder)), soft_wrap=True)
