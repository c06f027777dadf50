"""Preprocessing of one image or a batch: align, resize, frame, normalise. The model owns it, so every use shares it."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from oddpatch.data.alignment import Alignment, Registration, decode
from oddpatch.data.decoding import read_image
from oddpatch.data.geometry import Geometry, Size, make_frame
from oddpatch.data.laying import to_original
from oddpatch.data.light import Light, measure
from oddpatch.data.pixels import PixelTransform
from oddpatch.data.resampling import framed
from oddpatch.errors import ConfigError, DataError
from oddpatch.types import IGNORE


class Placement(NamedTuple):
    """What decides how the mask of an image is prepared, beside the settings, and how the image was taken."""

    size: Size  # of the image in its file
    light: Light
    registration: Registration | None = None  # onto the reference, where images are aligned

    @property
    def statistics(self) -> list[float]:
        """Values of `oddpatch.data.light.STATISTICS`, as many as there are."""
        return [*self.light, *([] if self.registration is None else [self.registration.told])]


class Preprocess(nn.Module):
    """Antialiased resize and centre crop as torchvision's `Resize` and `CenterCrop`, then normalisation.

    Resizing is done in floating point, so that 8-bit, 16-bit and float versions of an image give the same tensor to
    1e-6, and an exported model can repeat it. It has no parameters or buffers: moving the model it belongs to does not
    touch it.

    Args:
        resize: length of the shorter side, or (height, width), or None to keep the size.
        crop: side of the square, or (height, width), cut from the centre; None for no crop.
        mean: per channel, in units of [0, 1].
        std: per channel.
        interpolation: "bilinear" or "bicubic" (clipped to [0, 1], as Pillow does).
        align: settings of an `Alignment` (`oddpatch.data.alignment.load_alignment`) by which images are moved onto a
            reference first; None leaves them where they are.
        roi: region to inspect, as `oddpatch.data.roi.load_roi` gives it, of the size of the images or, if they are
            aligned, of the reference; None for all of it.
        fit: "crop", "stretch", "letterbox" or "tiles", see `oddpatch.data.geometry.make_frame`.
        adapted: what `adapt` found for the training images.
        tiles: of fit="tiles": `side` and least `overlap` of the tiles in pixels, see `oddpatch.ops.tiles.Tiling`, and
            the `scale` of the images before they are cut.
        full_scale: highest value of the sensor, see `oddpatch.data.decoding.read_image`; None for that of the file's
            type.
        max_pixels: larger images are refused, see `oddpatch.data.decoding.read_image`.
        transform: of the pixels of every image, once it is aligned, see `oddpatch.data.pixels.PixelTransform`.

    Raises:
        ConfigError: a value cannot work.
    """

    def __init__(
        self,
        resize: int | Sequence[int] | None,
        crop: int | Sequence[int] | None,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bilinear",
        align: Mapping[str, Any] | None = None,
        roi: str | None = None,
        fit: str | None = None,
        adapted: Mapping[str, Sequence[int]] | None = None,
        full_scale: int | None = None,
        max_pixels: int | None = None,
        tiles: Mapping[str, Any] | None = None,
        transform: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        cut = _read_tiles(tiles) if fit == "tiles" else None
        self.frame = make_frame(resize, crop, fit, adapted, cut[2] if cut else 1.0)
        #: Side and least overlap of tiles, where images are cut into such.
        self.tiles: tuple[int, int] | None = cut[:2] if cut else None
        self.mean = _channels("mean", mean)
        self.std = _channels("std", std)
        self.interpolation = interpolation
        if interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(f"interpolation={interpolation!r} is not known: choose bilinear or bicubic")
        if min(self.std) <= 0:
            raise ConfigError(f"std={list(self.std)} must be above 0 in every channel")
        for name, value in (("full_scale", full_scale), ("max_pixels", max_pixels)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        self.full_scale = full_scale
        self.max_pixels = max_pixels
        self.alignment = Alignment(**align) if align else None
        self.transform = PixelTransform(transform) if transform else None
        self.roi = roi
        self._roi_size: Size | None = None
        #: (1, h, w) bool at the size of preprocessed images, true where they are inspected; None if that is everywhere.
        self.roi_mask: Tensor | None = None
        self.adapt([])

    def adapt(self, sizes: Sequence[Size], multiple: int = 1) -> None:
        """Settle the image size, where the settings leave it open, for training images of these sizes.

        See `oddpatch.data.geometry.Frame.adapted`; with an alignment the size of its reference counts.

        Raises:
            ConfigError: the region of interest does not fit.
        """
        self.frame = self.frame.adapted([self.alignment.size] if self.alignment and sizes else sizes, multiple)
        if self.roi and self.roi_mask is None and self.frame.size is not None:
            self.roi_mask = self._load_roi(self.roi)

    @property
    def image_size(self) -> Size:
        """(h, w) of preprocessed images.

        Raises:
            ConfigError: it is not settled yet, see `adapt`.
        """
        if self.frame.size is None:
            raise ConfigError("the image size is found from the training images: call MVTecDataModule.setup first")
        return self.frame.size

    def _load_roi(self, roi: str) -> Tensor:
        original = torch.from_numpy(decode(roi).copy())  # (H, W) uint8
        size = (original.shape[0], original.shape[1])
        if self.alignment and size != self.alignment.size:
            raise ConfigError(
                f"roi has {size[0]}x{size[1]} pixels, the reference of align {self.alignment.size[0]}x"
                f"{self.alignment.size[1]}: draw it on the reference"
            )
        mask = self._lay_out(original, 0) > 0
        if not mask.any():
            raise ConfigError("roi leaves nothing to inspect once it is resized and cropped: enlarge it, or lower crop")
        self._roi_size = size
        return mask

    def settings(self) -> dict[str, Any]:
        """Plain values that build the same preprocessing: `Preprocess(**settings)`."""
        frame = self.frame
        sizes = {"size": frame.size, "shape": frame.shape}
        return {
            "resize": list(frame.resize) if isinstance(frame.resize, tuple) else frame.resize,
            "crop": list(frame.size) if frame.size and frame.fit == "crop" else None,
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "align": self.alignment.settings() if self.alignment else None,
            "roi": self.roi,
            "fit": frame.fit,
            "adapted": {name: list(size) for name, size in sizes.items() if size} if frame.fit != "crop" else None,
            "full_scale": self.full_scale,
            "max_pixels": self.max_pixels,
            "tiles": dict(zip(("side", "overlap", "scale"), (*self.tiles, frame.scale), strict=True))
            if self.tiles
            else None,
            **({"transform": self.transform.settings} if self.transform else {}),
        }

    def extra_repr(self) -> str:
        """Show the settings when printed."""
        roi = f"{float(self.roi_mask.float().mean()):.0%}" if self.roi_mask is not None else None
        shown = {**self.settings(), "align": self.alignment, "roi": roi}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())

    def geometry(self, original_size: Size) -> Geometry:
        """Where an image of `original_size`, or the reference that it is aligned to, comes to lie.

        Raises:
            DataError: it is smaller than the crop.
        """
        return self.frame.place(self.alignment.size if self.alignment else original_size)

    def share(self, original_size: Size, registration: Registration | None = None) -> float:
        """Share of an image's area that is inspected: the part in the frame and, if there is a `roi`, in that.

        Args:
            original_size: (H, W).
            registration: what `register` gave for the image; None, with an alignment, for one like the reference.
        """
        if self.roi_mask is None and registration is None:
            return self.geometry(original_size).share
        if self.alignment and registration is None:
            original_size, registration = self.alignment.size, Registration(np.eye(3), 1.0)
        seen = np.ones(self.image_size, np.float32) if self.roi_mask is None else self.roi_mask[0].float().numpy()
        laid = self.to_original(seen, original_size, 0.0, registration)
        return float((laid >= 0.5).mean())

    def register(self, image: Tensor) -> Registration | None:
        """Where an image (3, H, W) in [0, 1] lies on the reference; None without `align`.

        Raises:
            DataError: it does not register well enough.
        """
        return self.alignment.register(to_unit(image)) if self.alignment else None

    def forward(
        self,
        image: Tensor,
        registration: Registration | None = None,
        view: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Prepare an image for the backbone.

        Args:
            image: (3, H, W) or (B, 3, H, W), floating point in [0, 1] or uint8, as `oddpatch.data.decoding` gives.
            registration: what `register` gave for the image, where it is needed again; else it is found here.
            view: applied to an image (3, H, W) once it is aligned.

        Returns:
            (3, h, w) or (B, 3, h, w) float32, normalised; (h, w) is `image_size`.

        Raises:
            DataError: another shape or type, an image smaller than the crop or of another size than `roi`, or one that
                does not register.
        """
        floating = image.is_floating_point()
        if image.ndim not in (3, 4) or image.shape[-3] != 3 or not (floating or image.dtype == torch.uint8):
            raise DataError(
                f"expected (3, H, W) or (B, 3, H, W), floating point in [0, 1] or uint8, got {tuple(image.shape)} "
                f"{image.dtype}: decode with oddpatch.data.decoding"
            )
        if self.alignment:
            image = self._align(image if floating else to_unit(image), registration)
        if view is not None:
            image = view(image)
        if self.transform is not None:
            image = self.transform(image)
        self._check_size(image)
        if image.ndim == 4:
            return torch.stack([self._normalised(single) for single in image])
        return self._normalised(image)

    def in_bands(self, image: Tensor, device: torch.device) -> "InBands | None":
        """An image (3, H, W) as `forward` takes it, to be prepared a few rows at a time.

        None if it has to be prepared as a whole: it is aligned, transformed or padded.

        Raises:
            DataError: see `forward`.
        """
        whole = self.alignment or self.transform is not None
        if whole or self.geometry((image.shape[1], image.shape[2])).padded:
            return None
        self._check_size(image)
        return InBands(self, image, device)

    def rows(self, image: Tensor, first: int, last: int) -> Tensor:
        """Rows (1, 3, last - first, w) of what `forward` gives for an image (3, H, W), see `in_bands`."""
        return self._normalised(image, slice(first, last))[None]

    def _check_size(self, image: Tensor) -> None:
        size = (image.shape[-2], image.shape[-1])
        if self._roi_size not in (None, size):
            height, width = self._roi_size or size
            raise DataError(
                f"image of {size[0]}x{size[1]} pixels, but roi was drawn on {height}x{width}: "
                "give images of one size, or a roi of theirs"
            )

    def _normalised(self, image: Tensor, wanted: slice | None = None) -> Tensor:
        """Resize an image (3, H, W), lay it into the frame and normalise it: (3, h, w), or the rows `wanted` of it,
        unpadded."""
        place = self.geometry((image.shape[1], image.shape[2]))
        if wanted is not None:
            (top, left), (_, width) = place.offset, place.size
            place = place._replace(offset=(top + wanted.start, left), size=(wanted.stop - wanted.start, width))
        prepared = framed(image.numpy(force=True), place, self.interpolation)
        prepared -= np.array(self.mean, np.float32)[:, None, None]
        prepared /= np.array(self.std, np.float32)[:, None, None]
        return torch.from_numpy(prepared).to(image.device)

    def read(self, path: str | Path, max_pixels: int | None = None) -> Tensor:
        """Read an image file as `forward` takes it: (3, H, W), uint8 where the file has 8 bits.

        Args:
            path: of the file.
            max_pixels: in place of the limit of the settings.

        Raises:
            DataError: it cannot be read; the file is named.
        """
        return read_image(path, self.full_scale, max_pixels or self.max_pixels, keep_uint8=True)

    def load(self, path: str | Path) -> Tensor:
        """Read an image file and prepare it: (3, h, w) float32, see `prepare`."""
        return self.prepare(path)[0]

    def prepare(self, path: str | Path) -> tuple[Tensor, Placement]:
        """Read an image file and prepare it: (3, h, w) float32, where its mask belongs, and its statistics.

        Raises:
            DataError: it cannot be read or prepared; the file is named.
        """
        image = self.read(path)
        try:
            registration = self.register(image)
            size = (image.shape[1], image.shape[2])
            return self(image, registration), Placement(size, measure(image.numpy()), registration)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def prepare_views(self, path: str | Path, views: Sequence[Callable[[Tensor], Tensor]]) -> list[Tensor]:
        """Read an image file and prepare views of it, see `forward`: (3, h, w) float32 each; errors as `prepare`."""
        image = self.read(path)
        try:
            registration = self.register(image)
            return [self(image, registration, view) for view in views]
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def _align(self, image: Tensor, registration: Registration | None) -> Tensor:
        assert self.alignment is not None
        if image.ndim == 4:
            return torch.stack([self._align(single, registration) for single in image])
        moved = self.alignment.warp(image.cpu(), registration or self.alignment.register(image.cpu()))
        return torch.from_numpy(moved).to(image.device)

    @staticmethod
    def _column(values: Sequence[float], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None, None]  # (3, 1, 1)

    def mask(self, mask: Tensor, registration: Registration | None = None) -> Tensor:
        """Align, resize and crop a mask to lie on its image.

        Args:
            mask: (H, W) uint8.
            registration: what `register` gave for its image; needed if there is an alignment.

        Returns:
            (1, h, w) uint8 with no new values: each pixel takes the one under its centre, on the grid of `forward`;
            IGNORE in padding, and in what alignment moves in from outside the image.
        """
        if self.alignment:
            mask = torch.from_numpy(self.alignment.warp_mask(mask, self._needed(registration), IGNORE))
        return self._lay_out(mask, IGNORE)

    def uniform_mask(self, value: int, original_size: Size, registration: Registration | None = None) -> Tensor:
        """`mask` of one value throughout, for an image of `original_size` (H, W)."""
        if self.alignment:
            return self.mask(torch.full(original_size, value, dtype=torch.uint8), registration)
        place = self.geometry(original_size)
        mask = torch.full((1, *place.size), IGNORE, dtype=torch.uint8)
        mask[:, *place.inside] = value
        return mask

    @staticmethod
    def _needed(registration: Registration | None) -> Registration:
        if registration is None:
            raise DataError(
                "images are aligned, so where this one lies must be given: pass registration=register(image)"
            )
        return registration

    def _lay_out(self, mask: Tensor, padding: int) -> Tensor:
        (rows, columns), (top, left), (height, width) = place = self.geometry((mask.shape[-2], mask.shape[-1]))
        moved = F.interpolate(mask[None, None], place.resized, mode="nearest-exact")[0]  # (1, H', W')
        # Where a side is negative, it is cut off.
        return F.pad(moved, (-left, left + width - columns, -top, top + height - rows), value=padding).contiguous()

    def to_image(self, normalised: Tensor) -> Tensor:
        """Undo the normalisation for pictures: (..., 3, h, w) in [0, 1]."""
        return (normalised * self._column(self.std, normalised) + self._column(self.mean, normalised)).clamp(0, 1)

    def to_original(
        self,
        anomaly_map: NDArray[np.float32],
        original_size: Size,
        fill: float = math.nan,
        registration: Registration | None = None,
    ) -> NDArray[np.float32]:
        """Lay the map of a preprocessed image (h, w) on the original (H, W), see `oddpatch.data.laying`."""
        return to_original(anomaly_map, self.frame, original_size, fill, self.alignment, registration)


class InBands(NamedTuple):
    """An image that is prepared as it is looked at, see `Preprocess.in_bands`: whole it takes four times its bytes."""

    preprocess: Preprocess
    image: Tensor  # (3, H, W) as `Preprocess.read` gives it
    device: torch.device  # where rows are wanted

    @property
    def size(self) -> Size:
        """(h, w) of the prepared image."""
        return self.preprocess.image_size

    def rows(self, first: int, last: int) -> Tensor:
        """Rows from `first` to before `last`: (1, 3, last - first, w)."""
        return self.preprocess.rows(self.image, first, last).to(self.device)


def to_unit(image: Tensor) -> Tensor:
    """A uint8 image as float32 in [0, 1]; one of floats as it is."""
    return image if image.is_floating_point() else image.float().div_(255)


def _channels(name: str, values: Sequence[float]) -> tuple[float, ...]:
    if len(values) != 3:
        raise ConfigError(f"{name}={list(values)} must have 3 values, one per colour channel")
    return tuple(float(value) for value in values)


def _read_tiles(tiles: Mapping[str, Any] | None) -> tuple[int, int, float]:
    """Side, overlap and scale of a setting."""
    given = {"side": 768, "overlap": 320, "scale": 1.0, **(tiles or {})}
    if unknown := given.keys() - {"side", "overlap", "scale"}:
        raise ConfigError(f"tiles has {', '.join(sorted(unknown))}: it takes side, overlap and scale")
    side, overlap, scale = given["side"], given["overlap"], given["scale"]
    if not (isinstance(side, int) and isinstance(overlap, int) and isinstance(scale, int | float)):
        raise ConfigError(f"tiles={given}: side and overlap are whole numbers of pixels, scale a factor")
    return side, overlap, float(scale)
