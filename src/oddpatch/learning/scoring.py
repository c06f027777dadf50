"""What every kind of learning shares: scoring images, setting thresholds on good ones, measuring on test images."""

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

from oddpatch.checkpoint import relative_name, written_by
from oddpatch.data.datamodule import MVTecDataModule
from oddpatch.data.layout import Sample
from oddpatch.learning.examples import KeptExamples
from oddpatch.learning.outcome import make_result, of_category, rates
from oddpatch.metrics import ImageMetrics, PixelMetrics
from oddpatch.metrics.classes import Matches
from oddpatch.metrics.configured import AtTest, Metrics
from oddpatch.metrics.thresholds import max_excluding
from oddpatch.models.anomaly_model import AnomalyModel
from oddpatch.models.base import ProgressFn, no_progress
from oddpatch.models.calibration import FEWEST
from oddpatch.results.test_result import ScoredImage, TestResult, Wanted
from oddpatch.types import Batch, Prediction
from oddpatch.wording import counted

log = logging.getLogger(__name__)


def _rows(batch: Batch, rows: list[int]) -> Batch:
    """Some of the images of a batch."""
    paths = [batch.path[row] for row in rows]
    return Batch(batch.image[rows], batch.mask[rows], batch.label[rows], batch.index[rows], paths)


def pixels_unknown(samples: Sequence[Sample]) -> str:
    """Why nothing can be measured on the pixels of test images; empty if there are masks of defects."""
    if any(sample.mask_path for sample in samples):
        return ""
    defective = sum(sample.label for sample in samples)
    if not defective:
        return f"no defective image among {counted(len(samples), 'test image')}"
    return f"{counted(defective, 'defective image')} without a mask"


class RunningTrainer(Protocol):
    """What a Trainer at work has that Lightning does not declare."""

    datamodule: MVTecDataModule
    callbacks: list[L.Callback]


class AnomalyModule(L.LightningModule):
    """Scores images with an `AnomalyModel` under a Lightning Trainer; nothing here is about one method.

    How the model learns is in the classes derived from this one.

    Args:
        model: preprocessing, backbone and detector.
        metrics: what a test measures, by name, see `oddpatch.metrics.configured`.
        config: what the model was built from, as plain containers; it is saved in the checkpoint.
    """

    def __init__(
        self,
        model: AnomalyModel,
        metrics: Mapping[str, Metric],
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config or {}
        self.metrics = Metrics(metrics)
        #: Gives the feature maps [(B, C_l, h_l, w_l)] of a batch.
        self.compute_features: Callable[[Batch], list[Tensor]] = self._run_backbone
        #: Images so far whose features were known without their pixels: what they took is no measure of speed.
        self.num_without_pixels = 0
        #: Paths of the images the detector was fitted to, by index, where they are not the datamodule's.
        self.train_images: list[str] | None = None
        #: How many images the detector was fitted to.
        self.num_fitted = 0
        self.progress: ProgressFn = no_progress
        #: What tests keep and compute beside their metrics.
        self.wanted = Wanted()
        self._result: TestResult | None = None
        self.kept_good, self.kept_examples = KeptExamples(0, 0), KeptExamples(0, 0)
        self._by_category: dict[str, tuple[str, Metrics]] = {}
        #: Seconds spent in each stage.
        self.timing: dict[str, float] = {}

    # -- how it learns, which the classes derived from this one say -------------------------------------------------

    #: Whether defective images are trained on, too.
    learns_from_defects: ClassVar[bool] = False
    #: Whether an image that belongs to none of several products is told, see `oddpatch.models.products`.
    tells_products: ClassVar[bool] = False
    #: What the training is doing now, for whoever shows its progress.
    training_status: str = ""

    def divide(self, data: MVTecDataModule) -> None:
        """Settle which images are trained on, and which are scored afterwards for the threshold."""

    def trainer_callbacks(self, folder: Path) -> list[L.Callback]:
        """What the Trainer needs for it; checkpoints go into `folder`."""
        return []

    def resumable(self, folder: Path, data: MVTecDataModule) -> Path | None:
        """A checkpoint in `folder` that training can go on from."""
        return None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to `timing[stage]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timing[stage] = self.timing.get(stage, 0.0) + time.perf_counter() - start

    @property
    def data(self) -> MVTecDataModule:
        """The images of the run that goes on."""
        return cast(RunningTrainer, self.trainer).datamodule

    # -- features and scores ----------------------------------------------------------------------------------------

    def features(self, batch: Batch) -> list[Tensor]:
        """Feature maps [(B, C_l, h_l, w_l)] of a batch."""
        if not batch.image.numel():
            self.num_without_pixels += len(batch.index)
        return self.compute_features(batch)

    def _run_backbone(self, batch: Batch) -> list[Tensor]:
        return self.model.features(batch.image)

    def score(self, features: list[Tensor], with_maps: bool = True) -> Prediction:
        """Score features; anomaly maps can take far longer than scores, and are left out where nobody needs them."""
        image_size = self.model.preprocess.image_size
        if with_maps:
            return self.model.detector(features, image_size)
        return Prediction(self.model.detector.image_score(features, image_size), None)

    # -- thresholds ---------------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Reset the scores of an earlier validation."""
        self._epoch_start = time.perf_counter()
        # Scores of the good images left out, the highest pixels of their maps, and scores of labelled validation.
        self.good_scores, self.good_pixels, self.validation = ImageMetrics(), ImageMetrics(), ImageMetrics()
        self.matches = Matches()
        self.kept_good = KeptExamples(2 * self.wanted.examples[0] if self.wanted.examples else 0, 0)

    def validation_step(  # type: ignore[override]
        self, batch: Batch, batch_index: int, dataloader_idx: int = 0
    ) -> Prediction | None:
        """Score good images that were left out of the fit, or labelled ones to set a threshold on."""
        if not len(batch.image):
            return None
        part = self.data.validation_parts[dataloader_idx]
        if part == "validation":
            scored = self.score(self.features(batch), with_maps=False)
            self.validation.update(scored.score, batch.label, batch.index)
            return scored
        if (features := self.features_left_out(batch)) is None:
            return None
        prediction = self.score_left_out(features, batch)
        if self.model.products is not None:
            self.matches.update(*self.model.products.match(features, batch.index), batch.index)
        self.good_scores.update(prediction.score, batch.label, batch.index)
        if prediction.anomaly_map is not None:
            highest = max_excluding(prediction.anomaly_map[:, 0].float().cpu().numpy(), self.model.calibration.min_area)
            self.good_pixels.update(torch.from_numpy(highest), batch.label, batch.index)
        if self.wanted.examples:
            with self.timed("figures"):
                self.kept_good.keep(prediction, batch, self.data.train_samples, self.model.preprocess)
        return prediction

    def features_left_out(self, batch: Batch) -> list[Tensor] | None:
        """Features of good images that a threshold is set on; None if they are too few for one."""
        return self.features(batch)

    def score_left_out(self, features: list[Tensor], batch: Batch) -> Prediction:
        """Score them as new ones."""
        return self.score(features)

    def on_validation_epoch_end(self) -> None:
        """Set the thresholds."""
        data, calibration = self.data, self.model.calibration
        parts = data.validation_parts
        data.gather()
        if "calibration" in parts:
            self._calibrate()
        if "validation" in parts:
            best = self.validation.compute()
            if "image_f1_max_threshold" in best:
                calibration.f1_threshold.fill_(best["image_f1_max_threshold"])
            else:
                log.warning("no F1-max threshold was set: %s", self.validation.reasons["image_f1_max_threshold"])
        if self.trainer.is_global_zero:
            calibration.report(self.train_paths)
            self._report_products()
        self.timing["calibrate"] = time.perf_counter() - self._epoch_start

    def _calibrate(self) -> None:
        for metric in (self.good_scores, self.good_pixels) if self.model.detector.localizes else (self.good_scores,):
            metric.compute()  # brings the rows of all devices together
        scores, _, index = self.good_scores.rows
        if not len(scores):
            self.model.calibration.refuse(
                f"fewer than {FEWEST} good images could be used: add good images and train again"
            )
            return
        statistics = self.data.train_statistics(index)
        self.model.calibration.calibrate(scores, self.good_pixels.rows[0], index, statistics)
        if self.model.products is not None:
            self.matches.compute()
            self.model.products.calibrate(self.matches.rows[0])

    def _report_products(self) -> None:
        """Log what the test for an image of no product promises, and what both tests do together."""
        scores = self.model.good_scores
        if (found := scores.product_at(scores.target_fpr)) is not None:
            log.info(
                "an image whose distance from the nearest product is more than %.4g of that from the next belongs to "
                "none, and is anomalous: good images are at a rate of at most about %.3g on average, %.3g with 95 %% "
                "confidence; false alarms of score and product together are at most the sum",
                found.value,
                found.fpr,
                found.fpr_bound(),
            )

    @property
    def train_paths(self) -> list[str]:
        """Paths of the training images, by index."""
        if self.train_images is not None:
            return self.train_images
        return [str(sample.path) for sample in self.data.train_samples]

    @property
    def threshold_set_by(self) -> list[str]:
        """Paths of the good images whose score is the image threshold."""
        set_by = self.model.calibration.set_by
        return [self.train_paths[i] for i in set_by] if set_by else []

    @property
    def is_tested(self) -> bool:
        """Whether a test has ended, so that there is a result."""
        return self._result is not None

    @property
    def result(self) -> TestResult:
        """What the last test found.

        Raises:
            RuntimeError: none has ended.
        """
        if self._result is None:
            raise RuntimeError("no test has ended")
        return self._result

    # -- scoring and measuring --------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Where there is nothing to test on, Lightning runs no test hook: what is known then is known now."""
        if stage == "test" and not self.data.test_samples:
            self._result = make_result(self, {}, self.metrics.absent("the dataset has no test images"), [], {})

    def on_test_start(self) -> None:
        """Forget an earlier test, and see who will need maps."""
        self._result = None
        wanted, self._pixels_unknown = self.wanted, pixels_unknown(self.data.test_samples)
        if not self.model.detector.localizes:
            self._pixels_unknown = f"{type(self.model.detector).__name__} scores whole images only"
        self._with_maps = any(wanted.examples or ()) or (self.metrics.need_maps and not self._pixels_unknown)
        self.kept_examples, self._scores = KeptExamples(*wanted.examples or (0, 0)), ImageMetrics()
        self.matches = Matches()
        for metric in self.pixel_metrics:
            metric.computed = metric.statistics = None
            metric.keep_statistics = wanted.statistics and self.trainer.is_global_zero
        # Of each of several categories: why its pixels are unknown, and metrics of its own.
        self._by_category = {}
        for name in self.data.several:
            unknown = pixels_unknown([sample for sample in self.data.test_samples if sample.category == name])
            self._by_category[name] = (self._pixels_unknown or unknown, copy.deepcopy(self.metrics))
        calibration = self.model.calibration
        pixel = calibration.pixel
        self._at_test = AtTest(
            preprocess=self.model.preprocess,
            thresholds=calibration.thresholds(),
            pixel_threshold=None if pixel is None else pixel.value,
            min_area=calibration.min_area,
            no_threshold=calibration.absent,
        )
        self._epoch_start = time.perf_counter()

    @property
    def pixel_metrics(self) -> list[PixelMetrics]:
        """Those of the metrics that keep rankings and statistics of pixels."""
        return [metric for metric in self.metrics.by_key.values() if isinstance(metric, PixelMetrics)]

    def test_step(self, batch: Batch, batch_index: int) -> Prediction | None:  # type: ignore[override]
        """Score one batch and keep what the result is made of; None if all of its files were skipped."""
        if not len(batch.image):
            return None
        features = self.features(batch)
        prediction = self.score(features, self._with_maps)
        if self.model.products is not None:
            self.matches.update(*self.model.products.match(features), batch.index)
        self._scores.update(prediction.score, batch.label, batch.index)
        self.metrics.update(prediction, batch, with_pixels=not self._pixels_unknown, test=self._at_test)
        categories = [self.data.test_samples[i].category for i in batch.index.tolist()]
        for name, (unknown, metrics) in self._by_category.items():
            if rows := [row for row, category in enumerate(categories) if category == name]:
                score, maps = prediction
                part = Prediction(score[rows], None if maps is None else maps[rows])
                metrics.update(part, _rows(batch, rows), with_pixels=not unknown, test=self._at_test)
        if self.wanted.examples:
            with self.timed("figures"):
                self.kept_examples.keep(prediction, batch, self.data.test_samples, self.model.preprocess)
        return prediction

    def on_test_epoch_end(self) -> None:
        """Compute every metric that these images allow, log them, and make the result."""
        self.timing["test"] = time.perf_counter() - self._epoch_start
        self.data.gather()
        with self.timed("metrics"):
            metrics, absent = self.metrics.compute(with_pixels=not self._pixels_unknown)
            if self._pixels_unknown:
                absent |= self.metrics.absent(self._pixels_unknown, of_pixels_only=True)
            self._scores.compute()  # brings the rows of all devices together
            scores, labels, index = self._scores.rows
            samples, (products, strangers) = self.data.test_samples, self._matched()
            rows = [
                ScoredImage(
                    str(samples[i].path),
                    samples[i].label,
                    samples[i].defect_type,
                    score,
                    i,
                    category=samples[i].category,
                    product=products.get(i),
                    stranger=i in strangers,
                )
                for i, score in zip(index.tolist(), scores.tolist(), strict=True)
            ]
            metrics |= rates(self, [row.judged for row in rows], labels)
            by_category = {
                name: of_category(self, name, metrics, rows, unknown)
                for name, (unknown, metrics) in self._by_category.items()
            }
            self._by_category = {}
        self.log_dict(metrics, rank_zero_only=True)
        self._result = make_result(self, metrics, absent, rows, by_category)

    def _matched(self) -> tuple[dict[int, str], set[int]]:
        """The product of each test image by index, where the model is of several, and those that belong to none."""
        if self.model.products is None:
            return {}, set()
        self.matches.compute()  # brings the rows of all devices together
        ratios, products, index = (rows.tolist() for rows in self.matches.rows)
        scores = self.model.good_scores
        threshold = scores.product_at(scores.target_fpr)
        names = {i: scores.products[product] for i, product in zip(index, products, strict=True)}
        found = zip(index, ratios, strict=True)
        return names, set() if threshold is None else {i for i, ratio in found if ratio > threshold.value}

    def predict_step(self, batch: Batch, batch_index: int) -> Prediction:
        """Score one batch."""
        return self.model(batch.image)

    # -- what a checkpoint holds beside the state dict ----------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to build the same model again: its config and preprocessing, and the versions."""
        checkpoint["oddpatch"] = self.checkpoint_facts(self.data)

    def checkpoint_facts(self, data: MVTecDataModule) -> dict[str, Any]:
        """What a checkpoint holds beside tensors; names are below the folder of the categories."""
        names = [relative_name(sample.path, data.root) for sample in data.train_samples]
        return {
            **written_by(),
            "config": self.config,
            "preprocess": self.model.preprocess.settings(),
            "weights": self.model.backbone.weights_origin,
            "train_images": names,
            "num_fitted": self.num_fitted,
            "no_threshold": self.model.calibration.absent,
            "held_out": [names[i] for i in data.held_out],
            **({} if self.model.products is None else {"products": self.model.products.names}),
        }
