"""How much of the images is inspected, reported wherever images are: what is left out must never pass for good."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from oddpatch.data.geometry import Size
from oddpatch.data.headers import read_header
from oddpatch.errors import DataError

if TYPE_CHECKING:
    from oddpatch.data.transforms import Preprocess

#: Of a crop that leaves a smaller share is warned.
ENOUGH = 0.95


def read_sizes(paths: Iterable[str | Path]) -> list[Size]:
    """(height, width) of images from their headers; those that cannot be read are passed over."""
    with ThreadPoolExecutor() as pool:
        return [header.size for header in pool.map(read_header, paths) if header]


class Inspected(NamedTuple):
    """Shares of the area of images."""

    mean: float  # that is inspected, over all images
    min: float  # in the image of which the least is
    framed: float  # that a crop leaves, in the image of which it leaves the least; not counting a region of interest

    def to_dict(self) -> dict[str, float]:
        """Plain values for metrics.json."""
        return {"mean": round(self.mean, 4), "min": round(self.min, 4)}


def inspected_share(preprocess: "Preprocess", sizes: Sequence[Size]) -> Inspected | None:
    """How much of images of these sizes is inspected; None without images.

    An image that cannot be prepared is passed over: whoever loads it says why.
    """
    found: list[tuple[float, float, int]] = []
    for size, count in Counter(sizes).items():
        try:
            found.append((preprocess.share(size), preprocess.geometry(size).share, count))
        except DataError:
            continue
    if not found:
        return None
    shares, frames, counts = zip(*found, strict=True)
    mean = sum(share * count for share, count in zip(shares, counts, strict=True)) / sum(counts)
    return Inspected(mean, min(shares), min(frames))


def describe_share(preprocess: "Preprocess", inspected: Inspected) -> str:
    """One line: how much of the images is inspected, and the setting that changes it where a crop leaves little."""
    height, width = preprocess.image_size
    uneven = inspected.mean - inspected.min >= 5e-4
    share = f"{inspected.mean:.1%}" + (f" (of one image {inspected.min:.1%})" if uneven else "")
    text = f"{share} of the area of the images is inspected, at {height}x{width} pixels"
    if inspected.framed < ENOUGH:
        return f"{text}: the crop leaves the rest out; data.crop=null inspects all of it"
    return text
