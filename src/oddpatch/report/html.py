"""`report.html`: what a run measured and what it looks like, in one file that needs no network."""

import base64
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from oddpatch.figures.drawing import FOUND, TRUE, Look
from oddpatch.results.examples import Example
from oddpatch.results.summary import metric_name, not_measured
from oddpatch.types import IGNORE
from oddpatch.wording import counted, listed

Picture = NDArray[np.uint8]  # (H, W, 3)
SIDE = 320  # pixels of the longer side of a gallery picture
JPEG_QUALITY = 82
#: How verdicts are coloured that are not right.
TONES = {"missed": "wrong", "false alarm": "wrong"}


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
    folder: Path,
    inspected: str,
    no_threshold: str,
    config: str,
) -> str:
    """The report as a self-contained page.

    Args:
        metrics: as in `metrics.json`.
        gallery: images by a title of their kind, in the order to be shown.
        look: colours and thresholds of the gallery; None without one.
        figures: PNG files of curves.
        types: a row for each defect type: `name`, `count`, `auroc`, `recall`, `median`.
        folder: the run's, as commands are to name it.
        inspected: how much of the images is inspected; empty where that is not known.
        no_threshold: why there is no threshold, where there is none.
        config: the settings, as YAML.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("oddpatch.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(counted=counted, listed=listed)
    run = metrics.get("run") or {}
    cells = {title: [cell(shown, look) for shown in row] for title, row in gallery.items()} if look else {}
    drawn = {name for row in cells.values() for one in row for name, _ in one["pictures"]}
    return environment.get_template("report.html").render(
        title=" · ".join(str(run[key]) for key in ("category", "model", "backbone") if run.get(key)) or "oddpatch run",
        run=run,
        metrics=metrics,
        random_weights=metrics.get("weights") == "random",
        headlines=headlines(metrics),
        not_measured=not_measured(metrics["absent"]),
        operating=metrics.get("operating") or {},
        thresholds=metrics.get("thresholds"),
        inspected=inspected,
        no_threshold=no_threshold,
        next_steps=next_steps(metrics, folder),
        types=types,
        figures=[(path.stem, _png(path)) for path in figures],
        gallery=cells,
        heated="anomaly map" in drawn,
        outlined="outline" in drawn,
        look=look,
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


def next_steps(metrics: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """What to do with a run that was tested on no defective image: sentences, each with a command if there is one."""
    if "image_auroc" in metrics:
        return []
    run, thresholds, steps = shlex.quote(str(folder)), metrics.get("thresholds"), []
    if thresholds:
        save = "" if thresholds["pixel"] is None else " --save overlay"
        steps = [
            (
                "Look at the images that set the threshold: if one of them is not good, move it out of the training "
                "images and train again.",
                "",
            ),
            ("Inspect parts:", f"oddpatch predict {run} FOLDER{save}"),
        ]
        target, supported = thresholds["target_fpr"], thresholds["supported_fpr"]
        if supported > target + 1e-12:
            support = f"{thresholds['num_images']} support a false-alarm rate of {100 * supported:.3g} %"
            wanted = f"the wanted {100 * target:.3g} % takes {math.ceil(1 / target - 1e-9) - 1}"
            steps.append((f"Add good images: {support}, {wanted}.", ""))
    measure = (
        "To measure what is found, put images of defective parts into test/NAME_OF_THE_DEFECT of the category, and "
        "good ones that were not trained on into test/good:"
    )
    return [*steps, (measure, f"python eval.py run={run}")]


def cell(shown: Shown, look: Look | None) -> dict[str, Any]:
    """What the template needs of one image."""
    assert look is not None
    example = shown.example
    pictures = {"image": example.image}
    if example.anomaly_map is not None:
        known_good = shown.kind == "calibration"  # which has no mask, and hardly a pixel above the threshold
        pictures |= {} if known_good else {"mask": outlined_mask(example)}
        pictures["anomaly map"] = heated(example, look)
        if look.threshold is not None and not known_good:
            pictures["outline"] = outlined(example.image, example.anomaly_map > look.threshold, FOUND)
    if shown.neighbour:
        patch, normal, _, _ = shown.neighbour
        pictures |= {"most anomalous patch": patch, "nearest normal": normal}
    return {
        "name": f"{example.defect_type} / {example.stem}",
        "path": example.path,
        "score": example.score,
        "verdict": look.verdict(example),
        "tone": "noted" if example.note else TONES.get(look.verdict(example), "right"),
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
