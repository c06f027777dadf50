"""What scores images for an `AnomalyDetector`: a fitted model in torch, an artifact, or others of this contract."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Union, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oddpatch.data.alignment import Registration
from oddpatch.data.decoding import pixels_that_fit, to_array
from oddpatch.data.headers import pixels_in_header
from oddpatch.errors import DataError
from oddpatch.inference.throughput import Room
from oddpatch.metrics.good_scores import GoodScores

if TYPE_CHECKING:
    from torch import Tensor

ImageLike = Union[str, Path, Image.Image, NDArray[Any], "Tensor"]


class Scored(NamedTuple):
    """What a scorer says of an image."""

    score: float  # raw
    anomaly_map: NDArray[np.float32] | None  # (h, w) of the prepared image; None where the method gives none
    product: int = 0  # place among several of the one that it is of
    ratio: float = 0.0  # see `oddpatch.models.products`


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image that is ready to be scored."""

    original: NDArray[Any]  # (3, H, W) as it was decoded, floating point in [0, 1] or uint8
    pixels: Any  # (3, h, w) as the scorer takes it, a tensor or an array
    registration: Registration | None  # where it lies on the reference, with data.align
    inspected: float  # share of its area that is looked at


@runtime_checkable
class Scorer(Protocol):
    """A fitted model as `AnomalyDetector` uses it.

    `prepare` and `lay_out` are called by several threads at once, `score` by one at a time.
    """

    @property
    def calibration(self) -> GoodScores:
        """Scores of good images, and thresholds."""

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


class Preparing(ABC):
    """Files and images in memory, prepared in the same steps whatever scores them."""

    #: The network runs outside Python: other threads may hold its lock for some milliseconds.
    leaves_python = False

    def __init__(self) -> None:
        self._decoding = Room(pixels_that_fit())

    def prepare(self, image: ImageLike, max_pixels: int | None = None) -> Prepared:
        """See `Scorer`; a path is put before errors of its file."""
        if not isinstance(image, str | Path):
            if (given := to_array(image)) is None:
                raise DataError(f"{type(image).__name__} is no image: give a path, a PIL image, an array or a tensor")
            return self._prepare(self._take(given))
        with self._decoding.taking(pixels_in_header(image) or pixels_that_fit()):
            original = self._read(image, max_pixels)
        try:
            return self._prepare(original)
        except DataError as error:
            raise DataError(f"{image}: {error}") from error.__cause__

    @abstractmethod
    def example(self) -> Prepared:
        """A grey image as `prepare` gives it, whatever the preprocessing asks of images: to measure by."""

    @abstractmethod
    def _take(self, image: Image.Image | NDArray[Any]) -> Any:
        """An image in memory, (3, H, W)."""

    @abstractmethod
    def _read(self, path: str | Path, max_pixels: int | None) -> Any:
        """An image file, (3, H, W)."""

    @abstractmethod
    def _prepare(self, original: Any) -> Prepared: ...
