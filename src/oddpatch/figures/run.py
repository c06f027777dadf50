"""The pictures of one test: the worst mistakes, typical images, and the curves behind the metrics."""

import math
import re
from pathlib import Path
from statistics import median_low
from weakref import WeakKeyDictionary

from oddpatch.data.layout import GOOD
from oddpatch.figures.curves import draw_curves
from oddpatch.figures.drawing import Look, draw_example, draw_overview
from oddpatch.figures.histogram import draw_scores
from oddpatch.files import write_whole
from oddpatch.results.test_result import TestResult

#: Bytes of a picture's name, so that the longest stem still makes a file name.
MAX_NAME = 160
#: Files that an earlier test into the same folder may have left; no others are ever removed.
_OWN_FILES = re.compile(
    r"(miss|false_alarm|typical|calibration)_\d+_.*\.png|(overview|roc|precision_recall|pro|scores)\.png"
)
#: The good images that the threshold was set on, in the histogram.
CALIBRATION = "good, for the threshold"
#: Files, the report and loggers show the same pictures: they are drawn once.
_drawn: WeakKeyDictionary[TestResult, tuple[dict[str, bytes], dict[str, bytes]]] = WeakKeyDictionary()


def write_figures(result: TestResult, folder: Path) -> None:
    """Write a PNG of each curve and each example, in place of those of an earlier test."""
    figures, pictures = draw(result)
    if folder.is_dir():
        for path in folder.iterdir():
            if _OWN_FILES.fullmatch(path.name):
                path.unlink()
    for name, png in (*figures.items(), *pictures.items()):
        write_whole(folder / f"{name}.png", png)


def draw(result: TestResult) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """PNGs by name: curves, the histogram of scores and the overview of all examples; and a picture of each example."""
    if result not in _drawn:
        _drawn[result] = _figures(result), _pictures(result)
    return _drawn[result]


def _figures(result: TestResult) -> dict[str, bytes]:
    look = choose_look(result)
    sheets = draw_curves(result.ranking, result.pixels, result.fpr_limits, look.warning)
    scores: dict[str, list[float]] = {}
    for row in result.rows:
        scores.setdefault(row.defect_type, []).append(row.score)
    if result.good:
        scores[CALIBRATION] = [image.score for image in result.good]
    if scores:
        sheets["scores"] = draw_scores(scores, image_thresholds(result), (GOOD, CALIBRATION), look.warning)
    if result.examples:
        title = f"{result.names.get('category') or 'test'}, {result.detector}"
        sheets["overview"] = draw_overview(result.examples, look, title)
    return {name: sheet.png() for name, sheet in sheets.items()}


def _pictures(result: TestResult) -> dict[str, bytes]:
    look, found = choose_look(result), {}
    for kind, examples in (result.examples or {}).items():
        for place, example in enumerate(examples, start=1):
            name = f"{kind}_{place}_{example.defect_type}_{example.stem}".encode()[:MAX_NAME]
            found[name.decode(errors="ignore")] = draw_example(example, look, kind, place).png()
    return found


def choose_look(result: TestResult) -> Look:
    """What all pictures of a test share.

    The heat begins at what is usual on a good image, and is strongest at what half of the anomalous images reach.
    """
    levels, thresholds, metrics = result.levels, result.thresholds, result.metrics
    good, anomalous = levels[levels[:, 0] == 0], levels[levels[:, 0] == 1]
    low, high = 0.0, 1.0
    if len(levels):
        low = median_low((good if len(good) else levels)[:, 1].tolist())
        # Without defects to compare with, the highest good pixel is put half way up: it should not look like one.
        high = median_low(anomalous[:, 2].tolist()) if len(anomalous) else low + 2 * (float(good[:, 2].max()) - low)
    threshold, name = None, ""
    image_threshold, image_name = metrics.get("image_f1_max_threshold"), "F1-max, oracle"
    if thresholds.conformal is not None:
        # An image is anomalous above the conformal threshold, and in pictures from a threshold on.
        image_threshold, image_name = math.nextafter(thresholds.conformal, math.inf), "set on good images"
    if thresholds.pixel is not None:
        threshold, name = thresholds.pixel, "the pixel threshold set on good images"
    elif "pixel_f1_max_threshold" in metrics:
        threshold, name = metrics["pixel_f1_max_threshold"], "the pixel F1-max threshold (oracle)"
    elif len(good) and len(anomalous):
        threshold, name = float(good[:, 2].max()), "the highest pixel of the good images (oracle)"
    return Look(
        low=low,
        high=max(high, low + 1e-6 * max(abs(low), 1.0)),
        threshold=threshold,
        threshold_name=name,
        image_threshold=image_threshold,
        image_threshold_name=image_name,
        warning="random weights: not a result" if result.is_random else "",
    )


def image_thresholds(result: TestResult) -> dict[str, float]:
    """Image thresholds worth marking, by name; the oracle where there is no other."""
    found = {f"{name} threshold": value for name, value in result.thresholds.sources.items()}
    if not found and "image_f1_max_threshold" in result.metrics:
        found["F1-max threshold (oracle)"] = result.metrics["image_f1_max_threshold"]
    return found
