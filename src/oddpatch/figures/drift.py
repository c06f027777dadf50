"""The streams of a drift test over the parts, against what the calibration says of them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oddpatch.figures.canvas import ALARM, FAINT, FONT, INK, Sheet

if TYPE_CHECKING:
    from oddpatch.metrics.good_scores import GoodScores

# Inches.
LEFT, WIDTH, RIGHT, ROW, LABEL = 0.75, 6.4, 0.3, 1.25, 0.28
#: Stretches of parts that the line of medians has at most, and points that are drawn at most.
STRETCHES, POINTS = 120, 4000
VALUE, BAND = "#0072b2", "#d9e7f2"


def draw_drift(
    values: Mapping[str, Sequence[float]],
    good: "GoodScores",
    threshold: float | None,
    rejected: float,
    alarms: Mapping[str, tuple[int, int]],
) -> Sheet:
    """A row for each stream: its values, their median in stretches, and the middle 90 % of the calibration as a band.

    A red line is where an alarm was raised, a dashed one where the change most likely began.

    Args:
        values: (parts,) of each stream, NaN where there is none; of "rejected" 0 or 1, shown as a share.
        good: the calibration.
        threshold: of scores.
        rejected: share that may be rejected.
        alarms: of streams: the part with which the change most likely began, and the part at which it was noticed.
    """
    sheet = Sheet(LEFT + WIDTH + RIGHT, 0.5 + len(values) * ROW + 0.3)
    sheet.write(LEFT, 0.25, "Drift", size=11, weight="bold")
    accepted = np.asarray(values["rejected"]) == 0
    known: dict[str, Any] = {"score": good.image_scores, **good.statistics}
    for row, (name, given) in enumerate(values.items()):
        top = 0.5 + row * ROW
        axes = sheet.panel(LEFT, top + LABEL, WIDTH, ROW - LABEL - 0.12)
        stream = np.asarray(given, np.float64)
        parts = np.arange(1, len(stream) + 1)
        own = alarms.get(name)
        told = "no drift" if own is None else f"drift since part {own[0] + 1}"
        sheet.write(LEFT, top + 0.14, name, size=9, weight="bold")
        sheet.write(LEFT + WIDTH, top + 0.14, told, color=ALARM if own else FAINT, ha="right")
        if name == "rejected":
            axes.axhline(rejected, color=FAINT, linewidth=0.8, linestyle="--")
        else:
            kept = accepted & np.isfinite(stream)
            stream, parts = stream[kept], parts[kept]
            low, high = np.quantile(known[name], [0.05, 0.95])
            axes.axhspan(low, high, color=BAND, linewidth=0)
            thin = slice(None, None, -(-len(stream) // POINTS) or 1)
            axes.plot(parts[thin], stream[thin], ".", color=VALUE, markersize=1.5, alpha=0.35)
            if name == "score" and threshold is not None:
                axes.axhline(threshold, color=FAINT, linewidth=0.8, linestyle="--")
        pieces = np.array_split(np.arange(len(stream)), max(min(STRETCHES, len(stream) // 20), 1))
        middle = np.mean if name == "rejected" else np.median
        lines = [(float(parts[piece].mean()), float(middle(stream[piece]))) for piece in pieces if len(piece)]
        axes.plot([x for x, _ in lines], [y for _, y in lines], color=INK, linewidth=1.2)
        for place, style in zip(own or (), ("--", "-"), strict=False):
            axes.axvline(place + 1, color=ALARM, linewidth=0.9, linestyle=style)
        axes.set_xlim(0.5, max(len(given), 1) + 0.5)
        axes.tick_params(labelsize=7, left=True, bottom=True, length=2)
        axes.yaxis.set_major_locator(_locator(3))
        if row == len(values) - 1:
            axes.xaxis.set_major_locator(_locator(6))
            axes.set_xlabel("part", size=8, family=FONT, color=INK)
    return sheet


def _locator(count: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, steps=[1, 2, 5, 10])
