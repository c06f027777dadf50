"""Runs arranged in columns: what ran with the same settings on several categories belongs together."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any, NamedTuple

from oddpatch.report.datasets import OWN, dataset_of
from oddpatch.report.runs import FinishedRun

# Settings that change no number, or that columns are averaged over.
_NOT_SETTINGS = {"seed", "weights", "root", "category", "fold", "obtain", "batch_size", "num_workers", "on_error"}
_NOT_SETTINGS |= {"render", "render_seed", "shots_seed"}
# Files that belong to a category: that there is one matters.
_FILES = ("align", "roi", "split")
_RANDOM, _MINIMUM = "random weights", "calibration.minimum"


class Value(NamedTuple):
    """A metric of a category, over one or several runs of the same settings."""

    mean: float
    runs: int = 1
    spread: float | None = None  # standard deviation over the runs
    interval: tuple[float, float] | None = None  # of a single run


class Share(NamedTuple):
    """How many of the categories an average needs are there, where that is not all."""

    there: int
    needed: int


@dataclass(frozen=True)
class Column:
    """Runs that differ in nothing but their category, their seed and where they ran."""

    model: str
    backbone: str
    image_size: str
    settings: tuple[str, ...]  # those in which it differs from the columns of the same names
    runs: tuple[FinishedRun, ...]

    @property
    def label(self) -> str:
        """Its name, with what tells it from the others."""
        return ", ".join([f"{self.model} {self.backbone}", *self.settings])

    @property
    def is_random(self) -> bool:
        """Whether its backbone had learned nothing."""
        return any(run.is_random for run in self.runs)

    def value(self, dataset: str, category: str, metric: str) -> Value | None:
        """The metric on a category, by its title; None if no run has it."""
        runs = [run for run in self.runs if (run_dataset(run), run.title) == (dataset, category)]
        found = [(run, run.metrics[metric]) for run in runs if isinstance(run.metrics.get(metric), float | int)]
        if not found:
            return None
        numbers = [float(number) for _, number in found]
        if len(numbers) > 1:
            return Value(fmean(numbers), len(numbers), stdev(numbers))
        interval = found[0][0].metrics.get("confidence", {}).get(metric)
        return Value(numbers[0], interval=tuple(interval) if interval else None)

    def average(self, dataset: str, categories: Iterable[str], metric: str) -> Value | Share:
        """Mean over the categories, each weighing the same; without all of them, how many there are."""
        values = [self.value(dataset, category, metric) for category in categories]
        there = [value.mean for value in values if value is not None]
        return Value(fmean(there), len(there)) if len(there) == len(values) else Share(len(there), len(values))


def columns_of(runs: Sequence[FinishedRun]) -> list[Column]:
    """The runs, those of the same settings together, in the order of their names."""
    named: dict[tuple[str, str, str], dict[str, list[FinishedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in _told_apart(runs):
        named[_name(run)][repr(sorted(settings_of(run).items(), key=str))].append(run)
    columns = []
    for name, alike in sorted(named.items()):
        differing = _differing([settings_of(members[0]) for members in alike.values()])
        columns += [Column(*name, *column) for column in zip(differing, map(tuple, alike.values()), strict=True)]
    return columns


def _told_apart(runs: Sequence[FinishedRun]) -> Iterator[FinishedRun]:
    """The runs; those of own categories that have one name and other test images say which, by where these were."""
    sets: dict[str, dict[str | None, str]] = defaultdict(dict)  # by category: where each set of test images was
    for run in runs:
        if run_dataset(run) == OWN:
            root = run.settings["data"].get("root")
            sets[run.category].setdefault(run.metrics.get("test_set"), str(root or run.folder))
    for run in runs:
        places, known = sets[run.category], run.metrics.get("test_set")
        if run_dataset(run) != OWN or len(places) < 2:
            yield run
        elif list(places.values()).count(places[known]) == 1:
            yield replace(run, images=places[known])
        else:  # they have changed where they are
            yield replace(run, images=f"{places[known]}, test set {known[:8] if known else 'unknown'}")


def _name(run: FinishedRun) -> tuple[str, str, str]:
    names = run.names
    size = "x".join(str(side) for side in names.get("image_size") or ())
    called = str(names["model"]) + (f" ({names['experiment']})" if names.get("experiment") else "")
    return called, str(names["backbone"]), size


def settings_of(run: FinishedRun) -> dict[str, Any]:
    """What decides the numbers, by dotted name."""
    parts = {part: dict(run.settings[part]) for part in ("model", "backbone", "data")}
    parts["data"] = {
        key: "yes" if key in _FILES and value != "auto" else value
        for key, value in parts["data"].items()
        if value is not None and key != "_target_"
    }
    if run.together_with:
        parts["data"]["categories"] = "+".join(run.together_with)
    # Thresholds alone change no metric, but holding out good images does: fewer are fitted to.
    calibration = run.settings["calibration"]
    if calibration.get("method") == "holdout":
        parts["calibration"] = {"holdout": calibration.get("fraction"), "minimum": calibration.get("minimum")}
    return {**dict(_flatten(parts)), _RANDOM: run.is_random}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif key not in _NOT_SETTINGS:
            yield f"{prefix}{key}", value


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Of each the settings that not all have alike, as text."""
    names = sorted({name for one in settings for name in one} - {_RANDOM})  # which is marked otherwise
    differing = [name for name in names if len({repr(one.get(name)) for one in settings}) > 1]
    differing = [
        name for name in differing if name != _MINIMUM or len({repr(o[name]) for o in settings if name in o}) > 1
    ]
    return [tuple(_tell(name, one[name]) for name in differing if name in one) for one in settings]


def _tell(name: str, value: Any) -> str:
    short = name.removeprefix("model.").removeprefix("calibration.")
    return f"{short}={'none' if value is None else value}"


def run_dataset(run: FinishedRun) -> str:
    """The public dataset that a run was tested on, or `OWN`."""
    return dataset_of(run.category, int(run.metrics["num_test_images"]))
