"""Scoring with a fitted model in torch."""

import logging
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from oddpatch.data.decoding import to_array, to_rgb_float
from oddpatch.data.transforms import InBands
from oddpatch.errors import ConfigError, DataError
from oddpatch.inference.scorer import Prepared, Preparing, Scored
from oddpatch.models.anomaly_model import AnomalyModel

log = logging.getLogger(__name__)


def usable(device: str | torch.device) -> torch.device:
    """A device that computes.

    Raises:
        ConfigError: there is none of this name here.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]  # the rest of what torch says is for its developers
        raise ConfigError(f"device={str(device)!r} cannot be used ({reason}): choose cpu") from error
    return torch.device(device)


class TorchScorer(Preparing):
    """Scores with a fitted model in torch.

    Args:
        model: stays as it is: where it would have to be moved or changed, a copy is.
        device: where to compute.
        own: the model may be moved and changed.

    Raises:
        ConfigError: the device cannot be used.
    """

    def __init__(self, model: AnomalyModel, device: str | torch.device = "cpu", own: bool = False) -> None:
        super().__init__()
        self.device, now = usable(device), model.detector.fitted.device
        there = now.type == self.device.type and self.device.index in (None, now.index)
        as_it_is = own or (there and not any(module.training for module in model.modules()))
        self.model = (model if as_it_is else deepcopy(model)).to(self.device).eval()
        self.calibration = self.model.good_scores
        self.settings = self.model.preprocess.settings()
        self.leaves_python = self.model.backbone.runtime.engine == "openvino"
        if (transform := self.model.preprocess.transform) is not None and transform.warning:
            log.warning("%s", transform.warning)

    def example(self) -> Prepared:
        """See `Preparing`."""
        pixels = torch.zeros(3, *self.model.preprocess.image_size)
        return Prepared(pixels.numpy(), pixels, None, 1.0)

    def _take(self, image: Image.Image | NDArray[Any]) -> Tensor:
        return to_rgb_float(image, full_scale=self.model.preprocess.full_scale, keep_uint8=True)

    def _read(self, path: str | Path, max_pixels: int | None) -> Tensor:
        return self.model.preprocess.read(path, max_pixels)

    def _prepare(self, original: Tensor) -> Prepared:
        preprocess = self.model.preprocess
        registration = preprocess.register(original)
        pixels = preprocess.in_bands(original, self.device) if preprocess.tiles else None
        if pixels is None:
            pixels = preprocess(original, registration)
        share = preprocess.share((original.shape[1], original.shape[2]), registration)
        return Prepared(original.numpy(), pixels, registration, share)

    @torch.inference_mode()
    def score(self, images: Sequence[Prepared]) -> list[Scored]:
        """See `Scorer`."""
        if self.model.tiling is not None:  # one at a time: an image in tiles fills a batch
            return [self._scored(self.model.features_used(self._in_tiles(image.pixels)), 1)[0] for image in images]
        features = self.model.features(torch.stack([image.pixels for image in images]).to(self.device))
        return self._scored(features, len(images))

    def _in_tiles(self, pixels: Tensor | InBands) -> Tensor | InBands:
        return pixels[None].to(self.device) if isinstance(pixels, Tensor) else pixels

    def _scored(self, features: list[Tensor], count: int) -> list[Scored]:
        """Of the features of so many images."""
        score, maps = self.model.detector(features, self.model.preprocess.image_size)  # (B,), (B, 1, h, w)
        found = [score.tolist(), [None] * count if maps is None else maps[:, 0].float().cpu().numpy()]
        if self.model.products is not None:
            ratio, product = self.model.products.match(features)
            found += [product.tolist(), ratio.tolist()]
        return [Scored(*values) for values in zip(*found, strict=True)]

    def lay_out(self, anomaly_map: NDArray[np.float32], image: Prepared) -> NDArray[np.float32]:
        """See `Scorer`."""
        size = (image.original.shape[1], image.original.shape[2])
        return self.model.preprocess.to_original(anomaly_map, size, registration=image.registration)


def to_tensor(image: Image.Image | NDArray[Any] | Tensor, full_scale: int | None = None) -> Tensor:
    """(3, H, W) float32 in [0, 1] of an image in memory, see `oddpatch.data.decoding.to_rgb_float`.

    Raises:
        DataError: it is none of these.
    """
    if (given := to_array(image)) is None:
        raise DataError(f"{type(image).__name__} is no image: give a path, a PIL image, an array or a tensor")
    return to_rgb_float(given, full_scale=full_scale)
