"""Thresholds and p-values from scores of good images alone, by split conformal prediction.

If the scores of n held-out good images and of a new good image are exchangeable (drawn alike, in whatever order), the
new one ranks anywhere among the n + 1 with equal probability. A threshold at the k-th smallest held-out score with
k = ceil((n + 1) (1 - target_fpr)) is therefore exceeded by a new good image with a probability of at most
(n + 1 - k) / (n + 1) <= target_fpr, for any n and any distribution (Vovk et al. 2005; Lei et al. 2018,
arXiv 1604.04173). For one held-out set at hand the rate is itself random: it follows Beta(n + 1 - k, k)
(Vovk 2012, arXiv 1209.2673), whose upper quantile is the bound reported here.

Instead of that average, a threshold can promise the rate for the held-out set at hand, with 95 % confidence: k is then
the smallest for which Beta(n + 1 - k, k) stays within target_fpr with a probability of 0.95. It is the upper tolerance
bound by order statistics (Wilks 1941), and takes (1 - target_fpr)^n <= 0.05: 29, 59, 149, 299 or 598 images for 10, 5,
2, 1 or 0.5 %.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oddpatch.errors import ConfigError

#: What a threshold promises of the rate: that its mean over held-out sets, or this set's own rate, is as wanted.
Promise = Literal["marginal", "confident"]
PROMISES = get_args(Promise)
CONFIDENCE = 0.95


class Threshold(NamedTuple):
    """A value that good images exceed with a stated probability."""

    value: float
    fpr: float  # what the threshold guarantees on average over held-out sets
    target_fpr: float  # what was asked for; smaller than `fpr` if there are too few images for it
    num_images: int
    promise: Promise = "marginal"

    def fpr_bound(self, confidence: float = CONFIDENCE) -> float:
        """False-alarm rate that is not exceeded with this confidence, given the held-out images at hand."""
        from scipy.stats import beta

        above = round(self.fpr * (self.num_images + 1))
        return float(beta.ppf(confidence, above, self.num_images + 1 - above))

    @property
    def promised(self) -> float:
        """The rate that is promised: on average over held-out sets, or with confidence."""
        return self.fpr if self.promise == "marginal" else self.fpr_bound()

    @property
    def supported(self) -> bool:
        """Whether there were enough images for the rate asked for."""
        return self.promised <= self.target_fpr * (1 + 1e-12)

    @property
    def num_needed(self) -> int:
        """The fewest images that support the rate asked for."""
        if self.promise == "marginal":
            return math.ceil(1 / self.target_fpr - 1e-9) - 1
        return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-self.target_fpr) - 1e-9)


def conformal_threshold(scores: ArrayLike, target_fpr: float, promise: Promise = "marginal") -> Threshold:
    """Threshold for the wanted false-alarm rate; an image is anomalous if its score is *above* it.

    Too few images for the rate (see `Threshold.num_needed`) give the threshold of the lowest rate they support,
    which is their highest score.

    Args:
        scores: (n,) of good images that the model was not fitted to.
        target_fpr: in (0, 1).
        promise: "marginal": the rate holds on average over sets of n images. "confident": with 95 % confidence it holds
            for this set.

    Raises:
        ConfigError: no scores, a rate outside (0, 1), or another promise.
    """
    check_promise(promise)
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    check_target_fpr(target_fpr)
    count = len(ordered)
    if not count:
        raise ConfigError("no held-out good image was scored: a threshold needs at least one")
    # The tolerance keeps e.g. 100 * (1 - 0.01) from being rounded up to 100 by float error.
    rank = min(math.ceil((count + 1) * (1 - target_fpr) - 1e-9), count)
    if promise == "confident":
        from scipy.stats import binom

        # Of the n images so many exceed the exact threshold; it lies above the k-th with a probability of cdf(n - k).
        above = int(binom.ppf(1 - CONFIDENCE, count, target_fpr))
        above -= int(binom.cdf(above, count, target_fpr) > 1 - CONFIDENCE)
        rank = count - max(above, 0)
    return Threshold(float(ordered[rank - 1]), (count + 1 - rank) / (count + 1), target_fpr, count, promise)


def check_promise(promise: str) -> None:
    """Raise a ``ConfigError`` for a promise that is not known."""
    if promise not in PROMISES:
        raise ConfigError(f"calibration.promise={promise!r} is not known: choose {' or '.join(PROMISES)}")


def check_target_fpr(target_fpr: float) -> None:
    """Raise a ``ConfigError`` for a rate outside (0, 1)."""
    if not 0 < target_fpr < 1:
        raise ConfigError(f"target_fpr={target_fpr} must lie between 0 and 1, such as 0.01 for 1 % false alarms")


def conformal_p_values(scores: ArrayLike, calibration: ArrayLike) -> NDArray[np.float64]:
    """Upper bound of the probability that a good image scores as high, strictly falling in the score.

    At a calibration score it is the conformal p-value (1 + #{calibration >= score}) / (n + 1), between two it is
    interpolated, and beyond the highest it falls towards 1 / (n + 1), which n images cannot undercut: nowhere below
    the conformal p-value, hence as valid. Only from the lowest calibration score down, where that is 1 throughout, it
    is somewhat less, so that low scores differ too.

    Args:
        scores: (...) of any images.
        calibration: (n,) of good images that the model was not fitted to.

    Returns:
        (...) in (0, 1).
    """
    scores, ordered = np.asarray(scores, dtype=np.float64), np.sort(np.asarray(calibration, dtype=np.float64))
    known = np.unique(ordered)
    total = len(ordered) + 1
    counts = 1.0 + len(ordered) - np.searchsorted(ordered, known, side="left")  # 1 + #{calibration >= known}
    counts[0] = (total + (counts[1] if len(counts) > 1 else 1)) / 2
    scale = max(float(np.ptp(ordered)) / 4, 1e-3 * abs(float(known[-1])), 1e-12)  # how fast the ends level out
    above, below = (np.maximum(distance, 0) / scale for distance in (scores - known[-1], known[0] - scores))
    inside = np.interp(scores, known, counts)
    at_end = np.where(above > 0, 1 + (counts[-1] - 1) / (1 + above), inside)
    return np.where(below > 0, total - (total - counts[0]) / (1 + below), at_end) / total


def anomaly_score(scores: ArrayLike, typical: float, threshold: float) -> NDArray[np.floating]:
    """Raw distances on a fixed scale from 0 to 1: 0.25 for a typical good image, 0.5 at the threshold.

    The algebraic sigmoid 0.5 (1 + r / (1 + |r|)) of r = (score - threshold) / (threshold - typical) is strictly
    monotone, needs no other image, and keeps apart what a clip or a logistic function would push onto 1.

    Args:
        scores: (...) raw distances, of images or of pixels.
        typical: median of the good images that the threshold was set on; of an even number, the mean of the middle two.
        threshold: see `conformal_threshold`.

    Returns:
        (...) float32 for float32, as maps are, else float64.
    """
    width = float(max(threshold - typical, 1e-6 * max(abs(threshold), 1e-6)))
    given = np.asarray(scores)
    ratio = (given if given.dtype == np.float32 else given.astype(np.float64)) - float(threshold)
    ratio /= width
    return 0.5 * (1 + ratio / (1 + np.abs(ratio)))


def max_excluding(maps: NDArray[np.floating], min_area: int) -> NDArray[np.float64]:
    """The value that exactly more than `min_area` pixels of each map reach: its highest but `min_area`.

    A pixel threshold at or above it leaves at most `min_area` pixels of the map.

    Args:
        maps: (N, H, W).
        min_area: pixels of a map that may lie above the threshold on a good image.
    """
    flat = maps.reshape(len(maps), -1)
    place = flat.shape[1] - 1 - min_area
    return np.partition(flat, place, axis=1)[:, place].astype(np.float64)


def stands_out(scores: ArrayLike) -> bool:
    """Whether the highest of the scores of good images lies so far from the others that it is likely none of them.

    The upper half of the scores is compared with an exponential tail, whose spacings are independent and exponential,
    too, once the one below the j-th highest is multiplied by j (Renyi 1953). The first spacing against the sum of the
    others then has an exact p-value, (1 + first / others)^-(m - 1) for m scores above the median, and must fall under
    1 in 1000. Scores of good images, being distances, mostly have lighter tails, for which that is rarer still.

    Args:
        scores: (n,); fewer than 5 give no answer.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
    if len(ordered) < 5:
        return False
    above = ordered[: len(ordered) // 2] - np.median(ordered)  # (m,) falling
    others = above[1] + above[1:].sum()  # the sum of the normalised spacings below the first
    return bool((above[0] - above[1]) > others * (1000 ** (1 / (len(above) - 1)) - 1))


def at_threshold(scores: ArrayLike, labels: ArrayLike, threshold: float) -> dict[str, float]:
    """What a threshold gives on labelled images, those with a score above it being called anomalous.

    Args:
        scores: (N,).
        labels: (N,), 1 anomalous, 0 good.
        threshold: on the scores' scale.

    Returns:
        Of `precision`, `recall`, `f1` and `fpr` (false alarms among the good images) those that are defined.
    """
    anomalous, truth = np.asarray(scores, dtype=np.float64) > threshold, np.asarray(labels).astype(bool)
    hits, alarms, defects, good = (int(x.sum()) for x in (anomalous & truth, anomalous, truth, ~truth))
    defined = {
        "precision": (hits, alarms),
        "recall": (hits, defects),
        "f1": (2 * hits, alarms + defects),
        "fpr": (alarms - hits, good),
    }
    return {name: part / whole for name, (part, whole) in defined.items() if whole}


def fold_of(num_images: int, folds: int, seed: int) -> Sequence[int]:
    """A fold for each image, of sizes that differ by one at most, by a seeded shuffle."""
    return (np.random.default_rng(seed).permutation(num_images) % folds).tolist()
