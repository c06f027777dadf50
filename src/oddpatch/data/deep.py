"""Reading image files that hold more than 8 bits a channel, where Pillow would lose depth or gives up."""

import io
import math
import threading
import zlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oddpatch.errors import DataError

Array = NDArray[Any]

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_EXIF_ORIENTATION = 274
DAMAGED = "damaged ({}): replace or remove it"
#: Bytes to inflate at a time; they give a thousand times as many at most.
_PIECE = 2**14
#: Bits of a TIFF's page that is a smaller copy of another, or its mask.
_REDUCED_OR_MASK = 0b101
#: Pages of a TIFF that are looked at: smaller copies, each of half the size, are far fewer.
_PAGES = 64
_SEVERAL = "holds several images, and only the first would be looked at: save each as a file of its own"
_pillow_lock = threading.RLock()


def read_deep(data: bytes, max_pixels: int) -> Array | None:
    """Decode a file that Pillow would not read at full depth.

    Args:
        data: the bytes of a 16-bit colour PNG or PPM, or of a TIFF of floats or more than 8 bits.
        max_pixels: larger images are refused.

    Returns:
        (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, upright; None for any other file.
    """
    if data.startswith(_TIFF_MAGIC):
        return _deep_tiff(data, max_pixels)
    if data.startswith(PNG_MAGIC) and len(data) > 25 and data[24] == 16 and data[25] != 0:  # 16 bits, not grey
        return _deep_png(data, max_pixels)
    if data.startswith(b"P6"):
        return _deep_ppm(data, max_pixels)
    return None


def check_pixels(height: int, width: int, max_pixels: int) -> None:
    """Raise a `DataError` for an image that would take too much memory, before it is decoded."""
    if height * width > max_pixels:
        raise DataError(
            f"{height}x{width} is {height * width} pixels, over the limit of {max_pixels}: "
            f"set max_pixels={height * width} if you trust the file and have the memory"
        )


def open_lazily(file: bytes | str | Path, formats: tuple[str, ...], max_pixels: int | None = None) -> Image.Image:
    """An image whose header has been read and which Pillow decodes when it is asked for pixels.

    Raises:
        DataError: it has more than `max_pixels` pixels, which counts in place of Pillow's own limit.
    """
    with _pillow_lock:  # the limit is a global of the process
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if max_pixels is not None:
        check_pixels(image.height, image.width, max_pixels)
    return image


def inflated(parts: Iterable[memoryview], most: int) -> int:
    """Bytes that a stream of zlib holds, counted no further than `most`.

    Raises:
        DataError: the stream is damaged.
    """
    stream, held = zlib.decompressobj(), 0
    try:
        for part in parts:
            for start in range(0, len(part), _PIECE):
                if held > most or stream.eof:
                    return held
                held += len(stream.decompress(part[start : start + _PIECE]))
    except zlib.error as error:
        raise DataError(DAMAGED.format(error)) from error
    return held


def refuse_several(image: Image.Image) -> None:
    """Raise a `DataError` for a file of several frames or pages, of which only the first would be looked at.

    Layers of a PSD and the previews of the cameras that write MPO are no other images; of TIFF see `_deep_tiff`.
    """
    if getattr(image, "is_animated", False) and image.format not in ("MPO", "PSD", "TIFF"):
        raise DataError(_SEVERAL)


def _turn(array: Array, orientation: int) -> Array:
    """Turn an array (H, W, ...) by an EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def _deep_png(data: bytes, max_pixels: int) -> Array:
    image = open_lazily(data, ("PNG",), max_pixels)
    refuse_several(image)
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    return _turn(read_with_opencv(data), orientation)


def _deep_ppm(data: bytes, max_pixels: int) -> Array | None:
    args = open_lazily(data, ("PPM",), max_pixels).tile[0].args  # type: ignore[attr-defined]
    full_scale = args[1] if isinstance(args, tuple) else 255
    if full_scale <= 255:
        return None
    return np.round(read_with_opencv(data) * (65535 / full_scale)).astype(np.uint16)


def _deep_tiff(data: bytes, max_pixels: int) -> Array | None:
    """The image of a TIFF deeper than 8 bits, upright; None if Pillow reads it without loss.

    Raises:
        DataError: parts of the image are missing, of any depth: tifffile and Pillow leave them black. Or it holds
            several images.
    """
    import tifffile  # slow to import, and only deep TIFFs need it

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        if not all(getattr(other, "subfiletype", 0) & _REDUCED_OR_MASK for other in islice(file.pages, 1, _PAGES)):
            raise DataError(_SEVERAL)
        if page.bitspersample > 8 and page.bitspersample not in (16, 32, 64):
            raise DataError(f"{page.bitspersample} bits a sample are not supported: save it with 8, 16 or 32")
        check_pixels(page.imagelength, page.imagewidth, max_pixels)
        wanted = math.prod(page.chunked) if page.imagelength and page.imagewidth else 0
        parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))[:wanted]
        held = sum(start > 0 < length for start, length in parts)
        if held < wanted and page.compression != tifffile.COMPRESSION.OJPEG:  # of which one stream holds all parts
            raise DataError(f"damaged, it holds {held} of {wanted} parts of its image: replace or remove it")
        if page.bitspersample <= 8:
            if page.compression in (tifffile.COMPRESSION.ADOBE_DEFLATE, tifffile.COMPRESSION.DEFLATE):
                for start, length in parts:  # libtiff looks at no checksum
                    inflated([memoryview(data)[start : start + length]], math.prod(page.chunks))
            return None
        try:
            array = page.asarray()
        except ValueError as error:
            # tifffile decodes few compressions by itself. OpenCV mixes up the channels of planar files.
            if "imagecodecs" not in str(error) or page.planarconfig == 2:
                raise
            array = read_with_opencv(data)
        else:
            array = np.moveaxis(array, 0, -1) if page.planarconfig == 2 and array.ndim == 3 else array
            if array.size and array.shape[:2] != (page.imagelength, page.imagewidth):  # its tags contradict each other
                raise DataError("damaged, its pixels do not form the image it describes: replace or remove it")
            orientation = page.tags.get(_EXIF_ORIENTATION)
            array = _turn(array, orientation.value if orientation else 1)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and array.dtype.kind == "u":
            array = np.iinfo(array.dtype).max - array
    return array


def read_with_opencv(data: bytes) -> Array:
    """Decode with OpenCV at full depth: (H, W), (H, W, 3) RGB or (H, W, 4) RGBA."""
    import cv2  # slow to import, and only rare files need it

    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise DataError("truncated, damaged or of an unknown kind: replace or remove it")
    return array[..., [2, 1, 0, 3][: array.shape[2]]] if array.ndim == 3 else array
