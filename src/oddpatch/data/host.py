"""The preprocessing of `oddpatch.data.transforms` in NumPy, for artifacts: who runs one need not load torch.

From the file to resized pixels in [0, 1] the host does the work; an artifact normalises them itself. The numbers are
those of `Preprocess` to float rounding, which tests hold it to.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.alignment import Alignment, Registration, decode
from oddpatch.data.decoding import Array, read_planes
from oddpatch.data.geometry import Geometry, Size, make_frame
from oddpatch.data.laying import to_original
from oddpatch.data.resampling import framed
from oddpatch.errors import ConfigError, DataError

Floats = NDArray[np.float32]


class HostPreprocess:
    """Decodes, aligns, resizes and frames images as `Preprocess` does, of which these are the settings.

    Args:
        resize: see `oddpatch.data.transforms.Preprocess`, as for the others.
        crop: see there.
        interpolation: see there.
        align: see there.
        roi: see there.
        fit: see there.
        adapted: see there.
        full_scale: see there.
        max_pixels: see there.
        tiles: None; images that are looked at in tiles are not prepared here.
        mean: of the normalisation, which is not done here.
        std: likewise.

    Raises:
        ConfigError: a value cannot work.
    """

    def __init__(
        self,
        *,
        resize: int | Sequence[int] | None,
        crop: int | Sequence[int] | None,
        interpolation: str,
        align: Mapping[str, Any] | None,
        roi: str | None,
        fit: str | None,
        adapted: Mapping[str, Sequence[int]] | None,
        full_scale: int | None,
        max_pixels: int | None,
        tiles: None,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        if interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(f"interpolation={interpolation!r} is not known: choose bilinear or bicubic")
        if tiles is not None:
            raise ConfigError("images in tiles are not prepared without torch")
        self.frame = make_frame(resize, crop, fit, adapted)
        self.interpolation, self.full_scale, self.max_pixels = interpolation, full_scale, max_pixels
        self.alignment = Alignment(**align) if align else None
        self._roi = decode(roi) if roi else None  # (H, W) uint8
        #: (h, w), 1 where an image is inspected.
        self.seen = np.ones(self.image_size, np.float32)
        if self._roi is not None:
            self.seen = self._lay_out(self._roi)

    @property
    def image_size(self) -> Size:
        """(h, w) of preprocessed images.

        Raises:
            ConfigError: the settings leave it open.
        """
        if self.frame.size is None:
            raise ConfigError("the image size is not settled")
        return self.frame.size

    def read(self, path: str | Path, max_pixels: int | None = None) -> Array:
        """See `Preprocess.read`."""
        return read_planes(path, self.full_scale, max_pixels or self.max_pixels)

    def register(self, image: Array) -> Registration | None:
        """See `Preprocess.register`."""
        return self.alignment.register(_to_unit(image)) if self.alignment else None

    def __call__(self, image: Array, registration: Registration | None = None) -> Floats:
        """Resize and frame an image (3, H, W) of float32 in [0, 1] or uint8.

        Args:
            image: see `Preprocess.forward`, of one image.
            registration: what `register` gave for it, where it is needed again; else it is found here.

        Returns:
            (3, h, w) float32 in [0, 1], not normalised.

        Raises:
            DataError: it is smaller than the crop or of another size than `roi`, or it does not register.
        """
        if self.alignment:
            image = _to_unit(image)
            image = self.alignment.warp(image, registration or self.alignment.register(image))
        size = (image.shape[1], image.shape[2])
        if self._roi is not None and self._roi.shape != size:
            raise DataError(
                f"image of {size[0]}x{size[1]} pixels, but roi was drawn on {self._roi.shape[0]}x{self._roi.shape[1]}: "
                "give images of one size, or a roi of theirs"
            )
        return framed(image, self.geometry(size), self.interpolation)

    def geometry(self, original_size: Size) -> Geometry:
        """See `Preprocess.geometry`."""
        return self.frame.place(self.alignment.size if self.alignment else original_size)

    def share(self, original_size: Size, registration: Registration | None = None) -> float:
        """See `Preprocess.share`."""
        if self._roi is None and registration is None:
            return self.geometry(original_size).share
        return float((self.to_original(self.seen, original_size, 0.0, registration) >= 0.5).mean())

    def to_original(
        self,
        anomaly_map: Floats,
        original_size: Size,
        fill: float = math.nan,
        registration: Registration | None = None,
    ) -> Floats:
        """See `Preprocess.to_original`."""
        return to_original(anomaly_map, self.frame, original_size, fill, self.alignment, registration)

    def _lay_out(self, mask: NDArray[np.uint8]) -> Floats:
        """Where a mask (H, W) is not zero once it is resized and framed (h, w), as `Preprocess` does; 0 in padding."""
        place = self.geometry((mask.shape[0], mask.shape[1]))
        for side in range(2):
            position = np.arange(place.size[side]) + place.offset[side]
            kept = (position >= 0) & (position < place.resized[side])
            scale = np.float32(mask.shape[side] / place.resized[side])
            taken = ((position.astype(np.float32) + np.float32(0.5)) * scale).astype(np.int64)
            mask = np.take(mask, taken.clip(0, mask.shape[side] - 1), axis=side)
            mask = np.where(np.expand_dims(kept, 1 - side), mask, 0)
        return (mask > 0).astype(np.float32)


def _to_unit(image: Array) -> Floats:
    return np.asarray(image, np.float32) / np.float32(255) if image.dtype == np.uint8 else image
