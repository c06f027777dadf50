"""How a category's images are distributed: size, brightness, contrast, colour, area of the defects."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from oddpatch.data.decoding import read_image
from oddpatch.data.headers import find_full_scale
from oddpatch.data.layout import GOOD, scan
from oddpatch.data.masks import read_mask
from oddpatch.errors import ConfigError
from oddpatch.figures.canvas import FAINT, FONT, Sheet
from oddpatch.figures.histogram import GOOD_COLOR, ODD_COLOR
from oddpatch.files import replacing
from oddpatch.pool import Progress, tracked
from oddpatch.wording import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW, WIDTH, GAP = 0.55, 2.3, 0.3  # inches


@dataclass(frozen=True)
class ImageStats:
    """Figures of one image."""

    group: str  # split/defect type
    size: tuple[int, int]  # height, width
    colour: tuple[float, float, float]  # mean of each channel, 0..1
    contrast: float  # standard deviation of the grey values, 0..1
    defect_area: float | None  # share of the image's pixels, if there is a mask

    @property
    def brightness(self) -> float:
        """Mean of all channels, 0..1."""
        return sum(self.colour) / 3


def collect(root: Path, category: str, progress: Progress | None = None) -> list[ImageStats]:
    """Read every image and mask of a category.

    Raises:
        DataError: what `layout.scan`, `read_image` and `read_mask` raise.
    """
    found = scan(root, category)
    good_first = sorted(found.test, key=lambda sample: sample.label)
    samples = [("train", s) for s in found.train] + [("test", s) for s in good_first]
    full_scale = find_full_scale(sample.path for _, sample in samples)
    stats = []
    for split, sample in tracked(samples, progress):
        image = read_image(sample.path, full_scale)  # (3, H, W)
        r, g, b = image.mean(dim=(1, 2)).tolist()
        area = float(read_mask(sample.mask_path).float().mean()) if sample.mask_path else None
        contrast = float(image.mean(dim=0).std(correction=0))
        size = (image.shape[1], image.shape[2])
        stats.append(ImageStats(f"{split}/{sample.defect_type}", size, (r, g, b), contrast, area))
    return stats


def table(stats: list[ImageStats]) -> list[dict[str, object]]:
    """One row for each split and defect type; brightness, contrast and colour out of 255, areas in % of the image."""
    rows: list[dict[str, object]] = []
    for group, members in _groups(stats).items():
        sizes = sorted({f"{s.size[1]}x{s.size[0]}" for s in members})
        brightness = np.array([255 * s.brightness for s in members])
        areas = np.array([100 * s.defect_area for s in members if s.defect_area is not None])
        rows.append(
            {
                "group": group,
                "images": len(members),
                "size": sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes",
                "brightness": f"{brightness.mean():.1f} ({brightness.min():.1f}..{brightness.max():.1f})",
                "contrast": f"{255 * np.mean([s.contrast for s in members]):.1f}",
                "rgb": " ".join(f"{v:.0f}" for v in 255 * np.mean([s.colour for s in members], axis=0)),
                "masks": len(areas),
                "defect %": f"{np.median(areas):.2f} ({areas.min():.2f}..{areas.max():.2f})" if len(areas) else "",
            }
        )
    return rows


def check_format(path: Path) -> None:
    """See that a picture can be written under this name.

    Raises:
        ConfigError: no format has its suffix.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    known = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in known:
        raise ConfigError(f"{path}: name the picture by its format, such as {path.stem}.png, .svg or .pdf")


def draw(stats: list[ImageStats], path: Path, title: str = "") -> None:
    """Write the distributions as a picture: a row for each group, and in each of its panels a dot for each image.

    The box holds the middle half of a group, its line is the median. What is the same in all images is a text instead
    of a panel. The format is that of the file name.
    """
    groups = _groups(stats)
    panels = _panels(stats)
    top, left = 1.2, 1.75
    sheet = Sheet(left + len(panels) * (WIDTH + GAP) + 0.1, top + len(groups) * ROW + 0.45)
    sheet.write(0.14, 0.26, f"{title}: {len(stats)} images" if title else f"{len(stats)} images", 12, weight="bold")
    sheet.write(0.14, 0.54, _common(stats), 9, color=FAINT)
    for row, (group, members) in enumerate(groups.items()):
        middle = top + (row + 0.5) * ROW
        sheet.write(left - 0.15, middle - 0.08, group, 9, ha="right")
        sheet.write(left - 0.15, middle + 0.09, counted(len(members), "image"), 7, color=FAINT, ha="right")
    for column, panel in enumerate(panels):
        start = left + column * (WIDTH + GAP)
        sheet.write(start, top - 0.2, panel.name, 9, room=WIDTH, weight="bold")
        axes = sheet.panel(start, top, WIDTH, len(groups) * ROW)
        _draw_panel(axes, panel, list(groups.values()))
    with replacing(path, "wb") as file:
        sheet.figure.savefig(file, format=path.suffix.lstrip(".").lower(), dpi=150)


Measure = Callable[[ImageStats], float | None]


class _Panel(NamedTuple):
    name: str
    values: list[tuple[str | None, Measure]]  # colour, None for that of the row
    logarithmic: bool = False


def _panels(stats: list[ImageStats]) -> list[_Panel]:
    panels = []
    if len({item.size for item in stats}) > 1:
        panels += [
            _Panel("Width, pixels", [(None, lambda item: item.size[1])]),
            _Panel("Height, pixels", [(None, lambda item: item.size[0])]),
        ]
    panels += [
        _Panel("Brightness, of 255", [(None, lambda item: 255 * item.brightness)]),
        _Panel("Contrast, of 255", [(None, lambda item: 255 * item.contrast)]),
    ]
    if not _grey(stats):
        r, g, b = (partial(_channel, index) for index in range(3))
        panels.append(_Panel("Red, green and blue, of 255", [("#c4161c", r), ("#2e7d32", g), ("#1f4fbf", b)]))
    areas = [100 * item.defect_area for item in stats if item.defect_area]
    if areas:
        panels.append(_Panel("Defect, % of the image", [(None, _area)], max(areas) > 10 * min(areas)))
    return panels


def _channel(index: int, item: ImageStats) -> float:
    return 255 * item.colour[index]


def _area(item: ImageStats) -> float | None:
    return 100 * item.defect_area if item.defect_area else None  # an empty mask has no place on a logarithmic axis


def _grey(stats: list[ImageStats]) -> bool:
    return all(max(item.colour) - min(item.colour) < 1e-6 for item in stats)


def _common(stats: list[ImageStats]) -> str:
    """What is not drawn, in words."""
    (height, width), others = stats[0].size, {item.size for item in stats} - {stats[0].size}
    areas = [item.defect_area for item in stats if item.defect_area is not None]
    masks, empty = len(areas), areas.count(0)
    facts = [
        f"all {width} x {height} pixels" if not others else f"{1 + len(others)} sizes",
        "grey" if _grey(stats) else "colour",
        (f"{masks} with a mask" if masks else "no masks") + (f", {empty} of them empty" if empty else ""),
    ]
    return ", ".join(facts) + "; a dot is an image, a box the middle half, its line the median"


def _draw_panel(axes: "Axes", panel: _Panel, groups: list[list[ImageStats]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    generator = np.random.default_rng(0)  # of the places of dots across a row
    lanes = len(panel.values)
    everything: list[float] = []
    for row, members in enumerate(groups):
        good = members[0].group.endswith(f"/{GOOD}")
        for lane, (color, measure) in enumerate(panel.values):
            values = np.array([value for item in members if (value := measure(item)) is not None])
            if not len(values):
                continue
            everything += values.tolist()
            centre, height = row + (lane + 0.5) / lanes, 0.66 / lanes
            color = color or (GOOD_COLOR if good else ODD_COLOR)
            spread = generator.uniform(-0.5, 0.5, len(values)) * height
            alpha = max(min(8 / np.sqrt(len(values)), 0.6), 0.1)
            axes.scatter(values, centre + spread, s=9 / lanes, color=color, alpha=alpha, linewidths=0)
            low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
            if len(values) > 3:
                axes.fill_between([low, high], centre - height / 2, centre + height / 2, color=color, alpha=0.18, lw=0)
            axes.plot([median] * 2, [centre - height / 2, centre + height / 2], color=color, linewidth=1.6, zorder=3)
        if row:
            axes.axhline(row, color="#dddddd", linewidth=0.6)
    low, high = min(everything), max(everything)
    if panel.logarithmic:
        axes.set(xscale="log", xlim=(low / 1.3, high * 1.3))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 300 * low else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        pad = 0.06 * (high - low) or max(0.05 * abs(high), 1)
        axes.set_xlim(low - pad, high + pad)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(len(groups), 0)
    axes.grid(axis="x", color="#eeeeee", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", length=2, labelsize=8, labelfontfamily=FONT, color="#b0b0b0")


def _groups(stats: list[ImageStats]) -> dict[str, list[ImageStats]]:
    groups: dict[str, list[ImageStats]] = defaultdict(list)
    for item in stats:
        groups[item.group].append(item)
    return dict(groups)
