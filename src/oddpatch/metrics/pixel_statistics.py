"""What a bootstrap over images needs to know of the pixels: small enough to keep, where the maps themselves are not.

Resampling images gives each image a weight. Under any weights pixel AUROC follows exactly from a matrix of pair counts,
and every point of a pixel curve at the edge of a bin follows exactly from histograms by image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.errors import CheckpointError
from oddpatch.files import replacing
from oddpatch.metrics.arrays import ArrayLike, check_fpr_limits, product, to_floats, to_stack
from oddpatch.metrics.pixel import PixelSelection, select_pixels
from oddpatch.metrics.regions import find_regions

FILE_NAME = "pixel_statistics.npz"
Counts = NDArray[np.int64]

#: Edges taken from the quantiles of the defect scores, and as many from those of the normal ones.
_QUANTILES = 1024
# Cells of a block's table, which stays within the cache, and pixels that fall into it; but for very many images, ranks
# enough that adding up the products does not take longer than making them.
_BLOCK_CELLS, _BLOCK_PIXELS, _LEAST_RANKS = 2**16, 2**22, 64


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
            maps: (N, H, W) or (N, 1, H, W) raw scores, larger being more anomalous; float64 is rounded to float32.
            masks: as many, 0 normal, 1 defect; pixels of value IGNORE are left out.
            fpr_limits: limits of AU-PRO in (0, 1].

        Raises:
            UndefinedMetricError: there are no normal or no defect pixels.
            NonFiniteScoreError: a score is NaN or infinite.
            DataError: shapes differ, or a mask holds another value.
            ConfigError: a limit is outside (0, 1].
        """
        pixels = select_pixels(to_floats(to_stack(maps, "maps")).astype(np.float32, copy=False), masks)
        normal = _sort_pixels(pixels)
        regions = find_regions(pixels.is_defect)
        defect_scores = pixels.defect_scores[np.argsort(regions.region, kind="stable")]  # (P,)
        edges = _choose_edges(normal, defect_scores)
        rows = np.searchsorted(np.unique(regions.image), np.repeat(regions.image, regions.size))  # (P,) row of `pairs`
        return cls(
            edges=_to_scores(edges),
            normal=_histograms(normal, edges),
            defect_scores=defect_scores,
            region_size=regions.size,
            region_image=regions.image,
            pairs=_count_pairs(normal, defect_scores, rows),
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
        found = self.defect_scores > np.float64(threshold)  # a Python float would be rounded to float32 first
        return np.add.reduceat(found, starts, dtype=np.int64) / self.region_size

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
                found = cls(**{field.name: file[field.name] for field in fields(cls)})
            found._check()
        except Exception as error:  # of the archive, its compression and its arrays, each has its own
            raise CheckpointError(
                f"{path} cannot be read ({type(error).__name__}): test the run again by eval.py, which writes it"
            ) from error
        return found

    def _check(self) -> None:
        """Raise a `ValueError` unless types, shapes and counts are those of `from_maps`."""
        types: dict[str, type] = {"edges": np.float32, "defect_scores": np.float32, "fpr_limits": np.float64}
        dimensions = {"normal": 2, "pairs": 2}
        for field in fields(self):
            array = getattr(self, field.name)
            if array.dtype != types.get(field.name, np.int64) or array.ndim != dimensions.get(field.name, 1):
                raise ValueError(f"{field.name} has another type or shape")
            if not array.size or not np.isfinite(array).all() or (array.dtype == np.int64 and array.min() < 0):
                raise ValueError(f"{field.name} is empty, or holds values that cannot be")
        images, defective = len(self.normal), np.unique(self.region_image)
        fits = (
            self.normal.shape[1] == len(self.edges)
            and bool((np.diff(self.edges) > 0).all())
            and self.edges[0] <= self.defect_scores.min()
            and len(self.region_size) == len(self.region_image)
            and self.region_size.min() > 0
            and self.region_size.sum() == len(self.defect_scores)
            and bool((np.diff(self.region_image) >= 0).all())
            and self.region_image.max() < images
            and self.pairs.shape == (len(defective), images)
            and bool(((self.fpr_limits > 0) & (self.fpr_limits <= 1)).all())
            and bool((self.pairs / 2 <= np.outer(self.num_defect[defective], self.num_normal / 1.0)).all())
        )
        if not fits:
            raise ValueError("the arrays do not go together")


class _Sorted(NamedTuple):
    """Normal pixels in rising order of their scores: those that reach the lowest defect score."""

    keys: NDArray[np.uint32]  # scores as whole numbers of the same order
    image: NDArray[np.int64]  # image each lies in
    num_below: Counts  # (N,) normal pixels of each image that do not reach it,
    lowest: NDArray[np.uint32]  # (0,) or (1,) and the lowest of them all


def _to_keys(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Whole numbers in the order of finite float32 scores: the bits, negative ones reversed."""
    bits = (scores + np.float32(0)).view(np.uint32)  # adding turns -0 into 0
    negative = (bits.view(np.int32) >> 31).view(np.uint32)  # all bits set where negative, none elsewhere
    return bits ^ (negative | np.uint32(1 << 31))


def _to_scores(keys: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The scores that `_to_keys` was given."""
    return np.where(keys >> 31, keys ^ np.uint32(1 << 31), ~keys).view(np.float32)


def _sort_pixels(pixels: PixelSelection) -> _Sorted:
    chosen, num_below = pixels.contested, pixels.num_below
    image = np.repeat(np.arange(len(chosen)), np.count_nonzero(chosen, axis=(1, 2)))
    lowest = [np.min(pixels.maps, where=pixels.is_normal, initial=np.inf)] if num_below.any() else []
    return _Sorted(*_sort_by_score(pixels.maps[chosen], image), num_below, _to_keys(np.array(lowest, dtype=np.float32)))


def _sort_by_score(scores: NDArray[np.float32], numbers: Counts) -> tuple[NDArray[np.uint32], Counts]:
    """Keys of the scores (P,) in rising order, and the number (P,) in 0..2^32 - 1 that goes with each."""
    # Both in one 64-bit number: sorting it carries the second along at a fraction of what argsort takes.
    packed = _to_keys(scores).astype(np.uint64) << np.uint64(32)
    packed |= numbers.astype(np.uint64)
    packed.sort()
    return (packed >> np.uint64(32)).astype(np.uint32), (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _choose_edges(normal: _Sorted, defect_scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Edges (K,) of the bins as keys; the first is the lowest score of all, the lowest defect score is among them."""
    defect, size = np.sort(_to_keys(defect_scores)), normal.keys.size
    evenly = np.linspace(0, defect.size - 1, min(_QUANTILES, defect.size)).round().astype(np.int64)
    from_top = np.geomspace(1, max(size, 1), min(_QUANTILES, size)).round().astype(np.int64)
    return np.unique(np.concatenate([normal.lowest, defect[evenly], normal.keys[size - from_top]]))


def _by_image(image: Counts, bounds: Counts, num_images: int) -> Counts:
    """(S, N) how many pixels of each image lie in each of the S consecutive stretches that bounds (S + 1,) cut off."""
    stretch = np.repeat(np.arange(bounds.size - 1) * num_images, np.diff(bounds))
    cells = np.bincount(stretch + image[bounds[0] : bounds[-1]], minlength=(bounds.size - 1) * num_images)
    return cells.reshape(-1, num_images)


def _histograms(normal: _Sorted, edges: NDArray[np.uint32]) -> Counts:
    """(N, K) normal pixels of each image in each bin."""
    num_images = normal.num_below.size
    bounds = np.append(np.searchsorted(normal.keys, edges), normal.keys.size)  # (K + 1,)
    counts = np.concatenate(
        [_by_image(normal.image, bounds[start : start + 17], num_images) for start in range(0, edges.size, 16)]
    ).T.copy()
    counts[:, 0] += normal.num_below  # they have the first bin to themselves
    return counts


def _count_pairs(normal: _Sorted, defect_scores: NDArray[np.float32], rows: Counts) -> Counts:
    """(M, N) `PixelStatistics.pairs`: of each defect pixel the normal ones below it, and again those not above it.

    Both change only where a normal pixel lies between two defect pixels: at the distinct ones of these ranks.
    """
    num_images, num_rows = normal.num_below.size, int(rows.max()) + 1
    keys, rows = _sort_by_score(defect_scores, rows)
    ranks = [np.searchsorted(normal.keys, keys, side=side) for side in ("left", "right")]  # (P,) each, rising
    is_rank = np.zeros(normal.keys.size + 1, dtype=bool)
    for rank in ranks:
        is_rank[rank] = True
    distinct = np.flatnonzero(is_rank)  # (U,)
    positions = [np.searchsorted(distinct, rank) for rank in ranks]  # (P,) each, of the rank among the distinct ones
    pairs = np.zeros((num_rows, num_images))
    below, start, done = normal.num_below, 0, 0
    while start < distinct.size:
        end = min(start + max(_BLOCK_CELLS // num_images, _LEAST_RANKS), distinct.size)
        end = max(min(end, int(np.searchsorted(distinct, done + _BLOCK_PIXELS, side="right"))), start + 1)
        between = _by_image(normal.image, np.append(done, distinct[start:end]), num_images)
        passed = below + np.cumsum(between, axis=0)  # (B, N) below each rank
        cells = []
        for position in positions:
            first, last = np.searchsorted(position, [start, end])
            cells.append(rows[first:last] * (end - start) + position[first:last] - start)
        defects = np.bincount(np.concatenate(cells), minlength=num_rows * (end - start)).reshape(num_rows, -1)  # (M, B)
        pairs += product(defects, passed)
        below, start, done = passed[-1], end, int(distinct[end - 1])
    return pairs.astype(np.int64)
