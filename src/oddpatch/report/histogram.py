"""Image scores of good images against those of each defect type."""

from collections.abc import Mapping, Sequence

import numpy as np

from oddpatch.report.canvas import ALARM, FAINT, FONT, INK, Sheet, drawable

ROW, WIDTH, LEFT, RIGHT = 0.62, 5.4, 1.5, 0.55  # inches
BINS = 40
GOOD_COLOR, ODD_COLOR = "#0072b2", "#d55e00"


def draw_scores(
    scores: Mapping[str, Sequence[float]], thresholds: Mapping[str, float], good: str = "good", warning: str = ""
) -> Sheet:
    """A histogram of image scores for each type, good first, one below the other on one axis.

    Args:
        scores: image scores by type; none of them empty.
        thresholds: values to mark, by name.
        good: the type of the good images.
        warning: a line to print on the sheet.
    """
    order = sorted(scores, key=lambda name: (name != good, name))
    everything = np.concatenate([np.asarray(scores[name], float) for name in order])
    marks = list(thresholds.values())
    # From a few extreme images on, most would share one bin: then the axis is logarithmic.
    low, high = float(min(everything.min(), *marks or [np.inf])), float(max(everything.max(), *marks or [-np.inf]))
    logarithmic = low > 0 and high / max(float(np.median(everything)), 1e-12) > 8
    pad = 1.03 if logarithmic else 0.02 * max(high - low, 1e-9 * max(abs(high), 1))
    ends = (low / pad, high * pad) if logarithmic else (low - pad, high + pad)
    edges = np.geomspace(*ends, BINS + 1) if logarithmic else np.linspace(*ends, BINS + 1)
    top = 0.95 if warning else 0.72
    sheet = Sheet(LEFT + WIDTH + RIGHT, top + len(order) * ROW + 0.62)
    sheet.write(0.14, 0.24, "Image scores", size=11, weight="bold")
    sheet.write(0.14, 0.48, ", ".join(f"{name} {value:.4g}" for name, value in thresholds.items()), color=FAINT)
    if warning:
        sheet.write(0.14, 0.72, warning, size=9, color=ALARM, weight="bold")
    for row, name in enumerate(order):
        axes = sheet.panel(LEFT, top + row * ROW, WIDTH, ROW - 0.08)
        counts, _ = np.histogram(scores[name], edges)
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=GOOD_COLOR if name == good else ODD_COLOR)
        axes.set(xlim=ends, ylim=(0, max(counts.max(), 1) * 1.1))
        if logarithmic:
            axes.set_xscale("log")
        for position, value in enumerate(marks):
            axes.axvline(value, color=INK, linewidth=1, linestyle=("--", ":", "-.")[position % 3])
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(which="both", bottom=False, labelbottom=False)
        sheet.write(LEFT - 0.1, top + row * ROW + 0.2, name, size=8.5, ha="right")
        sheet.write(LEFT - 0.1, top + row * ROW + 0.38, f"{len(scores[name])} images", size=7, color=FAINT, ha="right")
        if row == len(order) - 1:
            ticks = _ticks(edges, logarithmic)
            axes.set_xticks(ticks, [drawable(f"{tick:.3g}") for tick in ticks], size=8, family=FONT)
            axes.tick_params(which="major", bottom=True, labelbottom=True, length=2)
            axes.set_xlabel("score, logarithmic" if logarithmic else "score", size=9, family=FONT, color=INK)
    return sheet


def _ticks(edges: np.ndarray, logarithmic: bool) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    if logarithmic:
        places = np.linspace(0.05, 0.95, 6) * (len(edges) - 1)
        return [float(f"{edges[round(place)]:.2g}") for place in places]
    return [float(tick) for tick in MaxNLocator(6).tick_values(edges[0], edges[-1]) if edges[0] <= tick <= edges[-1]]
