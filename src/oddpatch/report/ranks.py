"""Whether methods differ over many categories: ranks, Friedman's test, and a critical-difference picture.

Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006. On each category the methods are
ranked; Friedman's test asks whether their mean ranks differ by more than chance, Nemenyi's which two do.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.errors import ConfigError
from oddpatch.figures.canvas import FAINT, INK, Sheet
from oddpatch.report.columns import Column, run_dataset
from oddpatch.report.table import title_of

LEVEL = 0.05
LINE, GROUP = 0.24, 0.12  # inches: of a name, and of the bar of a group


class Ranking(NamedTuple):
    """Methods on the categories that all of them have."""

    metric: str
    names: tuple[str, ...]  # of K methods, best first
    mean_ranks: NDArray[np.float64]  # (K,) 1 is best
    num_categories: int
    left_out: tuple[str, ...]  # categories that not all have
    p_value: float  # of Friedman's test that all methods are alike
    critical_difference: float  # of two mean ranks, by Nemenyi's test
    groups: tuple[tuple[int, int], ...]  # first and last of neighbours that do not differ

    @property
    def lines(self) -> list[str]:
        """The same in words."""
        differ = "differ" if self.p_value < LEVEL else "do not differ"
        without = f" ({', '.join(self.left_out)} left out: not all have it)" if self.left_out else ""
        told = [
            f"{title_of(self.metric)}, {self.num_categories} categories{without}: the {len(self.names)} methods "
            f"{differ} (Friedman, p = {self.p_value:.2g}); two differ if their mean ranks are "
            f"{self.critical_difference:.3f} apart (Nemenyi, {1 - LEVEL:.0%})"
        ]
        told += [f"{rank:6.3f}  {name}" for name, rank in zip(self.names, self.mean_ranks, strict=True)]
        if self.p_value >= LEVEL:
            return told
        return [*told, *(f"alike: {', '.join(self.names[first : last + 1])}" for first, last in self.groups)]


def rank_methods(columns: Sequence[Column], metric: str) -> Ranking:
    """Rank the columns of a report by a metric, of which more is better.

    Raises:
        ConfigError: there are fewer than three methods, or fewer than two categories that all of them have.
    """
    places = sorted({(run_dataset(run), run.title) for column in columns for run in column.runs})
    columns = [column for column in columns if any(column.value(*place, metric) for place in places)]
    if len(columns) < 3:
        raise ConfigError(
            f"{len(columns)} of the columns have {metric}: ranks take three or more; two runs are compared by oddpatch "
            "compare RUN_A RUN_B"
        )
    found = [[column.value(*place, metric) for column in columns] for place in places]
    values = np.array([[one.mean for one in row if one] for row in found if all(row)])  # (N, K)
    if len(values) < 2:
        raise ConfigError(
            f"{len(values)} of {len(places)} categories have {metric} of all methods: ranks take two or more"
        )
    left_out = tuple(title for (_, title), row in zip(places, found, strict=True) if not all(row))
    return rank_values(values, [column.label for column in columns], metric, left_out)


def rank_values(
    values: NDArray[np.float64], names: Sequence[str], metric: str = "", left_out: tuple[str, ...] = ()
) -> Ranking:
    """Rank K methods by their values (N, K) on N categories; equal ones share the mean of their ranks."""
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    count, methods = values.shape
    mean_ranks = rankdata(-values, axis=1).mean(axis=0)  # (K,)
    alike = bool((values == values[:, :1]).all())  # for which the statistic of Friedman's test is 0 / 0
    p_value = 1.0 if alike else float(friedmanchisquare(*values.T).pvalue)
    quantile = studentized_range.ppf(1 - LEVEL, methods, np.inf) / np.sqrt(2)
    critical = float(quantile * np.sqrt(methods * (methods + 1) / (6 * count)))
    order = np.argsort(mean_ranks, kind="stable")
    ranks = mean_ranks[order]
    last = [int(np.flatnonzero(ranks < rank + critical)[-1]) for rank in ranks]
    groups = tuple(
        (first, end) for first, end in enumerate(last) if end > first and (first == 0 or last[first - 1] < end)
    )
    return Ranking(metric, tuple(names[i] for i in order), ranks, count, left_out, p_value, critical, groups)


def draw_ranks(ranking: Ranking, path: Path) -> None:
    """Write the critical-difference picture: mean ranks on a line, and a bar over those that do not differ."""
    methods = len(ranking.names)
    half = (methods + 1) // 2
    left, width, top = 3.2, 4.0, 1.2
    below = top + 0.2 + GROUP * len(ranking.groups)
    sheet = Sheet(2 * left + width, below + LINE * half + 0.3)
    axes = sheet.panel(0, 0, sheet.width, sheet.height)
    axes.set(xlim=(0, sheet.width), ylim=(sheet.height, 0))
    axes.set_axis_off()

    def at(rank: float) -> float:
        return left + width * (rank - 1) / (methods - 1)

    sheet.write(0.2, 0.25, ranking.lines[0].partition(";")[0], size=9, weight="bold")
    axes.plot([at(1), at(methods)], [top, top], color=INK, linewidth=1)
    for rank in range(1, methods + 1):
        axes.plot([at(rank), at(rank)], [top - 0.06, top], color=INK, linewidth=1)
        sheet.write(at(rank), top - 0.15, str(rank), size=8, ha="center", room=0.5)
    reach = min(ranking.critical_difference, methods - 1)
    axes.plot([at(1), at(1 + reach)], [0.65, 0.65], color=FAINT, linewidth=2)
    sheet.write(at(1 + reach) + 0.1, 0.65, f"critical difference {ranking.critical_difference:.2f}", color=FAINT)
    for place, (name, rank) in enumerate(zip(ranking.names, ranking.mean_ranks, strict=True)):
        on_left = place < half
        height = below + LINE * (place if on_left else methods - 1 - place) + LINE / 2
        end = left - 0.1 if on_left else left + width + 0.1
        axes.plot([at(rank), at(rank), end], [top, height, height], color=INK, linewidth=0.8)
        told = f"{name}  {rank:.2f}" if on_left else f"{rank:.2f}  {name}"
        beside = end - 0.05 if on_left else end + 0.05
        sheet.write(beside, height, told, size=8, ha="right" if on_left else "left", room=left - 0.3)
    for place, (first, last) in enumerate(ranking.groups):
        height = top + 0.12 + GROUP * place
        ends = [at(ranking.mean_ranks[first]) - 0.04, at(ranking.mean_ranks[last]) + 0.04]
        axes.plot(ends, [height, height], color=INK, linewidth=3, solid_capstyle="butt")
    sheet.save(path)
