"""What loggers get of a test beside the metrics: W&B a summary, a table and images, TensorBoard the pictures, MLflow
the result and the pictures."""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from oddpatch.callbacks.mlflow import MLflowLogger
from oddpatch.figures.drawing import Look, caption
from oddpatch.figures.run import choose_look, draw
from oddpatch.results import METRICS
from oddpatch.results.examples import Example
from oddpatch.results.files import table, to_json
from oddpatch.results.test_result import TestResult

#: What the values of a mask mean; W&B shows the names.
CLASS_LABELS = {0: "normal", 1: "defect", 255: "not known"}
_SUMMARY = (
    "confidence", "categories", "category_mean", "thresholds", "operating", "image_auroc_by_defect_type", "timing",
    "absent", "peak_memory_bytes",
)  # fmt: skip


def log_result(loggers: Iterable[Any], result: TestResult) -> None:
    """Give the result to W&B, TensorBoard and MLflow; other loggers, which get the metrics alone, are left alone."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _log_to_wandb(logger, result)
        elif isinstance(logger, TensorBoardLogger) and result.examples is not None:
            _log_to_tensorboard(logger, result)
        elif isinstance(logger, MLflowLogger):
            _log_to_mlflow(logger, result)


def _log_to_wandb(logger: WandbLogger, result: TestResult) -> None:
    import wandb

    metrics, (header, *rows), look = to_json(result), table(result), choose_look(result)
    logger.experiment.summary.update({key: metrics[key] for key in _SUMMARY if metrics.get(key)})
    logged: dict[str, Any] = {"test/predictions": wandb.Table(columns=header, data=rows)}
    for kind, examples in (result.examples or {}).items():
        logged[f"test/{kind}"] = [
            wandb.Image(example.image, caption=caption(example, look), masks=_overlays(example, look))
            for example in examples
        ]
    if result.examples is not None:
        figures, _ = draw(result)
        logged |= {f"figures/{name}": wandb.Image(Image.open(io.BytesIO(png))) for name, png in figures.items()}
    logger.log_metrics(logged)  # in one step, that of the metrics


def _overlays(example: Example, look: Look) -> dict[str, dict[str, Any]]:
    overlays = {"ground_truth": example.mask}
    if example.anomaly_map is not None and look.threshold is not None:
        overlays["prediction"] = (example.anomaly_map >= look.threshold).astype(np.uint8)
    return {name: {"mask_data": mask, "class_labels": CLASS_LABELS} for name, mask in overlays.items()}


def _log_to_tensorboard(logger: TensorBoardLogger, result: TestResult) -> None:
    for drawn in draw(result):
        for name, png in drawn.items():
            picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
            logger.experiment.add_image(f"figures/{name}", picture, dataformats="HWC")


def _log_to_mlflow(logger: MLflowLogger, result: TestResult) -> None:
    logger.experiment.log_dict(logger.run_id, to_json(result), METRICS)
    for drawn in draw(result) if result.examples is not None else ():
        for name, png in drawn.items():
            logger.experiment.log_image(logger.run_id, Image.open(io.BytesIO(png)), f"figures/{name}.png")
