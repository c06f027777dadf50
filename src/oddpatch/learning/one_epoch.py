"""Learning without gradients: one epoch over good images, then `fit`."""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

from oddpatch.cache.kept import KeptFeatures
from oddpatch.errors import DataError
from oddpatch.learning import distributed
from oddpatch.learning.folds import FoldDetectors
from oddpatch.learning.scoring import AnomalyModule
from oddpatch.models.base import FeatureShape
from oddpatch.ops.gallery import Spool
from oddpatch.resources import check_memory
from oddpatch.types import Batch

log = logging.getLogger(__name__)


class OneEpoch(AnomalyModule):
    """Shows a detector every good image once and fits it in `on_train_end`; arguments as for `AnomalyModule`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Nothing is learned by gradient: there is no optimizer and no loss.
        self.automatic_optimization = False

    def configure_optimizers(self) -> None:
        """None: a frozen backbone and a fitted detector have nothing to optimise."""

    def on_train_start(self) -> None:
        """Refuse a run that will not fit into memory before the backbone runs."""
        data, detector = self.trainer.datamodule, self.model.detector  # type: ignore[attr-defined]
        image_size = self.model.preprocess.image_size
        shapes = self.model.backbone.feature_shapes(image_size)
        if self.trainer.world_size > 1:
            detector.require_mergeable()
        calibration, count = self.model.calibration, len(data.fitted)
        needed, remedy = detector.required_memory(shapes, count)
        if calibration.fits_all and max(self.folds, default=-1) >= 0:
            data.kept = self._keep_features(shapes, count)
            if calibration.method == "leave_one_out" and detector.leaves_out:
                detector.required_memory(shapes, count - 1)  # it may need as many images
                detector.expect_left_out()
            else:
                fold = max(self.folds) + 1
                detector.required_memory(shapes, count - -(-count // fold))
                needed *= fold + 1
                self.fold_detectors = FoldDetectors(detector, self.folds).to(self.device)
                if calibration.method == "leave_one_out":
                    log.warning(
                        "%s cannot leave one image out: each of %d folds is scored by a fit without it",
                        type(detector).__name__,
                        fold,
                    )
        check_memory(needed, self.device, type(detector).__name__, remedy)
        self._epoch_start = time.perf_counter()

    def _keep_features(self, shapes: Sequence[FeatureShape], count: int) -> KeptFeatures:
        """Room for the features of `count` images, to be scored once more after the fit."""
        size = 4 * count * sum(math.prod(shape) for shape in shapes) // self.trainer.world_size
        Spool.require_disk(size, "set calibration=holdout", f"calibration={self.model.calibration.method}")
        return KeptFeatures()

    def training_step(self, batch: Batch, batch_index: int) -> None:
        """Take one batch of good images into the detector."""
        if batch.label.any():
            anomalous = batch.path[int(batch.label.nonzero()[0])]
            raise DataError(f"{anomalous} is among the training images but is not good: move it to test/")
        if len(batch.image):
            features = self.features(batch)
            self.model.detector.update(features, batch.index)
            if self.fold_detectors is not None:
                self.fold_detectors.update(features, batch.index)
            if (kept := self.trainer.datamodule.kept) is not None:  # type: ignore[attr-defined]
                kept.keep(batch.index, features)

    def on_train_end(self) -> None:
        """Fit the detector to what the epoch took in."""
        self.timing["embed"] = time.perf_counter() - self._epoch_start
        self.trainer.datamodule.gather()  # type: ignore[attr-defined]
        self.num_fitted = self.trainer.datamodule.num_fitted()  # type: ignore[attr-defined]
        with self.timed("fit"):
            for detector in (self.model.detector, *(self.fold_detectors.detectors if self.fold_detectors else ())):
                distributed.fit(detector, self.progress)
