"""Finished runs, read from their folders: what was run, and what it gave."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from oddpatch.errors import CheckpointError, ConfigError

METRICS, PREDICTIONS = "metrics.json", "predictions.csv"
HYDRA = Path(".hydra")


@dataclass(frozen=True)
class FinishedRun:
    """One run's folder.

    Runs written before `metrics.json` named its run are described by the config beside it, or by their checkpoint.
    """

    folder: Path
    metrics: Mapping[str, Any]

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """`model`, `backbone`, `data` and more as composed; empty where no config is kept."""
        return _read_config(self.folder)

    @cached_property
    def names(self) -> Mapping[str, Any]:
        """What people call it: `model`, `backbone`, `data`, `category`, `experiment`, `image_size`."""
        return self.metrics.get("run") or _names_of(self.folder, self.config)

    @property
    def category(self) -> str:
        """The category it was tested on."""
        return str(self.names["category"])

    @property
    def is_random(self) -> bool:
        """Whether the backbone had learned nothing, so that its numbers are no results."""
        return self.metrics.get("weights") == "random"

    @property
    def fpr_limit(self) -> float:
        """The limit that `au_pro` was integrated to."""
        return float((self.config.get("fpr_limits") or [0.3])[0])


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
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist: give the folder of a finished run") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): test the run again by eval.py") from error
    if not isinstance(metrics, dict) or "num_test_images" not in metrics:
        raise CheckpointError(f"{path} was not written by oddpatch: give the folder of a finished run")
    return FinishedRun(folder, metrics)


def find_runs(places: Sequence[Path]) -> list[FinishedRun]:
    """The runs in folders that are runs or hold some at any depth; a run's own folder is not looked into any deeper.

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
    return list(found.values())


def _run_folders(place: Path) -> Iterator[Path]:
    if (place / METRICS).is_file():
        yield place
        return
    for folder in sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")):
        yield from _run_folders(folder)


def read_predictions(run: FinishedRun) -> list[Scored]:
    """Every image's score, in the order of the dataset.

    Raises:
        CheckpointError: the file is missing or not what a test writes.
    """
    path = run.folder / PREDICTIONS
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                Scored(row["path"], int(row["label"]), row["defect_type"], float(row["score"]))
                for row in csv.DictReader(file)
            ]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist: test the run again by eval.py") from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}): test the run again by eval.py") from error


def identity(path: str, category: str) -> str:
    """What an image is, wherever its dataset lies: category/split/type/name."""
    parts = Path(path).parts
    # The last folder of this name that is followed by a split and a type: a root, or a type, may be called like it.
    start = max((i for i, part in enumerate(parts[:-3]) if part == category), default=max(len(parts) - 4, 0))
    return "/".join(parts[start:])


def _read_yaml(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not path.is_file():
        return {}
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}): restore it, or remove it") from error
    return content if isinstance(content, dict) else {}


def _read_config(folder: Path) -> dict[str, Any]:
    """The composed config; that of a test names the run it tested, which says the rest."""
    config = _read_yaml(folder / HYDRA / "config.yaml")
    tested = config.get("run")
    if isinstance(tested, str) and "model" not in config:
        fitted = _read_config(_beside(folder, tested))
        changed = {**fitted.get("data", {}), **(config.get("data") or {})}
        return {**fitted, **config, "data": changed} if fitted else config
    return config


def _beside(folder: Path, tested: str) -> Path:
    """The run that a test names: as it is written there, or where it usually is, should the folder have been moved."""
    given = Path(tested)
    return given if given.is_dir() else folder.parent.parent


def _names_of(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Names for a run whose metrics have none."""
    choices = _read_yaml(folder / HYDRA / "hydra.yaml").get("hydra", {}).get("runtime", {}).get("choices", {})
    if not config.get("model"):
        config = _config_of_checkpoint(folder)
    data = config["data"]
    size = data.get("crop") or data.get("resize")
    return {
        **{part: str(choices.get(part) or _class_name(config[part])) for part in ("model", "backbone", "data")},
        "category": str(data.get("category")),
        "experiment": choices.get("experiment"),
        "image_size": [size, size] if isinstance(size, int) else size,
    }


def _class_name(part: Mapping[str, Any]) -> str:
    return str(part.get("name") or part["_target_"].rpartition(".")[2])


def _config_of_checkpoint(folder: Path) -> dict[str, Any]:
    # Only here torch is loaded, which takes long.
    from oddpatch.checkpoint import read_checkpoint

    try:
        return dict(read_checkpoint(folder / "checkpoints" / "fitted.ckpt")["oddpatch"]["config"])
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder} does not say what was run: neither {METRICS} nor {HYDRA} nor a checkpoint does ({error})"
        ) from error
