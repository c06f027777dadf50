"""How images of any size come to the one size a backbone sees, and how much of each is looked at."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from oddpatch.errors import ConfigError, DataError

Size = tuple[int, int]  # (height, width)
Fit = Literal["crop", "stretch", "letterbox", "tiles"]
FITS: tuple[Fit, ...] = get_args(Fit)
#: Pixels of a frame from which on images are prepared in bands, and no two inspected side by side: floats and maps of
#: one take gigabytes.
LARGE_FRAME = 2**24


class Geometry(NamedTuple):
    """Where an image comes to lie: resized to `resized`, of which `size` is kept from `offset` on.

    A negative offset leaves room: the image is padded there.
    """

    resized: Size
    offset: tuple[int, int]  # (top, left)
    size: Size

    @property
    def inside(self) -> tuple[slice, slice]:
        """Rows and columns of the frame that show the image; the others are padding."""
        rows, columns = (
            slice(max(-offset, 0), min(resized - offset, size))
            for resized, offset, size in zip(self.resized, self.offset, self.size, strict=True)
        )
        return rows, columns

    @property
    def padded(self) -> bool:
        """Whether part of the frame shows no image."""
        return self.inside != (slice(0, self.size[0]), slice(0, self.size[1]))

    @property
    def share(self) -> float:
        """Share of the image's area that is kept, in (0, 1]."""
        rows, columns = self.inside
        return (rows.stop - rows.start) * (columns.stop - columns.start) / math.prod(self.resized)


@dataclass(frozen=True, slots=True)
class Frame:
    """The size all images are brought to, and how.

    Args:
        fit: "crop" cuts `size` from the centre of the image; "stretch" and "letterbox" show all of it, the latter with
            its aspect ratio, padded where that is not the frame's; "tiles" is a letterbox of the images' own size times
            `scale`, whatever `resize` says.
        resize: length of the shorter side, or (height, width), or None to keep the size.
        size: of the frame; None until it is known, see `adapted`.
        shape: size of the image that the frame was made for: others of its aspect ratio, to a hundredth, fill the frame
            too, though its sides were rounded. None for the frame's own.
    """

    fit: Fit
    resize: int | Size | None
    size: Size | None = None
    shape: Size | None = None
    scale: float = 1.0

    def adapted(self, sizes: Sequence[Size], multiple: int = 1) -> "Frame":
        """The frame with its size set for images of these sizes, if it is still open.

        It takes the aspect ratio that the middle one of the images has, so that a set of one shape is not padded.

        Args:
            sizes: (height, width) of each image.
            multiple: both sides become multiples of it, as the backbone needs.
        """
        if self.size is not None or not sizes:
            return self
        height, width = sorted(sizes, key=lambda size: (size[0] / size[1], size))[len(sizes) // 2]
        scale = (
            self.scale
            if self.fit == "tiles"
            else self.resize / min(height, width)
            if isinstance(self.resize, int)
            else 1.0
        )
        rounded = [max(round(side * scale / multiple), 1) * multiple for side in (height, width)]
        return replace(self, size=(rounded[0], rounded[1]), shape=(height, width))

    def place(self, original: Size) -> Geometry:
        """Where an image of size `original` comes to lie.

        Raises:
            ConfigError: the frame's size is not known yet.
            DataError: the image is smaller than the crop.
        """
        if self.size is None:
            raise ConfigError("the image size is found from the training images: call MVTecDataModule.setup first")
        if self.fit == "crop":
            return self._cropped(original, self.size)
        if self.fit == "stretch" or _alike(original, self.shape or self.size):
            return Geometry(self.size, (0, 0), self.size)
        scale = min(self.size[0] / original[0], self.size[1] / original[1])
        resized = tuple(min(max(round(side * scale), 1), room) for side, room in zip(original, self.size, strict=True))
        top, left = ((room - side) // 2 for room, side in zip(self.size, resized, strict=True))
        return Geometry((resized[0], resized[1]), (-top, -left), self.size)

    def _cropped(self, original: Size, crop: Size) -> Geometry:
        height, width = original
        if isinstance(self.resize, int):
            short, long = sorted(original)
            long = int(self.resize * long / short)  # rounded down, as torchvision does
            resized = (self.resize, long) if height <= width else (long, self.resize)
        else:
            resized = self.resize or original
        if resized[0] < crop[0] or resized[1] < crop[1]:
            raise DataError(
                f"image of {height}x{width} pixels is {resized[0]}x{resized[1]} when cropped, "
                f"smaller than crop={list(crop)}: set resize, or lower crop"
            )
        # Python's round, half to even, as torchvision's CenterCrop
        top, left = round((resized[0] - crop[0]) / 2), round((resized[1] - crop[1]) / 2)
        return Geometry(resized, (top, left), crop)


def make_frame(
    resize: int | Sequence[int] | None,
    crop: int | Sequence[int] | None,
    fit: str | None = None,
    adapted: Mapping[str, Sequence[int]] | None = None,
    scale: float = 1.0,
) -> Frame:
    """A `Frame` from settings as they are written in a config.

    Args:
        resize: see `Frame`.
        crop: what is cut out, for "crop".
        fit: None for "crop" where a crop is set, else "stretch" to a size and "letterbox" to a side.
        adapted: `size` and `shape` that were found for other images, see `Frame.adapted`.
        scale: for "tiles".

    Raises:
        ConfigError: a value cannot work, or the values do not go together.
    """
    if fit is not None and fit not in FITS:
        raise ConfigError(f"fit={fit!r} is not known: choose {', '.join(FITS)} or null")
    to = resize if isinstance(resize, int) else as_size("resize", resize)
    cut = as_size("crop", crop)
    chosen: Fit = fit or ("crop" if cut else "stretch" if isinstance(to, tuple) else "letterbox")
    if isinstance(to, int) and to < 1:
        raise ConfigError(f"resize={to} must be at least 1")
    if chosen != "crop":
        if scale <= 0:
            raise ConfigError(f"tiles.scale={scale} must be above 0")
        found = {name: as_size(f"adapted.{name}", size) for name, size in (adapted or {}).items()}
        whole = (to, to) if isinstance(to, int) and chosen == "stretch" else to if isinstance(to, tuple) else None
        whole = None if chosen == "tiles" else whole
        return Frame(chosen, to, found.get("size") or whole, found.get("shape"), scale)
    if cut is None:
        raise ConfigError("fit=crop needs the size to cut out: set crop, or fit=letterbox to look at all of it")
    room = (to, max(cut)) if isinstance(to, int) else to or cut  # the longer side may have room for more
    wanted = (min(cut), max(cut)) if isinstance(to, int) else cut
    if wanted[0] > room[0] or wanted[1] > room[1]:
        shown = list(to) if isinstance(to, tuple) else to
        raise ConfigError(f"crop={list(cut)} is larger than resize={shown}: lower crop or raise resize")
    return Frame(chosen, to, cut)


def as_size(name: str, value: int | Sequence[int] | None) -> Size | None:
    """(height, width) of a setting: one number for a square.

    Raises:
        ConfigError: it is neither.
    """
    if value is None:
        return None
    sides = [value, value] if isinstance(value, int) else list(value)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ConfigError(f"{name}={sides} is not a size: give a whole number, [height,width] or null")
    return sides[0], sides[1]


def _alike(first: Size, second: Size) -> bool:
    """Whether two sizes have the same aspect ratio, to a hundredth."""
    return abs(math.log(first[0] * second[1] / (first[1] * second[0]))) <= 0.01
