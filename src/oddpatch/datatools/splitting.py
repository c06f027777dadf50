"""Splits of a category as a manifest: stratified shares, few-shot, k-fold. Every draw is seeded."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from oddpatch.data.layout import GOOD, Sample, scan
from oddpatch.data.pairing import MASK_SUFFIX
from oddpatch.datatools.writing import Output, check_targets, make_dataset, write_manifest
from oddpatch.errors import ConfigError, DataError
from oddpatch.wording import counted


class Assignment(NamedTuple):
    """Which part an image is in."""

    part: str  # train, validation, test, unused, or fold0, fold1, ...
    defect_type: str
    path: str  # below the category
    mask: str  # below the category, or empty


def split_by_share(
    category: Path, train_share: float = 0.8, seed: int = 0, validation_share: float = 0.0
) -> list[Assignment]:
    """Train, test and, if wanted, validation in the same proportion for every defect type, good among them, whatever
    folder they were in.

    The share of a type is rounded to the nearest image, and each part gets one at least: train first, then test.

    Raises:
        ConfigError: a share is not between 0 and 1, or they leave nothing to test on.
        DataError: the category cannot be read, or has two images of one type and name.
    """
    if not 0 < train_share < 1:
        raise ConfigError(f"train_share={train_share}: choose a share between 0 and 1, such as 0.8")
    if not 0 <= validation_share < 1 - train_share:
        raise ConfigError(
            f"validation_share={validation_share}: choose 0 or a share below {1 - train_share:.3g}, which train_share "
            "leaves"
        )
    parts = 3 if validation_share else 2
    assigned = []
    for samples in _strata(category, seed):
        train = min(max(round(train_share * len(samples)), 1), max(len(samples) - parts + 1, 1))
        held = min(max(round(validation_share * len(samples)), 1), max(len(samples) - train - 1, 0)) * (parts - 2)
        for k, sample in enumerate(samples):
            part = "train" if k < train else "validation" if k < train + held else "test"
            assigned.append(_assign(part, sample, category))
    return sorted(assigned)


def split_few_shot(category: Path, shots: int, seed: int = 0) -> list[Assignment]:
    """`shots` good training images; the other training images are unused, the test images stay.

    With one seed, the images of fewer shots are among those of more.

    Raises:
        ConfigError: there are not so many good training images.
    """
    found = scan(category.parent, category.name)
    if not 1 <= shots <= len(found.train):
        raise ConfigError(
            f"shots={shots}: {category} has {counted(len(found.train), 'training image')}: choose 1..{len(found.train)}"
        )
    drawn = set(np.random.default_rng(seed).permutation(len(found.train))[:shots].tolist())
    assigned = [_assign("train" if k in drawn else "unused", s, category) for k, s in enumerate(found.train)]
    return sorted(assigned + [_assign("test", s, category) for s in found.test])


def split_folds(category: Path, folds: int, seed: int = 0) -> list[Assignment]:
    """Folds that differ by one image of each defect type at most.

    Raises:
        ConfigError: fewer than 2 folds, or more than images.
    """
    strata = _strata(category, seed)
    total = sum(map(len, strata))
    if not 2 <= folds <= total:
        raise ConfigError(f"folds={folds}: choose 2..{total}")
    assigned, start = [], 0
    for samples in strata:
        assigned += [_assign(f"fold{(start + k) % folds}", s, category) for k, s in enumerate(samples)]
        start += len(samples)  # so that the remainders of all types do not end up in the first folds
    return sorted(assigned)


def write_split(
    path: Path, assigned: list[Assignment], category: Path, settings: dict[str, object], force: bool
) -> None:
    """Write the manifest, as `.csv` or JSON.

    Raises:
        DataError: the file is there and `force` is not set.
    """
    check_targets([Output(path)], force)
    write_manifest(path, [a._asdict() for a in assigned], tool="split", category=category.name, **settings)


def apply_split(assigned: list[Assignment], category: Path, target: Path, fold: int = 0, force: bool = False) -> None:
    """Make a category in MVTec layout out of links: train or, of folds, all but `fold`, and test.

    Defective images of train are left out, as training takes good ones. Names keep the folder they came from where
    two of one type would meet.

    Raises:
        DataError: `target` is not empty.
    """
    tested = {"test", f"fold{fold}"}
    names = Counter((a.defect_type, Path(a.path).stem) for a in assigned)
    outputs = []
    for item in assigned:
        split = "test" if item.part in tested else "train"
        if item.part == "unused" or (split == "train" and item.defect_type != GOOD):
            continue
        path = Path(item.path)
        stem = path.stem if names[item.defect_type, path.stem] == 1 else f"{path.parts[0]}_{path.stem}"
        outputs.append(Output(Path(split, item.defect_type, f"{stem}{path.suffix}"), category / path))
        if item.mask:
            mask = Path("ground_truth", item.defect_type, f"{stem}{MASK_SUFFIX}{Path(item.mask).suffix}")
            outputs.append(Output(mask, category / item.mask))
    about = {"tool": "split", "files": [a._asdict() for a in assigned]}
    make_dataset(target, outputs, about, force=force, link=True)


def below(assignment: Assignment, folder: Path) -> Assignment:
    """The same with paths from further up."""
    path, mask = ((folder / name).as_posix() if name else "" for name in (assignment.path, assignment.mask))
    return assignment._replace(path=path, mask=mask)


def summary(assigned: list[Assignment]) -> dict[str, dict[str, int]]:
    """Images by part and defect type."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for item in assigned:
        found[item.part][item.defect_type] += 1
    return {part: dict(sorted(found[part].items())) for part in sorted(found)}


def _strata(category: Path, seed: int) -> list[list[Sample]]:
    """Images of each defect type in a random order, types by name."""
    if not category.is_dir():
        raise DataError(f"{category}: no such folder: give ROOT/CATEGORY")
    found = scan(category.parent, category.name)
    types: dict[str, list[Sample]] = defaultdict(list)
    for sample in [*found.train, *found.test]:
        types[sample.defect_type].append(sample)
    rng = np.random.default_rng(seed)
    return [[types[name][k] for k in rng.permutation(len(types[name]))] for name in sorted(types)]


def _assign(part: str, sample: Sample, category: Path) -> Assignment:
    mask = sample.mask_path.relative_to(category).as_posix() if sample.mask_path else ""
    return Assignment(part, sample.defect_type, sample.path.relative_to(category).as_posix(), mask)
