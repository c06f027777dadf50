"""Exact p-values and evidence against exchangeability, in bounded memory. Arrays may have leading axes (...).

**p-values.** n calibration values leave n + 1 gaps. If they and the values of a stream are exchangeable, the gap that
the next one falls into is a draw from Polya's urn: gap k has the probability (1 + c_k) / (n + 1 + t), where c_k of
the t values before it fell there, whatever their distribution. The randomised p-value of that draw is the smoothed
conformal p-value (Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005, chapter 2) of values that
are told apart by their gap only. Such p-values are independent and uniform, for any n and without end, and n + 1
counts are all they need. Against the calibration values alone they would not be independent: one such set differs
from the line in the same way for ever.

**Evidence.** A bet f >= 0 on a p-value has a mean of 1 under that null, so products of bets are martingales
(Volkhonskiy et al. 2017, arXiv 1706.03415). R_t = (1 + R_(t-1)) f(p_t), the Shiryaev-Roberts statistic (Vovk et al.
2021, arXiv 2102.10439; as an e-detector, Shin, Ramdas, Rinaldo 2022, arXiv 2203.03532), adds the products begun at
each part so far, so that a change is seen whenever it comes. R_t - t is a martingale, hence by Doob's inequality the
probability that R reaches c among t parts is at most (R_0 + t) / c. With R_0 = 0 a change at the very first part
would be as hard to see as one at any other; a head start makes it easier.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
#: What is betted on, of the normal score of a p-value: that it is shifted by so many standard deviations, or spread by
#: such a factor. What is bet on finely is found sooner, what is not is found too.
SHIFTS = (-2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0)
SPREADS = (0.5, 2.0)
#: By how much of the rest the share of rejected parts exceeds what is allowed. Nothing is bet on all of them being
#: rejected: defects come in groups of a few.
EXCESSES = (0.03, 0.1, 0.3)


def urn_p_value(counts: NDArray[np.int64], gap: NDArray[np.int64], uniform: Floats) -> Floats:
    """The p-value (...) of a value in a gap: small for a high value.

    Args:
        counts: (..., n + 1) earlier values of the stream in each gap.
        gap: (...) of the value, 0 below all calibration values and n above all.
        uniform: (...) in [0, 1), drawn for it.
    """
    weights = 1.0 + counts
    above = np.where(np.arange(counts.shape[-1]) > gap[..., None], weights, 0.0).sum(axis=-1)
    own = np.take_along_axis(weights, gap[..., None], axis=-1)[..., 0]
    return (above + (1 - uniform) * own) / weights.sum(axis=-1)  # never 0


def bets_on(p_value: Floats) -> Floats:
    """(..., bets) of p-values (...); each has a mean of 1 if these are uniform."""
    from scipy.special import ndtri

    score = -ndtri(np.clip(p_value, 1e-300, 1 - 1e-16))[..., None]
    shifts, spreads = np.array(SHIFTS), np.array(SPREADS)
    shifted = np.exp(shifts * score - shifts**2 / 2)
    spread = np.exp(score**2 / 2 * (1 - spreads**-2)) / spreads
    return np.concatenate([shifted, spread], axis=-1)


def allowed_share(defects: float, above: Floats, weight: Floats) -> Floats:
    """The most that the probability (...) can be with which the next part is rejected.

    A good part is rejected with a probability of at most `above / weight`: by the urn, in which every earlier part that
    was rejected counts as a good one; that makes the fraction larger, not smaller.

    Args:
        defects: probability with which a part is defective or cannot be inspected.
        above: (...) 1, and good images and earlier parts above the highest good image that is accepted.
        weight: (...) 1, and all good images and earlier parts.
    """
    return defects + (1 - defects) * above / weight


def bets_on_rejection(rejected: NDArray[np.bool_], allowed: Floats) -> Floats:
    """(..., bets) of whether parts were rejected (...); each has a mean of 1 or less if `allowed` (...) are."""
    limit = allowed[..., None]
    share = limit + (1 - limit) * np.array(EXCESSES)
    return np.where(rejected[..., None], share / limit, (1 - share) / (1 - limit))


class Evidence(NamedTuple):
    """How strong the evidence is, for each bet (..., bets)."""

    sums: Floats  # R_t
    runs: Floats  # the highest product of bets that ends now
    since: NDArray[np.int64]  # the part that this product began with: where a change is most likely

    @classmethod
    def at_start(cls, *shape: int, head_start: float) -> "Evidence":
        """Before the first part, R_0 being `head_start`."""
        return cls(np.full(shape, head_start), np.zeros(shape), np.zeros(shape, np.int64))

    def after(self, bets: Floats, part: int) -> "Evidence":
        """With the bets (..., bets) on a part."""
        begun = self.runs < 1
        since = np.where(begun, part, self.since)
        return Evidence((1 + self.sums) * bets, np.maximum(self.runs, 1) * bets, since)

    @property
    def value(self) -> Floats:
        """(...) R_t of the mixture of all bets, to be compared with c."""
        return self.sums.mean(axis=-1)
