"""The ROC curves of all categories in one figure: of images, and of pixels where their statistics were kept."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.errors import CheckpointError, ConfigError
from oddpatch.figures.canvas import FAINT, FONT, Sheet
from oddpatch.metrics.curves import roc_curve
from oddpatch.metrics.uncertainty.pixel_statistics import FILE_NAME, PixelStatistics
from oddpatch.report.columns import Column
from oddpatch.report.runs import METRICS, FinishedRun, read_predictions

SIDE, ROW = 4.2, 0.2  # inches: of a plot, and of a line of the legend
# Okabe and Ito's colours; the dashes tell apart what shares one of them.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("-", "--", ":", "-.")


class Curve(NamedTuple):
    """One line of the figure."""

    name: str
    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    auroc: float


def draw_roc(columns: Sequence[Column], path: Path) -> None:
    """Write the figure.

    Raises:
        ConfigError: no run has both good and anomalous images.
        CheckpointError: a run's predictions or pixel statistics cannot be read.
    """
    named = [(run, _name(run, column, len(columns) > 1)) for column in columns for run in column.runs]
    of_images = [curve for run, name in named if (curve := image_curve(run, name))]
    of_pixels = [curve for run, name in named if (curve := pixel_curve(run, name))]
    if not of_images:
        raise ConfigError("no run was tested on both good and anomalous images: there is no ROC curve to draw")
    longest = max(len(of_images), len(of_pixels))
    sheet = Sheet(2 * SIDE + 2.0, SIDE + 1.5 + ROW * longest)
    if any(column.is_random for column in columns):
        sheet.warn(0.62, 0.2, "with random weights: not a result")
    styles = line_styles([name for _, name in named])
    _panel(sheet, 0.62, "Images", of_images, styles, len(columns) == 1, "")
    without = f"no {FILE_NAME} in any run: test again by oddpatch eval"
    _panel(sheet, SIDE + 1.62, "Pixels", of_pixels, styles, len(columns) == 1, "" if of_pixels else without)
    sheet.save(path)


def line_styles(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Colour and dashes of each run, by name: the same in both panels, though one may lack some of the runs."""
    styles = itertools.cycle({"color": color, "linestyle": dash} for dash in _DASHES for color in _COLORS)
    return dict(zip(dict.fromkeys(names), styles, strict=False))


def image_curve(run: FinishedRun, name: str) -> Curve | None:
    """ROC curve of the image scores; None with one class only."""
    rows = read_predictions(run)
    labels = [row.label for row in rows]
    if len(set(labels)) < 2:
        return None
    fpr, tpr, _ = roc_curve([row.score for row in rows], labels)
    return Curve(name, fpr, tpr, _auroc(run, "image_auroc"))


def pixel_curve(run: FinishedRun, name: str) -> Curve | None:
    """ROC curve of the pixels at the edges of their bins, where it is exact; None without statistics."""
    path = run.folder / FILE_NAME
    if not path.is_file():
        return None
    statistics = PixelStatistics.load(path)
    counts = [part.sum(axis=0)[::-1] for part in (statistics.normal, statistics.defect)]  # (K,) from the highest scores
    fpr, tpr = (np.append(0.0, np.cumsum(of_class) / of_class.sum()) for of_class in counts)
    return Curve(name, fpr, tpr, _auroc(run, "pixel_auroc"))


def _auroc(run: FinishedRun, metric: str) -> float:
    if metric not in run.metrics:
        raise CheckpointError(f"{run.folder / METRICS} lacks {metric}: test the run again by oddpatch eval")
    return float(run.metrics[metric])


def _name(run: FinishedRun, column: Column, several: bool) -> str:
    name = f"{run.title}, {column.label}" if several else run.title
    again = sum(other.title == run.title for other in column.runs) > 1
    return f"{name}, {run.folder.name}" if again else name


def _panel(
    sheet: Sheet,
    left: float,
    title: str,
    curves: Sequence[Curve],
    styles: Mapping[str, Mapping[str, Any]],
    averages: bool,
    without: str,
) -> None:
    sheet.write(left, 0.45, title, size=11, weight="bold")
    axes = sheet.rate_axes(left, 0.7, SIDE, "false-positive rate", "true-positive rate")
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=":")
    if without:
        axes.text(0.5, 0.5, without, size=9, family=FONT, color=FAINT, ha="center", va="center")
    for position, curve in enumerate(curves):
        # The first are the widest, so that each is seen where others run over it.
        width = 1.4 + 2 * (len(curves) - 1 - position) / max(len(curves) - 1, 1)
        axes.plot(curve.fpr, curve.tpr, linewidth=width, **styles[curve.name])
        # Below the plot what the curve is: a legend inside would hide the corner that matters.
        top = 0.7 + SIDE + 0.65 + ROW * position
        sheet.stroke(left, top, 0.35, linewidth=width, **styles[curve.name])
        sheet.write(left + 0.45, top, curve.name, size=8, room=SIDE - 1.1)
        sheet.write(left + SIDE, top, f"{curve.auroc:.4f}", size=8, ha="right")
    if averages and len(curves) > 1:  # over models it would mean nothing
        mean = float(np.mean([curve.auroc for curve in curves]))
        sheet.write(left + SIDE, 0.45, f"mean AUROC {mean:.4f}", size=9, ha="right")
