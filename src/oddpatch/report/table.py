"""One table over many runs: a row for each category, averages as papers give them, published numbers beside ours."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from oddpatch.errors import ConfigError
from oddpatch.report.columns import Column, Share, Value, columns_of, run_dataset
from oddpatch.report.datasets import DATASETS, OWN
from oddpatch.report.published import Match, matches
from oddpatch.report.runs import FinishedRun
from oddpatch.results.summary import metric_name

DEFAULT_METRICS = ("image_auroc", "pixel_auroc", "au_pro")
#: Limit of AU-PRO in the publications.
PUBLISHED_LIMIT = 0.3
RANDOM = "random weights: not a result"


class Heading(NamedTuple):
    """One column of the printed table: runs, or published numbers beside them."""

    key: str  # 1, or 1a for what was published of 1
    label: str
    notes: tuple[str, ...]
    column: Column
    match: Match | None = None


class Cell(NamedTuple):
    """One value of the printed table."""

    text: str
    value: float | None = None  # ours, or the published one
    note: str = ""
    ours: Value | None = None  # of a column of runs
    change: float | None = None  # of published numbers: ours less theirs, where both mean the same
    within: bool | None = None  # whether that is no larger than the tolerance


class Row(NamedTuple):
    """One line of the printed table."""

    dataset: str
    name: str  # category or group
    label: str
    is_average: bool
    cells: tuple[Cell, ...]


class Grid(NamedTuple):
    """The table of one metric."""

    metric: str
    title: str
    headings: tuple[Heading, ...]  # without publications that do not give this metric
    rows: tuple[Row, ...]


class Report(NamedTuple):
    """Everything a report says, whatever its format."""

    headings: tuple[Heading, ...]
    grids: tuple[Grid, ...]
    notes: tuple[str, ...]
    tolerance: float
    has_published: bool


def build_report(
    runs: Sequence[FinishedRun],
    metrics: Sequence[str] | None = None,
    with_published: bool = False,
    tolerance: float = 0.01,
) -> Report:
    """Arrange runs for printing.

    Args:
        runs: finished runs; at least one.
        metrics: keys of `metrics.json`, a table each; None for those of `DEFAULT_METRICS` that there are, as a method
            may score whole images only.
        with_published: put published numbers beside the columns that match some.
        tolerance: how far from a published number one of ours may be to be marked as within.

    Raises:
        ConfigError: no run has a metric, or the tolerance is negative.
    """
    if tolerance < 0:
        raise ConfigError(f"tolerance={tolerance} must be 0 or more, such as 0.01")
    there = [name for name in DEFAULT_METRICS if any(name in run.metrics for run in runs)]
    metrics = metrics or there or DEFAULT_METRICS[:1]
    for metric in metrics:
        if not any(isinstance(run.metrics.get(metric), float | int) for run in runs):
            known = sorted({k for run in runs for k, v in run.metrics.items() if isinstance(v, float) and "@" not in k})
            raise ConfigError(f"no run has the metric {metric}: choose of {', '.join(known)}")
    columns = columns_of(runs)
    headings, notes = _headings(columns, with_published)
    told_apart = [run for column in columns for run in column.runs]
    grids = tuple(_grid(metric, headings, told_apart, tolerance) for metric in metrics)
    return Report(tuple(headings), grids, tuple(notes), tolerance, with_published)


def _headings(columns: Sequence[Column], with_published: bool) -> tuple[list[Heading], list[str]]:
    headings, notes = [], []
    sizes = {column.image_size for column in columns}
    for number, column in enumerate(columns, start=1):
        label = column.label + (f", {column.image_size}" if len(sizes) > 1 else "")
        about = [f"{len(column.runs)} runs"] if len(column.runs) > 1 else []
        about += [RANDOM] if column.is_random else []
        headings.append(Heading(str(number), label, tuple(about), column))
        if not with_published:
            continue
        found, reason = _matches(column)
        if reason and not column.is_random:  # which are marked already
            notes.append(f"{number} is beside no published numbers: {reason}")
        for letter, match in enumerate(found):
            titles = dict.fromkeys(source.title for source in match.published.sources)
            told = (*match.differences, "; ".join(titles))
            label = f"{match.published.variant} [{match.published.sources[0].source_id}]"
            headings.append(Heading(f"{number}{chr(ord('a') + letter)}", label, told, column, match))
    for limit in sorted({run.fpr_limit or PUBLISHED_LIMIT for c in columns for run in c.runs} - {PUBLISHED_LIMIT}):
        whose = [str(i) for i, column in enumerate(columns, 1) if any(run.fpr_limit == limit for run in column.runs)]
        notes.append(f"au_pro of {', '.join(whose)} is integrated to {limit:g}, not to {PUBLISHED_LIMIT:g}")
    return headings, notes


def _matches(column: Column) -> tuple[list[Match], str]:
    """Those of the first run that has some: runs of a column differ in what matters to none."""
    reason = ""
    for run in column.runs:
        found, why = matches(run)
        if found:
            return found, ""
        reason = reason or why
    return [], reason


def _grid(metric: str, headings: Sequence[Heading], runs: Sequence[FinishedRun], tolerance: float) -> Grid:
    headings = tuple(heading for heading in headings if heading.match is None or _gives(heading.match, metric))
    rows = []
    tested: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        tested[run_dataset(run)].add(run.title)
    for dataset in sorted(tested, key=lambda name: (name == OWN, name)):
        lines: list[tuple[str, str, tuple[str, ...]]] = [(name, name, (name,)) for name in sorted(tested[dataset])]
        for group, members in groups_of(dataset, tested[dataset]).items():
            lines.append((group, f"{'all' if group == 'average' else group}, {len(members)}", tuple(members)))
        for name, label, categories in lines:
            if tested[dataset].intersection(categories):
                cells = tuple(_cell(heading, dataset, name, categories, metric, tolerance) for heading in headings)
                rows.append(Row(dataset, name, label, categories != (name,), cells))
    return Grid(metric, title_of(metric), headings, tuple(rows))


def _gives(match: Match, metric: str) -> bool:
    return any(name == metric for _, _, name in match.published.values)


def groups_of(dataset: str, tested: Iterable[str]) -> Mapping[str, Sequence[str]]:
    """The groups of categories that are averaged over."""
    if dataset in DATASETS:
        return {name: sorted(members) for name, members in DATASETS[dataset].groups.items()}
    own = sorted(tested)
    return {"average": own} if len(own) > 1 else {}


def title_of(metric: str) -> str:
    """What people call a metric."""
    return metric_name(metric) or metric


def _cell(heading: Heading, dataset: str, name: str, categories: Sequence[str], metric: str, tolerance: float) -> Cell:
    column, match = heading.column, heading.match
    ours: Value | Share | None
    if list(categories) == [name]:
        ours = column.value(dataset, name, metric)
    else:
        ours = column.average(dataset, categories, metric)
    if match is not None:
        theirs = published_value(match, dataset, name, categories, metric)
        if theirs is None:
            return Cell("-", note="not published")
        change = difference(column, ours, theirs, metric)
        if change is None:
            return Cell(f"{theirs:.3f}", theirs)
        within = is_within(change, tolerance)
        return Cell(f"{theirs:.3f} {change:+.3f} {'✓' if within else '✗'}", theirs, change=change, within=within)
    if ours is None:
        return Cell("-", note=_why_absent(column, dataset, name, metric))
    if isinstance(ours, Share):
        return Cell(f"{ours.there} of {ours.needed}", note="not all categories of this average are there")
    note = f"mean of {ours.runs} runs, standard deviation {ours.spread:.4f}" if ours.spread is not None else ""
    if ours.interval:
        note = f"{ours.interval[0]:.4f} to {ours.interval[1]:.4f}"
    return Cell(f"{ours.mean:.4f}{'†' if column.is_random else ''}", ours.mean, note, ours)


def _why_absent(column: Column, dataset: str, category: str, metric: str) -> str:
    runs = [run for run in column.runs if (run_dataset(run), run.title) == (dataset, category)]
    return str(runs[0].metrics.get("absent", {}).get(metric, "not measured")) if runs else "not run"


def published_value(match: Match, dataset: str, name: str, categories: Sequence[str], metric: str) -> float | None:
    """The printed value; of a group without one, the mean of its categories if all are printed."""
    values = match.published.values
    if (dataset, name, metric) in values:
        return values[dataset, name, metric]
    found = [values[dataset, category, metric] for category in categories if (dataset, category, metric) in values]
    return fmean(found) if len(found) == len(categories) else None


def difference(column: Column, ours: Value | Share | None, theirs: float, metric: str) -> float | None:
    """Ours less theirs, where both mean the same."""
    if metric == "au_pro" and any(run.fpr_limit != PUBLISHED_LIMIT for run in column.runs):
        return None
    return ours.mean - theirs if isinstance(ours, Value) else None


def is_within(change: float, tolerance: float) -> bool:
    """Whether a difference is no larger than the tolerance, but for float rounding."""
    return abs(change) <= tolerance + 1e-9
