"""Every pixel metric from one sort of normal pixels.

AUROC, average precision, F1-max and AU-PRO are all sums over the *defect* pixels of where each falls among the normal
ones. So only the scores of normal pixels are sorted, without their positions, and the few defect scores are searched
for in them; and of the normal pixels only those that reach the lowest defect score, since the others are passed by all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from oddpatch.errors import DataError
from oddpatch.metrics.arrays import (
    ArrayLike,
    Floats,
    NonFiniteScoreError,
    UndefinedMetricError,
    check_fpr_limits,
    non_finite_message,
    to_floats,
    to_stack,
)
from oddpatch.metrics.curves import Points, rate_curve, recall_precision_curve
from oddpatch.metrics.ranking import Ranking, in_threads
from oddpatch.metrics.regions import Regions, find_regions
from oddpatch.types import IGNORE
from oddpatch.wording import counted

# Every part is searched for every defect score, so that many parts cost more than their threads gain.
_MOST_PARTS = 4
SMALLEST_PART = 1_000_000


@dataclass(frozen=True)
class PixelResult:
    """Pixel metrics of one set of maps; `au_pro` by its false-positive-rate limit."""

    auroc: float
    ap: float
    f1_max: float
    f1_threshold: float  # an oracle: chosen on the masks it is measured on
    au_pro: dict[float, float]


@dataclass(frozen=True)
class PixelRanking:
    """Where the defect pixels fall among the normal ones: sort once, then ask for metrics and curves."""

    ranking: Ranking
    region_share: NDArray[np.float64]  # (T,) by how much PRO rises at each distinct defect score; sums to 1
    regions: Regions  # of the P defect pixels
    defect_scores: Floats  # (P,) in the order of the pixels
    _known: dict[tuple[float, ...], PixelResult] = field(default_factory=dict, init=False, repr=False, compare=False)

    def metrics(self, fpr_limits: Sequence[float] = (0.3,)) -> PixelResult:
        """All pixel metrics; ConfigError for a limit outside (0, 1]."""
        limits = check_fpr_limits(fpr_limits)
        if limits not in self._known:  # the statistics for resampling ask, too
            f1, threshold = self.ranking.f1_max()
            self._known[limits] = PixelResult(
                auroc=self.ranking.auroc(),
                ap=self.ranking.average_precision(),
                f1_max=f1,
                f1_threshold=threshold,
                au_pro={limit: self.au_pro(limit) for limit in limits},
            )
        known = self._known[limits]
        return replace(known, au_pro=dict(known.au_pro))

    def au_pro(self, fpr_limit: float = 0.3) -> float:
        """Area under the PRO curve left of `fpr_limit`, divided by it. See `oddpatch.metrics.au_pro`."""
        return area_under(self.ranking, self.region_share, fpr_limit)

    def auroc_to(self, fpr_limit: float) -> float:
        """Pixel AUROC left of `fpr_limit`, standardised (McClish 1989): 0.5 for chance, 1 for no error."""
        area = fpr_limit * area_under(self.ranking, self.ranking.positives / self.ranking.num_positives, fpr_limit)
        chance = fpr_limit**2 / 2
        return (1 + (area - chance) / (fpr_limit - chance)) / 2

    def roc_curve(self, max_points: int = 2000) -> tuple[Points, Points]:
        """(false-positive rate, true-positive rate), thinned for plotting (see `curves.thin`)."""
        return rate_curve(self.ranking, self.ranking.positives / self.ranking.num_positives, max_points)

    def pro_curve(self, max_points: int = 2000) -> tuple[Points, Points]:
        """(false-positive rate, per-region overlap), thinned for plotting (see `curves.thin`)."""
        return rate_curve(self.ranking, self.region_share, max_points)

    def precision_recall_curve(self, max_points: int = 2000) -> tuple[Points, Points]:
        """(recall, precision), thinned for plotting (see `curves.thin`)."""
        return recall_precision_curve(self.ranking, max_points)


class PixelSelection(NamedTuple):
    """What of N maps (N, H, W) decides where the P defect pixels fall among the normal ones."""

    maps: Floats  # (N, H, W)
    is_normal: NDArray[np.bool_]  # (N, H, W)
    is_defect: NDArray[np.bool_]  # (N, H, W)
    defect_scores: Floats  # (P,) in the order of the pixels
    contested: NDArray[np.bool_]  # (N, H, W) normal pixels that reach the lowest defect score
    num_below: NDArray[np.int64]  # (N,) normal pixels of each image that do not


def select_pixels(maps: ArrayLike, masks: ArrayLike) -> PixelSelection:
    """Sort out the pixels of maps by their masks; arguments and errors as in `rank_pixels`."""
    maps, masks = to_floats(to_stack(maps, "maps")), to_stack(masks, "masks")
    if maps.shape != masks.shape:
        raise DataError(f"maps {maps.shape} and masks {masks.shape} differ: resize the maps to the masks")
    is_normal, is_defect = _read_masks(masks)
    _require_finite(maps, masks)
    defect_scores = maps[is_defect]
    contested = maps >= defect_scores.min()
    contested &= is_normal
    num_below = np.count_nonzero(is_normal, axis=(1, 2)) - np.count_nonzero(contested, axis=(1, 2))
    return PixelSelection(maps, is_normal, is_defect, defect_scores, contested, num_below)


def rank_pixels(maps: ArrayLike, masks: ArrayLike) -> PixelRanking:
    """Sort the pixels of anomaly maps by their masks.

    Args:
        maps: (N, H, W) or (N, 1, H, W) raw scores, larger being more anomalous; float32 on the CPU is not copied.
        masks: as many, 0 normal, 1 defect; pixels of value IGNORE are left out.

    Raises:
        UndefinedMetricError: there are no normal or no defect pixels.
        NonFiniteScoreError: a score of a pixel that counts is NaN or infinite.
        DataError: shapes differ, or a mask holds another value.
    """
    pixels = select_pixels(maps, masks)
    # Sorted in place (this is a copy), in as many parts as torch may use threads; a part is not worth it if small.
    contested = pixels.maps[pixels.contested]
    num_parts = max(1, min(torch.get_num_threads(), _MOST_PARTS, contested.size // SMALLEST_PART))
    parts = np.array_split(contested, num_parts)
    in_threads(np.ndarray.sort, parts)
    order = np.argsort(pixels.defect_scores)
    regions = find_regions(pixels.is_defect)
    share = (1.0 / (regions.size * regions.size.size))[regions.region]  # (P,) each region weighs the same
    ranking = Ranking.of_sorted(parts, pixels.defect_scores[order], num_below=int(pixels.num_below.sum()))
    starts = ranking.num_positives - ranking.true_positives
    return PixelRanking(ranking, np.add.reduceat(share[order], starts), regions, pixels.defect_scores)


def area_under(ranking: Ranking, gains: NDArray[np.float64], fpr_limit: float) -> float:
    """Area, left of `fpr_limit` and divided by it, under a curve over the false-positive rate.

    Args:
        ranking: T distinct scores of defect pixels.
        gains: (T,) by how much the curve rises at each of them; they sum to 1.
        fpr_limit: in (0, 1].

    Raises:
        ConfigError: the limit is outside (0, 1].
    """
    (limit,) = check_fpr_limits([fpr_limit])
    start = np.minimum(ranking.above / ranking.num_negatives, limit)  # (T,) where the rise starts,
    end = ranking.false_positives / ranking.num_negatives  # (T,) and where it is complete
    within = np.minimum(end, limit) - start
    # In a tie with normal pixels the curve rises in a straight line, of which the limit may cut a part off.
    risen = np.divide(within, end - start, out=np.ones_like(end), where=end > start)
    area = within * risen / 2 + (limit - start - within)  # (T,) under a rise of height 1
    return min(float(np.sum(gains * area)) / limit, 1.0)


def pixel_metrics(maps: ArrayLike, masks: ArrayLike, fpr_limits: Sequence[float] = (0.3,)) -> PixelResult:
    """Pixel AUROC, average precision, F1-max and AU-PRO in one go; arguments and errors as in `rank_pixels`.

    Args:
        maps: see `rank_pixels`.
        masks: see `rank_pixels`.
        fpr_limits: limits of AU-PRO in (0, 1].

    Raises:
        ConfigError: a limit is outside (0, 1].
    """
    limits = check_fpr_limits(fpr_limits)
    return rank_pixels(maps, masks).metrics(limits)


def _read_masks(masks: NDArray[np.generic]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where masks (N, H, W) are 0 and where 1, having checked that they hold nothing else but IGNORE, and enough."""
    normal, defect = masks == 0, masks == 1
    num_normal, num_defect = np.count_nonzero(normal), np.count_nonzero(defect)
    num_ignored = masks.size - num_normal - num_defect
    if num_ignored and num_ignored != np.count_nonzero(masks == IGNORE):
        wrong = next(value for value in np.unique(masks) if value not in (0, 1, IGNORE))
        raise DataError(f"masks hold {wrong}: give 0 for normal, 1 for defect, {IGNORE} for not known")
    if not num_normal or not num_defect:
        without = int(np.count_nonzero((masks == IGNORE).all(axis=(1, 2))))
        raise UndefinedMetricError(
            f"needs both normal and defect pixels: no {'normal' if num_defect else 'defect'} pixel in "
            f"{counted(len(masks) - without, 'image')} with a mask and {without} without"
        )
    return normal, defect


def _require_finite(maps: Floats, masks: NDArray[np.generic]) -> None:
    # NaN and infinities show in the extremes, which take a fraction of looking at every pixel.
    if np.isfinite([maps.min(), maps.max()]).all():
        return
    bad = ~np.isfinite(maps) & (masks != IGNORE)
    images = np.flatnonzero(bad.any(axis=(1, 2)))
    if images.size:
        raise NonFiniteScoreError(
            non_finite_message(int(bad.sum()), maps.size, f"{images.size} maps, first at position {images[0]}")
        )
