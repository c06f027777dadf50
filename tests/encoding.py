"""Image files of many kinds, and what their errors have in common."""

import io

import cv2
import numpy as np
import tifffile
from PIL import Image

H, W = 12, 17


def colour(rng, dtype="uint8", channels=3):
    return rng.integers(0, np.iinfo(dtype).max + 1, (H, W, channels)).astype(dtype)


def encoded(kind, rng):
    pixels = rng.integers(0, 256, (60, 80, 3)).astype(np.uint8)
    stream = io.BytesIO()
    if kind == "png16":
        return cv2.imencode(".png", rng.integers(0, 65536, (60, 80, 3)).astype(np.uint16))[1].tobytes()
    if kind.startswith("tiff-"):
        compression = None if kind == "tiff-float" else "zlib"
        tifffile.imwrite(stream, rng.random((60, 80, 3)).astype(np.float32), photometric="rgb", compression=compression)
    elif kind == "ppm16":
        return b"P6\n80 60\n65535\n" + rng.integers(0, 65536, (60, 80, 3)).astype(">u2").tobytes()
    else:
        Image.fromarray(pixels).save(stream, kind, **({"compression": "tiff_lzw"} if kind == "tiff" else {}))
    return stream.getvalue()


def one_line(error, path):
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message
