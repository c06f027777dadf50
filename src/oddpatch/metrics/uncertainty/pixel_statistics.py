"""What a bootstrap over images needs to know of the pixels: small enough to keep, where the maps themselves are not.

Resampling images gives each image a weight. Under any weights every point of a pixel curve at the edge of a bin follows
exactly from the counts of each image in each bin, and their number grows with that of the images, not with its square.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oddpatch.errors import CheckpointError
from oddpatch.files import replacing
from oddpatch.metrics.arrays import ArrayLike, check_fpr_limits, to_floats, to_stack
from oddpatch.metrics.pixel import PixelRanking, rank_pixels
from oddpatch.metrics.ranking import Ranking

FILE_NAME = "pixel_statistics.npz"
Counts = NDArray[np.int64]

#: Edges taken at even steps of the true-positive rate, and as many at those of the false-positive rate.
QUANTILES = 1024
#: Cells of the grid by which the bin of a score is found.
CELLS = 2**16
_LOWEST = np.array([np.finfo(np.float32).min])


@dataclass(frozen=True)
class PixelStatistics:
    """Sufficient statistics of the pixel metrics under any weights of the images.

    Half of the edges are equally many defect pixels apart, the other half lie at false-positive rates a constant
    factor apart, so that the curves are resolved where precision and AU-PRO at small limits are decided. A score that
    many pixels share has a bin to itself.
    """

    edges: NDArray[np.float32]  # (K,) lower ends of the bins, rising; no score is below the first
    normal: Counts  # (N, K) normal pixels of each image in each bin
    defect_scores: NDArray[np.float32]  # (P,) scores of the defect pixels, region by region
    region_size: Counts  # (R,) pixels in each 8-connected defect region
    region_image: Counts  # (R,) image each region lies in, rising
    fpr_limits: NDArray[np.float64]  # (L,) limits of AU-PRO; the first is the headline
    exact: NDArray[np.float64]  # (3 + L,) AUROC, average precision, F1-max and each AU-PRO of the images themselves

    @classmethod
    def from_maps(
        cls,
        maps: ArrayLike,
        masks: ArrayLike,
        fpr_limits: Sequence[float] = (0.3,),
        ranking: PixelRanking | None = None,
    ) -> "PixelStatistics":
        """Gather the statistics of anomaly maps.

        Args:
            maps: (N, H, W) or (N, 1, H, W) raw scores, larger being more anomalous; float64 is rounded to float32.
            masks: as many, 0 normal, 1 defect; pixels of value IGNORE are left out.
            fpr_limits: limits of AU-PRO in (0, 1].
            ranking: of the same pixels, where it is known already.

        Raises:
            UndefinedMetricError: there are no normal or no defect pixels.
            NonFiniteScoreError: a score is NaN or infinite.
            DataError: shapes differ, or a mask holds another value.
            ConfigError: a limit is outside (0, 1].
        """
        limits = check_fpr_limits(fpr_limits)
        ranking = ranking or rank_pixels(maps, masks)
        maps = to_floats(to_stack(maps, "maps")).astype(np.float32, copy=False)
        masks = to_stack(masks, "masks")
        regions = ranking.regions
        edges = _choose_edges(ranking.ranking)
        bins = _Bins(edges)
        normal = [  # image by image, each of which fits the cache
            np.bincount(bins(scores[mask == 0]), minlength=len(edges)) for scores, mask in zip(maps, masks, strict=True)
        ]
        result = ranking.metrics(limits)
        # Few regions are numbers of 16 bits, which NumPy sorts without comparing them.
        by_region = np.argsort(regions.region.astype(np.min_scalar_type(regions.size.size)), kind="stable")
        return cls(
            edges=edges,
            normal=np.stack(normal),
            defect_scores=ranking.defect_scores[by_region].astype(np.float32, copy=False),
            region_size=regions.size,
            region_image=regions.image,
            fpr_limits=np.array(limits),
            exact=np.array([result.auroc, result.ap, result.f1_max, *result.au_pro.values()]),
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
        return np.bincount(_Bins(self.edges)(np.unique(self.defect_scores)), minlength=len(self.edges))

    @cached_property
    def _cells(self) -> Counts:
        """(P,) row and bin of each defect pixel in a flattened (N, K)."""
        bins = _Bins(self.edges)(self.defect_scores)
        return np.repeat(self.region_image, self.region_size) * len(self.edges) + bins

    def _of_defects(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, K) histograms of the defect pixels with the weight (R,) of their regions."""
        counts = np.bincount(self._cells, np.repeat(weight, self.region_size), self.num_images * len(self.edges))
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
                f"{path} cannot be read ({type(error).__name__}): test the run again by oddpatch eval, which writes it"
            ) from error
        return found

    def _check(self) -> None:
        """Raise a `ValueError` unless types, shapes and counts are those of `from_maps`."""
        types: dict[str, type] = dict.fromkeys(("edges", "defect_scores"), np.float32)
        types |= dict.fromkeys(("fpr_limits", "exact"), np.float64)
        for field in fields(self):
            array = getattr(self, field.name)
            if array.dtype != types.get(field.name, np.int64) or array.ndim != (2 if field.name == "normal" else 1):
                raise ValueError(f"{field.name} has another type or shape")
            if not array.size or not np.isfinite(array).all() or (array.dtype == np.int64 and array.min() < 0):
                raise ValueError(f"{field.name} is empty, or holds values that cannot be")
        fits = (
            self.normal.shape[1] == len(self.edges)
            and bool((np.diff(self.edges) > 0).all())
            and self.defect_scores.min() in self.edges
            and len(self.region_size) == len(self.region_image)
            and self.region_size.min() > 0
            and self.region_size.sum() == len(self.defect_scores)
            and bool((np.diff(self.region_image) >= 0).all())
            and self.region_image.max() < len(self.normal)
            and bool(((self.fpr_limits > 0) & (self.fpr_limits <= 1)).all())
            and len(self.exact) == 3 + len(self.fpr_limits)
            and bool(((self.exact >= 0) & (self.exact <= 1)).all())
        )
        if not fits:
            raise ValueError("the arrays do not go together")


def _choose_edges(ranking: Ranking) -> NDArray[np.float32]:
    """Lower ends (K,) of the bins, rising: but for the first they are defect scores, or just above one."""
    positives, negatives, last = ranking.num_positives, ranking.num_negatives, len(ranking.thresholds) - 1
    evenly = np.linspace(1, positives, min(QUANTILES, positives)).round()
    rates = np.geomspace(1, negatives, min(QUANTILES, negatives)).round()
    tied = np.maximum(ranking.positives / positives, (ranking.false_positives - ranking.above) / negatives)
    large = np.flatnonzero(tied * QUANTILES >= 1)  # such a tie has a bin to itself, in which one half is exact
    chosen = [
        last - np.searchsorted(ranking.true_positives[::-1], evenly),
        last - np.minimum(np.searchsorted(ranking.false_positives[::-1], rates), last),
        large,
    ]
    scores = ranking.thresholds.astype(np.float32)
    above = np.nextafter(scores[large], np.float32(np.inf))
    return np.unique(np.concatenate([_LOWEST, scores[np.concatenate(chosen)], above, scores[:1]]))


class _Bins:
    """Tells the bin of each score: the last of the lower ends `edges` (K,), rising, that is not above it.

    A table gives the bin of each cell of an even grid. A binary search, several times slower, is left for the few
    scores that share a cell with an edge.
    """

    def __init__(self, edges: NDArray[np.float32]) -> None:
        self.edges = edges
        self.low = edges[min(1, len(edges) - 1)]
        limits = np.finfo(np.float32)
        span = max(float(edges[-1]) - float(self.low), float(limits.tiny))
        self.scale = np.float32(min(CELLS / span, float(limits.max)))
        cells = self._cell(edges[1:])
        self.table = np.searchsorted(cells, np.arange(CELLS + 1)).astype(np.int32)  # edges in lower cells
        self.table[cells] = -1

    def _cell(self, scores: NDArray[np.float32]) -> NDArray[np.int32]:
        with np.errstate(over="ignore"):
            return np.clip((scores - self.low) * self.scale, 0, CELLS).astype(np.int32)

    def __call__(self, scores: NDArray[np.float32]) -> NDArray[np.int32]:
        bins = self.table.take(self._cell(scores))
        shared = bins < 0
        bins[shared] = np.searchsorted(self.edges, scores[shared], side="right") - 1
        return bins
