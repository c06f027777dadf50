"""PNG files: damaged ones are refused; plain ones, those of most sets, take a third of the time of Pillow."""

import io
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oddpatch.data.deep import DAMAGED, PNG_MAGIC, check_pixels, inflated
from oddpatch.errors import DataError

# What says nothing of how pixels are to be shown, or is not heeded (colour spaces); text is looked into.
_PLAIN = frozenset((b"IHDR", b"IDAT", b"IEND", b"pHYs", b"tIME", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"bKGD"))
_TEXT = frozenset((b"tEXt", b"iTXt"))
# Of text by which Pillow turns an image: XMP, and EXIF as ImageMagick writes it.
_TURNS = (b"rientation", b"Raw profile")
#: OpenCV refuses larger ones.
_MAX_SIDE, _MAX_PIXELS = 2**20, 2**30
_GREY, _RGB = 0, 2
# Samples of a pixel by the type of its colour: grey, RGB, palette, grey + alpha, RGBA.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Of the seven passes of an interlaced file: first row and column, and the steps between them.
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


class _Thread(threading.local):
    beside_others = False


_thread = _Thread()


def decode_beside_others() -> None:
    """Have this thread decode without holding Python's lock, as others of its process want to work at the same time."""
    _thread.beside_others = True


def read_plain_png(data: bytes, max_pixels: int) -> NDArray[np.uint8 | np.uint16] | None:
    """Decode a PNG of grey or colour, of 8 or 16 bits, that is to be shown as it is stored.

    Args:
        data: of a file.
        max_pixels: larger images are refused.

    Returns:
        (H, W) or (H, W, 3) RGB; None for any other file.

    Raises:
        DataError: a PNG has more than `max_pixels`, or a chunk that is cut off or whose checksum differs.
    """
    if not data.startswith(PNG_MAGIC):
        return None
    chunks = list(_chunks(data))
    if chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise DataError(DAMAGED.format("its header is missing"))
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[0][1])
    check_pixels(height, width, max_pixels)
    small = max(width, height) <= _MAX_SIDE and width * height <= _MAX_PIXELS
    plain = depth in (8, 16) and colour in (_GREY, _RGB) and small and all(_is_plain(*chunk) for chunk in chunks)
    if not plain:
        return None
    # What OpenCV refuses is for kornia-rs to judge, so that no file is read in one thread and refused in another.
    if _thread.beside_others and (found := _decode_beside_others(data, colour)) is not None:
        return found
    from kornia_rs.io import decode_image_png_u8, decode_image_png_u16  # looks for CUDA's compiler, and loads it

    decode = decode_image_png_u8 if depth == 8 else decode_image_png_u16
    try:
        image = decode(data, (height, width), "mono" if colour == _GREY else "rgb")
    except Exception:  # what it raises for a file that it does not take
        return None
    return image[..., 0] if colour == _GREY else image


def _decode_beside_others(data: bytes, colour: int) -> NDArray[np.uint8 | np.uint16] | None:
    """By OpenCV, which takes twice the time, but releases Python's lock."""
    import cv2  # slow to import

    kind = cv2.IMREAD_GRAYSCALE if colour == _GREY else cv2.IMREAD_COLOR_RGB
    image = cv2.imdecode(np.frombuffer(data, np.uint8), kind | cv2.IMREAD_ANYDEPTH)
    return image  # type: ignore[return-value]  # None of what it refuses, whatever its stub says


class Stored(NamedTuple):
    """What the header of a PNG says."""

    height: int
    width: int
    bits: int  # of a sample


def read_upright_header(file: BinaryIO) -> Stored | None:
    """Header of a PNG in which nothing says that it is to be turned, which may stand behind the pixels.

    Pillow decodes the pixels to get there.

    Args:
        file: of any kind, at its start.

    Returns:
        None for a file of another kind, one that is cut off, one whose header is damaged, one without
        pixels, and one that may be turned.
    """
    start = file.read(33)
    whole = len(start) == 33 and start.startswith(PNG_MAGIC + b"\0\0\0\x0dIHDR")
    if not whole or zlib.crc32(start[12:29]) != struct.unpack_from(">I", start, 29)[0]:
        return None
    width, height, bits = struct.unpack_from(">IIB", start, 16)
    if not width or not height:
        return None
    kind = b"IHDR"
    while kind != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            return None
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"eXIf", b"zTXt") or (kind in _TEXT and _may_turn(kind, file.read(length))):
            return None
        file.seek(4 if kind in _TEXT else length + 4, io.SEEK_CUR)
    return Stored(height, width, bits)


def check_rows(data: bytes, image: Image.Image) -> None:
    """Raise a `DataError` if a PNG holds fewer rows than its header says: Pillow leaves the others 0.

    Args:
        data: of a file that `read_plain_png` leaves to Pillow.
        image: as Pillow decodes it, not yet turned.
    """
    chunks = list(_chunks(data))
    width, height, depth, colour, interlaced = struct.unpack(">IIBBxxB", chunks[0][1])
    if not interlaced and np.asarray(image)[-1].any():  # the last row is there: to count costs as much as to decode
        return
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    bits = depth * _SAMPLES[colour]
    wanted = sum(_bytes(height - top, width - left, down, right, bits) for top, left, down, right in passes)
    held = inflated((part for kind, part in chunks if kind == b"IDAT"), wanted)
    if held < wanted:
        raise DataError(DAMAGED.format(f"it holds {held} of {wanted} bytes of its pixels"))


def _bytes(rows: int, columns: int, down: int, right: int, bits: int) -> int:
    """Of one pass: a row has a byte for its filter before its pixels, and there is none without pixels."""
    rows, columns = -(-rows // down), -(-columns // right)
    return rows * (1 + (columns * bits + 7) // 8) if rows > 0 and columns > 0 else 0


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of each chunk, whole and with the right checksum, up to that which ends the file."""
    view, start, kind = memoryview(data), len(PNG_MAGIC), b""
    while kind != b"IEND":
        if start + 12 > len(data):
            raise DataError("truncated, its end is missing: replace or remove it")
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            raise DataError(f"truncated, {end - len(data)} bytes or more are missing: replace or remove it")
        if zlib.crc32(view[start + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise DataError(DAMAGED.format("a checksum differs"))
        yield kind, view[start + 8 : end - 4]
        start = end


def _is_plain(kind: bytes, content: memoryview) -> bool:
    """Whether a chunk leaves pixels as they are."""
    return kind in _PLAIN or (kind in _TEXT and not _may_turn(kind, bytes(content)))


def _may_turn(kind: bytes, text: bytes) -> bool:
    """Whether a chunk of text may say that the image is to be turned."""
    # A flag of iTXt, after its keyword and a zero, says whether the text is compressed.
    packed = kind == b"iTXt" and text[text.find(b"\0") + 1 :][:1] != b"\0"
    return packed or any(word in text for word in _TURNS)
