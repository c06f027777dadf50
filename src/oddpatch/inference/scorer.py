"""What scores images for an `AnomalyDetector`: a fitted model in torch, or whatever else keeps the same contract."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from oddpatch.data.alignment import Registration
from oddpatch.data.decoding import pixels_in_header, pixels_that_fit, to_rgb_float
from oddpatch.errors import ConfigError, DataError
from oddpatch.inference.throughput import Room
from oddpatch.models.base import AnomalyModel
from oddpatch.models.calibration import Calibration

ImageLike = str | Path | Image.Image | NDArray[Any] | Tensor
#: Raw score, and anomaly map (h, w) of the prepared image; None where the method gives none.
Scored = tuple[float, NDArray[np.float32] | None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image that is ready to be scored."""

    original: Tensor  # (3, H, W) as it was decoded, floating point in [0, 1] or uint8
    pixels: Tensor  # (3, h, w) as the network takes it
    registration: Registration | None  # where it lies on the reference, with data.align
    inspected: float  # share of its area that is looked at


class Scorer(Protocol):
    """A fitted model as `AnomalyDetector` uses it. An artifact that was exported from one would be another.

    `prepare` and `lay_out` are called by several threads at once, `score` by one at a time.
    """

    @property
    def calibration(self) -> Calibration:
        """Thresholds, and scores of good images."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of the preprocessing, as `Preprocess.settings` gives them."""

    def prepare(self, image: ImageLike, max_pixels: int | None = None) -> Prepared:
        """Decode and preprocess one image.

        Args:
            image: see `AnomalyDetector.__call__`.
            max_pixels: larger files are refused; None for the limit of the settings.

        Raises:
            DataError: it cannot be read, is no image, or does not suit the preprocessing.
        """

    def score(self, images: Sequence[Prepared]) -> list[Scored]:
        """Score images in one batch, in order."""

    def lay_out(self, anomaly_map: NDArray[np.float32], image: Prepared) -> NDArray[np.float32]:
        """The map (h, w) in the pixels of the original image (H, W), NaN where that was not looked at."""


class TorchScorer:
    """Scores with a fitted model in torch.

    Args:
        model: stays as it is: where it would have to be moved or changed, a copy is.
        device: where to compute.
        own: the model may be moved and changed.

    Raises:
        ConfigError: the device cannot be used.
    """

    def __init__(self, model: AnomalyModel, device: str | torch.device = "cpu", own: bool = False) -> None:
        try:
            self.device, now = torch.device(device), model.detector.fitted.device
            there = now.type == self.device.type and self.device.index in (None, now.index)
            as_it_is = own or (there and not any(module.training for module in model.modules()))
            self.model = (model if as_it_is else deepcopy(model)).to(self.device).eval()
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"device={device!r} cannot be used ({reason}): choose cpu") from error
        self.calibration = self.model.calibration
        self.settings = self.model.preprocess.settings()
        self._decoding = Room(pixels_that_fit())

    def prepare(self, image: ImageLike, max_pixels: int | None = None) -> Prepared:
        """See `Scorer`; a path is put before errors of its file."""
        if not isinstance(image, str | Path):
            return self._prepare(to_tensor(image, self.model.preprocess.full_scale))
        with self._decoding.taking(pixels_in_header(image) or pixels_that_fit()):
            original = self.model.preprocess.read(image, max_pixels)
        try:
            return self._prepare(original)
        except DataError as error:
            raise DataError(f"{image}: {error}") from error.__cause__

    def _prepare(self, original: Tensor) -> Prepared:
        preprocess = self.model.preprocess
        registration = preprocess.register(original)
        pixels = preprocess(original, registration)
        share = preprocess.share((original.shape[1], original.shape[2]), registration)
        return Prepared(original, pixels, registration, share)

    @torch.inference_mode()
    def score(self, images: Sequence[Prepared]) -> list[Scored]:
        """See `Scorer`."""
        score, maps = self.model(torch.stack([image.pixels for image in images]).to(self.device))  # (B,), (B, 1, h, w)
        if maps is None:
            return [(value, None) for value in score.tolist()]
        return list(zip(score.tolist(), maps[:, 0].float().cpu().numpy(), strict=True))

    def lay_out(self, anomaly_map: NDArray[np.float32], image: Prepared) -> NDArray[np.float32]:
        """See `Scorer`."""
        size = (image.original.shape[1], image.original.shape[2])
        maps = torch.from_numpy(anomaly_map)[None, None]  # (1, 1, h, w)
        laid = self.model.preprocess.to_original(maps, size, registration=image.registration)
        return np.asarray(laid[0, 0].numpy(), np.float32)


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
