"""Confidence intervals by resampling images: Efron's percentile bootstrap, stratified and vectorised over the draws.

Images are the units, since the pixels of one image are not independent. Good and anomalous images are drawn separately,
with replacement, as many as there are: a draw is the multiplicity of each image, and every metric is computed from
these weights. Efron and Tibshirani, "An Introduction to the Bootstrap", 1993.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oddpatch.errors import ConfigError, DataError
from oddpatch.metrics.arrays import ArrayLike, product, to_both_classes, to_numpy
from oddpatch.metrics.uncertainty.pixel_statistics import PixelStatistics

Weights = NDArray[np.int64]
#: Values of each metric, one per draw (S,); NaN where a draw leaves a metric undefined.
ByDraw = dict[str, NDArray[np.float64]]
#: Numbers in the largest array of a block of draws.
BLOCK = 2**20


@dataclass(frozen=True)
class Confidence:
    """How confidence intervals are made.

    Args:
        draws: resamples; 0 for no intervals.
        level: share of the draws between the two ends.
        seed: of the generator.

    Raises:
        ConfigError: a value cannot work.
    """

    draws: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < 0:
            raise ConfigError(f"confidence.draws={self.draws} must be 0 (no intervals) or more")
        if not 0 < self.level < 1:
            raise ConfigError(f"confidence.level={self.level} must lie between 0 and 1, such as 0.95")
        if self.seed < 0:
            raise ConfigError(f"confidence.seed={self.seed} must be 0 or more")


def resample(labels: ArrayLike, draws: int, seed: int) -> Weights:
    """Multiplicities (S, N) of N images in S draws; those of good and of anomalous images keep their sums.

    Args:
        labels: (N,) of 0 good and 1 anomalous.
        draws: S.
        seed: of the generator; equal seeds and labels give equal draws.
    """
    labels = to_numpy(labels)
    generator = np.random.default_rng(seed)
    weights = np.zeros((draws, labels.size), np.int64)
    for label in (0, 1):
        members = np.flatnonzero(labels == label)
        if members.size:
            drawn = generator.integers(members.size, size=(draws, members.size))
            cells = drawn + np.arange(draws)[:, None] * members.size
            counts = np.bincount(cells.ravel(), minlength=draws * members.size)
            weights[:, members] = counts.reshape(draws, members.size)
    return weights


def image_metrics_by_draw(scores: ArrayLike, labels: ArrayLike, weights: Weights) -> ByDraw:
    """`image_auroc`, `image_ap` and `image_f1_max` of each draw, exact, ties included.

    Args:
        scores: (N,), larger being more anomalous.
        labels: (N,) of 0 good and 1 anomalous.
        weights: (S, N) multiplicities.

    Raises:
        UndefinedMetricError: there is only one class.
        NonFiniteScoreError: a score is NaN or infinite.
        DataError: shapes differ, or a label is neither 0 nor 1.
    """
    scores, anomalous = to_both_classes(scores, labels)
    order = np.argsort(-scores, kind="stable")
    anomalous, ordered = anomalous[order], scores[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), ordered.size - 1)  # (T,) where each tie ends
    values = []
    for block in _blocks(weights):
        true = np.cumsum(block[:, order] * anomalous, axis=1)[:, ends]  # (S, T) anomalous at or above each score
        false = np.cumsum(block[:, order] * ~anomalous, axis=1)[:, ends]
        values.append(_ranking_metrics(true, false))
    return _joined(values, ("image_auroc", "image_ap", "image_f1_max"))


def _ranking_metrics(true: Weights, false: Weights) -> tuple[NDArray[np.float64], ...]:
    """AUROC, average precision and F1-max, each (S,), from counts (S, T) at or above each score, from the top."""
    positives, negatives = true[:, -1], false[:, -1]
    gained = np.diff(true, axis=1, prepend=0)  # (S, T) anomalous at each score
    above = np.concatenate([np.zeros_like(false[:, :1]), false[:, :-1]], axis=1)  # good ones strictly above
    with np.errstate(invalid="ignore"):  # 0 / 0 where nothing of a draw scores so high
        twice_below = 2 * negatives[:, None] - above - false
        auroc = np.sum(gained * twice_below, axis=1) / (2 * positives * negatives)
        precision = np.where(gained > 0, true / (true + false), 0.0)
        f1 = np.nan_to_num(2 * true / (true + false + positives[:, None]))
        return auroc, np.sum(gained * precision, axis=1) / positives, f1.max(axis=1)


def pixel_metrics_by_draw(statistics: PixelStatistics, weights: Weights) -> ByDraw:
    """`pixel_auroc`, `pixel_ap`, `pixel_f1_max`, `au_pro` and its further limits, of each draw.

    They are read off curves that are exact at the bins' edges: F1-max is the largest there, AUROC and AU-PRO take the
    curve between them as straight, and average precision a bin's defect scores as evenly spread. What this is off for
    the images themselves, whose exact values are known, is taken off every draw.

    Args:
        statistics: of the same N images.
        weights: (S, N) multiplicities.
    """
    if statistics.num_images != weights.shape[1]:
        raise DataError(
            f"pixel statistics of {statistics.num_images} images with draws of {weights.shape[1]}: "
            "they are of different tests, test the run again"
        )
    # (N, K + 1) by image, from the highest bin down, in front of which nothing is found
    histograms = [
        np.pad(histogram[:, ::-1].astype(np.float64), ((0, 0), (1, 0)))
        for histogram in (statistics.normal, statistics.defect, statistics.region_share)
    ]
    values = []
    once = np.ones_like(weights[:1])
    for block in (once, *_blocks(weights, len(statistics.edges))):
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw may have no defect pixel at all
            # (S, K + 1) each: normal pixels, defect pixels and per-region overlap at or above each edge, from the top
            false, true, overlap = (np.cumsum(product(block, histogram), axis=1) for histogram in histograms)
            overlap /= (block @ statistics.num_regions)[:, None]
            rate, positives = false / false[:, -1:], true[:, -1:]
            f1 = (2 * true / (true + false + positives)).max(axis=1)
            areas = [_area(rate, overlap, limit) for limit in statistics.fpr_limits]
            precision = _average_precision(statistics, false, true)
            values.append((_area(rate, true / positives, 1), precision, f1, *areas))
    further = [f"au_pro@{limit:g}" for limit in statistics.fpr_limits[1:]]
    drawn = _joined(values, ("pixel_auroc", "pixel_ap", "pixel_f1_max", "au_pro", *further))
    exact = zip(drawn.items(), statistics.exact, strict=True)
    return {name: np.clip(binned[1:] + (value - binned[0]), 0, 1) for (name, binned), value in exact}


def _average_precision(
    statistics: PixelStatistics, false: NDArray[np.float64], true: NDArray[np.float64]
) -> NDArray[np.float64]:
    # Defect scores are edges: of m that are evenly spread from the next bin down to the edge, the last is at the edge.
    # A single one is met when all of the bin has been passed, as is the whole of a tie.
    distinct = np.maximum(statistics.num_distinct[::-1], 1)  # (K,)
    passed = (distinct + 1) / (2 * distinct)
    gained = np.diff(true, axis=1)  # (S, K)
    found = true[:, :-1] + gained * passed
    alarms = false[:, :-1] + np.diff(false, axis=1) * passed + found
    precision = np.divide(found, alarms, out=np.zeros_like(found), where=gained > 0)
    return np.einsum("sk,sk->s", gained, precision) / true[:, -1]


def _area(rate: NDArray[np.float64], risen: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """(S,) area under `risen` (S, K + 1) up to a false-positive rate of `limit`, divided by it."""
    within, width = np.diff(np.minimum(rate, limit), axis=1), np.diff(rate, axis=1)
    part = np.divide(within, width, out=np.zeros_like(width), where=width > 0) * np.diff(risen, axis=1)
    return np.einsum("sk,sk->s", within, risen[:, :-1] + part / 2) / limit


def intervals(values: Mapping[str, NDArray[np.float64]], level: float) -> dict[str, tuple[float, float]]:
    """Percentile interval of each metric; draws that leave it undefined do not count, nor does one that never is."""
    ends = ((1 - level) / 2, (1 + level) / 2)
    found = {}
    for name, drawn in values.items():
        defined = drawn[np.isfinite(drawn)]
        if defined.size:
            low, high = np.quantile(defined, ends)
            found[name] = (float(low), float(high))
    return found


def confidence_intervals(
    scores: ArrayLike, labels: ArrayLike, statistics: PixelStatistics | None, settings: Confidence
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of every image metric, and of every pixel metric if there are statistics.

    Arguments and errors as in `image_metrics_by_draw` and `pixel_metrics_by_draw`; of one class alone there are no
    image metrics.
    """
    weights = resample(labels, settings.draws, settings.seed)
    if not weights.size:
        return {}
    values: ByDraw = {}
    if len(np.unique(to_numpy(labels))) == 2:
        values |= image_metrics_by_draw(scores, labels, weights)
    if statistics is not None:
        values |= pixel_metrics_by_draw(statistics, weights)
    return intervals(values, settings.level)


def _blocks(weights: Weights, columns: int = 0) -> Iterator[Weights]:
    """The draws in parts whose arrays, with `columns` or a column per image, stay small."""
    rows = max(BLOCK // max(columns, weights.shape[1], 1), 1)
    for start in range(0, len(weights), rows):
        yield weights[start : start + rows]


def _joined(blocks: list[tuple[NDArray[np.float64], ...]], names: Sequence[str]) -> ByDraw:
    return dict(zip(names, map(np.concatenate, zip(*blocks, strict=True)), strict=True))
