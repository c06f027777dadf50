"""How a metric rises with the number of good images: one curve for runs that differ in `data.shots` alone."""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from oddpatch.errors import ConfigError
from oddpatch.figures.canvas import FONT, Sheet
from oddpatch.report.columns import Column, run_dataset, settings_of
from oddpatch.report.roc import line_styles
from oddpatch.report.table import title_of

WIDTH, HEIGHT, ROW = 5.2, 3.6, 0.2  # inches: of the plot, and of a line of the legend


class Point(NamedTuple):
    """A metric with so many good images."""

    shots: int
    mean: float  # over categories
    spread: float  # standard deviation over runs, such as seeds; mean over categories; 0 of single runs


def curves_of(columns: Sequence[Column], metric: str) -> dict[str, list[Point]]:
    """The curve of each method on each dataset that has two points, by its name.

    A point is the mean over the categories that all points of its curve have. Runs on all good images make the last
    point, where there are runs on fewer.

    Raises:
        ConfigError: there is none.
    """
    alike: dict[str, dict[int, Column]] = defaultdict(dict)
    names: dict[str, str] = {}
    for column in columns:
        for dataset in sorted({run_dataset(run) for run in column.runs}):
            runs = tuple(run for run in column.runs if run_dataset(run) == dataset)
            first = settings_of(runs[0])
            shots = first.pop("data.shots", None) or max(int(run.metrics["num_train_images"]) for run in runs)
            first.pop("data.shots_rule", None)
            key = repr((column.model, column.backbone, column.image_size, dataset, sorted(first.items(), key=str)))
            alike[key][shots] = replace(column, runs=runs)
            others = [text for text in column.settings if not text.startswith("data.shots")]
            names[key] = f"{dataset}: {', '.join([f'{column.model} {column.backbone}', *others])}"
    curves = {}
    for key, found in alike.items():
        points = _points(found, metric)
        if len(points) > 1 and any("data.shots" in settings_of(c.runs[0]) for c in found.values()):
            curves[names[key]] = points
    if not curves:
        raise ConfigError(
            f"no runs with {metric} differ in data.shots alone: train with -m data.shots=1,2,4,8 and report on all"
        )
    return curves


def _points(found: Mapping[int, Column], metric: str) -> list[Point]:
    values = {
        shots: {(run_dataset(run), run.title): column.value(run_dataset(run), run.title, metric) for run in column.runs}
        for shots, column in found.items()
    }
    measured = {shots: {k: v for k, v in there.items() if v is not None} for shots, there in values.items()}
    common = set.intersection(*(set(there) for there in measured.values()))
    if not common:
        return []
    return [
        Point(
            shots,
            sum(there[key].mean for key in common) / len(common),
            sum(there[key].spread or 0.0 for key in common) / len(common),
        )
        for shots, there in sorted(measured.items())
    ]


def draw_shots(columns: Sequence[Column], path: Path, metric: str = "image_auroc") -> None:
    """Write the figure.

    Raises:
        ConfigError: no runs differ in their number of good images alone.
    """
    curves = curves_of(columns, metric)
    sheet = Sheet(WIDTH + 1.2, HEIGHT + 1.6 + ROW * len(curves))
    if any(column.is_random for column in columns):
        sheet.warn(0.8, 0.2, "with random weights: not a result")
    sheet.write(0.8, 0.45, f"{title_of(metric)} by good images", size=11, weight="bold")
    axes = sheet.panel(0.8, 0.7, WIDTH, HEIGHT)
    axes.set_xscale("log", base=2)
    ticks = sorted({point.shots for points in curves.values() for point in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks], size=8, family=FONT)
    axes.set_xticks([], minor=True)
    styles: dict[str, Any] = {**line_styles(list(curves))}
    for position, (name, points) in enumerate(curves.items()):
        shots, means, spreads = zip(*points, strict=True)
        style: Any = styles[name]
        axes.errorbar(shots, means, yerr=spreads, marker="o", markersize=3, capsize=2, **style)
        top = 0.7 + HEIGHT + 0.65 + ROW * position
        sheet.stroke(0.8, top, 0.35, **styles[name])
        sheet.write(1.25, top, name, size=8, room=WIDTH - 2.2)
        sheet.write(0.8 + WIDTH, top, "  ".join(f"{p.shots}: {p.mean:.3f}" for p in points), size=8, ha="right")
    low, high = axes.get_ylim()
    levels = list(itertools.takewhile(lambda level: level <= high, (low + i * (high - low) / 4 for i in range(5))))
    axes.set_yticks(levels, [f"{level:.3f}" for level in levels], size=8, family=FONT)
    axes.set_xlabel("good images fitted to", size=9, family=FONT)
    sheet.save(path)
