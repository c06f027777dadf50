"""Pictures of single images in their own size: heat on a fixed colour scale, outlines and boxes of regions."""

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from oddpatch.figures.drawing import OPACITY, colors_of

Picture = NDArray[np.uint8]  # (H, W, 3) RGB
#: The colours span these values of the scale from 0 to 1: from a typical good image to three times beyond its distance
#: from the threshold, whatever the image.
LOW, HIGH = 0.25, 0.875
OUTLINE, SHADE = (0, 229, 255), (0, 0, 0)


class Outlined(Protocol):
    """A region of an image."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height."""

    @property
    def contours(self) -> Sequence[Sequence[tuple[int, int]]]:
        """Polygons of (x, y) around it."""


def heatmap(normalized: NDArray[np.floating], span: tuple[float, float] = (LOW, HIGH)) -> Picture:
    """The anomaly map alone as colours; grey where nothing is known.

    Args:
        normalized: (H, W) on the scale from 0 to 1, NaN where nothing is known.
        span: values where the colours begin and end.
    """
    colors = _colors(_level(normalized, span))
    colors[np.isnan(normalized)] = 128
    return colors


def overlay(
    image: Picture,
    normalized: NDArray[np.floating] | None,
    regions: Sequence[Outlined],
    span: tuple[float, float] = (LOW, HIGH),
) -> Picture:
    """The image under its anomaly map, with an outline and a box for each anomalous region.

    Args:
        image: (H, W, 3).
        normalized: (H, W), see `heatmap`; None where there is no map.
        regions: to be outlined.
        span: see `heatmap`.
    """
    drawn = image.copy()
    if normalized is not None:
        level = _level(normalized, span)
        opacity = (OPACITY * np.minimum(2 * level, 1))[..., None]
        drawn = (drawn * (1 - opacity) + _colors(level) * opacity).round().astype(np.uint8)
    width = max(round(min(image.shape[:2]) / 300), 1)
    for region in regions:
        outlines = [np.array(contour, np.int32) for contour in region.contours]
        left, top, wide, high = region.box
        for color, thickness in ((SHADE, 3 * width), (OUTLINE, width)):
            cv2.polylines(drawn, outlines, True, color, thickness, cv2.LINE_AA)
            cv2.rectangle(drawn, (left, top), (left + wide - 1, top + high - 1), color, thickness)
    return drawn


def _colors(level: NDArray[np.floating]) -> Picture:
    return (colors_of(level)[..., :3] * 255).round().astype(np.uint8)


def _level(normalized: NDArray[np.floating], span: tuple[float, float]) -> NDArray[np.floating]:
    low, high = span
    return np.nan_to_num((normalized - low) / (high - low), nan=0).clip(0, 1)
