"""`oddpatch compare`: whether two runs differ on the same images, by more than the choice of images explains."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oddpatch.errors import ConfigError
from oddpatch.files import shown

if TYPE_CHECKING:
    from oddpatch.metrics.uncertainty.bootstrap import Confidence
    from oddpatch.report.comparison import Difference
    from oddpatch.report.runs import FinishedRun


def compare(
    run_a: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    run_b: Annotated[Path, typer.Argument(help="Folder of another, tested on the same images.")],
    draws: Annotated[int, typer.Option(help="Resamples of the images.")] = 2000,
    level: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare two runs on the same images: differences with intervals and p-values, by the paired bootstrap."""
    from oddpatch.metrics.uncertainty.bootstrap import Confidence
    from oddpatch.report.comparison import compare_runs
    from oddpatch.report.runs import read_run

    if draws < 1:
        raise ConfigError(f"--draws={draws}: choose at least 1, better 1000")
    settings = Confidence(draws, level, seed)
    first, second = read_run(run_a), read_run(run_b)
    differences, absent = compare_runs(first, second, settings)
    if as_json:
        told = [
            {**difference._asdict(), "difference": difference.second - difference.first} for difference in differences
        ]
        about = {"a": str(run_a), "b": str(run_b), "draws": draws, "level": level, "seed": seed}
        typer.echo(json.dumps({**about, "metrics": told, "absent": absent}, indent=2))
    else:
        _print(first, second, differences, absent, settings)


def _print(
    first: "FinishedRun",
    second: "FinishedRun",
    differences: "list[Difference]",
    absent: dict[str, str],
    settings: "Confidence",
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for letter, run in (("A", first), ("B", second)):
        names = run.names
        told = f"{letter}  {names['model']} {names['backbone']} {names['category']}  {run.folder}"
        console.print(Text(shown(told) + ("  RANDOM WEIGHTS: not a result" if run.is_random else "")), soft_wrap=True)
    if first.names["image_size"] != second.names["image_size"]:
        console.print("pixel metrics are taken at different image sizes")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric", no_wrap=True)
    for column in ("A", "B", "B - A", f"{100 * settings.level:.4g} % interval", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    for metric in differences:
        interval = f"{metric.low:+.4f} to {metric.high:+.4f}"
        change = f"{metric.second - metric.first:+.4f}"
        p_value = f"{metric.p_value:.2g}"
        table.add_row(metric.metric, f"{metric.first:.4f}", f"{metric.second:.4f}", change, interval, p_value)
    console.print()
    console.print(table)
    console.print()
    auroc: Any = next((metric for metric in differences if metric.metric == "image_auroc"), None)
    if auroc is not None and "DeLong's test" not in absent:
        found = "its variance is zero" if auroc.delong_p_value is None else f"p = {auroc.delong_p_value:.2g}"
        console.print(f"DeLong's test of image AUROC: {found}")
    console.print(f"paired bootstrap: {settings.draws} draws of the same images for both, seed {settings.seed}")
    for name, reason in absent.items():
        console.print(Text(shown(f"{name}: {reason}")), soft_wrap=True)
