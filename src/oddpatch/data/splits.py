"""Which images are for training, for validation and for testing: by a manifest, as `oddpatch data split` writes it,
or by a share."""

import csv
import hashlib
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oddpatch.data.layout import GOOD, Layout, Sample
from oddpatch.data.walk import LeftOut
from oddpatch.errors import ConfigError, DataError
from oddpatch.files import from_cell, parse_json, shown
from oddpatch.wording import counted, some

_PARTS = ("train", "validation", "test", "unused")
_FOLD = "fold"


def read_parts(manifest: Path) -> dict[str, str]:
    """The part of each image, by its path below the category: train, validation, test, unused, or fold0, fold1, ...

    Raises:
        DataError: the file cannot be read as a manifest, or names an image twice.
    """
    try:
        with manifest.open(encoding="utf-8", newline="") as file:
            if manifest.suffix.lower() == ".csv":
                rows: Any = [{**row, "path": from_cell(row["path"])} for row in csv.DictReader(file)]
            else:
                rows = parse_json(file.read())["files"]
            named = [(_normal(row["path"]), str(row["part"])) for row in rows]
    except FileNotFoundError:
        raise DataError(f"{manifest}: no such file: make it by `oddpatch data split`, or set data.split=null") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(f"{manifest}: is not a manifest of `oddpatch data split` ({error}): make it again") from error
    parts = dict(named)
    if len(parts) < len(named):
        twice = next(path for path, part in named if [path for path, _ in named].count(path) > 1)
        raise DataError(f"{manifest}: names {twice} twice: remove one")
    for path, part in parts.items():
        if part not in _PARTS and not part.removeprefix(_FOLD).isdecimal():
            raise DataError(
                f"{manifest}: {path} is in part {part!r:.100}: give train, validation, test, unused, fold0, fold1, ..."
            )
    return parts


def follow(
    found: Layout, category: Path, manifest: Path, fold: int | None = None, with_defects: bool = False
) -> Layout:
    """A category's images as a manifest splits them.

    Args:
        found: what `scan` gave for `category`.
        category: folder of the category.
        manifest: JSON or CSV of `oddpatch data split`.
        fold: the fold to test on, if the manifest is of folds; all others are trained on.
        with_defects: train on the defective images of a training part, too; else they are left out.

    Returns:
        Samples in the order of their paths.

    Raises:
        DataError: the manifest cannot be read, or names files that are not there.
        ConfigError: `fold` does not go with the manifest, or no good image is left to train on.
    """
    parts = read_parts(manifest)
    tested = _tested_part(set(parts.values()), manifest, fold)
    everything = [*found.train, *found.test]
    samples = {_normal(sample.path.relative_to(category).as_posix()): sample for sample in everything}
    missing = sorted(parts.keys() - samples.keys())
    if missing:
        raise DataError(
            f"{manifest}: names {counted(len(missing), 'image')} that {category} does not have ({some(missing)}): "
            "is it this category's manifest? put them back, or make it again by `oddpatch data split`"
        )
    train, test, validation = [], [], []
    for path in sorted(parts):
        if parts[path] == tested:
            test.append(samples[path])
        elif parts[path] == "validation":
            validation.append(samples[path])
        elif parts[path] != "unused" and (with_defects or samples[path].defect_type == GOOD):
            train.append(samples[path])
    if not any(sample.defect_type == GOOD for sample in train):
        raise ConfigError(f"{manifest}: leaves no good image to train on: make another split")
    unnamed = sorted(samples.keys() - parts.keys())
    left_out = [*found.left_out, *(LeftOut(samples[path].path, f"not named in {manifest}") for path in unnamed)]
    warnings = [f"{manifest}: left out {counted(len(unnamed), 'image')} that it does not name ({some(unnamed)})"]
    return Layout(train, test, found.warnings + (warnings if unnamed else []), left_out, validation)


def _tested_part(parts: set[str], manifest: Path, fold: int | None) -> str:
    folds = sorted(int(part.removeprefix(_FOLD)) for part in parts if part.startswith(_FOLD))
    if not folds:
        if fold is not None:
            raise ConfigError(f"fold={fold} but {manifest} has no folds: set data.fold=null")
        return "test"
    if fold not in folds:
        raise ConfigError(f"fold={fold} but {manifest} has the folds {some(folds, 20)}: set data.fold to one of them")
    return f"{_FOLD}{fold}"


def _normal(path: str) -> str:
    """As every way to write a path gives it back: JSON keeps a byte that is not UTF-8, CSV has it escaped."""
    return unicodedata.normalize("NFC", shown(path))


def take_share(samples: Sequence[Sample], share: float) -> tuple[list[Sample], list[Sample]]:
    """(taken, left): of each defect type the share, at least one and leaving at least one, by a hash of the name.

    A hash, not a draw: adding an image moves no other from one part to the other side's measurements unnoticed.
    """
    taken: set[Path] = set()
    for kind in {sample.kind for sample in samples}:
        own = sorted((sample.path for sample in samples if sample.kind == kind), key=_digest)
        if len(own) < 2:
            raise ConfigError(
                f"validation={share} cannot share out {len(own)} test image of type {kind}: give a folder of labelled "
                "images instead"
            )
        taken.update(own[: min(max(round(share * len(own)), 1), len(own) - 1)])
    return [s for s in samples if s.path in taken], [s for s in samples if s.path not in taken]


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(f"{path.parent.name}/{path.name}")).hexdigest()
