"""`AnomalyDetector`: a finished run as a function of an image."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from oddpatch.data.decoding import to_rgb_float
from oddpatch.errors import ConfigError, DataError
from oddpatch.inference.regions import Region, find_regions
from oddpatch.metrics.thresholds import anomaly_score
from oddpatch.models.base import AnomalyModel

ImageLike = str | Path | Image.Image | NDArray[Any] | Tensor


@dataclass(frozen=True, slots=True)
class Detection:
    """What is said of one image; everything in the size and pixels of the image that was given."""

    score: float  # raw distance, larger is more anomalous
    is_anomalous: bool | None  # above the threshold; None where the run has no threshold
    p_value: float | None  # probability that a good image scores as high; None without calibration
    anomaly_score: float | None  # the score on a scale from 0 to 1, 0.5 at the threshold; None without calibration
    anomaly_map: NDArray[np.float32] | None  # (H, W), NaN where the crop left the image out; None: no map
    normalized_map: NDArray[np.float32] | None  # (H, W) on a scale from 0 to 1, 0.5 at the pixel threshold
    regions: list[Region]  # above the pixel threshold, most anomalous first
    mask: NDArray[np.uint8] | None  # (H, W), 255 on the anomalous regions
    inspected: float  # share of the image that was looked at: less than 1 with a crop or a region of interest


class AnomalyDetector:
    """A fitted model with its preprocessing and thresholds; the numbers are those of the run's own test.

    >>> detector = AnomalyDetector.load("outputs/...")
    >>> result = detector("part.png")
    >>> result.is_anomalous, result.p_value, [region.box for region in result.regions]

    Args:
        model: a fitted model; it stays as it is.
        threshold: image threshold: "conformal" (from good images left out of the fit), "validation" (F1-max of
            labelled images), "auto" (the first of these that the run has; none if it has none), or a raw score.
        pixel_threshold: raw anomaly value from which on pixels are anomalous; None for the run's.
        target_fpr: wanted rate of false alarms, for the conformal thresholds; None for the run's.
        min_area: pixels of the image that a region must have.
        merge_distance: regions of an image with at most so many pixels between them count as one.
        device: where to compute.
        max_pixels: larger images are refused; None for the run's limit.

    Raises:
        ConfigError: the run does not have the threshold asked for, or the device does not exist.
    """

    def __init__(
        self,
        model: AnomalyModel,
        threshold: float | str = "auto",
        pixel_threshold: float | None = None,
        target_fpr: float | None = None,
        min_area: int = 1,
        merge_distance: int = 0,
        device: str | torch.device = "cpu",
        max_pixels: int | None = None,
    ) -> None:
        self.device, self.model = _on_device(model, device)
        self.min_area, self.merge_distance, self.max_pixels = min_area, merge_distance, max_pixels
        calibration = model.calibration
        if target_fpr is not None and not calibration.calibrated:
            raise ConfigError(f"target_fpr={target_fpr} needs a threshold from good images: {calibration.absent}")
        self.target_fpr = calibration.target_fpr if target_fpr is None else target_fpr
        self.image_threshold = self._resolve(threshold)
        pixel = calibration.pixel_at(self.target_fpr)
        self.pixel_threshold = pixel.value if pixel_threshold is None and pixel is not None else pixel_threshold

    def _resolve(self, threshold: float | str) -> float | None:
        if not isinstance(threshold, str):
            return float(threshold)
        calibration = self.model.calibration
        known = calibration.thresholds(self.target_fpr)
        if threshold == "auto":
            return next(iter(known.values()), None)
        if threshold not in known:
            remedy = {"conformal": calibration.absent, "validation": "train again with +data.validation=FOLDER"}
            raise ConfigError(
                f"threshold={threshold!r}: the run has {' and '.join(known) or 'no threshold'}; "
                f"{remedy.get(threshold, 'choose conformal, validation or a number')}, or give a number"
            )
        return known[threshold]

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        device: str | torch.device = "cpu",
        engine: str | None = None,
        trust: Sequence[str] = (),
        **settings: Any,
    ) -> "AnomalyDetector":
        """The detector of a finished run, or of a checkpoint file.

        Args:
            run: the run's folder, or a checkpoint.
            device: where to compute.
            engine: "torch" or "openvino", in place of the run's own.
            trust: packages of your own whose classes and functions the checkpoint may name: their code runs.
            settings: further arguments of `AnomalyDetector`.

        Raises:
            CheckpointError: there is none, or it cannot be read.
            ConfigError: see `AnomalyDetector`.
        """
        from oddpatch.factory import restore

        model, _ = restore(Path(run), trust, **({} if engine is None else {"engine": engine}))
        return cls(_on_device(model, device, own=True)[1], device=device, **settings)

    @overload
    def __call__(self, image: ImageLike) -> Detection: ...
    @overload
    def __call__(self, image: list[ImageLike]) -> list[Detection]: ...

    def __call__(self, image: ImageLike | list[ImageLike]) -> Detection | list[Detection]:
        """Inspect one image or a list of images.

        Args:
            image: path, PIL image, array (H, W), (H, W, 3) or (H, W, 4) of uint8, uint16 or float in [0, 1], or
                tensor (3, H, W) of the same types; or a list of any of these, of any sizes.

        Raises:
            DataError: an image cannot be read, or has values outside these ranges.
        """
        if isinstance(image, list):
            return list(self.stream(image))
        return next(self.stream([image]))

    def stream(self, images: Sequence[ImageLike], batch_size: int = 16) -> Iterator[Detection]:
        """Inspect images a batch at a time, in order; no more than a batch is held in memory."""
        for start in range(0, len(images), batch_size):
            yield from self.inspect([self.read(image) for image in images[start : start + batch_size]])

    def read(self, image: ImageLike) -> Tensor:
        """An image as `inspect` takes it, scaled as those the run was fitted to.

        Raises:
            DataError: it cannot be read, or is none of the kinds that `AnomalyDetector` takes.
        """
        preprocess = self.model.preprocess
        if isinstance(image, str | Path):
            return preprocess.read(image, self.max_pixels)
        return to_tensor(image, preprocess.full_scale)

    @torch.inference_mode()
    def inspect(self, images: Sequence[Tensor]) -> list[Detection]:
        """Inspect decoded images (3, H, W), float in [0, 1] or uint8, of any sizes, in one batch."""
        preprocess = self.model.preprocess
        registrations = [preprocess.register(image) for image in images]
        pairs = zip(images, registrations, strict=True)
        prepared = torch.stack([preprocess(image, registration) for image, registration in pairs])  # (B, 3, h, w)
        score, maps = self.model(prepared.to(self.device))
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        laid: list[NDArray[np.float32] | None] = [None] * len(images)
        if maps is not None:
            maps = maps.float().cpu()
            laid = [
                preprocess.to_original(maps[i : i + 1], size, registration=registrations[i])[0, 0].numpy()
                for i, size in enumerate(sizes)
            ]
        shares = [preprocess.share(*pair) for pair in zip(sizes, registrations, strict=True)]
        return [self._judge(*rest) for rest in zip(score.tolist(), laid, shares, strict=True)]

    def _judge(self, score: float, anomaly_map: NDArray[np.float32] | None, share: float) -> Detection:
        calibration, threshold = self.model.calibration, self.image_threshold
        p_value = anomaly = None
        if calibration.calibrated:
            p_value = float(calibration.p_values(score))
            if threshold is not None:
                anomaly = float(anomaly_score(score, _median(calibration.image_scores), threshold))
        normalized = mask = None
        regions: list[Region] = []
        if anomaly_map is not None and self.pixel_threshold is not None:
            if self.min_area > anomaly_map.size:
                height, width = anomaly_map.shape
                raise DataError(
                    f"min_area={self.min_area}, but the image has {height} x {width} pixels, so that no region would "
                    f"be told: choose up to {anomaly_map.size}"
                )
            regions, mask = find_regions(anomaly_map, self.pixel_threshold, self.min_area, self.merge_distance)
            if len(calibration.pixel_scores):
                typical = _median(calibration.pixel_scores)
                normalized = anomaly_score(anomaly_map, typical, self.pixel_threshold).astype(np.float32)
        is_anomalous = None if threshold is None else score > threshold
        return Detection(score, is_anomalous, p_value, anomaly, anomaly_map, normalized, regions, mask, share)


def _median(scores: Tensor) -> float:
    """Of an even number the mean of the two in the middle, as NumPy has it; PyTorch's is the lower of them."""
    return float(np.median(scores.cpu().numpy()))


def _on_device(model: AnomalyModel, device: str | torch.device, own: bool = False) -> tuple[torch.device, AnomalyModel]:
    """The device, and the model on it, ready to score: a copy if it would have to be changed and is not our own."""
    try:
        wanted, now = torch.device(device), model.detector.fitted.device
        there = now.type == wanted.type and wanted.index in (None, now.index)
        return wanted, (model if own or (there and not model.training) else deepcopy(model)).to(wanted).eval()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={device!r} cannot be used ({str(error).splitlines()[0]}): choose cpu") from error


def to_tensor(image: Image.Image | NDArray[Any] | Tensor, full_scale: int | None = None) -> Tensor:
    """(3, H, W) float32 in [0, 1] of an image in memory, see `oddpatch.data.decoding.to_rgb_float`.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise DataError(f"tensor {tuple(image.shape)}: give (3, H, W), or an array (H, W, 3)")
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    if isinstance(image, Image.Image | np.ndarray):
        return to_rgb_float(image, full_scale=full_scale)
    raise DataError(f"{type(image).__name__} is no image: give a path, a PIL image, an array or a tensor")
