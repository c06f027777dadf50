"""The files a test leaves: metrics.json, predictions.csv and pixel_statistics.npz."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from oddpatch.files import replacing, to_cell, write_whole
from oddpatch.metrics.operating import operating_figures, overlap_histogram
from oddpatch.metrics.uncertainty.pixel_statistics import FILE_NAME
from oddpatch.results import METRICS, PREDICTIONS
from oddpatch.results.summary import oracle_gap
from oddpatch.results.test_result import OfCategory, TestResult

_COLUMNS = ("path", "label", "defect_type", "score", "p_value", "is_anomalous")
_CATEGORY = "category"  # where there are several
_PRODUCT = ("product", "reason")  # where the model tells products apart
_METHOD = "percentile bootstrap over images, good and anomalous apart"


def write_results(result: TestResult, folder: Path) -> None:
    """Write all three, each under a temporary name first; statistics that an earlier test left are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / METRICS, json.dumps(to_json(result), indent=2) + "\n")
    with replacing(folder / PREDICTIONS) as file:
        csv.writer(file).writerows(
            [repr(value) if isinstance(value, float) else to_cell(value) for value in row] for row in table(result)
        )
    if result.statistics is not None:
        result.statistics.save(folder / FILE_NAME)
    else:
        (folder / FILE_NAME).unlink(missing_ok=True)


def to_json(result: TestResult) -> dict[str, Any]:
    """The content of metrics.json."""
    resampled = {}
    if result.confidence is not None and result.confidence_settings is not None:
        resampled = {
            "confidence": {name: list(ends) for name, ends in result.confidence.items()},
            "confidence_settings": {"method": _METHOD, **asdict(result.confidence_settings)},
        }
    return {
        "run": result.names or None,
        **result.metrics,
        "image_auroc_by_defect_type": result.auroc_by_type,
        "categories": {name: of_category(one) for name, one in result.by_category.items()} or None,
        "category_mean": result.category_mean or None,
        **resampled,
        "thresholds": result.thresholds.described,
        "operating": operating(result),
        "absent": result.absent,
        "num_train_images": result.num_fitted,
        "num_test_images": len(result.rows),
        "test_set": result.test_set,
        "skipped": result.skipped,
        "inspected": result.inspected,
        "alignment": result.alignment,
        "left_out": result.left_out,
        "timing": {stage: round(seconds, 4) for stage, seconds in result.timing.items()},
        "peak_memory_bytes": result.peak_memory,
        "weights": result.weights,
        "versions": result.versions,
        "git_commit": result.git_commit,
        "fpr_limits": list(result.fpr_limits),
        "settings": result.settings,
    }


def of_category(one: OfCategory) -> dict[str, Any]:
    """What metrics.json says of one of several categories, under the names that it has for a run."""
    return {
        **one.metrics,
        "image_auroc_by_defect_type": one.auroc_by_type,
        "absent": one.absent,
        "num_test_images": one.num_test_images,
        "test_set": one.test_set,
    }


def table(result: TestResult) -> list[list[Any]]:
    """Header and rows of predictions.csv; without a threshold set on good images p_value and is_anomalous are empty."""
    rows, several, told = [], bool(result.by_category), any(row.product for row in result.rows)
    for row in result.rows:
        verdict = ["", ""] if row.is_anomalous is None else [row.p_value, int(row.is_anomalous)]
        category = [row.category] if several else []
        product = ["" if row.stranger else row.product, row.reason] if told else []
        rows.append([row.path, row.label, row.defect_type, row.score, *verdict, *category, *product])
    return [[*_COLUMNS, *([_CATEGORY] if several else []), *(_PRODUCT if told else ())], *rows]


def operating(result: TestResult) -> dict[str, Any]:
    """See `oddpatch.metrics.operating`; regions are judged at the calibrated pixel threshold if there is one."""
    thresholds = result.thresholds
    # Where features came from a cache, the time of the backbone is missing.
    seconds = None if result.features_found else result.timing.get("test")
    judged = [row.judged for row in result.rows]
    figures = operating_figures(result.scores, result.labels, thresholds.conformal, seconds, judged=judged)
    if gap := oracle_gap(result.metrics):
        figures["oracle_gap"] = gap
    if result.statistics is not None:
        pixel, method = thresholds.pixel, "calibrated"
        if pixel is None:  # a pixel is anomalous above a threshold; F1-max counts a score equal to it as anomalous
            pixel = float(np.nextafter(result.metrics["pixel_f1_max_threshold"], -np.inf))
            method = "pixel F1-max (oracle)"
        overlaps = result.statistics.region_overlaps(pixel)
        figures["region_overlap"] = {"threshold": pixel, "method": method, **overlap_histogram(overlaps)}
    return figures
