"""What a bootstrap over images needs to know of the pixels: small enough to keep, where the maps themselves are not.

Resampling images gives each image a weight. Under any weights pixel AUROC follows exactly from a matrix of pair counts,
and every point of a pixel curve at the edge of a bin follows exactly from histograms by image.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.errors import CheckpointError, DataError
from oddpatch.files import replacing
from oddpatch.metrics.arrays import ArrayLike, check_fpr_limits, require_finite, to_floats, to_stack
from oddpatch.metrics.pixel import _select_normal
from oddpatch.metrics.regions import find_regions

FILE_NAME = "pixel_statistics.npz"
Counts = NDArray[np.int64]

#: Edges taken from the quantiles of the defect scores, and as many from those of the normal ones.
_QUANTILES = 1024
# Cells of a block's table and pixels that fall into it: both stay within the cache and a few MB.
_BLOCK_CELLS, _BLOCK_PIXELS = 2**19, 2**22


@dataclass(frozen=True)
class PixelStatistics:
    """Sufficient statistics of the pixel metrics under any weights of the images.

    Half of the edges are equally many defect pixels apart, the other half lie at false-positive rates a constant
    factor apart, so that the curves are resolved where precision and AU-PRO at small limits are decided.
    """

    edges: NDArray[np.float32]  # (K,) lower ends of the bins, rising; no score is below the first
    normal: Counts  # (N, K) normal pixels of each image in each bin
    defect_scores: NDArray[np.float32]  # (P,) scores of the defect pixels, region by region
    region_size: Counts  # (R,) pixels in each 8-connected defect region
    region_image: Counts  # (R,) image each region lies in, rising
    pairs: Counts  # (M, N) of images with defects i and images j: twice the pairs of a defect pixel of i and a normal
    #                pixel of j in which the defect scores higher; a tie counts one
    fpr_limits: NDArray[np.float64]  # (L,) limits of AU-PRO; the first is the headline

    @classmethod
    def from_maps(cls, maps: ArrayLike, masks: ArrayLike, fpr_limits: Sequence[float] = (0.3,)) -> "PixelStatistics":
        """Gather the statistics of anomaly maps.

        Args:
            maps: (N, H, W) or (N, 1, H, W) raw scores, larger being odder; float64 is rounded to float32.
            masks: as many, 0 normal, 1 defect; pixels of value IGNORE are left out.
            fpr_limits: limits of AU-PRO in (0, 1].

        Raises:
            UndefinedMetricError: there are no normal or no defect pixels.
            NonFiniteScoreError: a score is NaN or infinite.
            DataError: shapes differ, or a mask holds another value.
            ConfigError: a limit is outside (0, 1].
        """
        maps, masks = to_floats(to_stack(maps, "maps")).astype(np.float32, copy=False), to_stack(masks, "masks")
        if maps.shape != masks.shape:
            raise DataError(f"maps {maps.shape} and masks {masks.shape} differ: resize the maps to the masks")
        is_normal, is_defect = _select_normal(masks), masks == 1
        require_finite(maps, "maps")
        normal = _sorted_pixels(maps, is_normal)
        regions = find_regions(is_defect)
        by_region = np.argsort(regions.region, kind="stable")
        defect_scores = maps[is_defect][by_region]  # (P,)
        edges = _choose_edges(normal.keys, defect_scores)
        rows = np.searchsorted(np.unique(regions.image), np.repeat(regions.image, regions.size))  # (P,) row of `pairs`
        return cls(
            edges=_to_scores(edges),
            normal=_histograms(normal, edges, len(maps)),
            defect_scores=defect_scores,
            region_size=regions.size,
            region_image=regions.image,
            pairs=_count_pairs(normal, defect_scores, rows, len(maps)),
            fpr_limits=np.array(check_fpr_limits(fpr_limits)),
        )

    @property
    def num_images(self) -> int:
        """N, images without defects included."""
        return len(self.normal)

    @cached_property
    def num_normal(self) -> Counts:
        """(N,) normal pixels of each image."""
        return self.normal.sum(axis=1)

    @cached_property
    def num_defect(self) -> Counts:
        """(N,) defect pixels of each image."""
        return np.bincount(self.region_image, self.region_size, self.num_images).astype(np.int64)

    @cached_property
    def num_regions(self) -> Counts:
        """(N,) defect regions of each image."""
        return np.bincount(self.region_image, minlength=self.num_images)

    @cached_property
    def defect(self) -> NDArray[np.float64]:
        """(N, K) defect pixels of each image in each bin."""
        return self._of_defects(np.ones(len(self.region_size)))

    @cached_property
    def region_share(self) -> NDArray[np.float64]:
        """(N, K) the same with each region weighing one in all: by how much the sum of overlaps rises in each bin."""
        return self._of_defects(1 / self.region_size)

    @cached_property
    def num_distinct(self) -> Counts:
        """(K,) distinct defect scores in each bin."""
        bins = np.searchsorted(self.edges, np.unique(self.defect_scores), side="right") - 1
        return np.bincount(bins, minlength=len(self.edges))

    def _of_defects(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, K) histograms of the defect pixels with the weight (R,) of their regions."""
        bins = np.searchsorted(self.edges, self.defect_scores, side="right") - 1  # (P,)
        cells = np.repeat(self.region_image, self.region_size) * len(self.edges) + bins
        counts = np.bincount(cells, np.repeat(weight, self.region_size), self.num_images * len(self.edges))
        return counts.astype(np.float64).reshape(self.num_images, -1)

    def region_overlaps(self, threshold: float) -> NDArray[np.float64]:
        """(R,) share of each defect region that scores higher than `threshold`; exact."""
        starts = np.concatenate([[0], np.cumsum(self.region_size)[:-1]])
        return np.add.reduceat(self.defect_scores > threshold, starts, dtype=np.int64) / self.region_size

    def save(self, path: Path) -> None:
        """Write an `.npz` of plain arrays, whole or not at all."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        with replacing(path, "wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> "PixelStatistics":
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            CheckpointError: it is missing, truncated or something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{field.name: file[field.name] for field in fields(cls)})
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{path} cannot be read ({type(error).__name__}): test the run again by eval.py, which writes it"
            ) from error


class _Sorted(NamedTuple):
    """Pixels in rising order of their scores."""

    keys: NDArray[np.uint32]  # scores as whole numbers of the same order
    image: NDArray[np.int64]  # image each lies in


def _to_keys(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Whole numbers in the order of finite float32 scores: the bits, negative ones reversed."""
    bits = (scores + np.float32(0)).view(np.uint32)  # adding turns -0 into 0
    negative = (bits.view(np.int32) >> 31).view(np.uint32)  # all bits set where negative, none elsewhere
    return bits ^ (negative | np.uint32(1 << 31))


def _to_scores(keys: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The scores that `_to_keys` was given."""
    return np.where(keys >> 31, keys ^ np.uint32(1 << 31), ~keys).view(np.float32)


def _sorted_pixels(maps: NDArray[np.float32], chosen: NDArray[np.bool_]) -> _Sorted:
    """Sort the chosen pixels of maps (N, H, W)."""
    # Score and image in one 64-bit number: sorting it carries the image along at a fraction of what argsort takes.
    packed = _to_keys(maps[chosen]).astype(np.uint64) << np.uint64(32)
    packed |= np.repeat(np.arange(len(maps), dtype=np.uint64), np.count_nonzero(chosen, axis=(1, 2)))
    packed.sort()
    return _Sorted((packed >> np.uint64(32)).astype(np.uint32), (packed & np.uint64(0xFFFFFFFF)).astype(np.int64))


def _choose_edges(normal: NDArray[np.uint32], defect_scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Edges (K,) of the bins as keys, the lowest score of all among them."""
    defect = np.sort(_to_keys(defect_scores))
    evenly = np.linspace(0, defect.size - 1, min(_QUANTILES, defect.size)).round().astype(np.int64)
    from_top = np.geomspace(1, normal.size, min(_QUANTILES, normal.size)).round().astype(np.int64)
    return np.unique(np.concatenate([defect[evenly], normal[normal.size - from_top]]))


def _by_image(image: Counts, bounds: Counts, num_images: int) -> Counts:
    """(S, N) how many pixels of each image lie in each of the S consecutive stretches that bounds (S + 1,) cut off."""
    stretch = np.repeat(np.arange(bounds.size - 1) * num_images, np.diff(bounds))
    cells = np.bincount(stretch + image[bounds[0] : bounds[-1]], minlength=(bounds.size - 1) * num_images)
    return cells.reshape(-1, num_images)


def _histograms(normal: _Sorted, edges: NDArray[np.uint32], num_images: int) -> Counts:
    """(N, K) pixels of each image in each bin."""
    bounds = np.append(np.searchsorted(normal.keys, edges), normal.keys.size)  # (K + 1,)
    return np.concatenate(
        [_by_image(normal.image, bounds[start : start + 17], num_images) for start in range(0, edges.size, 16)]
    ).T.copy()


def _count_pairs(normal: _Sorted, defect_scores: NDArray[np.float32], rows: Counts, num_images: int) -> Counts:
    """(M, N) `PixelStatistics.pairs`, over blocks of the distinct defect scores."""
    distinct, position = np.unique(_to_keys(defect_scores), return_inverse=True)  # (T,), (P,)
    order = np.argsort(position, kind="stable")
    position, rows = position[order], rows[order]
    left = np.searchsorted(normal.keys, distinct, side="left")  # (T,) normal pixels strictly below,
    right = np.searchsorted(normal.keys, distinct, side="right")  # and not above
    num_rows = int(rows.max()) + 1
    pairs = np.zeros((num_rows, num_images))
    below = np.bincount(normal.image[: left[0]], minlength=num_images)  # (N,) below the block
    start, done = 0, int(left[0])
    while start < distinct.size:
        end = min(start + max(_BLOCK_CELLS // (2 * num_images), 1), distinct.size)
        end = max(min(end, int(np.searchsorted(right, done + _BLOCK_PIXELS, side="right"))), start + 1)
        bounds = np.append(done, np.stack([left[start:end], right[start:end]], axis=1).ravel())  # (2 B + 1,)
        between, tied = np.moveaxis(_by_image(normal.image, bounds, num_images).reshape(-1, 2, num_images), 1, 0)
        passed = below + np.cumsum(between + tied, axis=0)  # (B, N) not above each defect score
        first, last = np.searchsorted(position, [start, end])
        cells = rows[first:last] * (end - start) + position[first:last] - start
        defects = np.bincount(cells, minlength=num_rows * (end - start)).reshape(num_rows, -1)  # (M, B)
        # In float64 the product is a fast one, and exact: no count comes near 2 ** 53.
        pairs += defects.astype(np.float64) @ (2 * passed - tied).astype(np.float64)
        below, start, done = passed[-1], end, int(right[end - 1])
    return pairs.round().astype(np.int64)
