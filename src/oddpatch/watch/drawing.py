"""Pictures of events: the frame under its anomaly map, small enough to be drawn beside a running model."""

import io
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oddpatch.data.decoding import to_uint8
from oddpatch.figures.overlay import overlay
from oddpatch.watch.events import Event


class _Scaled(NamedTuple):
    """A region in a picture of another size."""

    box: tuple[int, int, int, int]
    contours: list[list[tuple[int, int]]]


def to_jpeg(event: Event, longest: int) -> bytes | None:
    """The frame with its heat, outlines and boxes; None where there was no frame.

    Args:
        event: of which arrays are read only.
        longest: pixels that the longer side has at most.
    """
    if event.image is None:
        return None
    height, width = event.image.shape[1:]
    scale = min(1.0, longest / max(height, width))
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    picture = _resize(to_uint8(event.image), size)  # (h, w, 3)
    if event.detection is not None:
        heat = event.detection.normalized_map
        regions = [
            _Scaled(
                _scale_box(region.box, scale),
                [[(round(x * scale), round(y * scale)) for x, y in contour] for contour in region.contours],
            )
            for region in event.detection.regions
        ]
        picture = overlay(picture, None if heat is None else _resize(heat, size), regions)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def to_png(image: NDArray[Any]) -> bytes:
    """A frame (3, H, W) as it was judged, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _resize(pixels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    if pixels.shape[1::-1] == size:
        return pixels
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def _scale_box(box: tuple[int, int, int, int], scale: float) -> tuple[int, int, int, int]:
    left, top, width, height = box
    right, bottom = left + width, top + height
    x, y = int(left * scale), int(top * scale)
    return x, y, max(round(right * scale) - x, 1), max(round(bottom * scale) - y, 1)
