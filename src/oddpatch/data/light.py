"""Plain statistics of an image, by which a change of light or focus is seen whatever the model makes of it."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Of a large image so many blocks along each side are looked at, of so many pixels each, at full resolution.
BLOCKS, BLOCK = 8, 32


class Light(NamedTuple):
    """Brightness and sharpness of an image, of six digits each."""

    brightness: float  # mean grey value, in [0, 1]
    sharpness: float  # variance of the Laplacian of the grey values (Pech-Pacheco et al., ICPR 2000)


#: The statistics of an image, in the order in which they are kept; "aligned" only where images are aligned.
STATISTICS = (*Light._fields, "aligned")


def measure(image: NDArray[Any]) -> Light:
    """Brightness and sharpness of an image (3, H, W) of uint8 or of floats in [0, 1].

    Along a side of more than 256 pixels, 8 evenly spread stretches of 32 are looked at: pixels are left out, but none
    is resampled, which would hide a slight blur.
    """
    rows, columns = (_looked_at(side) for side in image.shape[1:])
    planes = np.empty((3, *rows.shape, *columns.shape), image.dtype)  # (3, m, block, n, block)
    for i, j in np.ndindex(len(rows), len(columns)):  # a third of the time of two index arrays
        row, column = rows[i], columns[j]
        planes[:, i, :, j] = image[:, row[0] : row[-1] + 1, column[0] : column[-1] + 1]
    blocks = (planes[0].astype(np.float32) + planes[1] + planes[2]) / np.float32(3)  # of grey values
    if image.dtype == np.uint8:
        blocks /= 255
    above, below, left, right = blocks[:, :-2], blocks[:, 2:], blocks[..., :-2], blocks[..., 2:]
    around = above[..., 1:-1] + below[..., 1:-1] + left[:, 1:-1] + right[:, 1:-1]
    laplacian = around - 4 * blocks[:, 1:-1, :, 1:-1]
    sharpness = float(laplacian.var(dtype=np.float64)) if laplacian.size else 0.0
    return Light(float(f"{blocks.mean(dtype=np.float64):.6g}"), float(f"{sharpness:.6g}"))


def _looked_at(side: int) -> NDArray[np.int64]:
    """Positions along a side: (m, block)."""
    if side <= BLOCKS * BLOCK:
        return np.arange(side)[None]
    return np.linspace(0, side - BLOCK, BLOCKS).round().astype(np.int64)[:, None] + np.arange(BLOCK)
