"""`oddpatch compare`: whether two runs differ on the same images, by more than the choice of images explains."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from oddpatch.errors import CheckpointError, ConfigError, DataError
from oddpatch.files import shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from oddpatch.metrics.uncertainty.bootstrap import ByDraw, Confidence
    from oddpatch.report.runs import FinishedRun, Scored


class Difference(NamedTuple):
    """One metric of two runs."""

    metric: str
    first: float
    second: float
    low: float  # ends of the interval of second - first
    high: float
    p_value: float  # of the paired bootstrap
    delong_p_value: float | None = None  # image AUROC only; None also where its variance is zero


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


def compare_runs(
    first: "FinishedRun", second: "FinishedRun", settings: "Confidence"
) -> tuple[list[Difference], dict[str, str]]:
    """Every metric that both runs have, and why the others are left out.

    Raises:
        DataError: the runs were not tested on the same images, or not with the same labels.
        CheckpointError: a file of a run cannot be read.
    """
    import numpy as np

    from oddpatch.metrics.arrays import UndefinedMetricError
    from oddpatch.metrics.uncertainty.bootstrap import image_metrics_by_draw, resample
    from oddpatch.metrics.uncertainty.comparison import delong_test
    from oddpatch.report.runs import read_predictions

    rows = [read_predictions(run) for run in (first, second)]
    order = match_images(first, second, *rows)
    labels = np.array([row.label for row in rows[0]])
    scores = [np.array([row.score for row in rows[0]]), np.array([rows[1][i].score for i in order])]
    weights = resample(labels, settings.draws, settings.seed)
    differences, absent = [], {}
    try:
        drawn = [image_metrics_by_draw(of_run, labels, weights) for of_run in scores]
    except UndefinedMetricError as error:
        absent["image metrics"] = str(error)
    else:
        differences += _differences((first, second), drawn, settings.level)
        try:
            p_value = delong_test(scores[0], scores[1], labels).p_value
            differences[0] = differences[0]._replace(delong_p_value=p_value)
        except UndefinedMetricError as error:
            absent["DeLong's test"] = str(error)
    pixels, reasons = _pixel_differences((first, second), order, weights, settings.level)
    return differences + pixels, absent | reasons


def match_images(
    first: "FinishedRun", second: "FinishedRun", first_rows: "list[Scored]", second_rows: "list[Scored]"
) -> "NDArray[np.int64]":
    """(N,) for each image of the first run its position in the second; matched by category/split/type/name.

    Raises:
        DataError: names an image that one of them lacks, or whose label differs.
    """
    import numpy as np

    from oddpatch.report.runs import identity

    places = []
    for run, rows in ((first, first_rows), (second, second_rows)):
        names = [identity(row.path, run.category) for row in rows]
        places.append({name: i for i, name in enumerate(names)})
        if len(places[-1]) < len(names):
            twice = next(name for i, name in enumerate(names) if places[-1][name] != i)
            raise DataError(f"{run.folder} has two images that are both {twice}: compare runs of one category each")
    for mine, other, run, without in ((places[0], places[1], first, second), (places[1], places[0], second, first)):
        missing = [name for name in mine if name not in other]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(
                f"the runs were not tested on the same images: {missing[0]}{more} in {run.folder}, not in "
                f"{without.folder}: test one again by eval.py on the images of the other"
            )
    order = np.array([places[1][name] for name in places[0]], np.int64)
    for (name, i), j in zip(places[0].items(), order, strict=True):
        if first_rows[i].label != second_rows[j].label:
            raise DataError(f"{name} is good in one run and anomalous in the other: test both on one dataset")
    sets = {run.metrics.get("test_set") for run in (first, second)} - {None}
    if len(sets) > 1:
        raise DataError(
            f"the images of {first.folder} and {second.folder} have the same names and are others, by their sizes: "
            "test one again by eval.py on the images of the other"
        )
    return order


def _differences(runs: "tuple[FinishedRun, FinishedRun]", drawn: "list[ByDraw]", level: float) -> list[Difference]:
    from oddpatch.metrics.uncertainty.bootstrap import intervals
    from oddpatch.metrics.uncertainty.comparison import bootstrap_p_value

    shared = [name for name in drawn[0] if name in drawn[1] and all(name in run.metrics for run in runs)]
    by_draw = {name: drawn[1][name] - drawn[0][name] for name in shared}
    return [
        Difference(name, runs[0].metrics[name], runs[1].metrics[name], *ends, bootstrap_p_value(by_draw[name]))
        for name, ends in intervals(by_draw, level).items()
    ]


def _pixel_differences(
    runs: "tuple[FinishedRun, FinishedRun]",
    order: "NDArray[np.int64]",
    weights: "NDArray[np.int64]",
    level: float,
) -> tuple[list[Difference], dict[str, str]]:
    import numpy as np

    from oddpatch.metrics.uncertainty.bootstrap import pixel_metrics_by_draw
    from oddpatch.metrics.uncertainty.pixel_statistics import FILE_NAME, PixelStatistics

    without = [run for run in runs if not (run.folder / FILE_NAME).is_file()]
    if without:
        reason = "; ".join(_why_without(run) for run in without)
        return [], {"pixel metrics": reason}
    statistics = [PixelStatistics.load(run.folder / FILE_NAME) for run in runs]
    for run, of_run in zip(runs, statistics, strict=True):
        if of_run.num_images != len(order):
            raise CheckpointError(
                f"{run.folder / FILE_NAME} is of {of_run.num_images} images, predictions.csv of {len(order)}: test the "
                "run again by eval.py"
            )
    inverse = np.argsort(order)  # the second run keeps its images in its own order
    drawn = [pixel_metrics_by_draw(statistics[0], weights), pixel_metrics_by_draw(statistics[1], weights[:, inverse])]
    reasons = {}
    limits = [of_run.fpr_limits[0] for of_run in statistics]
    if limits[0] != limits[1]:
        drawn[0].pop("au_pro")
        reasons["au_pro"] = f"integrated to {limits[0]:g} in one run and to {limits[1]:g} in the other"
    return _differences(runs, drawn, level), reasons


def _why_without(run: "FinishedRun") -> str:
    reason = run.metrics.get("absent", {}).get("pixel_auroc")
    return (
        f"{run.folder}: {reason or 'no pixel_statistics.npz, test it again by: python eval.py run=' + str(run.folder)}"
    )


def _print(
    first: "FinishedRun",
    second: "FinishedRun",
    differences: list[Difference],
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
