"""A picture of one image's anomaly maps by several distances."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from oddpatch.figures.canvas import FAINT, FONT, Sheet

SIDE, MARGIN, TITLE, SCALE = 3.0, 0.25, 0.5, 0.7  # inches


def draw_distances(
    image: NDArray[np.uint8], name: str, maps: Mapping[str, NDArray[np.float32]], scores: Mapping[str, float]
) -> Sheet:
    """The image and its maps (H, W), each on a scale of its own from its least to its highest value."""
    height = SIDE * image.shape[0] / image.shape[1]
    sheet = Sheet(MARGIN + (SIDE + MARGIN) * (1 + len(maps)), TITLE + height + SCALE)
    sheet.write(MARGIN, 0.2, name, 9, SIDE, weight="bold")
    sheet.picture(MARGIN, TITLE, SIDE, height, image)
    for number, (distance, values) in enumerate(maps.items(), start=1):
        left = MARGIN + number * (SIDE + MARGIN)
        sheet.write(left, 0.2, distance, 9, SIDE, weight="bold")
        sheet.write(left, 0.38, f"score {scores[distance]:.4g}", 7.5, SIDE, color=FAINT)
        shown = sheet.panel(left, TITLE, SIDE, height).imshow(values, cmap="magma")
        bar = sheet.panel(left, TITLE + height + 0.12, SIDE, 0.12)
        sheet.figure.colorbar(shown, cax=bar, orientation="horizontal")
        bar.tick_params(labelsize=7, labelfontfamily=FONT)
    return sheet
