"""Image scores of good images against those of each defect type."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from oddpatch.figures.canvas import FAINT, FONT, INK, Sheet
from oddpatch.wording import counted

# Inches: the width is that of the curves, so that on a phone, where each fills the screen, the text is as large.
LEFT, WIDTH, RIGHT, ROW, LABEL = 0.3, 4.2, 0.3, 0.74, 0.2
BINS = 40
GOOD_COLOR, ODD_COLOR = "#0072b2", "#d55e00"
_DASHES = ("--", ":", "-.")


def draw_scores(
    scores: Mapping[str, Sequence[float]],
    thresholds: Mapping[str, float],
    good: Collection[str] = ("good",),
    warning: str = "",
) -> Sheet:
    """A histogram of image scores for each type, good first, one below the other on one axis.

    Args:
        scores: image scores by type; none of them empty.
        thresholds: values to mark, by name.
        good: the types of good images.
        warning: a line to print on the sheet.
    """
    order = sorted(scores, key=lambda name: (name not in good, name))
    everything = np.concatenate([np.asarray(scores[name], float) for name in order])
    marks = list(thresholds.values())
    # From a few extreme images on, most would share one bin: then the axis is logarithmic.
    low, high = float(min(everything.min(), *marks or [np.inf])), float(max(everything.max(), *marks or [-np.inf]))
    logarithmic = low > 0 and high / max(float(np.median(everything)), 1e-12) > 8
    pad = 1.03 if logarithmic else 0.02 * max(high - low, 1e-9 * max(abs(high), 1))
    ends = (low / pad, high * pad) if logarithmic else (low - pad, high + pad)
    edges = np.geomspace(*ends, BINS + 1) if logarithmic else np.linspace(*ends, BINS + 1)
    top = 0.42 + 0.2 * (len(thresholds) + bool(warning))
    sheet = Sheet(LEFT + WIDTH + RIGHT, top + len(order) * ROW + 0.56)
    sheet.write(LEFT, 0.22, "Image scores", size=11, weight="bold")
    for row, (name, value) in enumerate(thresholds.items()):
        sheet.stroke(LEFT, 0.45 + row * 0.2, 0.3, color=INK, linewidth=1, linestyle=_DASHES[row % 3])
        sheet.write(LEFT + 0.38, 0.45 + row * 0.2, f"{name} {value:.4g}", color=FAINT)
    sheet.warn(LEFT, top - 0.17, warning)
    for row, name in enumerate(order):
        above = top + row * ROW
        axes = sheet.panel(LEFT, above + LABEL, WIDTH, ROW - LABEL - 0.06)
        counts, _ = np.histogram(scores[name], edges)
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=GOOD_COLOR if name in good else ODD_COLOR)
        axes.set(xlim=ends, ylim=(0, max(counts.max(), 1) * 1.1))
        if logarithmic:
            axes.set_xscale("log")
        for position, value in enumerate(marks):
            axes.axvline(value, color=INK, linewidth=1, linestyle=_DASHES[position % 3])
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(which="both", bottom=False, labelbottom=False)
        sheet.write(LEFT, above + 0.1, name, size=8.5, room=WIDTH - 0.9)
        count = counted(len(scores[name]), "image")
        sheet.write(LEFT + WIDTH, above + 0.1, count, color=FAINT, ha="right")
        if row == len(order) - 1:
            ticks = score_ticks(*ends, logarithmic)
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], size=8, family=FONT)
            axes.tick_params(which="major", bottom=True, labelbottom=True, length=2)
            axes.set_xlabel("score, logarithmic" if logarithmic else "score", size=9, family=FONT, color=INK)
    return sheet


def score_ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Round values from `low` to `high` to label an axis with, at most 8: on a logarithmic one 1, 2, 5, 10, 20 ..."""
    from matplotlib.ticker import MaxNLocator

    if not logarithmic:
        ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)
        return list(dict.fromkeys(float(f"{tick:.6g}") for tick in ticks if low <= tick <= high))
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    found: list[float] = []
    for digits in ((1,), (1, 2, 5), range(1, 10)):
        values = (float(f"{digit}e{decade}") for decade in decades for digit in digits)
        found = [value for value in values if low <= value <= high]
        if len(found) >= 3:
            break
    return found[:: math.ceil(len(found) / 8) or 1]
