"""Preprocessing of one image or a batch: align, resize, crop, normalise. The model owns it, so every use shares it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oddpatch.data.alignment import Alignment, Registration, decode
from oddpatch.data.decoding import read_image
from oddpatch.data.resampling import Axis, resample
from oddpatch.errors import ConfigError, DataError

Size = tuple[int, int]  # (height, width)


class Geometry(NamedTuple):
    """How an image of one size is laid out: resized to `resized`, then cut to `size` from `offset` on."""

    resized: Size
    offset: tuple[int, int]  # (top, left)
    size: Size


class Preprocess(nn.Module):
    """Antialiased resize and centre crop as torchvision's `Resize` and `CenterCrop`, then normalisation.

    Resizing is done in floating point, so that 8-bit, 16-bit and float versions of an image give the same tensor, and
    an exported model can repeat it. It has no parameters or buffers: moving the model it belongs to does not touch it.

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

    Raises:
        ConfigError: a value cannot work, or images of several sizes would come out in several sizes.
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
    ) -> None:
        super().__init__()
        self.resize = resize if isinstance(resize, int) else _size("resize", resize)
        self.crop = _size("crop", crop)
        self.mean = _channels("mean", mean)
        self.std = _channels("std", std)
        self.interpolation = interpolation
        if interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(f"interpolation={interpolation!r} is not known: choose bilinear or bicubic")
        if min(self.std) <= 0:
            raise ConfigError(f"std={list(self.std)} must be above 0 in every channel")
        self.image_size = self._image_size()
        self.alignment = Alignment(**align) if align else None
        self.roi = roi
        self._roi_size: Size | None = None
        #: (1, h, w) bool at the size of preprocessed images, true where they are inspected; None if that is everywhere.
        self.roi_mask: Tensor | None = self._load_roi(roi) if roi else None

    def _image_size(self) -> Size:
        resize, crop = self.resize, self.crop
        if isinstance(resize, int):
            if resize < 1:
                raise ConfigError(f"resize={resize} must be at least 1")
            if crop is None:
                raise ConfigError(
                    f"resize={resize} sets the shorter side only, so images of several shapes would not stack: "
                    f"add crop={resize}, or give resize=[{resize},{resize}]"
                )
            if min(crop) > resize:
                raise ConfigError(f"crop={list(crop)} is larger than resize={resize}: lower crop or raise resize")
            return crop
        if resize is None and crop is None:
            raise ConfigError(
                "resize and crop are both null, so the image size is not known: set one to [height,width]"
            )
        if resize is not None and crop is not None and (crop[0] > resize[0] or crop[1] > resize[1]):
            raise ConfigError(f"crop={list(crop)} is larger than resize={list(resize)}: lower crop or raise resize")
        size = crop or resize
        assert size is not None
        return size

    def _load_roi(self, roi: str) -> Tensor:
        original = torch.from_numpy(decode(roi).copy())  # (H, W) uint8
        size = (original.shape[0], original.shape[1])
        if self.alignment and size != self.alignment.size:
            raise ConfigError(
                f"roi has {size[0]}x{size[1]} pixels, the reference of align {self.alignment.size[0]}x"
                f"{self.alignment.size[1]}: draw it on the reference"
            )
        mask = self._lay_out(original) > 0
        if not mask.any():
            raise ConfigError("roi leaves nothing to inspect once it is resized and cropped: enlarge it, or lower crop")
        self._roi_size = size
        return mask

    def settings(self) -> dict[str, Any]:
        """Plain values that build the same preprocessing: `Preprocess(**settings)`."""
        return {
            "resize": list(self.resize) if isinstance(self.resize, tuple) else self.resize,
            "crop": list(self.crop) if self.crop else None,
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "align": self.alignment.settings() if self.alignment else None,
            "roi": self.roi,
        }

    def extra_repr(self) -> str:
        """Show the settings when printed."""
        roi = f"{float(self.roi_mask.float().mean()):.0%}" if self.roi_mask is not None else None
        shown = {**self.settings(), "align": self.alignment, "roi": roi}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())

    def geometry(self, original_size: Size) -> Geometry:
        """Where an image of `original_size` comes to lie.

        Raises:
            DataError: it is smaller than the crop.
        """
        height, width = original_size
        if isinstance(self.resize, int):
            short, long = sorted(original_size)
            long = int(self.resize * long / short)  # rounded down, as torchvision does
            resized = (self.resize, long) if height <= width else (long, self.resize)
        else:
            resized = self.resize or (height, width)
        if self.crop is None:
            return Geometry(resized, (0, 0), resized)
        if resized[0] < self.crop[0] or resized[1] < self.crop[1]:
            raise DataError(
                f"image of {height}x{width} pixels is {resized[0]}x{resized[1]} when cropped, "
                f"smaller than crop={list(self.crop)}: set resize, or lower crop"
            )
        # Python's round, half to even, as torchvision's CenterCrop
        top, left = round((resized[0] - self.crop[0]) / 2), round((resized[1] - self.crop[1]) / 2)
        return Geometry(resized, (top, left), self.crop)

    def register(self, image: Tensor) -> Registration | None:
        """Where an image (3, H, W) in [0, 1] lies on the reference; None without `align`.

        Raises:
            DataError: it does not register well enough.
        """
        return self.alignment.register(image) if self.alignment else None

    def forward(self, image: Tensor, registration: Registration | None = None) -> Tensor:
        """Prepare an image for the backbone.

        Args:
            image: (3, H, W) or (B, 3, H, W) floating point in [0, 1], as `oddpatch.data.decoding` gives.
            registration: what `register` gave for the image, where it is needed again; else it is found here.

        Returns:
            (3, h, w) or (B, 3, h, w) float32, normalised; (h, w) is `image_size`.

        Raises:
            DataError: another shape or type, an image smaller than the crop or of another size than `roi`, or one that
                does not register.
        """
        if image.ndim not in (3, 4) or image.shape[-3] != 3 or not image.is_floating_point():
            raise DataError(
                f"expected (3, H, W) or (B, 3, H, W) floating point in [0, 1], got {tuple(image.shape)} {image.dtype}: "
                "decode with oddpatch.data.decoding"
            )
        if self.alignment:
            image = self._align(image, registration)
        self._check_roi((image.shape[-2], image.shape[-1]))
        (resized, (top, left), (height, width)) = self.geometry((image.shape[-2], image.shape[-1]))
        batch = image if image.ndim == 4 else image[None]  # (B, 3, H, W)
        rows = Axis(batch.shape[2], resized[0], top, top + height)
        columns = Axis(batch.shape[3], resized[1], left, left + width)
        batch = resample(batch.float(), rows, columns, self.interpolation)  # (B, 3, h, w)
        if self.interpolation == "bicubic":
            batch = batch.clamp(0, 1)
        batch = (batch - self._column(self.mean, batch)) / self._column(self.std, batch)
        batch = batch.contiguous()
        return batch if image.ndim == 4 else batch[0]

    def load(self, path: str | Path) -> Tensor:
        """Read an image file and prepare it: (3, h, w) float32.

        Raises:
            DataError: it cannot be read or prepared; the file is named.
        """
        image = read_image(path)
        try:
            return self(image)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def _align(self, image: Tensor, registration: Registration | None) -> Tensor:
        assert self.alignment is not None
        if image.ndim == 4:
            return torch.stack([self._align(single, registration) for single in image])
        moved = self.alignment.warp(image.cpu(), registration or self.alignment.register(image.cpu()))
        return moved.to(image.device)

    def _check_roi(self, size: Size) -> None:
        if self._roi_size not in (None, size):
            height, width = self._roi_size or size
            raise DataError(
                f"image of {size[0]}x{size[1]} pixels, but roi was drawn on {height}x{width}: "
                "give images of one size, or a roi of theirs"
            )

    @staticmethod
    def _column(values: Sequence[float], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None, None]  # (3, 1, 1)

    def mask(self, mask: Tensor, registration: Registration | None = None) -> Tensor:
        """Align, resize and crop a mask to lie on its image.

        Args:
            mask: (H, W) uint8.
            registration: what `register` gave for its image; needed if there is an alignment.

        Returns:
            (1, h, w) uint8 with no new values: each pixel takes the one under its centre, on the grid of `forward`.
        """
        if self.alignment:
            mask = self.alignment.warp_mask(mask, self._needed(registration))
        return self._lay_out(mask)

    @staticmethod
    def _needed(registration: Registration | None) -> Registration:
        if registration is None:
            raise DataError(
                "images are aligned, so where this one lies must be given: pass registration=register(image)"
            )
        return registration

    def _lay_out(self, mask: Tensor) -> Tensor:
        (resized, (top, left), (height, width)) = self.geometry((mask.shape[-2], mask.shape[-1]))
        moved = F.interpolate(mask[None, None], resized, mode="nearest-exact")[0]  # (1, H', W')
        return moved[:, top : top + height, left : left + width].contiguous()

    def to_image(self, normalised: Tensor) -> Tensor:
        """Undo the normalisation for pictures: (..., 3, h, w) in [0, 1]."""
        return (normalised * self._column(self.std, normalised) + self._column(self.mean, normalised)).clamp(0, 1)

    def to_original(
        self,
        maps: Tensor,
        original_size: Size,
        fill: float = float("nan"),
        registration: Registration | None = None,
    ) -> Tensor:
        """Lay maps of the preprocessed image on the original.

        Args:
            maps: (B, C, h, w) floating point.
            original_size: (H, W) of the original image.
            fill: value of pixels that the crop left out, or that lie outside the reference of `align`.
            registration: what `register` gave for the image; needed if there is an alignment.

        Returns:
            (B, C, H, W), sampled bilinearly.
        """
        x, y = self._pixel_centres(original_size, maps.device, registration)  # (H, W) each
        framed = self.alignment.size if self.alignment else original_size
        resized, offset, size = self.geometry(framed)
        axes, inside = [], torch.ones_like(x, dtype=torch.bool)
        for axis, centres in ((1, x), (0, y)):
            position = centres * (resized[axis] / framed[axis]) - offset[axis]  # in map pixels, 0..length over the crop
            axes.append(position * (2 / size[axis]) - 1)
            inside &= (position >= 0) & (position <= size[axis])
        grid = torch.stack(axes, dim=-1).expand(len(maps), -1, -1, -1)  # (B, H, W, 2) as (x, y)
        laid = F.grid_sample(maps, grid.to(maps.dtype), padding_mode="border", align_corners=False)  # (B, C, H, W)
        return laid.masked_fill(~inside, fill)

    def _pixel_centres(
        self, size: Size, device: torch.device, registration: Registration | None
    ) -> tuple[Tensor, Tensor]:
        """x and y (H, W) of the pixel centres of an image, counted from the corner, where the alignment moves them."""
        y, x = torch.meshgrid(*(torch.arange(side, device=device, dtype=torch.float32) for side in size), indexing="ij")
        if self.alignment:
            matrix = torch.from_numpy(self._needed(registration).matrix).to(device, torch.float32)
            x, y, scale = torch.einsum("ij,jhw->ihw", matrix, torch.stack([x, y, torch.ones_like(x)]))
            x, y = x / scale, y / scale
        return x + 0.5, y + 0.5


def _size(name: str, value: int | Sequence[int] | None) -> Size | None:
    if value is None:
        return None
    sides = [value, value] if isinstance(value, int) else list(value)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ConfigError(f"{name}={sides} is not a size: give a whole number, [height,width] or null")
    return sides[0], sides[1]


def _channels(name: str, values: Sequence[float]) -> tuple[float, ...]:
    if len(values) != 3:
        raise ConfigError(f"{name}={list(values)} must have 3 values, one per colour channel")
    return tuple(float(value) for value in values)
