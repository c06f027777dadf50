"""Whether two runs differ on the same images, by more than the choice of images explains."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.errors import CheckpointError, DataError
from oddpatch.metrics.arrays import UndefinedMetricError
from oddpatch.metrics.uncertainty.bootstrap import (
    ByDraw,
    Confidence,
    image_metrics_by_draw,
    intervals,
    pixel_metrics_by_draw,
    resample,
)
from oddpatch.metrics.uncertainty.comparison import bootstrap_p_value, delong_test
from oddpatch.metrics.uncertainty.pixel_statistics import FILE_NAME, PixelStatistics
from oddpatch.report.runs import FinishedRun, Scored, identity, read_predictions


class Difference(NamedTuple):
    """One metric of two runs."""

    metric: str
    first: float
    second: float
    low: float  # ends of the interval of second - first
    high: float
    p_value: float  # of the paired bootstrap
    delong_p_value: float | None = None  # image AUROC only; None also where its variance is zero


def compare_runs(
    first: FinishedRun, second: FinishedRun, settings: Confidence
) -> tuple[list[Difference], dict[str, str]]:
    """Every metric that both runs have, and why the others are left out.

    Raises:
        DataError: the runs were not tested on the same images, or not with the same labels.
        CheckpointError: a file of a run cannot be read.
    """
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
    first: FinishedRun, second: FinishedRun, first_rows: list[Scored], second_rows: list[Scored]
) -> NDArray[np.int64]:
    """(N,) for each image of the first run its position in the second; matched by category/split/type/name.

    Raises:
        DataError: names an image that one of them lacks, or whose label differs.
    """
    places = []
    for run, rows in ((first, first_rows), (second, second_rows)):
        names = [identity(row.path, run) for row in rows]
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
                f"{without.folder}: test one again by oddpatch eval on the images of the other"
            )
    order = np.array([places[1][name] for name in places[0]], np.int64)
    for (name, i), j in zip(places[0].items(), order, strict=True):
        if first_rows[i].label != second_rows[j].label:
            raise DataError(f"{name} is good in one run and anomalous in the other: test both on one dataset")
    sets = {run.metrics.get("test_set") for run in (first, second)} - {None}
    if len(sets) > 1:
        raise DataError(
            f"the images of {first.folder} and {second.folder} have the same names and are others, by their sizes: "
            "test one again by oddpatch eval on the images of the other"
        )
    return order


def _differences(runs: tuple[FinishedRun, FinishedRun], drawn: list[ByDraw], level: float) -> list[Difference]:
    shared = [name for name in drawn[0] if name in drawn[1] and all(name in run.metrics for run in runs)]
    by_draw = {name: drawn[1][name] - drawn[0][name] for name in shared}
    return [
        Difference(name, runs[0].metrics[name], runs[1].metrics[name], *ends, bootstrap_p_value(by_draw[name]))
        for name, ends in intervals(by_draw, level).items()
    ]


def _pixel_differences(
    runs: tuple[FinishedRun, FinishedRun],
    order: NDArray[np.int64],
    weights: NDArray[np.int64],
    level: float,
) -> tuple[list[Difference], dict[str, str]]:
    without = [run for run in runs if not (run.folder / FILE_NAME).is_file()]
    if without:
        return [], {"pixel metrics": "; ".join(map(_why_without, without))}
    statistics = [PixelStatistics.load(run.folder / FILE_NAME) for run in runs]
    for run, of_run in zip(runs, statistics, strict=True):
        if of_run.num_images != len(order):
            raise CheckpointError(
                f"{run.folder / FILE_NAME} is of {of_run.num_images} images, predictions.csv of {len(order)}: test the "
                "run again by oddpatch eval"
            )
    inverse = np.argsort(order)  # the second run keeps its images in its own order
    drawn = [pixel_metrics_by_draw(statistics[0], weights), pixel_metrics_by_draw(statistics[1], weights[:, inverse])]
    reasons = {}
    limits = [of_run.fpr_limits[0] for of_run in statistics]
    if limits[0] != limits[1]:
        drawn[0].pop("au_pro")
        reasons["au_pro"] = f"integrated to {limits[0]:g} in one run and to {limits[1]:g} in the other"
    return _differences(runs, drawn, level), reasons


def _why_without(run: FinishedRun) -> str:
    reason = run.metrics.get("absent", {}).get("pixel_auroc")
    return (
        f"{run.folder}: {reason or 'no pixel_statistics.npz, test it again by: oddpatch eval run=' + str(run.folder)}"
    )
