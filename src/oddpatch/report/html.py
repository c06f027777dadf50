"""`report.html`: what a run measured and what it looks like, in one file that needs no network."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from oddpatch.report.examples import Example
from oddpatch.report.figures import FOUND, TRUE, Look
from oddpatch.report.summary import metric_name, not_measured
from oddpatch.types import IGNORE
from oddpatch.wording import counted

Picture = NDArray[np.uint8]  # (H, W, 3)
SIDE = 320  # pixels of the longer side of a gallery picture
JPEG_QUALITY = 82


@dataclass(frozen=True)
class Shown:
    """One image of the gallery."""

    example: Example
    kind: str
    neighbour: tuple[Picture, Picture, str, float] | None = None  # patch, nearest normal patch, its image, distance


def render_report(
    metrics: Mapping[str, Any],
    gallery: Mapping[str, Sequence[Shown]],
    look: Look | None,
    figures: Sequence[Path],
    types: Sequence[Mapping[str, Any]],
    config: str,
) -> str:
    """The report as a self-contained page.

    Args:
        metrics: as in `metrics.json`.
        gallery: images by a title of their kind, in the order to be shown.
        look: colours and thresholds of the gallery; None without one.
        figures: PNG files of curves.
        types: a row for each defect type: `name`, `count`, `auroc`, `recall`, `median`.
        config: the settings, as YAML.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("oddpatch.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals["counted"] = counted
    run = metrics.get("run") or {}
    return environment.get_template("report.html").render(
        title=" · ".join(str(run[key]) for key in ("category", "model", "backbone") if run.get(key)) or "oddpatch run",
        run=run,
        metrics=metrics,
        random_weights=metrics.get("weights") == "random",
        headlines=headlines(metrics),
        not_measured=not_measured(metrics["absent"]),
        operating=metrics.get("operating") or {},
        thresholds=metrics.get("thresholds"),
        types=types,
        figures=[(path.stem, _png(path)) for path in figures],
        gallery={title: [cell(shown, look) for shown in row] for title, row in gallery.items()} if look else {},
        look=look,
        mapped=any(shown.example.anomaly_map is not None for row in gallery.values() for shown in row),
        config=config,
    )


def headlines(metrics: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """Name, value and interval of what people compare and was measured."""
    intervals = metrics.get("confidence") or {}
    return [
        {"name": name, "value": value, "interval": intervals.get(key)}
        for key, value in metrics.items()
        if (name := metric_name(key))
    ]


def cell(shown: Shown, look: Look | None) -> dict[str, Any]:
    """What the template needs of one image."""
    assert look is not None
    example = shown.example
    pictures = {"image": example.image}
    if example.anomaly_map is not None:
        pictures |= {"mask": outlined_mask(example), "anomaly map": heated(example, look)}
        if look.threshold is not None:
            pictures["outline"] = outlined(example.image, example.anomaly_map > look.threshold, FOUND)
    if shown.neighbour:
        patch, normal, _, _ = shown.neighbour
        pictures |= {"oddest patch": patch, "nearest normal": normal}
    return {
        "name": f"{example.defect_type} / {example.stem}",
        "path": example.path,
        "score": example.score,
        "verdict": look.verdict(example),
        "wrong": look.verdict(example) in ("missed", "false alarm"),
        "pictures": [(name, _jpeg(picture)) for name, picture in pictures.items()],
        "neighbour": f"nearest normal patch: {Path(shown.neighbour[2]).name}, distance {shown.neighbour[3]:.4g}"
        if shown.neighbour
        else "",
    }


def heated(example: Example, look: Look) -> Picture:
    """The image under its anomaly map."""
    assert example.anomaly_map is not None
    colors = look.heat(example.anomaly_map)  # (H, W, 4)
    opacity = colors[..., 3:]
    return (example.image * (1 - opacity) + 255 * colors[..., :3] * opacity).round().astype(np.uint8)


def outlined_mask(example: Example) -> Picture:
    """The image with its mask outlined, greyed where the truth is not known."""
    if (example.mask == IGNORE).all():
        return (example.image * 0.35 + 255 * 0.65 * 0.8).astype(np.uint8)
    return outlined(example.image, example.mask == 1, TRUE)


def outlined(image: Picture, inside: NDArray[np.bool_], color: str) -> Picture:
    """The image with a line around what is inside."""
    drawn = image.copy()
    lines, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    rgb = tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))
    cv2.drawContours(drawn, lines, -1, (0, 0, 0), 4)
    cv2.drawContours(drawn, lines, -1, rgb, 2)
    return drawn


def _jpeg(picture: Picture) -> str:
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _png(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
