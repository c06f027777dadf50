"""Turn published dataset layouts into MVTec layout."""

import fnmatch
import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from oddpatch.data.layout import GOOD, good_folder
from oddpatch.data.pairing import MASK_SUFFIX
from oddpatch.data.walk import LeftOut, listing, walk
from oddpatch.datatools import converters
from oddpatch.datatools.writing import Output, check_targets, make_dataset
from oddpatch.errors import ConfigError, DataError
from oddpatch.files import inside
from oddpatch.pool import Progress
from oddpatch.wording import counted

T = TypeVar("T")
#: Why an image of a source is in no plan.
UNUSED = "not in a folder that the layout reads"
#: Names of the converters there are.
KINDS = tuple(sorted(module.name for module in pkgutil.iter_modules(converters.__path__)))


@dataclass(frozen=True)
class Options:
    """Options of converters; each declares those that it uses."""

    category: str = ""  # one of several, or the name to give
    test_share: float = 0.2  # of the good images, where the owner has no split
    seed: int = 0
    good: str = GOOD  # name of the folder of good images
    masks: str = "ground_truth"  # name of the folder of masks
    mask_suffix: str = ""  # of masks beside images: what their stem has behind the image's
    mask_extension: str = ""  # of masks beside images

    def __post_init__(self) -> None:
        if not 0 <= self.test_share < 1:
            raise ConfigError(f"test_share={self.test_share}: choose a share of at least 0 and below 1")


@dataclass(frozen=True)
class Item:
    """One image and where it goes."""

    source: Path
    split: str  # train or test
    defect_type: str
    name: str  # with its extension
    mask: Path | Callable[[], bytes] | None = None  # a file, or what makes an encoded PNG


@dataclass
class Plan:
    """What a converter makes of a source."""

    category: str
    items: list[Item]
    notes: list[str] = field(default_factory=list)  # what a reader of the result ought to know
    published: dict[str, int] = field(default_factory=dict)  # counts by split/type that the owner states
    left_out: list[LeftOut] = field(default_factory=list)  # everything else in the source


def make_plans(kind: str, source: Path, options: Options) -> list[Plan]:
    """Ask a converter what it would make; nothing is written.

    Raises:
        ConfigError: there is no converter of that name.
        DataError: `source` is not in its layout.
    """
    if kind not in KINDS:
        raise ConfigError(f"{kind!r} is not a known layout: choose one of {', '.join(KINDS)}")
    if not source.is_dir():
        raise DataError(f"{source}: no such folder")
    plans: list[Plan] = importlib.import_module(f"{converters.__name__}.{kind}").plan(source, options)
    left_out = walk(source).left_out
    for plan in plans:
        plan.left_out += left_out
        if not any(item.split == "train" for item in plan.items):
            raise DataError(f"{source}: no good image to train on was found in the layout of {kind}")
    return plans


def counts(plan: Plan) -> dict[str, int]:
    """Images by split/type, and masks."""
    found = Counter(f"{item.split}/{item.defect_type}" for item in plan.items)
    return {**dict(sorted(found.items())), "masks": sum(item.mask is not None for item in plan.items)}


def deviations(plan: Plan) -> list[str]:
    """Where the counts are not what the owner states; keys may be patterns, as in train/*."""
    found = counts(plan)
    lines = []
    for key, stated in plan.published.items():
        count = sum(number for name, number in found.items() if fnmatch.fnmatch(name, key))
        if count != stated:
            lines.append(f"{plan.category} {key}: {counted(count, 'image')}, but the owner states {stated}")
    return lines


def write_plan(
    plan: Plan, root: Path, source: Path, kind: str, *, link: bool = False, force: bool = False,
    progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Make `root/<category>`; it is there when it is complete. `link` links images instead of copying them.

    Raises:
        DataError: two images of one name, or the folder is not empty (see `writing.check_folder`).
    """
    for item in plan.items:  # names may come out of a file
        inside(root / plan.category, Path(item.split, item.defect_type, item.name), source)
    inside(root, plan.category, source)
    check_targets([Output(Path(i.split, i.defect_type, Path(i.name).stem), i.source) for i in plan.items], force=True)
    outputs, files = [], []
    for item in plan.items:
        path, mask = Path(item.split, item.defect_type, item.name), item.mask
        outputs.append(Output(path, item.source))
        goal = Path("ground_truth", item.defect_type, path.stem + MASK_SUFFIX)
        from_mask: str | bool = mask is not None
        if isinstance(mask, Path):
            outputs.append(Output(goal.with_name(goal.name + mask.suffix), mask))
            from_mask = mask.relative_to(source).as_posix()
        elif mask is not None:
            outputs.append(Output(goal.with_name(f"{goal.name}.png"), content=mask))
        files.append({"path": path.as_posix(), "source": item.source.relative_to(source).as_posix(), "mask": from_mask})
    left_out = [f"{path.relative_to(source).as_posix()}: {reason}" for path, reason in plan.left_out]
    notes = {"notes": plan.notes, "counts": counts(plan), "deviations": deviations(plan), "left_out": left_out}
    about = {"tool": "convert", "layout": kind, **notes, "files": files}
    make_dataset(root / plan.category, outputs, about, force=force, link=link, progress=progress)
    return root / plan.category


def images(folder: Path) -> list[Path]:
    """Image files in a folder, sorted; none if there is no such folder."""
    return walk(folder, recursive=False).files


def unused(source: Path, items: Sequence[Item], masks: Collection[Path] = ()) -> list[LeftOut]:
    """Images below `source` that are neither an item nor a mask."""
    used = {*masks, *(item.source for item in items), *(item.mask for item in items)}
    return [LeftOut(path, UNUSED) for path in walk(source).files if path not in used]


def find_good(source: Path, options: Options) -> Path | None:
    """The folder of good images by `options.good`, or by another spelling of good; None if there is none.

    Raises:
        DataError: there are several.
    """
    folders = [source / name for name in listing(source).folders if name != options.masks]
    found = good_folder(folders, options.good)
    return found if found is None or options.good in (GOOD, found.name) else None


def folder_items(folder: Path, split: str, kind: str = GOOD, masks: Sequence[Path] = ()) -> list[Item]:
    """The images in a folder, each with the mask of its stem if there is one."""
    by_stem = {path.stem: path for path in masks}
    return [Item(path, split, kind, path.name, by_stem.get(path.stem)) for path in images(folder)]


def with_masks(files: Sequence[Path], masks: Sequence[Path], suffix: str) -> list[tuple[Path, Path]]:
    """Images `STEM.*`, each with its mask `STEM<suffix>.*`.

    Raises:
        DataError: an image has none.
    """
    by_stem = {path.stem.removesuffix(suffix): path for path in masks}
    for path in files:
        if path.stem not in by_stem:
            raise DataError(f"{path}: has no mask {path.stem}{suffix}.*: unpack the dataset again, or remove it")
    return [(path, by_stem[path.stem]) for path in files]


def category_folders(folders: Iterable[Path], options: Options, source: Path, expected: str) -> list[Path]:
    """Folders of categories, sorted; only the one that is asked for, if one is.

    Raises:
        DataError: there is none; `expected` says what would make one.
    """
    found = sorted({path for path in folders if options.category in ("", path.name)})
    if not found:
        raise DataError(f"{source}: no {expected}{f' of {options.category}' if options.category else ''}")
    return found


def held_out(items: Sequence[T], share: float, seed: int) -> set[T]:
    """A share of the items, drawn with a seed; at least one stays."""
    count = min(round(share * len(items)), len(items) - 1)
    return {items[i] for i in np.random.default_rng(seed).permutation(len(items))[: max(count, 0)]}


def good_items(files: Sequence[Path], options: Options) -> list[Item]:
    """Good images, a share of them for testing."""
    tested = held_out(files, options.test_share, options.seed)
    return [Item(path, "test" if path in tested else "train", GOOD, path.name) for path in files]
