"""What loggers get beside the metrics: the settings of a run, and its pictures."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from oddpatch.figures.drawing import Look, caption
from oddpatch.results.examples import Example

#: What the values of a mask mean; W&B shows the names.
CLASS_LABELS = {0: "normal", 1: "defect", 255: "not known"}


class LogConfig(L.Callback):
    """Gives the config that the model was built from to W&B and TensorBoard, to filter and compare runs by."""

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Before anything else, so that a run that fails can be told apart too."""
        for logger in trainer.loggers:
            if isinstance(logger, (WandbLogger, TensorBoardLogger)):
                logger.log_hyperparams(pl_module.config)


class Pictured(NamedTuple):
    """What was drawn of a test."""

    chosen: Mapping[str, Sequence[Example]]  # by kind
    look: Look
    pictures: Sequence[Path]  # of the examples, PNG
    figures: Sequence[Path]  # the overview and the curves, PNG


def log_pictures(loggers: Iterable[Any], pictured: Pictured) -> None:
    """Give the figures to W&B and TensorBoard, and W&B the images with masks that can be laid over them.

    Loggers that take no images are left alone.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _log_to_wandb(logger, pictured)
        elif isinstance(logger, TensorBoardLogger):
            _log_to_tensorboard(logger, pictured)


def log_results(loggers: Iterable[Any], metrics: Mapping[str, Any], predictions: Sequence[Sequence[Any]]) -> None:
    """Give W&B what `metrics.json` and `predictions.csv` hold, as the run's summary and as a table.

    Args:
        loggers: of the trainer; others than W&B's are left alone.
        metrics: as in `metrics.json`.
        predictions: rows of `predictions.csv`, the first being its header.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            keys = ("confidence", "thresholds", "operating", "image_auroc_by_defect_type", "timing", "absent")
            summary = {key: metrics[key] for key in keys if metrics.get(key)}
            logger.experiment.summary.update({**summary, "peak_memory_bytes": metrics["peak_memory_bytes"]})
            table = wandb.Table(columns=list(predictions[0]), data=[list(row) for row in predictions[1:]])
            logger.log_metrics({"test/predictions": table})  # type: ignore[dict-item]


def _log_to_wandb(logger: WandbLogger, pictured: Pictured) -> None:
    import wandb

    look = pictured.look
    images = {
        f"test/{kind}": [
            wandb.Image(example.image, caption=caption(example, look), masks=_overlays(example, look))
            for example in examples
        ]
        for kind, examples in pictured.chosen.items()
    }
    # In one step, that of the metrics
    figures = {f"figures/{path.stem}": wandb.Image(str(path)) for path in pictured.figures}
    logger.log_metrics({**images, **figures})  # type: ignore[dict-item]


def _overlays(example: Example, look: Look) -> dict[str, dict[str, Any]]:
    overlays = {"ground_truth": example.mask}
    if example.anomaly_map is not None and look.threshold is not None:
        overlays["prediction"] = (example.anomaly_map >= look.threshold).astype(np.uint8)
    return {name: {"mask_data": mask, "class_labels": CLASS_LABELS} for name, mask in overlays.items()}


def _log_to_tensorboard(logger: TensorBoardLogger, pictured: Pictured) -> None:
    from PIL import Image

    for path in (*pictured.figures, *pictured.pictures):
        with Image.open(path) as picture:
            logger.experiment.add_image(f"figures/{path.stem}", np.asarray(picture.convert("RGB")), dataformats="HWC")
