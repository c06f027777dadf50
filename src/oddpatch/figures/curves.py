"""The curves behind the ranking metrics: ROC, precision over recall, and per-region overlap (PRO)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from oddpatch.figures.canvas import FAINT, FONT, INK, Sheet
from oddpatch.metrics.curves import Points, rate_curve, recall_precision_curve
from oddpatch.metrics.pixel import PixelRanking
from oddpatch.metrics.ranking import Ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDE = 4.0  # inches
MAX_POINTS = 2000
# Of Okabe and Ito's colours, which the colour-blind tell apart.
COLORS = {"image": "#0072b2", "pixel": "#d55e00"}


def draw_curves(
    images: Ranking | None, pixels: PixelRanking | None, fpr_limits: Sequence[float], warning: str = ""
) -> dict[str, Sheet]:
    """`roc`, `precision_recall` and `pro`, those that the rankings allow.

    Args:
        images: ranking of the image scores; None if there is none.
        pixels: ranking of the pixels; None if there is none.
        fpr_limits: limits of AU-PRO, to be marked; the first is shaded.
        warning: a line to print on every sheet.
    """
    rankings = {"image": images, "pixel": None if pixels is None else pixels.ranking}
    known = {name: ranking for name, ranking in rankings.items() if ranking is not None}
    sheets = {}
    if known:
        sheets["roc"] = _draw_roc(known, warning)
        sheets["precision_recall"] = _draw_precision_recall(known, warning)
    if pixels is not None:
        sheets["pro"] = _draw_pro(pixels, fpr_limits, warning)
    return sheets


def _draw_roc(rankings: Mapping[str, Ranking], warning: str) -> Sheet:
    sheet, axes = _square("Receiver operating characteristic", "false-positive rate", "true-positive rate", warning)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=":", label="chance")
    for name, ranking in rankings.items():
        points = rate_curve(ranking, ranking.positives / ranking.num_positives, MAX_POINTS)
        _plot(axes, points, f"{name}, AUROC {ranking.auroc():.4f}", COLORS[name])
    _legend(axes, "lower right")
    return sheet


def _draw_precision_recall(rankings: Mapping[str, Ranking], warning: str) -> Sheet:
    sheet, axes = _square("Precision and recall", "recall", "precision", warning)
    for name, ranking in rankings.items():
        color = COLORS[name]
        points = recall_precision_curve(ranking, MAX_POINTS)
        _plot(axes, points, f"{name}, average precision {ranking.average_precision():.4f}", color)
        share = ranking.num_positives / (ranking.num_positives + ranking.num_negatives)
        axes.axhline(share, color=color, linewidth=0.8, linestyle=":", label=f"{name}, chance {share:.2g}")
        f1, threshold = ranking.f1_max()
        at = int((ranking.thresholds == threshold).nonzero()[0][0])
        found, alarms = ranking.true_positives[at], ranking.false_positives[at]
        style: dict[str, Any] = {"marker": "o", "markersize": 5, "linestyle": "none"}
        label = f"{name}, F1-max {f1:.4f} at {threshold:.4g} (oracle)"
        axes.plot([found / ranking.num_positives], [found / (found + alarms)], color=color, label=label, **style)
    _legend(axes, "lower left")
    return sheet


def _draw_pro(pixels: PixelRanking, fpr_limits: Sequence[float], warning: str) -> Sheet:
    sheet, axes = _square("Per-region overlap", "false-positive rate of the pixels", "per-region overlap", warning)
    rate, overlap = pixels.pro_curve(MAX_POINTS)
    _plot(axes, (rate, overlap), "per-region overlap", COLORS["pixel"])
    for position, limit in enumerate(fpr_limits):
        label = f"AU-PRO {pixels.au_pro(limit):.4f} up to {limit:g}"
        if position == 0:
            left = np.append(rate[rate < limit], limit)
            heights = np.append(overlap[rate < limit], np.interp(limit, rate, overlap))
            axes.fill_between(left, heights, color=COLORS["pixel"], alpha=0.15, linewidth=0)
        axes.axvline(limit, color=INK, linewidth=0.9, linestyle=("--", ":", "-.")[position % 3], label=label)
    _legend(axes, "lower right")
    return sheet


def _square(title: str, across: str, upward: str, warning: str) -> tuple[Sheet, "Axes"]:
    """A sheet with axes over [0, 1] squared."""
    top = 0.72 if warning else 0.48
    sheet = Sheet(SIDE + 0.8, top + SIDE + 0.58)
    sheet.write(0.62, 0.24, title, size=11, weight="bold")
    sheet.warn(0.62, 0.5, warning)
    return sheet, sheet.rate_axes(0.62, top, SIDE, across, upward)


def _plot(axes: "Axes", points: tuple[Points, Points], label: str, color: str) -> None:
    axes.plot(*points, color=color, linewidth=1.8, label=label, solid_joinstyle="round")


def _legend(axes: "Axes", where: Literal["lower right", "lower left"]) -> None:
    axes.legend(loc=where, prop={"family": FONT, "size": 8}, framealpha=0.9, edgecolor="#d0d0d0")
