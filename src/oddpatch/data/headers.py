"""What image files say of themselves before they are decoded: size, depth, and the full scale of a set."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from oddpatch.data.decoding import pillow_formats, read_pixels
from oddpatch.data.deep import Array, open_lazily
from oddpatch.data.png import decode_beside_others, read_upright_header
from oddpatch.data.reading import FileContent
from oddpatch.errors import DataError

# Tags of EXIF and TIFF
_ORIENTATION, _BITS_PER_SAMPLE = 274, 258


class Header(NamedTuple):
    """What a file says of its image before it is decoded."""

    size: tuple[int, int]  # (height, width), upright
    deep: bool  # whether it may hold integers of more than 8 bits


def read_header(path: str | Path) -> Header | None:
    """Size and depth of an image file, without decoding it where the format allows; None if it cannot be read."""
    try:
        if not Path(path).is_file():
            return None
        with Path(path).open("rb") as file:
            if stored := read_upright_header(file):
                return Header((stored.height, stored.width), stored.bits > 8)
        with open_lazily(Path(path), pillow_formats()) as image:
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            size = (image.width, image.height) if turned else (image.height, image.width)
            return Header(size, _may_be_deep(image, path))
    except Exception:  # a format that Pillow does not know, such as a TIFF of 16-bit colour, or a damaged file
        array = _decoded(path, None)
        return None if array is None else Header((array.shape[0], array.shape[1]), _is_deep(array))


def pixels_in_header(path: str | Path) -> int | None:
    """Pixels of an image file; None where only decoding it would tell."""
    file = path.data if isinstance(path, FileContent) else Path(path)
    with suppress(Exception), open_lazily(file, pillow_formats()) as image:
        return image.width * image.height
    return None


def find_full_scale(paths: Iterable[str | Path], max_pixels: int | None = None) -> int | None:
    """The full scale of the sensor that took a set of images: the highest value, up to the next power of two, less one.

    Args:
        paths: of the images; those that cannot be read are passed over, whoever decodes them says why.
        max_pixels: see `read_image`.

    Returns:
        255, 1023, 4095, ..., 65535; None where no image has integers of more than 8 bits.
    """
    with ThreadPoolExecutor(initializer=decode_beside_others) as pool:
        highest = max(pool.map(lambda path: _highest(path, max_pixels), paths), default=-1)
    return None if highest < 0 else max(2 ** highest.bit_length() - 1, 255)


def _highest(path: str | Path, max_pixels: int | None) -> int:
    """The highest value of an image of more than 8 bits; -1 for any other."""
    header = read_header(path)
    array = _decoded(path, max_pixels) if header and header.deep else None
    return int(array.max()) if array is not None and _is_deep(array) else -1


def _decoded(path: str | Path, max_pixels: int | None) -> Array | None:
    with suppress(DataError):
        return read_pixels(path, max_pixels)
    return None


def _is_deep(array: Array) -> bool:
    return array.dtype.kind in "iu" and array.dtype.itemsize > 1


def _may_be_deep(image: Image.Image, path: str | Path) -> bool:
    if image.mode.startswith("I") or image.format in ("PPM", "JPEG2000"):
        return True
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8  # type: ignore[attr-defined]
    if image.format == "PNG":
        with Path(path).open("rb") as file:
            return file.read(25)[24:] == b"\x10"
    return False
