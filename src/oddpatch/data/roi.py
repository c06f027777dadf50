"""The region of interest: which part of the images is inspected, as a mask that a user draws."""

from pathlib import Path

from oddpatch.data.alignment import encode
from oddpatch.data.masks import read_mask
from oddpatch.errors import DataError


def load_roi(value: str | Path | None) -> str | None:
    """A region as `Preprocess` takes it, from an image file that is not zero where to inspect.

    Args:
        value: the file, of the size of the images; or what this function gave for one; None for no region.

    Raises:
        DataError: the file cannot be read, or is zero throughout.
    """
    if value is None or str(value).startswith("data:"):
        return None if value is None else str(value)
    mask = read_mask(value)  # (H, W) uint8
    if not mask.any():
        raise DataError(f"{value}: is zero throughout, so nothing would be inspected: paint where to inspect")
    return encode(mask.numpy() > 0)
