"""Learning by gradients, from good and defective images."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from oddpatch.backbones.engine import Runtime
from oddpatch.checkpoint import read_checkpoint
from oddpatch.data.datamodule import MVTecDataModule
from oddpatch.errors import CheckpointError, ConfigError
from oddpatch.learning import distributed
from oddpatch.learning.augmenting import AugmentedImages, Shuffle, ShuffledBatches, derive
from oddpatch.learning.scoring import AnomalyModule
from oddpatch.metrics import ImageMetrics
from oddpatch.models.anomaly_model import AnomalyModel
from oddpatch.models.trainable import Criterion, TrainableDetector
from oddpatch.ops.ranks import Ranks
from oddpatch.types import Batch, Prediction

log = logging.getLogger(__name__)

#: What training stops by, and which epoch is the best.
WATCHED = "val_loss"
#: Of a checkpoint's description, what must be the same for training to go on from it.
SAME = ("config", "train_images", "version", "git_commit")


class Supervised(AnomalyModule):
    """Optimises the parameters of a `TrainableDetector`.

    The images of both folders of the category are split by defect type into those to train on, to validate on and to
    test on, unless `data.split` names a manifest that does; the split is written beside the run's results. Order and
    augmentation of the images come from the seed, so that a run which was killed goes on as if it had not been, and
    several devices compute the gradients of one with batches as many times as large.

    Args:
        model: see `AnomalyModule`.
        loss: compares what the detector gives with labels or masks.
        optimizer: made from the parameters that learn.
        scheduler: made from the optimizer, with one step an epoch; None keeps the learning rate.
        augment: transforms of `torchvision.transforms.v2` for the training images.
        patience: epochs without a lower validation loss after which training stops.
        stop_accuracy: share of the training images called right at which training stops instead, judged by the
            detector's `decides_at` as the images are trained on. The last epoch is then kept, and no image is needed to
            validate on; None for the validation loss.
        train_share: of each defect type, the share to train on.
        validation_share: of each defect type, the share to choose the best epoch on.
        seed: of split, order and augmentation.
        metrics: see `AnomalyModule`.
        config: see `AnomalyModule`.

    Raises:
        ConfigError: a setting cannot work, or the method does not learn by gradients.

    Examples:
        >>> from oddpatch import AnomalyDetector
        >>> settings = {"model": "cam", "trainer.max_epochs": 2, "data.resize": 64}  # model=cam learns by gradients
        >>> "balanced_accuracy" in AnomalyDetector.fit("data/tile", **settings).result.metrics
        True
    """

    learns_from_defects = True

    train_accuracy: Tensor  # () float64, of the last epoch

    def __init__(
        self,
        model: AnomalyModel,
        metrics: Mapping[str, Metric],
        loss: Criterion,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        augment: Sequence[Callable[..., Any]] = (),
        patience: int = 10,
        stop_accuracy: float | None = None,
        train_share: float = 0.6,
        validation_share: float = 0.2,
        seed: int = 0,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(model, metrics, config)
        if not isinstance(model.detector, TrainableDetector):
            raise ConfigError(
                f"{type(model.detector).__name__} has nothing that learns by gradients: set learning=one_epoch"
            )
        if patience < 1:
            raise ConfigError(f"learning.patience={patience} must be at least 1")
        if stop_accuracy is not None and not 0 < stop_accuracy <= 1:
            raise ConfigError(f"learning.stop_accuracy={stop_accuracy} is a share: choose above 0 and at most 1")
        if stop_accuracy is not None and model.detector.decides_at is None:
            raise ConfigError(
                f"learning.stop_accuracy={stop_accuracy}: the scores of {type(model.detector).__name__} do not say "
                "what it calls anomalous: set learning.stop_accuracy=null"
            )
        if model.calibration.fits_all:
            raise ConfigError(
                f"calibration={model.calibration.method} scores each image by a fit without it, which would take as "
                "many trainings: set calibration=holdout"
            )
        if model.detector.accumulators and augment:
            raise ConfigError(
                f"{type(model.detector).__name__} compares each place with good images, which learning.augment would "
                "move or colour: set learning.augment=[]"
            )
        self.criterion, self.optimizer, self.scheduler, self.augment = loss, optimizer, scheduler, augment
        self.patience, self.stop_accuracy, self.seed = patience, stop_accuracy, seed
        self.shares = (train_share, validation_share)
        model.detector.adapt_backbone(model.backbone)
        backbone_learns = any(parameter.requires_grad for parameter in model.backbone.parameters())
        if backbone_learns and replace(model.backbone.runtime, fold=True) != Runtime():
            raise ConfigError(
                "the backbone learns too, which takes it as it is: set backbone.engine=torch, backbone.precision=fp32 "
                "and backbone.compile=false"
            )
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError(f"{type(model.detector).__name__} has no parameter to learn: set learning=one_epoch")
        #: Loss so far in this epoch on this device, times images, images called right, and images.
        self._seen = (0.0, 0, 0)
        #: Share of the training images called right in the last epoch; kept, so that what has stopped stays so.
        self.register_buffer("train_accuracy", torch.zeros((), dtype=torch.float64))

    @property
    def detector(self) -> TrainableDetector:
        """What learns."""
        return cast(TrainableDetector, self.model.detector)

    # -- before training ----------------------------------------------------------------------------------------------

    def divide(self, data: MVTecDataModule) -> None:
        """Leave good training images out for the threshold, and have the others shuffled and altered."""
        if not data.validation_samples and self.stop_accuracy is None:
            raise ConfigError(
                f"{data.split} names no image of a part validation, on which training stops: name some, or set "
                "data.validation=0.2, which takes that share of the test images"
            )
        good = [position for position, sample in enumerate(data.train_samples) if not sample.label]
        if len(good) == len(data.train_samples):
            raise ConfigError(f"there is no defective image to train on in {data.base}: add some")
        calibration = self.model.calibration
        needed = 2 * calibration.num_held_out(len(good))
        folds = [-1] * len(data.train_samples)
        if calibration.method == "none":
            calibration.absent = "it was trained with calibration=none: train again with calibration=holdout"
        elif len(good) < needed:
            calibration.refuse(
                f"{len(good)} good training images are too few for calibration=holdout, which takes at least {needed}: "
                "add good images, or use the threshold of the validation images"
            )
        else:
            for position, fold in zip(good, calibration.folds(len(good)), strict=True):
                folds[position] = fold
        data.hold_out(folds, fit_too=False)
        shuffle = Shuffle(data.fitted, self.seed)
        data.train_batches = lambda _, batch_size: ShuffledBatches(shuffle, batch_size)
        if self.augment:
            data.wrap["train"] = lambda dataset: AugmentedImages(dataset, self.augment, shuffle)

    def trainer_callbacks(self, folder: Path) -> list[Callback]:
        """Early stopping, and the checkpoints of the best and of the last epoch, where the best is not the last."""
        last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        if self.stop_accuracy is not None:
            return [last]
        self.best = ModelCheckpoint(folder, "best", monitor=WATCHED, enable_version_counter=False)
        self.stop = EarlyStopping(WATCHED, patience=self.patience, check_on_train_epoch_end=False)
        return [self.stop, self.best, last]

    def resumable(self, folder: Path, data: MVTecDataModule) -> Path | None:
        """The checkpoint of the last epoch in `folder`, if it is of this training; else what differs is logged."""
        path = folder / "last.ckpt"
        if not path.is_file():
            return None
        try:
            content = read_checkpoint(path)
        except CheckpointError as error:
            log.warning("%s: training begins from the start", error)
            return None
        before, now = content["oddpatch"], self.checkpoint_facts(data)
        differing = [name for name in SAME if before[name] != now[name]]
        # Of a folder that was moved, the best epoch would be forgotten.
        if any(state.get("dirpath", str(folder)) != str(folder) for state in content["callbacks"].values()):
            differing.append("folder")
        if differing:
            log.warning("%s is of another training (another %s): training begins from the start", path, differing[0])
            return None
        log.info("training goes on from %s", path)
        return path

    # -- training -----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Optimizer and scheduler of the config, over what learns."""
        optimizer = self.optimizer([p for p in self.model.parameters() if p.requires_grad])
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ConfigError(
                "learning.scheduler=ReduceLROnPlateau cannot be resumed: choose one that follows the epochs, such as "
                "torch.optim.lr_scheduler.CosineAnnealingLR"
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def train(self, mode: bool = True) -> "Supervised":
        """Training mode, in which the method has the last word on the backbone."""
        super().train(mode)
        if mode:
            self.detector.adapt_backbone(self.model.backbone)
        return self

    def on_fit_start(self) -> None:
        """Look at the clock."""
        self._start = time.perf_counter()

    def on_train_start(self) -> None:
        """From here on it can score; training that had stopped early has stopped."""
        if self.detector.accumulators and not self.detector.is_fitted:
            self._show_good_images()
        else:
            self.detector.fit()
        self.trainer.should_stop = self._reached if self.stop_accuracy else self.stop.wait_count >= self.patience

    @torch.no_grad()
    def _show_good_images(self) -> None:
        """Fit the detector to the good training images, before it learns from defective ones too."""
        for batch in self.data.good_dataloader():
            batch = self.trainer.strategy.batch_to_device(batch, self.device)
            if len(batch.label):
                self.detector.update(self.features(batch), batch.index)
        distributed.fit(self.detector, self.progress)

    @property
    def _reached(self) -> bool:
        return self.stop_accuracy is not None and float(self.train_accuracy) >= self.stop_accuracy

    def on_train_epoch_start(self) -> None:
        """Begin to count."""
        self._seen = (0.0, 0, 0)

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Have what is drawn in a step, such as dropout, depend on the seed and the step only."""
        torch.manual_seed(derive(self.seed, self.global_step, Ranks().rank))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The loss of this device's images, weighted so that the mean over devices is that over all images."""
        count, ranks = len(batch.label), Ranks()
        total = sum(ranks.exchange(count))
        if not count:  # every file of the batch was skipped
            return torch.stack([p.sum() for p in self.model.parameters() if p.requires_grad]).sum() * 0
        features = self.features(batch)
        loss = self.detector.loss(features, batch, self.criterion)
        if not loss.isfinite():
            raise ConfigError(
                f"the loss is {float(loss)} in epoch {self.current_epoch + 1}: lower learning.optimizer.lr"
            )
        self._seen = (
            self._seen[0] + float(loss.detach()) * count,
            self._seen[1] + self._num_right(features, batch),
            self._seen[2] + count,
        )
        return loss * (count * ranks.size / total)

    @torch.no_grad()
    def _num_right(self, features: list[Tensor], batch: Batch) -> int:
        """Images that the detector calls right; 0 where nobody asks."""
        decides_at = self.detector.decides_at
        if self.stop_accuracy is None or decides_at is None:
            return 0
        score = self.detector.image_score(features, self.model.preprocess.image_size)
        return int(((score > decides_at) == batch.label.bool()).sum())

    @property
    def training_status(self) -> str:  # type: ignore[override]
        """Epoch and mean loss so far."""
        return f"epoch {self.current_epoch + 1}, loss {self._seen[0] / max(self._seen[2], 1):.3g}"

    def on_validation_start(self) -> None:
        """Begin a validation: of an epoch, or of the finished model for its thresholds."""
        if self.trainer.state.fn == "fit":
            self._validated = (0.0, 0)
            self._epoch_scores = ImageMetrics()
        else:
            super().on_validation_start()

    def validation_step(  # type: ignore[override]
        self, batch: Batch, batch_index: int, dataloader_idx: int = 0
    ) -> Prediction | None:
        """In training, the loss of labelled images; afterwards, their scores for the thresholds."""
        if self.trainer.state.fn != "fit":
            return super().validation_step(batch, batch_index, dataloader_idx)
        if not len(batch.label):
            return None
        features, count = self.features(batch), len(batch.label)
        loss = float(self.detector.loss(features, batch, self.criterion))
        self._validated = (self._validated[0] + loss * count, self._validated[1] + count)
        score = self.detector.image_score(features, self.model.preprocess.image_size)
        self._epoch_scores.update(score, batch.label, batch.index)
        return Prediction(score, None)

    def on_validation_epoch_end(self) -> None:
        """In training, log what the epoch has come to; afterwards, set the thresholds."""
        if self.trainer.state.fn != "fit":
            super().on_validation_epoch_end()
            return
        found = {"train_loss": _means(self._seen)[0], WATCHED: _means(self._validated)[0]}
        auroc = self._epoch_scores.compute().get("image_auroc")
        if auroc is not None:
            found["val_image_auroc"] = auroc
        self._report(found)

    def _report(self, found: dict[str, float]) -> None:
        self.log_dict(found, sync_dist=True)  # the same on all devices
        if self.trainer.is_global_zero:
            told = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in found.items())
            log.info("epoch %d: %s", self.current_epoch + 1, told)

    def on_train_epoch_end(self) -> None:
        """Note what was trained on, and stop if enough of it is called right."""
        self.data.gather()
        self.num_fitted = self.data.num_fitted()
        if self.stop_accuracy is None:
            return
        loss, accuracy = _means(self._seen)
        self._report({"train_accuracy": accuracy} | ({} if self.data.validation_samples else {"train_loss": loss}))
        self.train_accuracy.fill_(accuracy)
        self.trainer.should_stop |= self._reached

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Know it too where no epoch is left to train."""
        self.num_fitted = checkpoint["oddpatch"]["num_fitted"]

    def on_fit_end(self) -> None:
        """Go back to the best epoch, if it is not the last."""
        if self.stop_accuracy is None:
            best = Path(str(self.best.dirpath)) / "best.ckpt"
            self.load_state_dict(read_checkpoint(best)["state_dict"])
        self.timing["fit"] = time.perf_counter() - self._start


def _means(seen: Sequence[float]) -> list[float]:
    """Sums over the images of all devices, each divided by their number, which comes last."""
    *sums, count = (sum(values) for values in zip(*Ranks().exchange(seen), strict=True))
    return [one / max(count, 1) for one in sums]
