"""Ground-truth masks: which pixels of a file mark a defect."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oddpatch.data.decoding import naming, open_upright, pixels_of
from oddpatch.data.deep import Array
from oddpatch.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


def read_mask(path: str | Path, threshold: float = 0.0) -> "Tensor":
    """Decode a ground-truth mask of any mode: what is not zero is defect.

    * Colour: a pixel is defect if any channel is. Alpha counts only where it alone carries the picture, that is where
      the colours are the same everywhere and alpha is not.
    * Palettes: a pixel is defect if its colour is not black, as it looks. If the colours in use do not tell (none is
      black, or all are), its index decides: 0 is background.

    Args:
        path: mask file.
        threshold: fraction of full scale in [0, 1) a value must exceed; above 0 for grey edges or JPEG noise.

    Returns:
        (H, W) uint8, 1 = defect.

    Raises:
        DataError: as `read_image`; float values outside [0, 1] only with a threshold above 0.
    """
    import torch

    with naming(path):
        image = open_upright(path)
        if isinstance(image, Image.Image) and image.mode == "P":
            mask = _palette_mask(image, threshold)
        else:
            mask = _array_mask(pixels_of(image), threshold)
    return torch.from_numpy(mask.astype(np.uint8))


def marks_background(mask: "Tensor") -> bool:
    """Whether a mask (H, W) covers more than half of the image, or of its border: inverted, or its background not 0."""
    import torch

    border = torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]])  # (2 * (H + W),)
    return any(2 * int(part.count_nonzero()) > part.numel() for part in (mask, border))


def _array_mask(array: Array, threshold: float) -> NDArray[np.bool_]:
    if array.ndim == 3 and array.shape[2] in (2, 4):
        colour, alpha = array[..., :-1], array[..., -1]
        uniform = (colour == colour[0, 0]).all() and not (alpha == alpha[0, 0]).all()
        array = alpha if uniform else colour
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not np.isfinite([low, high]).all():
            raise DataError("the mask holds values that are not finite: save it as 8-bit grey, 0 and 255")
        if threshold > 0 and (low < 0 or high > 1):
            raise DataError(
                f"float values {low:g}..{high:g} have no full scale for mask_threshold={threshold}: set it to 0"
            )
    full_scale = {"b": 1, "f": 1}.get(array.dtype.kind, 255 if array.dtype.itemsize == 1 else 65535)
    defect = array > threshold * full_scale if threshold > 0 else array != 0
    return np.asarray(defect.any(axis=-1) if defect.ndim == 3 else defect, np.bool_)


def _palette_mask(image: Image.Image, threshold: float) -> NDArray[np.bool_]:
    index = np.asarray(image)  # (H, W)
    colours = np.zeros((256, 3), np.uint8)
    stored = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    colours[: len(stored)] = stored
    visible = np.asarray((colours > 255 * threshold).any(axis=1), np.bool_)  # (256,)
    used = visible[np.unique(index)]
    # Index 0 of an optimised palette may be the defect's white: colour comes first where it tells two things apart.
    return visible[index] if used.any() and not used.all() else index != 0
