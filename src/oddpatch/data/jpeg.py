"""Whether JPEG and JPEG 2000 files hold all of their pixels: decoders paint what is missing grey, and say nothing."""

import re

import numpy as np
from PIL import Image

from oddpatch.data.deep import open_lazily
from oddpatch.errors import DataError

JPEG_MAGIC = b"\xff\xd8\xff"
# Of JPEG 2000: the box that begins a file, and the markers that begin the image, a tile, and the end of all.
_BOX, _IMAGE, _TILE, _END = b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\xff\x90", b"\xff\xd9"
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_SOI, _EOI, _SCAN, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_RESTARTS = range(0xD0, 0xD8)
# Bytes that no decoder mistakes for a marker, and that are coefficients other than 0 whatever the Huffman tables.
_MORE = bytes(np.random.default_rng(0).integers(1, 255, 256, np.uint8))


def check_tiles(data: bytes) -> None:
    """Raise a `DataError` for a JPEG 2000 that was cut between two tiles; within one, its decoder says so."""
    if data.startswith((_BOX, _IMAGE)) and data.find(_END, data.find(_TILE, data.find(_IMAGE))) < 0:
        raise DataError("truncated, the end of its image is missing: replace or remove it")


def find_end(data: bytes) -> int:
    """Where the marker lies that ends the first image of a file; others may follow it.

    Raises:
        DataError: there is none, as of a file that was cut or whose rest is zeros, or parts between are missing.
    """
    at, restarts, scanned = 2, 0, False
    while found := _MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        if marker == _EOI and scanned:
            return found.start()
        if marker in _RESTARTS:
            if marker != _RESTARTS[restarts % 8]:
                raise DataError("damaged, parts of its image are missing: replace or remove it")
            restarts += 1
        elif marker not in (_SOI, _EOI, _TEM):
            at += int.from_bytes(data[at : at + 2], "big")
            if marker == _SCAN:
                restarts, scanned = 0, True
    raise DataError("truncated, the end of its image is missing: replace or remove it")


def check_complete(data: bytes, image: Image.Image, end: int) -> None:
    """Raise a `DataError` if the pixels of a JPEG end before its marker of the end.

    More bytes before the marker change no image that is complete, as a decoder has no use for them, and any other.
    They are tried, at the cost of another decoding, only where pixels may be missing: a decoder makes these grey.

    Args:
        data: of the file.
        image: what was decoded, not yet turned.
        end: see `find_end`.
    """
    if image.mode in ("L", "RGB") and not image.info.get("progressive"):
        corner = image.crop((image.width - 1, image.height - 1, image.width, image.height)).convert("L")
        if abs(corner.getpixel((0, 0)) - 128) > 2:  # type: ignore[operator]
            return
    longer = open_lazily(data[:end] + _MORE + data[end:], ("JPEG",))
    if not np.array_equal(np.asarray(longer), np.asarray(image)):
        raise DataError("damaged, its image ends before its last row: replace or remove it")
