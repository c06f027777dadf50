"""Published recipes run over every category at hand, and whether their numbers are those that were published.

A recipe is a file of `configs/experiment`. Its runs are a sweep in a folder of its own, so that what is finished is not
run again; which published numbers they are put beside is `oddpatch.report.published`'s affair.
"""

import csv
import difflib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from oddpatch.data.layout import categories, scan
from oddpatch.errors import INTERRUPTED, ConfigError, DataError, OddpatchError, WeightsError
from oddpatch.files import from_cell, replacing, shown, to_cell
from oddpatch.hydra_entry import building
from oddpatch.hydra_entry.calling import composed
from oddpatch.hydra_entry.composition import CONFIGS
from oddpatch.hydra_entry.overrides import quoted
from oddpatch.known import with_defaults
from oddpatch.models.base import Detector
from oddpatch.report.columns import Value
from oddpatch.report.datasets import DATASETS, Size
from oddpatch.report.published import Match, matches
from oddpatch.report.runs import METRICS, FinishedRun, is_number, read_run
from oddpatch.report.table import Grid, build_report, title_of

ALL = "all"
#: Runs of a method that draws numbers with its settings, each with another seed.
NUM_SEEDS = 3
_PARTS = ("model", "backbone", "data", "calibration", "learning")
#: What costs time and changes no number.
_QUICKER = ("callbacks.pictures=null", "callbacks.results.confidence.draws=0", "logger=none")


class NothingPublishedError(OddpatchError, ValueError):
    """No published numbers are known that a recipe could be put beside."""


@dataclass(frozen=True)
class Recipe:
    """What a recipe takes to run here."""

    name: str
    categories: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    seeded_by: str = "seed"  # the setting; of few-shot recipes that which chooses the images
    obstacle: str = ""  # why it cannot run, and what to do

    def command(self, folder: Path, data: Path | None) -> list[str]:
        """The arguments of `oddpatch train` for all of its runs, in `folder`."""
        return [
            "-m",
            f"experiment={self.name}",
            *([f"paths.data_dir={quoted(str(data))}"] if data else []),
            f"data.category={','.join(map(quoted, self.categories))}",
            f"{self.seeded_by}={','.join(map(str, self.seeds))}",
            *_QUICKER,
            f"hydra.sweep.dir={quoted(str(folder))}",
        ]


class Finding(NamedTuple):
    """One line of the table: a number of ours beside a published one, or why there is none."""

    recipe: str
    dataset: str = ""
    category: str = ""
    metric: str = ""
    source: str = ""
    ours: float | None = None
    runs: int | None = None
    published: float | None = None
    difference: float | None = None
    verdict: str = "not run"  # reproduced, not reproduced, not compared or not run
    why: str = ""


def recipes_named(name: str) -> list[str]:
    """The recipes called so, or whose name begins so, as all of PaDiM by `padim`; `all` for every one.

    Raises:
        ConfigError: there is none.
    """
    known = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
    if name == ALL:
        return known
    found = [name] if name in known else [one for one in known if one.startswith(f"{name}_")]
    if not found:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
        raise ConfigError(
            f"there is no recipe {name}: choose all or a file of configs/experiment, as {', '.join(near)}"
        )
    return found


def prepare(name: str, data: Path | None) -> Recipe:
    """What a recipe takes to run; missing data and weights are found out now, before anything expensive.

    Args:
        name: of the recipe.
        data: folder of the datasets (`paths.data_dir`); None for that of the configs.

    Raises:
        NothingPublishedError: there is nothing to compare its numbers with.
    """
    settings: dict[str, Any] = {"experiment": name, **({"paths.data_dir": str(data.resolve())} if data else {})}
    with tempfile.TemporaryDirectory() as folder, composed("train", settings, Path(folder)) as cfg:
        random = _draws(with_defaults(OmegaConf.to_container(cfg.model, resolve=True))) or "seed" in cfg.learning
        few = cfg.data.get("shots") is not None
        first = cfg.data.shots_seed if few else cfg.seed
        seeds = tuple(range(first, first + (NUM_SEEDS if random or few else 1)))
        comparable = _Comparable.of(cfg)
        if not any(comparable.matches(category, size.test) for category, size in _published_sizes()):
            raise NothingPublishedError(f"{name}: no published numbers are known that its own could be put beside")
        try:
            found = comparable.categories(Path(cfg.data.root))
            find_weights(OmegaConf.to_yaml(cfg.backbone, resolve=True))
        except DataError as error:
            return Recipe(name, obstacle="; ".join(filter(None, [str(error), cfg.data.get("obtain")])))
        except WeightsError as error:
            return Recipe(name, obstacle=str(error))
    return Recipe(name, tuple(found), seeds, "data.shots_seed" if few else "seed")


def _draws(part: Any) -> bool:
    """Whether another seed gives a detector of this description, or one that it is made of, another fit."""
    if not isinstance(part, Mapping):
        return False
    found = get_class(part["_target_"]) if "_target_" in part else None
    own = found is not None and issubclass(found, Detector) and found.draws(part)
    return own or any(map(_draws, part.values()))


@cache
def find_weights(backbone: str) -> None:
    """Find or fetch the weights of a backbone, described by YAML; a `WeightsError` if they are not to be had."""
    building.make(OmegaConf.create(backbone))


def _published_sizes() -> Iterator[tuple[str, Size]]:
    for dataset in DATASETS.values():
        yield from dataset.categories.items()


@dataclass(frozen=True)
class _Comparable:
    """What of a config decides which published numbers its runs are put beside."""

    settings: Mapping[str, Any]
    image_size: tuple[int, int]
    held_out: bool  # tested on the part of all images that was not trained on

    @classmethod
    def of(cls, cfg: DictConfig) -> "_Comparable":
        settings = {part: with_defaults(OmegaConf.to_container(cfg[part], resolve=True)) for part in _PARTS}
        size = cfg.data.crop or cfg.data.resize
        height, width = (size, size) if isinstance(size, int) else size
        learning: Any = get_class(cfg.learning._target_)
        return cls(settings, (height, width), learning.learns_from_defects)

    def matches(self, category: str, num_test_images: int) -> list[Match]:
        """The published variants beside which a run on so many test images of a category would be put."""
        names = {"category": category, "image_size": list(self.image_size)}
        about = {"num_test_images": num_test_images, "num_train_images": 0, "weights": "", "run": names}
        return matches(FinishedRun(Path(), {**about, "settings": self.settings}))[0]

    def categories(self, root: Path) -> list[str]:
        """Those below `root` that something was published of, their own numbers or a mean that they are part of.

        Raises:
            DataError: there is none.
        """
        found = categories(root)
        wanted = []
        for category in found:
            sizes = {size.test for name, size in _published_sizes() if name == category}
            if not self.held_out:
                sizes &= {len(scan(root, category).test)}
            values = [key for size in sizes for match in self.matches(category, size) for key in match.published.values]
            if any(name == category or (of in DATASETS and name in DATASETS[of].groups) for of, name, _ in values):
                wanted.append(category)
        if not wanted:
            there = f"{', '.join(found)}, not with the images that were published on" if found else "no category"
            raise DataError(f"{root} holds {there}")
        return wanted


def run(recipe: Recipe, folder: Path, data: Path | None) -> None:
    """Run all that is not finished of a recipe, as `oddpatch train -m` does; a run that fails stops no other.

    Args:
        recipe: without an obstacle.
        folder: of its runs.
        data: as in `prepare`.
    """
    command = [sys.executable, "-m", "oddpatch.train", *recipe.command(folder.resolve(), data and data.resolve())]
    if subprocess.run(command, check=False).returncode == INTERRUPTED:
        raise KeyboardInterrupt


def judge(recipe: Recipe, folder: Path, tolerance: float) -> list[Finding]:
    """The numbers of a recipe's runs beside the published ones.

    Args:
        recipe: what was asked for.
        folder: of its runs.
        tolerance: largest difference that counts as reproduced.
    """
    if recipe.obstacle:
        return [Finding(recipe.name, why=recipe.obstacle)]
    jobs = _jobs(folder)
    lost = [
        Finding(recipe.name, category=job["category"], why=f"{job['varies'] or job['job']}: {job['reason']}")
        for job in jobs
        if job["status"] not in ("done", "skipped") or not (folder / job["job"] / METRICS).is_file()
    ]
    runs = [read_run(folder / job["job"]) for job in jobs if (folder / job["job"] / METRICS).is_file()]
    names = sorted({key[2] for run in runs for match in matches(run)[0] for key in match.published.values})
    measured = [name for name in names if any(is_number(run.metrics.get(name)) for run in runs)]
    if not measured:
        why = "; ".join(dict.fromkeys(matches(run)[1] for run in runs)) or "no run has ended"
        return [*lost, Finding(recipe.name, verdict="not compared", why=why)]
    report = build_report(runs, measured, with_published=True, tolerance=tolerance)
    return [*lost, *(finding for grid in report.grids for finding in _findings(recipe.name, grid, tolerance))]


def _jobs(folder: Path) -> list[dict[str, str]]:
    """What became of each job, as the sweep wrote it down."""
    try:
        with (folder / "sweep.csv").open(encoding="utf-8", newline="") as file:
            return [{key: from_cell(value) for key, value in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []  # no job was begun


def _findings(recipe: str, grid: Grid, tolerance: float) -> Iterator[Finding]:
    places = {heading.key: place for place, heading in enumerate(grid.headings)}
    for row in grid.rows:
        for place, heading in enumerate(grid.headings):
            cell = row.cells[place]
            if heading.match is None or cell.value is None:
                continue
            beside = row.cells[places[heading.key.rstrip("abcdefghijklmnopqrstuvwxyz")]]
            ours = beside.ours if isinstance(beside.ours, Value) else None
            common = (recipe, row.dataset, row.name, grid.metric, heading.label)
            told = "; ".join(heading.match.differences)
            if cell.change is None or ours is None:
                why = f"{beside.text} categories" if beside.text != "-" else beside.note
                yield Finding(*common, published=cell.value, verdict="not compared", why=why)
            else:
                near = "reproduced" if cell.within else "not reproduced"
                why = told if cell.within else "; ".join(filter(None, [f"off by more than {tolerance:g}", told]))
                numbers = (beside.value, ours.runs, cell.value, cell.change)
                yield Finding(*common, *numbers, verdict=near, why=why)


def write(findings: Sequence[Finding], path: Path) -> None:
    """Write the table, whole or not at all."""
    with replacing(path) as file:
        writer = csv.writer(file)
        writer.writerow(Finding._fields)
        writer.writerows([to_cell("" if value is None else value) for value in finding] for finding in findings)


def show(findings: Sequence[Finding], console: Console | None = None) -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("recipe", "category", "metric", "published by"):
        table.add_column(title, overflow="fold")
    for title in ("ours", "published", "difference"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for one in findings:
        numbers = ["" if v is None else form.format(v) for form, v in
                   (("{:.4f}", one.ours), ("{:.4f}", one.published), ("{:+.4f}", one.difference))]  # fmt: skip
        told = one.verdict if one.verdict == "reproduced" else f"{one.verdict}: {one.why}" if one.why else one.verdict
        texts = (one.recipe, one.category, title_of(one.metric), one.source, *numbers, told)
        table.add_row(*(Text(shown(text)) for text in texts))
    console = console or Console()
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)


def all_reproduced(findings: Sequence[Finding]) -> bool:
    """Whether every recipe has been run and compared, and no number is off by more than the tolerance.

    Means of which categories are missing are not compared, and do not count.
    """
    recipes = {finding.recipe for finding in findings}
    compared = {finding.recipe for finding in findings if finding.difference is not None}
    wrong = any(finding.verdict in ("not reproduced", "not run") for finding in findings)
    return bool(recipes) and recipes == compared and not wrong
