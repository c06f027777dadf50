"""Pictures of test images: what was scored, what is known of it, and what the detector says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oddpatch.figures.canvas import FAINT, FONT, Sheet
from oddpatch.results.examples import Example
from oddpatch.types import IGNORE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL, THUMBNAIL, MARGIN = 2.4, 1.3, 0.14  # inches; of an oblong image, the root of the area
COLUMNS = 4  # examples side by side in the overview
COLORMAP = "inferno"  # perceptually uniform
OPACITY = 0.7
FOUND, TRUE = "#00e5ff", "#ffd60a"  # outlines of the thresholded map and of the mask

#: Each kind of example in words, for one picture and for the overview.
KINDS = {
    "miss": ("anomalous image with the lowest score", "Anomalous images with the lowest scores"),
    "false_alarm": ("good image with the highest score", "Good images with the highest scores"),
    "calibration": ("good image of the threshold", "Good images that the threshold was set on, highest score first"),
    "typical": ("typical image", "Typical images: near the median score of their type"),
}


@dataclass(frozen=True)
class Look:
    """What all pictures of a run share, so that they can be compared.

    Args:
        low: anomaly value where the heat begins.
        high: anomaly value where it is strongest.
        threshold: anomaly value from which on a pixel is outlined; None for no outline.
        threshold_name: where that threshold comes from; it is written above the outline.
        image_threshold: image score from which on an image is called anomalous; None if there is no threshold.
        image_threshold_name: where that comes from.
        warning: a line to print on every picture.
    """

    low: float = 0.0
    high: float = 1.0
    threshold: float | None = None
    threshold_name: str = ""
    image_threshold: float | None = None
    image_threshold_name: str = "F1-max, oracle"
    warning: str = ""

    def verdict(self, example: Example) -> str:
        """What the image threshold makes of an example, unless its note replaces that."""
        if example.note:
            return example.note
        if self.image_threshold is None:
            return ""
        alarm = example.score >= self.image_threshold
        return ("found" if alarm else "missed") if example.label else ("false alarm" if alarm else "passed")

    def heat(self, anomaly_map: NDArray[np.float32]) -> NDArray[np.float64]:
        """Colours and opacity (H, W, 4) of a map (H, W): the more anomalous, the brighter and the less transparent."""
        level = np.clip((anomaly_map - self.low) / (self.high - self.low), 0, 1)  # (H, W)
        colors = colors_of(level)  # (H, W, 4)
        colors[..., 3] = OPACITY * np.minimum(2 * level, 1)
        return colors


def colors_of(level: NDArray[np.floating]) -> NDArray[np.float64]:
    """(..., 4) of levels in [0, 1]. The black end of the colour map is left out: it would hide dark parts."""
    from matplotlib import colormaps

    return colormaps[COLORMAP](0.25 + 0.75 * level)


def draw_example(example: Example, look: Look, kind: str, rank: int) -> Sheet:
    """One row of panels: image, mask, heat on the scale of the run, outline at the threshold; or the image alone."""
    width, height = _sides(example, PANEL)
    panels = _panels(example, look)
    mapped = example.anomaly_map is not None
    top = 0.66 + (0.22 if look.warning else 0) + (0.24 if mapped else 0)  # of the panels
    across = len(panels) * (width + MARGIN) + MARGIN
    sheet = Sheet(max(across + 0.75, 9.0) if mapped else max(across, 6.4), top + height + MARGIN)
    sheet.write(MARGIN, 0.22, f"{example.defect_type} / {example.stem}", size=11, weight="bold", room=sheet.width - 3.4)
    sheet.write(sheet.width - MARGIN, 0.22, f"{KINDS[kind][0]}, no. {rank}", color=FAINT, ha="right")
    sheet.write(MARGIN, 0.47, _sentence(example, look), size=9)
    sheet.warn(MARGIN, 0.69, look.warning)
    for column, (title, draw) in enumerate(panels.items()):
        left = MARGIN + column * (width + MARGIN)
        if mapped:
            sheet.write(left, top - 0.12, title, size=8, room=width)
        draw(sheet, (left, top, width, height))
    if mapped:
        _draw_scale(sheet.panel(across, top, 0.13, height), look)
    return sheet


def draw_overview(chosen: Mapping[str, Sequence[Example]], look: Look, title: str) -> Sheet:
    """All examples on one sheet by kind: each image with the outline of its mask, and its heat beside it."""
    first = next(example for examples in chosen.values() for example in examples)
    width, height = _sides(first, THUMBNAIL)
    mapped = first.anomaly_map is not None
    cell = max((2 * width + 0.04 if mapped else width) + 0.2, 1.9)
    rows = {kind: -(-len(examples) // COLUMNS) for kind, examples in chosen.items()}
    columns = min(COLUMNS, max(len(examples) for examples in chosen.values()))
    top = 0.6 + (0.22 if look.warning else 0)
    sheet = Sheet(
        max(columns * cell + 2 * MARGIN - 0.2, 6.4), top + sum(0.32 + count * (height + 0.3) for count in rows.values())
    )
    sheet.write(MARGIN, 0.2, title, size=11, weight="bold")
    sheet.write(MARGIN, 0.43, _legend(look, mapped), size=8, color=FAINT)
    sheet.warn(MARGIN, 0.65, look.warning)
    for kind, examples in chosen.items():
        sheet.write(MARGIN, top + 0.14, KINDS[kind][1], size=9, weight="bold")
        for position, example in enumerate(examples):
            row, column = divmod(position, COLUMNS)
            _draw_cell(sheet, MARGIN + column * cell, top + 0.3 + row * (height + 0.3), (width, height), example, look)
        top += 0.32 + rows[kind] * (height + 0.3)
    return sheet


def caption(example: Example, look: Look) -> str:
    """Type, stem, score and verdict, in short."""
    verdict = look.verdict(example)
    return f"{example.defect_type}/{example.stem}  {example.score:.4g}{f'  {verdict}' if verdict else ''}"


def _sentence(example: Example, look: Look) -> str:
    sentence = f"{'anomalous' if example.label else 'good'}, score {example.score:.4g}"
    if look.image_threshold is not None:
        name = look.image_threshold_name
        sentence += f": {look.verdict(example)} at the image threshold {look.image_threshold:.4g} ({name})"
    if example.anomaly_map is not None and look.threshold is not None:
        sentence += f"; outline at {look.threshold:.4g}, {look.threshold_name}"
    return sentence


def _legend(look: Look, mapped: bool) -> str:
    parts = []
    if mapped:
        parts.append(
            f"left: image, mask outlined; right: anomaly value, {look.low:.4g} (clear) to {look.high:.4g} (bright)"
        )
    if look.image_threshold is not None:
        parts.append(f"image threshold {look.image_threshold:.4g} ({look.image_threshold_name})")
    return "; ".join(parts)


Place = tuple[float, float, float, float]  # left, top, width and height on the sheet
Draw = Callable[[Sheet, Place], None]


def _panels(example: Example, look: Look) -> dict[str, Draw]:
    """What to draw side by side, by title."""
    panels: dict[str, Draw] = {"image": lambda sheet, place: sheet.picture(*place, example.image)}
    anomaly_map = example.anomaly_map
    if anomaly_map is None:
        return panels
    panels["mask"] = lambda sheet, place: _show_mask(sheet, place, example)
    panels["anomaly map"] = lambda sheet, place: sheet.picture(*place, example.image, look.heat(anomaly_map))
    threshold = look.threshold
    if threshold is not None:
        oracle = " (oracle)" if "oracle" in look.threshold_name else ""
        panels[f"outline at {threshold:.4g}{oracle}"] = lambda sheet, place: _outline(
            sheet, place, example.image, anomaly_map, threshold, FOUND
        )
    return panels


def _draw_cell(sheet: Sheet, left: float, top: float, size: tuple[float, float], example: Example, look: Look) -> None:
    width, height = size
    if example.anomaly_map is None:
        sheet.picture(left, top, width, height, example.image)
    else:
        mask = (example.mask == 1).astype(np.float32)
        _outline(sheet, (left, top, width, height), example.image, mask, 0.5, TRUE)
        sheet.picture(left + width + 0.04, top, width, height, example.image, look.heat(example.anomaly_map))
    room = 2 * width + 0.04 if example.anomaly_map is not None else max(width, 1.7)
    sheet.write(left, top + height + 0.11, caption(example, look), size=7, room=room)


def _draw_scale(axes: "Axes", look: Look) -> None:
    """The colour bar, with the threshold marked on it."""
    gradient = colors_of(np.linspace(0, 1, 256))[:, None]  # (256, 1, 4)
    axes.imshow(gradient, origin="lower", aspect="auto", extent=(0, 1, look.low, look.high))
    ticks = {look.low: f"{look.low:.4g}", look.high: f"≥{look.high:.4g}"}
    threshold = look.threshold
    if threshold is not None and look.low < threshold < look.high:
        axes.axhline(threshold, color=FOUND, linewidth=1.5)
        # Not where it would run into the others
        if 0.06 < (threshold - look.low) / (look.high - look.low) < 0.94:
            ticks[threshold] = f"{threshold:.4g}"
    axes.yaxis.tick_right()
    axes.set_yticks(list(ticks), list(ticks.values()), size=7.5, family=FONT)
    axes.tick_params(length=2, width=0.6)


def _sides(example: Example, side: float) -> tuple[float, float]:
    """Width and height in inches of a panel with the area of a square of `side`; neither above 1.6 times that."""
    height, width = example.mask.shape
    scale = min(side / (width * height) ** 0.5, 1.6 * side / max(width, height))
    return width * scale, height * scale


def _show_mask(sheet: Sheet, place: Place, example: Example) -> None:
    unknown = example.mask == IGNORE
    greys = np.where(unknown, 205, np.where(example.mask == 1, 255, 0)).astype(np.uint8)  # (H, W)
    sheet.picture(*place, np.repeat(greys[..., None], 3, axis=2))
    note = "no mask" if unknown.all() else "" if (example.mask == 1).any() else "no defect"
    left, top, width, height = place
    color = "#404040" if unknown.all() else "#909090"
    sheet.write(left + width / 2, top + height / 2, note, size=10, room=width, ha="center", color=color)


def _outline(
    sheet: Sheet, place: Place, image: NDArray[np.uint8], values: NDArray[np.float32], threshold: float, color: str
) -> None:
    """An image with a line around where `values` (H, W) reach `threshold`, along the border too."""
    from matplotlib.patheffects import withStroke

    if values.max() < threshold:
        sheet.picture(*place, image)
        return
    axes = sheet.panel(*place)
    axes.imshow(image, aspect="auto")
    height, width = values.shape
    level = np.nextafter(np.float32(threshold), np.float32(-np.inf))  # a value equal to the threshold is inside
    # So far below that a line along the border comes to lie on the outermost pixels.
    below = threshold - 10 * (float(values.max()) - threshold) - 1
    padded = np.pad(values, 1, constant_values=below)  # (H + 2, W + 2)
    lines = axes.contour(
        np.arange(-1, width + 1), np.arange(-1, height + 1), padded, levels=[level], colors=[color], linewidths=1.3
    )
    lines.set_path_effects([withStroke(linewidth=2.6, foreground="black", alpha=0.7)])
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
