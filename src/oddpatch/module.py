"""The LightningModule: one epoch takes in good images, `on_train_end` fits, the test loop scores and measures."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from oddpatch.calibration import FoldDetectors
from oddpatch.errors import DataError
from oddpatch.metrics import ImageMetrics, PixelMetrics, auroc_by_type
from oddpatch.metrics.thresholds import at_threshold, highest_but
from oddpatch.models.base import AnomalyModel, ProgressFn, no_progress
from oddpatch.parallel import ranks
from oddpatch.resources import check_memory
from oddpatch.types import Batch, Prediction

log = logging.getLogger(__name__)


class ScoredImage(NamedTuple):
    """One test image with its truth and its score."""

    path: str
    label: int
    defect_type: str
    score: float


class AnomalyModule(L.LightningModule):
    """Runs an `AnomalyModel` under a Lightning Trainer; nothing here is about one method.

    Args:
        model: preprocessing, backbone and detector.
        fpr_limits: false-positive rates up to which PRO is integrated; the first is the headline `au_pro`.
        config: what the model was built from, as plain containers; it is saved in the checkpoint.
        folds: see `oddpatch.calibration.Calibration.folds`; needed to fit, not to test.
    """

    def __init__(
        self,
        model: AnomalyModel,
        fpr_limits: Sequence[float] = (0.3,),
        config: dict[str, Any] | None = None,
        folds: Sequence[int] = (),
    ) -> None:
        super().__init__()
        # Nothing is learned by gradient: there is no optimizer and no loss.
        self.automatic_optimization = False
        self.model = model
        self.config = config or {}
        self.image_metrics = ImageMetrics()
        self.pixel_metrics = PixelMetrics(fpr_limits=tuple(fpr_limits))
        self.folds = folds
        #: Paths of the images the detector was fitted to, by index, where they are not the datamodule's.
        self.train_images: list[str] | None = None
        self.fold_detectors: FoldDetectors | None = None
        self.progress: ProgressFn = no_progress
        #: Metric values of the last test, and why others could not be computed.
        self.results: dict[str, Any] = {}
        self.absent: dict[str, str] = {}
        self.scored: list[ScoredImage] = []
        #: Seconds spent in each stage.
        self.timing: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to `timing[stage]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timing[stage] = self.timing.get(stage, 0.0) + time.perf_counter() - start

    def configure_optimizers(self) -> None:
        """None: a frozen backbone and a fitted detector have nothing to optimise."""

    # -- features, from the backbone or a cache ---------------------------------------------------------------------

    def features(self, batch: Batch) -> list[Tensor]:
        """Feature maps [(B, C_l, h_l, w_l)] of a batch: what the cache had, or what the backbone gives and it keeps."""
        cache = self.trainer.datamodule.cache  # type: ignore[attr-defined]
        if batch.features is not None:
            cache.found += len(batch.index)
            return batch.features
        features = self.model.backbone(batch.image)
        if cache is not None and batch.entries:
            cache.store(batch.entries, features)
        return features

    def score(self, batch: Batch) -> Prediction:
        """Score a batch."""
        return self.model.detector(self.features(batch), self.model.preprocess.image_size)

    # -- one epoch over good images, then fit ---------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Refuse a run that will not fit into memory before the backbone runs."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        image_size = self.model.preprocess.image_size
        shapes = self.model.backbone.feature_shapes(image_size)
        cross = self.model.calibration.method == "cross" and max(self.folds, default=-1) >= 0
        if self.trainer.world_size > 1:
            self.model.detector.require_mergeable()
        needed, remedy = self.model.detector.required_memory(shapes, len(data.fitted))
        needed *= 2 + max(self.folds) if cross else 1
        check_memory(needed, self.device, type(self.model.detector).__name__, remedy)
        if cross:
            self.fold_detectors = FoldDetectors(self.model.detector, self.folds).to(self.device)
        self._epoch_start = time.perf_counter()

    def training_step(self, batch: Batch, batch_index: int) -> None:
        """Take one batch of good images into the detector."""
        if batch.label.any():
            odd = batch.path[int(batch.label.nonzero()[0])]
            raise DataError(f"{odd} is among the training images but is not good: move it to test/")
        if len(batch.image):
            features = self.features(batch)
            self.model.detector.update(features, batch.index)
            if self.fold_detectors is not None:
                self.fold_detectors.update(features, batch.index)

    def on_train_end(self) -> None:
        """Fit the detector to what the epoch took in."""
        self.timing["embed"] = time.perf_counter() - self._epoch_start
        self.trainer.datamodule.gather()  # type: ignore[attr-defined]
        with self.timed("fit"):
            for detector in (self.model.detector, *(self.fold_detectors.detectors if self.fold_detectors else ())):
                ranks.fit(detector, self.progress)

    # -- thresholds ---------------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Begin anew."""
        self._epoch_start = time.perf_counter()
        # Scores of the good images held out, the highest pixels of their maps, and scores of labelled validation.
        self.good_scores, self.good_pixels, self.validation = ImageMetrics(), ImageMetrics(), ImageMetrics()

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        """Score good images that were held out of the fit, or labelled ones to set a threshold on."""
        if not len(batch.image):
            return
        part = self.trainer.datamodule.validation_parts[dataloader_idx]  # type: ignore[attr-defined]
        if part == "validation":
            self.validation.update(self.score(batch).score, batch.label, batch.index)
            return
        if self.fold_detectors is None:
            prediction = self.score(batch)
        else:
            features = self.features(batch)
            prediction = self.fold_detectors(features, batch.index, self.model.preprocess.image_size)
        self.good_scores.update(prediction.score, batch.label, batch.index)
        if prediction.anomaly_map is not None:
            highest = highest_but(prediction.anomaly_map[:, 0].float().cpu().numpy(), self.model.calibration.min_area)
            self.good_pixels.update(torch.from_numpy(highest), batch.label, batch.index)

    def on_validation_epoch_end(self) -> None:
        """Set the thresholds."""
        parts, calibration = self.trainer.datamodule.validation_parts, self.model.calibration  # type: ignore[attr-defined]
        self.fold_detectors = None
        self.trainer.datamodule.gather()  # type: ignore[attr-defined]
        if "calibration" in parts:
            for metric in (
                (self.good_scores, self.good_pixels) if self.model.detector.localizes else (self.good_scores,)
            ):
                metric.compute()  # brings the rows of all devices together
            calibration.calibrate(self.good_scores.rows[0], self.good_pixels.rows[0])
        if "validation" in parts:
            best = self.validation.compute()
            if "image_f1_max_threshold" in best:
                calibration.f1_threshold.fill_(best["image_f1_max_threshold"])
            else:
                log.warning("no F1-max threshold was set: %s", self.validation.reasons["image_f1_max_threshold"])
        if self.trainer.is_global_zero:
            calibration.report()
        self.timing["calibrate"] = time.perf_counter() - self._epoch_start

    # -- scoring and measuring --------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Note why nothing will be measured where there is nothing to test on: Lightning then runs no test hook."""
        if stage == "test" and not self.trainer.datamodule.test_samples:  # type: ignore[attr-defined]
            names = (*self.image_metrics.names, *self.pixel_metrics.names)
            self.absent = dict.fromkeys(names, "the dataset has no test images")

    def on_test_start(self) -> None:
        """Forget the results of an earlier test."""
        self.results, self.absent, self.scored = {}, {}, []
        self._epoch_start = time.perf_counter()

    def test_step(self, batch: Batch, batch_index: int) -> Prediction | None:  # type: ignore[override]
        """Score one batch and keep what the metrics need; None if all of its files were skipped."""
        if not len(batch.image):
            return None
        prediction = self.score(batch)
        self.image_metrics.update(prediction.score, batch.label, batch.index)
        if prediction.anomaly_map is not None:
            self.pixel_metrics.update(prediction.anomaly_map, batch.mask, batch.index)
        return prediction

    def on_test_epoch_end(self) -> None:
        """Compute every metric that these images allow, and log them."""
        self.timing["test"] = time.perf_counter() - self._epoch_start
        self.trainer.datamodule.gather()  # type: ignore[attr-defined]
        with self.timed("metrics"):
            localizes = self.model.detector.localizes
            for metric in (self.image_metrics, self.pixel_metrics) if localizes else (self.image_metrics,):
                self.results.update(metric.compute())
                self.absent.update(metric.reasons)
                metric.reset()
            if not localizes:
                method = type(self.model.detector).__name__
                self.absent.update(dict.fromkeys(self.pixel_metrics.names, f"{method} scores whole images only"))
            samples = self.trainer.datamodule.test_samples  # type: ignore[attr-defined]
            scores, _, indices = self.image_metrics.rows
            self.scored = [
                ScoredImage(str(samples[i].path), samples[i].label, samples[i].defect_type, score)
                for i, score in zip(indices.tolist(), scores.tolist(), strict=True)
            ]
            by_type, _ = auroc_by_type(scores, [image.defect_type for image in self.scored])
            labels = [image.label for image in self.scored]
            for source, threshold in self.model.calibration.thresholds().items():
                found = at_threshold(scores, labels, threshold)
                self.results.update({f"image_{name}@{source}": value for name, value in found.items()})
        self.log_dict(self.results, rank_zero_only=True)
        self.results["image_auroc_by_defect_type"] = by_type

    def predict_step(self, batch: Batch, batch_index: int) -> Prediction:
        """Score one batch."""
        return self.model(batch.image)

    # -- what a checkpoint holds beside the state dict ----------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to build the same model again: its config and preprocessing, and the versions."""
        from oddpatch.checkpoint import describe

        checkpoint["oddpatch"] = describe(self)
