"""Anomalous regions of an anomaly map: where they are, how large, how anomalous."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Region:
    """One connected region above the threshold, in pixels of the map it was found in."""

    box: tuple[int, int, int, int]  # left, top, width, height
    area: int
    peak: float  # highest anomaly value
    mean: float
    contours: list[list[tuple[int, int]]]  # outer outlines (x, y); several where near regions were merged

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "box": dict(zip(("left", "top", "width", "height"), self.box, strict=True)),
            "area": self.area,
            "peak": self.peak,
            "mean": self.mean,
            "contours": [[list(point) for point in contour] for contour in self.contours],
        }


def find_regions(
    anomaly_map: NDArray[np.floating], threshold: float, min_area: int = 1, merge_distance: int = 0
) -> tuple[list[Region], NDArray[np.uint8]]:
    """The 8-connected regions of pixels above the threshold, most anomalous first, and their mask (H, W), 255 inside.

    Args:
        anomaly_map: (H, W); NaN where nothing is known, which is never anomalous.
        threshold: a pixel is anomalous if its value is above it.
        min_area: regions of fewer pixels are left out (after merging).
        merge_distance: regions with at most so many pixels between them count as one.
    """
    mask = (anomaly_map > threshold).view(np.uint8)  # NaN compares as false
    if not mask.any():
        return [], mask
    left, top, width, height = cv2.boundingRect(mask)
    window = (slice(top, top + height), slice(left, left + width))  # the rest need not be looked at again
    values, anomalous = anomaly_map[window], mask[window]
    groups: NDArray[Any] = anomalous
    if merge_distance > 0:
        # A square of side d + 1 adds d pixels to each region, all told, along each axis: over d pixels they touch.
        groups = cv2.dilate(anomalous, np.ones((merge_distance + 1, merge_distance + 1), np.uint8))
    count, labels, found, _ = cv2.connectedComponentsWithStats(groups, connectivity=8, ltype=cv2.CV_32S)
    areas = found[:, cv2.CC_STAT_AREA]
    if merge_distance > 0:  # grown pixels are given back
        labels = np.where(anomalous > 0, labels, 0)  # (h, w)
        areas = np.bincount(labels.ravel(), minlength=count)
    large = areas >= min_area
    large[0] = False
    regions = []
    for label in np.flatnonzero(large):
        x, y, width, height = found[label, :4]  # of the grown pixels, too
        part = (slice(y, y + height), slice(x, x + width))
        regions.append(_describe(values[part], labels[part] == label, left + int(x), top + int(y)))
    kept = anomalous if large[1:].all() else large[labels].view(np.uint8)
    mask[window] = np.uint8(255) * kept
    return sorted(regions, key=lambda region: -region.peak), mask


def _describe(values: NDArray[np.floating], inside: NDArray[np.bool_], left: int, top: int) -> Region:
    """Of the pixels `inside` a window whose upper left corner is given."""
    pixels = inside.view(np.uint8)
    x, y, width, height = cv2.boundingRect(pixels)
    anomalous = values[inside]
    outlines, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
    return Region(
        (left + x, top + y, width, height),
        len(anomalous),
        float(anomalous.max()),
        float(anomalous.mean(dtype=np.float64)),
        [[(int(x), int(y)) for x, y in outline[:, 0]] for outline in outlines],
    )
