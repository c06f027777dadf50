"""Connected defect regions, found once and used by every metric that treats regions alike."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Regions(NamedTuple):
    """The R defect regions of a stack of images, and which of them each of the P defect pixels is part of."""

    region: NDArray[np.int64]  # (P,) region of each defect pixel, the pixels in the order of `defect.ravel()`
    size: NDArray[np.int64]  # (R,) pixels in each region
    image: NDArray[np.int64]  # (R,) image each region lies in


def find_regions(defect: NDArray[np.bool_]) -> Regions:
    """The 8-connected regions of defect (N, H, W); regions never reach from one image into another."""
    import cv2  # OpenCV loads slowly, and models, which import thresholds from here, never look for regions

    region, size, image = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    count = 0
    # Image by image: only those with defects are labelled, and one image of labels is alive at a time.
    for position in np.flatnonzero(defect.any(axis=(1, 2))):
        mask = np.ascontiguousarray(defect[position])
        num_labels, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
        own = labels[mask].astype(np.int64) - 1  # label 0 is the background
        region.append(own + count)
        size.append(np.bincount(own, minlength=num_labels - 1))
        image.append(np.full(num_labels - 1, position))
        count += num_labels - 1
    return Regions(np.concatenate(region), np.concatenate(size), np.concatenate(image))
