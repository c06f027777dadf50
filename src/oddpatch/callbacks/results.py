"""The files a test leaves: metrics.json, predictions.csv and pixel_statistics.npz."""

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from oddpatch.callbacks.loggers import log_results
from oddpatch.environment import git_commit, library_versions
from oddpatch.files import replacing, to_cell
from oddpatch.metrics.operating import operating_figures, overlap_histogram
from oddpatch.metrics.uncertainty.bootstrap import Confidence, confidence_intervals
from oddpatch.metrics.uncertainty.pixel_statistics import FILE_NAME
from oddpatch.resources import peak_memory


class Results(L.Callback):
    """Writes what was measured and every image's score.

    Args:
        folder: where `metrics.json`, `predictions.csv` and, if there are masks, `pixel_statistics.npz` go.
        confidence: draws, level and seed of the confidence intervals, see `uncertainty.bootstrap.Confidence`.

    Raises:
        ConfigError: a value of `confidence` cannot work.
    """

    def __init__(self, folder: str, confidence: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.confidence = Confidence(**(confidence or {}))

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Have the statistics gathered that intervals and comparisons are made from; one device is enough."""
        pl_module.pixel_metrics.keep_statistics = trainer.is_global_zero
        pl_module.pixel_metrics.statistics = None

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write what was measured."""
        self._write(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Without test images no test hook runs: what there is to say is written here."""
        if stage == "test" and not trainer.datamodule.test_samples:  # type: ignore[attr-defined]
            self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write both files, each under a temporary name first."""
        if not trainer.is_global_zero:
            return
        module = pl_module
        with module.timed("confidence"):
            resampled = self._resample(module)
        calibration = module.model.calibration
        metrics = {
            "run": module.config.get("run"),
            **module.results,
            **resampled,
            "thresholds": module.describe_thresholds(),
            "operating": _operating(module, calibration.describe()),
            "absent": module.absent,
            "num_train_images": module.num_fitted,
            "num_test_images": len(module.scored),
            "test_set": trainer.datamodule.test_set,  # type: ignore[attr-defined]
            "skipped": trainer.datamodule.skipped(),  # type: ignore[attr-defined]
            "inspected": (share := trainer.datamodule.inspected) and share.to_dict(),  # type: ignore[attr-defined]
            "left_out": [f"{path}: {reason}" for path, reason in trainer.datamodule.left_out],  # type: ignore[attr-defined]
            "timing": {stage: round(seconds, 4) for stage, seconds in module.timing.items()},
            "peak_memory_bytes": peak_memory(module.device),
            "weights": module.model.backbone.weights_origin,
            "versions": library_versions(),
            "git_commit": git_commit(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / "metrics.json") as file:
            json.dump(metrics, file, indent=2)
            file.write("\n")
        self._write_statistics(module)
        rows = prediction_rows(module)
        with replacing(self.folder / "predictions.csv") as file:
            csv.writer(file).writerows(
                [repr(value) if isinstance(value, float) else to_cell(value) for value in row] for row in rows
            )
        log_results(trainer.loggers, metrics, rows)

    def _resample(self, module: Any) -> dict[str, Any]:
        """Confidence intervals of the metrics that have a value, and how they were made."""
        if not self.confidence.draws:
            return {}
        scores, labels = _scores_and_labels(module)
        found = confidence_intervals(scores, labels, module.pixel_metrics.statistics, self.confidence)
        settings = {"method": "percentile bootstrap over images, good and anomalous apart", **asdict(self.confidence)}
        intervals = {name: list(ends) for name, ends in found.items() if name in module.results}
        return {"confidence": intervals, "confidence_settings": settings}

    def _write_statistics(self, module: Any) -> None:
        path = self.folder / FILE_NAME
        if module.pixel_metrics.statistics is not None:
            module.pixel_metrics.statistics.save(path)
        else:
            path.unlink(missing_ok=True)  # an earlier test's would pass for this one's


def prediction_rows(module: Any) -> list[list[Any]]:
    """Header and a row for each test image; without a threshold the last two columns are empty."""
    calibration, scores = module.model.calibration, [image.score for image in module.scored]
    verdicts: list[tuple[Any, Any]] = [("", "")] * len(scores)
    if calibration.calibrated:
        p_values, threshold = calibration.p_values(scores).tolist(), calibration.image.value
        verdicts = [(p, int(score > threshold)) for p, score in zip(p_values, scores, strict=True)]
    return [
        ["path", "label", "defect_type", "score", "p_value", "is_anomalous"],
        *(
            [image.path, image.label, image.defect_type, image.score, *verdict]
            for image, verdict in zip(module.scored, verdicts, strict=True)
        ),
    ]


def _scores_and_labels(module: Any) -> tuple[list[float], list[int]]:
    return [image.score for image in module.scored], [image.label for image in module.scored]


def _operating(module: Any, thresholds: Mapping[str, Any] | None) -> dict[str, Any]:
    """See `oddpatch.metrics.operating`; regions are judged at the calibrated pixel threshold if there is one."""
    threshold = thresholds["image"] if thresholds else None
    seconds = None if module.num_without_pixels else module.timing.get("test")  # the backbone's would be missing
    figures = operating_figures(*_scores_and_labels(module), threshold, seconds)
    statistics = module.pixel_metrics.statistics
    if statistics is not None:
        pixel, method = thresholds["pixel"] if thresholds else None, "calibrated"
        if pixel is None:  # a pixel is anomalous above a threshold; F1-max counts a score equal to it as anomalous
            pixel = float(np.nextafter(module.results["pixel_f1_max_threshold"], -np.inf))
            method = "pixel F1-max (oracle)"
        overlaps = statistics.region_overlaps(pixel)
        figures["region_overlap"] = {"threshold": pixel, "method": method, **overlap_histogram(overlaps)}
    return figures
