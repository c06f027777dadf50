"""Finished runs, read from their folders: what was run, and what it gave."""

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from oddpatch.errors import CheckpointError, ConfigError
from oddpatch.files import from_cell, parse_json
from oddpatch.results import METRICS, PREDICTIONS, RANDOM

#: What metrics.json says of a run, whatever the category.
_OF_EVERY_CATEGORY = (
    "num_train_images", "thresholds", "fpr_limits", "timing", "peak_memory_bytes", "weights", "versions", "git_commit",
    "settings",
)  # fmt: skip


@dataclass(frozen=True)
class FinishedRun:
    """One run's folder, or what is there of one of several categories."""

    folder: Path
    metrics: Mapping[str, Any]
    images: str = ""  # which they are, where runs beside this one were tested on others of the same category

    @property
    def settings(self) -> Mapping[str, Any]:
        """`model`, `backbone`, `data` and `calibration` with all their settings."""
        return self.metrics["settings"]

    @property
    def names(self) -> Mapping[str, Any]:
        """What people call it: `model`, `backbone`, `data`, `category`, `experiment`, `image_size`."""
        return self.metrics["run"]

    @property
    def category(self) -> str:
        """The category it was tested on."""
        return str(self.names["category"])

    @property
    def together_with(self) -> Sequence[str]:
        """All categories that its model is of, where there are several."""
        return list(self.metrics.get("categories") or self.metrics.get("one_of") or ())

    def apart(self) -> list["FinishedRun"]:
        """A run of each category, where one model is of several; else itself."""
        categories = self.metrics.get("categories")
        if not categories:
            return [self]
        # What is of all images together is of no category.
        of_run = {key: value for key, value in self.metrics.items() if key in _OF_EVERY_CATEGORY}
        return [
            replace(
                self, metrics={**of_run, **one, "run": {**self.names, "category": name}, "one_of": list(categories)}
            )
            for name, one in categories.items()
        ]

    @property
    def title(self) -> str:
        """Its category, and which images they were where that does not say it."""
        return f"{self.category} ({self.images})" if self.images else self.category

    @property
    def is_random(self) -> bool:
        """Whether the backbone had learned nothing, so that its numbers are no results."""
        return self.metrics.get("weights") == RANDOM

    @property
    def fpr_limit(self) -> float | None:
        """The limit that `au_pro` was integrated to; None where it was not measured."""
        return next(iter(self.metrics["fpr_limits"]), None)


class Scored(NamedTuple):
    """One row of `predictions.csv`."""

    path: str
    label: int
    defect_type: str
    score: float


def read_run(folder: Path) -> FinishedRun:
    """The run in a folder.

    Raises:
        CheckpointError: there is none, or its `metrics.json` cannot be read.
    """
    path = folder / METRICS
    try:
        metrics = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist: give the folder of a finished run") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): test the run again by oddpatch eval") from error
    if not isinstance(metrics, dict) or "num_test_images" not in metrics:
        raise CheckpointError(f"{path} was not written by oddpatch: give the folder of a finished run")
    wrong = _wrong_metric(metrics) or _wrong_category(metrics)
    if wrong:
        raise CheckpointError(f"{path}: {wrong} is not as oddpatch writes it: test the run again by oddpatch eval")
    return FinishedRun(folder, metrics)


def _wrong_metric(metrics: Mapping[str, Any]) -> str | None:
    """The first of what is used of `metrics.json` that is of another type, by its name."""
    limits = metrics.get("fpr_limits")
    names, settings = (found if isinstance(found := metrics.get(key), dict) else {} for key in ("run", "settings"))
    parts = ("model", "backbone", "data")
    checks = {
        "num_test_images": type(metrics["num_test_images"]) is int and metrics["num_test_images"] >= 0,
        "run": all(isinstance(names.get(name), str) for name in (*parts, "category")),
        "test_set": isinstance(metrics.get("test_set"), str | None),
        "run.experiment": isinstance(names.get("experiment"), str | None),
        "run.image_size": _is_pair(names.get("image_size"), lambda side: type(side) is int),
        "settings": isinstance(metrics.get("settings"), dict),
        "fpr_limits": isinstance(limits, list) and all(map(is_number, limits)),
        "weights": isinstance(metrics.get("weights"), str | None),
        "num_train_images": type(metrics.get("num_train_images")) is int,
        "absent": _maps(metrics.get("absent", {}), lambda reason: isinstance(reason, str)),
        "confidence": _maps(metrics.get("confidence", {}), lambda ends: _is_pair(ends, is_number)),
        "image_auroc_by_defect_type": _maps(metrics.get("image_auroc_by_defect_type", {}), is_number),
        **{f"settings.{part}": _is_part(settings.get(part), named=True) for part in parts},
        "settings.calibration": _is_part(settings.get("calibration"), named=False),
    }
    checks |= {
        name: is_number(value)
        for name, value in metrics.items()
        if name.startswith(("image_", "pixel_", "au_pro")) and name not in checks
    }
    return next((name for name, right in checks.items() if not right), None)


def _wrong_category(metrics: Mapping[str, Any]) -> str | None:
    """Likewise of what it says of several categories."""
    categories = metrics.get("categories")
    if categories is None:
        return None
    if not _maps(categories, lambda one: isinstance(one, dict) and "num_test_images" in one):
        return "categories"
    for name, one in categories.items():
        if wrong := _wrong_metric({**metrics, **one}):
            return f"categories.{name}.{wrong}"
    return None


def _maps(value: Any, right: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(right(one) for one in value.values())


def _is_pair(value: Any, right: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(right, value))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value out of a file is a number that can be measured; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def find_runs(places: Sequence[Path]) -> list[FinishedRun]:
    """The runs in folders that are runs or hold some at any depth; a run's own folder is not looked into any deeper.

    A run of several categories is one of each.

    Raises:
        ConfigError: a place holds no run.
        CheckpointError: a run cannot be read.
    """
    found: dict[Path, FinishedRun] = {}
    for place in places:
        folders = list(_run_folders(place)) if place.is_dir() else []
        if not folders:
            raise ConfigError(
                f"{place} holds no {METRICS}: give folders of finished runs, or folders that contain some"
            )
        found.update({folder.resolve(): read_run(folder) for folder in folders})
    return [one for run in found.values() for one in run.apart()]


def _run_folders(place: Path) -> Iterator[Path]:
    if (place / METRICS).is_file():
        yield place
        return
    for folder in sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")):
        yield from _run_folders(folder)


def read_predictions(run: FinishedRun) -> list[Scored]:
    """Every image's score, in the order of the dataset; those of its category, of one of several.

    Raises:
        CheckpointError: the file is missing or not what a test writes.
    """
    path = run.folder / PREDICTIONS
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [
                Scored(from_cell(row["path"]), int(row["label"]), from_cell(row["defect_type"]), float(row["score"]))
                for row in csv.DictReader(file)
                if "one_of" not in run.metrics or from_cell(row["category"]) == run.category
            ]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist: test the run again by oddpatch eval") from error
    except (OSError, KeyError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}): test the run again by oddpatch eval") from error
    bad = next((row for row in rows if row.label not in (0, 1) or not math.isfinite(row.score)), None)
    if bad is not None:
        raise CheckpointError(
            f"{path}: {bad.path} has label {bad.label} and score {bad.score}: test the run again by oddpatch eval"
        )
    return rows


def identity(path: str, run: FinishedRun) -> str:
    """What a tested image is, wherever its dataset lies: category/split/type/name."""
    parts = Path(path).parts
    # The last folder of this name that is followed by a split and a type: a root, or a type, may be called like it.
    names = run.together_with or [run.category]
    start = max((i for i, part in enumerate(parts[:-3]) if part in names), default=max(len(parts) - 4, 0))
    return "/".join(parts[start:])


def _is_part(value: Any, named: bool) -> bool:
    """Settings by name, with that of their class if `named`; so are those of the parts of an ensemble."""
    if not isinstance(value, dict) or not isinstance(value.get("_target_"), str if named else str | None):
        return False
    member, members = value.get("member"), value.get("members")
    inner = [*([member] if member else []), *(members.values() if isinstance(members, dict) else [])]
    return (members is None or isinstance(members, dict)) and all(isinstance(one, dict) for one in inner)
