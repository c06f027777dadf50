"""Learning without gradients: one epoch over good images, then `fit`."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from oddpatch.data.datamodule import MVTecDataModule
from oddpatch.errors import ConfigError, DataError
from oddpatch.learning import distributed
from oddpatch.learning.folds import FoldDetectors
from oddpatch.learning.kept import KeptFeatures, KeptImages
from oddpatch.learning.scoring import AnomalyModule
from oddpatch.models.anomaly_model import AnomalyModel
from oddpatch.models.base import FeatureShape
from oddpatch.models.calibration import FEWEST
from oddpatch.models.trainable import TrainableDetector
from oddpatch.ops.gallery import Spool
from oddpatch.ops.ranks import Ranks
from oddpatch.resources import check_memory
from oddpatch.types import Batch, Prediction
from oddpatch.wording import counted

log = logging.getLogger(__name__)


class OneEpoch(AnomalyModule):
    """Shows a detector every good image once and fits it in `on_train_end`; arguments as for `AnomalyModule`.

    Examples:
        >>> from lightning import Trainer
        >>> from oddpatch.backbones.timm import TimmBackbone
        >>> from oddpatch.data.datamodule import MVTecDataModule
        >>> from oddpatch.learning.one_epoch import OneEpoch
        >>> from oddpatch.metrics import ImageMetrics
        >>> from oddpatch.models.anomaly_model import AnomalyModel
        >>> from oddpatch.models.padim import PaDiM
        >>> data = MVTecDataModule("data", "tile", mean=[0.5] * 3, std=[0.2] * 3, resize=48, num_workers=0)
        >>> backbone = TimmBackbone("resnet18", layers=[1], weights="random")
        >>> detector = PaDiM(backbone.info.channels, backbone.info.strides, num_features=20)
        >>> model = AnomalyModel(data.preprocess, backbone, detector)
        >>> module = OneEpoch(model, {"image": ImageMetrics()})
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = Trainer(max_epochs=1, enable_checkpointing=False, **quiet)
        >>> trainer.fit(module, data)
        >>> trainer.test(module, data, verbose=False)[0]["image_auroc"] > 0.5
        True
    """

    training_status = "accumulating good images"
    tells_products = True

    def __init__(
        self, model: AnomalyModel, metrics: Mapping[str, Metric], config: dict[str, Any] | None = None
    ) -> None:
        super().__init__(model, metrics, config)
        if isinstance(model.detector, TrainableDetector):
            raise ConfigError(f"{type(model.detector).__name__} learns by gradients: set learning=supervised")
        # Nothing is learned by gradient: there is no optimizer and no loss.
        self.automatic_optimization = False
        #: See `oddpatch.models.calibration.Calibration.folds`.
        self.folds: Sequence[int] = ()
        self.fold_detectors: FoldDetectors | None = None
        #: Features of the images fitted to, for those of them that are scored afterwards.
        self.kept: KeptFeatures | None = None
        self._too_few = False
        #: By batch: indices, and whether the features of each image are finite. On its device, which waits for nothing.
        self._finite: list[tuple[Tensor, Tensor]] = []

    def divide(self, data: MVTecDataModule) -> None:
        """Settle which good images are fitted to, and which are scored afterwards for the threshold."""
        calibration = self.model.calibration
        self.folds = calibration.folds(len(data.train_samples))
        data.hold_out(self.folds, fit_too=calibration.fits_all)

    def configure_optimizers(self) -> None:
        """None: a frozen backbone and a fitted detector have nothing to optimise."""

    def on_train_start(self) -> None:
        """Refuse a run that will not fit into memory before the backbone runs."""
        data, detector = self.data, self.model.detector
        shapes = self.model.feature_shapes()
        if self.trainer.world_size > 1:
            detector.require_mergeable()
        calibration, count, views = self.model.calibration, len(data.fitted), data.num_views
        if views > 1:
            detector.require_views()
        needed, remedy = detector.required_memory(shapes, count * views)
        if (products := self.model.products) is not None:
            products.labels = [products.names.index(sample.category) for sample in data.train_samples]
        if calibration.fits_all and max(self.folds, default=-1) >= 0:
            self.kept = self._keep_features(shapes, count)
            leaves_out = detector.leaves_out if views == 1 else detector.leaves_out_all_views
            if calibration.method == "leave_one_out" and leaves_out:
                detector.required_memory(shapes, (count - 1) * views)  # it may need as many images
                detector.expect_left_out(count * views)
            else:
                fold = max(self.folds) + 1
                detector.required_memory(shapes, (count - -(-count // fold)) * views)
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

    @torch.no_grad()  # which Lightning does for tests only; a backbone is faster so
    def training_step(self, batch: Batch, batch_index: int) -> None:
        """Take one batch of good images into the detector."""
        if len(batch.image):
            features = self.features(batch)
            sums = torch.stack([maps.sum((1, 2, 3)) for maps in features])  # (L, B)
            self._finite.append((batch.index, sums.isfinite().all(0)))
            self.model.detector.update(features, batch.index)
            if self.model.products is not None:
                self.model.products.update(features, batch.index)
            if self.fold_detectors is not None:
                self.fold_detectors.update(features, batch.index)
            if self.kept is not None:
                # Of several views the image as it is, which comes first.
                first = torch.cat([batch.index.new_ones(1), batch.index.diff()]) != 0
                self.kept.keep(batch.index[first], features if first.all() else [m[first] for m in features])

    def on_train_end(self) -> None:
        """Fit the detector to what the epoch accumulated."""
        self.timing["embed"] = time.perf_counter() - self._epoch_start
        self.data.gather()
        self.num_fitted = self.data.num_fitted()
        self._require_finite()
        with self.timed("fit"):
            folds = self.fold_detectors.detectors if self.fold_detectors else ()
            products = [] if self.model.products is None else [self.model.products]
            for detector in (self.model.detector, *products, *folds):
                distributed.fit(detector, self.progress)
        if (kept := self.kept) is not None:
            self.data.wrap["calibration"] = lambda dataset: KeptImages(dataset, kept)
            # Files that were skipped may leave too few.
            self._too_few = sum(Ranks().exchange(len(kept))) < FEWEST

    def _require_finite(self) -> None:
        """Refuse features that are no numbers before a method makes something of them."""
        own = sorted({number for index, finite in self._finite for number in index[~finite].tolist()})
        self._finite = []
        if found := sorted(number for of_rank in Ranks().exchange(own) for number in of_rank):
            others = f" and those of {counted(len(found) - 1, 'more image')}" if found[1:] else ""
            raise DataError(
                f"{self.train_paths[found[0]]}: its features{others} are NaN, infinite or too large: check the weights "
                "of the backbone, or set backbone.precision=fp32"
            )

    def features_left_out(self, batch: Batch) -> list[Tensor] | None:
        """Features of good images, kept since the epoch of those that were fitted to; None if they are too few."""
        if self.kept is None:
            return self.features(batch)
        return None if self._too_few else self.kept.load(batch.index)

    def score_left_out(self, features: list[Tensor], batch: Batch) -> Prediction:
        """Score good images, those that were fitted to as if they had not been."""
        if self.kept is None:
            return self.score(features)
        score = self.model.detector.score_left_out if self.fold_detectors is None else self.fold_detectors
        return score(features, batch.index, self.model.preprocess.image_size)

    def on_validation_epoch_end(self) -> None:
        """Set the thresholds, which nothing is kept for from then on."""
        self.fold_detectors = None
        if self.kept is not None:
            self.kept.close()
            self.kept = None
            del self.data.wrap["calibration"]
        super().on_validation_epoch_end()
