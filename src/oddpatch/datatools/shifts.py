"""In which simple measures two groups of images differ, so much that it is no chance."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from oddpatch.datatools.fingerprints import Fingerprint

_CHANCE = 1e-3  # largest p-value of the rank test

#: What is measured of an image: the unit that is printed, and the value in it.
MEASURES: dict[str, tuple[str, Callable[[Fingerprint], float]]] = {
    "mean brightness": ("of 255", lambda item: 255 * item.mean),
    "focus": ("Laplacian by contrast", lambda item: item.focus),
    "red": ("% of the colour", lambda item: _share(item, 0)),
    "blue": ("% of the colour", lambda item: _share(item, 2)),
    "size": ("pixels", lambda item: item.size[0] * item.size[1]),
}


class Shift(NamedTuple):
    """A measure that may separate two groups of images."""

    measure: str
    unit: str
    auroc: float  # of the measure, or of its negative: at least 0.5
    medians: tuple[float, float]


def shifts(first: Sequence[Fingerprint], second: Sequence[Fingerprint], auroc: float) -> list[Shift]:
    """Measures that tell two groups of images apart with at least `auroc`, and beyond chance (Mann-Whitney, p < 0.001).

    Groups of 5 and 9 images are large enough for that; much smaller ones are not.
    """
    from statistics import median

    from scipy.stats import mannwhitneyu

    found = []
    for name, (unit, measure) in MEASURES.items() if first and second else ():
        # Rounding must not rank images that are equal, such as grey ones by their colour.
        a, b = ([float(f"{measure(item):.5g}") for item in group] for group in (first, second))
        test = mannwhitneyu(a, b)
        rank = float(test.statistic) / (len(a) * len(b))
        if max(rank, 1 - rank) >= auroc and test.pvalue < _CHANCE:
            found.append(Shift(name, unit, max(rank, 1 - rank), (median(a), median(b))))
    return found


def _share(item: Fingerprint, channel: int) -> float:
    return 100 * item.colour[channel] / (sum(item.colour) or 1)
