"""`report.html`: what a run measured and what it looks like, in one file that needs no network."""

import base64
import hashlib
import io
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from oddpatch.figures.canvas import ALARM
from oddpatch.figures.drawing import FOUND, KINDS, TRUE, Look
from oddpatch.figures.explanation import NORMAL, close_up
from oddpatch.figures.run import choose_look, draw
from oddpatch.files import shown
from oddpatch.report import templates
from oddpatch.report.templates import render
from oddpatch.results.examples import Example
from oddpatch.results.files import to_json
from oddpatch.results.summary import by_category, by_type, metric_name, not_measured
from oddpatch.results.test_result import TestResult
from oddpatch.types import IGNORE

Picture = NDArray[np.uint8]  # (H, W, 3)
SIDE = 320  # pixels of the longer side of a gallery picture
JPEG_QUALITY = 82
#: Height of a line of points.
ROW = 26
#: Cells on the longer side of a map whose values the page holds.
CELLS = 80
#: Moves the threshold, and reads the map under the pointer. The page allows no other script: its policy names the hash
#: of this one.
SCRIPT = (resources.files(templates) / "report.js").read_text(encoding="utf-8")
#: How verdicts are coloured that are not right.
TONES = {"missed": "wrong", "false alarm": "wrong"}


def render_report(result: TestResult, folder: Path) -> str:
    """The report as a self-contained page; without pictures where none were asked for.

    Args:
        result: of the test.
        folder: the run's, as commands are to name it.
    """
    look, chosen = choose_look(result), result.examples or {}
    gallery = {KINDS[kind][1]: [cell(example, kind, look) for example in examples] for kind, examples in chosen.items()}
    drawn = {name for row in gallery.values() for one in row for name, _ in one["pictures"]}
    figures, _ = draw(result) if result.examples is not None else ({}, {})
    run, metrics = result.names, to_json(result)
    return render(
        "report.html",
        title=" · ".join(str(run[key]) for key in ("category", "model", "backbone") if run.get(key)) or "oddpatch run",
        run=run,
        metrics=metrics,
        random_weights=result.is_random,
        headlines=headlines(result),
        not_measured=not_measured(result.absent),
        operating=metrics["operating"],
        thresholds=metrics["thresholds"],
        inspected=result.inspected_text,
        no_threshold=result.thresholds.absent,
        next_steps=next_steps(result, folder),
        categories=by_category(result),
        strangers=[row.path for row in result.rows if row.stranger],
        types=by_type(result),
        scatter=scatter(result),
        script=SCRIPT,
        script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
        figures=[(name, _data("png", png)) for name, png in figures.items() if name != "overview"],
        gallery=gallery,
        heated="anomaly map" in drawn,
        interactive=scatter(result) is not None or "anomaly map" in drawn,
        outlined="outline" in drawn,
        look=look,
        config=OmegaConf.to_yaml(OmegaConf.create(dict(result.config))),
    )


def scatter(result: TestResult) -> dict[str, Any] | None:
    """A point for each test image, on a line for each type, and where the slider of the threshold begins and ends."""
    scores = result.scores
    if not scores or min(scores) == max(scores):
        return None
    low, high = min(scores), max(scores)
    kinds = [row["name"] for row in by_type(result)]
    at = next(iter(result.thresholds.sources.values()), (low + high) / 2)
    points = [
        {
            "x": 1000 * (row.score - low) / (high - low),
            "y": ROW * kinds.index(row.kind) + ROW / 2,
            "label": row.label,
            "score": "Infinity" if row.stranger else row.score,  # above every threshold
            "name": f"{row.kind} / {shown(Path(row.path).name)}: {row.score:.4g}"
            + (f", {row.reason}" if row.reason else ""),
        }
        for row in result.rows
    ]
    return {"points": points, "kinds": kinds, "low": low, "high": high, "at": min(max(at, low), high), "row": ROW}


def headlines(result: TestResult) -> list[dict[str, Any]]:
    """Name, value and interval of what people compare and was measured."""
    intervals = result.confidence or {}
    return [
        {"name": name, "value": value, "interval": intervals.get(key)}
        for key, value in result.metrics.items()
        if (name := metric_name(key))
    ]


def next_steps(result: TestResult, folder: Path) -> list[tuple[str, str]]:
    """What to do with a run that was tested on no defective image: sentences, each with a command if there is one."""
    if result.ranking is not None:
        return []
    run, thresholds, steps = shlex.quote(str(folder)), result.thresholds.described, []
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
        target, promised = thresholds["target_fpr"], thresholds["promised_fpr"]
        if promised > target + 1e-12:
            support = f"{thresholds['num_images']} support a false-alarm rate of {100 * promised:.3g} %"
            wanted = f"the wanted {100 * target:.3g} % takes {thresholds['num_needed']}"
            steps.append((f"Add good images: {support}, {wanted}.", ""))
    measure = (
        "To measure what is found, put images of defective parts into test/NAME_OF_THE_DEFECT of the category, and "
        "good ones that were not trained on into test/good:"
    )
    return [*steps, (measure, f"oddpatch eval run={run}")]


def cell(example: Example, kind: str, look: Look) -> dict[str, Any]:
    """What the template needs of one image."""
    pictures, neighbour = {"image": example.image}, ""
    if example.anomaly_map is not None:
        known_good = kind == "calibration"  # which has no mask, and hardly a pixel above the threshold
        pictures |= {} if known_good else {"mask": outlined_mask(example)}
        pictures["anomaly map"] = heated(example, look)
        if look.threshold is not None and not known_good:
            pictures["outline"] = outlined(example.image, example.anomaly_map > look.threshold, FOUND)
    if example.neighbour:
        match, normal = example.neighbour
        pictures["most anomalous patch"] = close_up(example.image, match.patch, ALARM)
        pictures["nearest normal"] = close_up(normal, match.normal, NORMAL)
        neighbour = f"nearest normal patch: {Path(match.train_image).name}, distance {match.distance:.4g}"
    return {
        "name": f"{example.defect_type} / {example.stem}",
        "path": example.path,
        "score": example.score,
        "verdict": look.verdict(example),
        "tone": "noted" if example.note else TONES.get(look.verdict(example), "right"),
        "pictures": [(name, _jpeg(picture)) for name, picture in pictures.items()],
        "map": None if example.anomaly_map is None else readable(example.anomaly_map),
        "neighbour": neighbour,
    }


def readable(anomaly_map: NDArray[np.float32]) -> dict[str, Any]:
    """A map (H, W) as the page holds it: the highest value of each cell of a grid, in 256 steps."""
    height, width = anomaly_map.shape
    scale = min(1, CELLS / max(height, width))
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    cells = np.maximum.reduceat(anomaly_map, np.arange(rows) * height // rows, axis=0)
    cells = np.maximum.reduceat(cells, np.arange(columns) * width // columns, axis=1)  # (rows, columns)
    low, high = float(cells.min()), float(cells.max())
    steps = np.round((cells - low) / max(high - low, 1e-30) * 255).astype(np.uint8)
    values = base64.b64encode(steps.tobytes()).decode()
    return {"values": values, "rows": rows, "columns": columns, "low": low, "high": high, "size": (width, height)}


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
    return _data("jpeg", buffer.getvalue())


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
