"""The files a test leaves: metrics.json and predictions.csv."""

import csv
import json
from pathlib import Path
from typing import Any

import lightning as L

from oddpatch.checkpoint import git_commit, library_versions
from oddpatch.files import replacing
from oddpatch.resources import peak_memory


class Results(L.Callback):
    """Writes what was measured and every image's score.

    Args:
        folder: where `metrics.json` and `predictions.csv` go.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

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
        calibration = module.model.calibration
        metrics = {
            "run": module.config.get("run"),
            **module.results,
            "thresholds": calibration.describe(),
            "absent": module.absent,
            "num_train_images": len(trainer.datamodule.fitted),  # type: ignore[attr-defined]
            "num_test_images": len(module.scored),
            "skipped": trainer.datamodule.skipped(),  # type: ignore[attr-defined]
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
        with replacing(self.folder / "predictions.csv") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "defect_type", "score", "p_value", "odd"])
            scores = [image.score for image in module.scored]
            verdicts: list[tuple[Any, Any]] = [("", "")] * len(scores)
            if calibration.calibrated:
                p_values, threshold = calibration.p_values(scores).tolist(), calibration.image.value
                verdicts = [(repr(p), int(score > threshold)) for p, score in zip(p_values, scores, strict=True)]
            writer.writerows(
                (image.path, image.label, image.defect_type, repr(image.score), *verdict)
                for image, verdict in zip(module.scored, verdicts, strict=True)
            )
