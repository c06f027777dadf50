"""DeepPCB: pairs of `ID_temp.jpg` (defect-free) and `ID_test.jpg`, boxes in `GROUP_not/ID.txt`.

Tang et al., Online PCB Defect Detector On A New PCB Defect Dataset, 2019. https://github.com/tangsanli5201/DeepPCB
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from oddpatch.data.layout import GOOD
from oddpatch.data.walk import walk
from oddpatch.datatools.converting import Item, Options, Plan, held_out
from oddpatch.datatools.writing import png
from oddpatch.errors import DataError

TYPES = {1: "open", 2: "short", 3: "mousebite", 4: "spur", 5: "copper", 6: "pin-hole"}
MIXED = "mixed"
_NOTES = [
    "The owner gives boxes, not outlines: a mask is 255 in the whole box, corners included, clipped to the image.",
    "defect_type is the type of the boxes if all of an image share one, else 'mixed'.",
]


class _Pair(NamedTuple):
    good: Path
    defective: Path
    boxes: Path


def plan(source: Path, options: Options) -> list[Plan]:
    """Templates are good parts, test images defective ones. Heeds category, test_share, seed.

    By the owner's lists, `trainval.txt` and `test.txt`, if both are there: templates of the first are for training,
    pairs of the second for testing, and the defective images of the first are left out. Otherwise all defective images
    are for testing, and a share of the templates.
    """
    pairs = _pairs(source)
    files = walk(source, all_files=True).files
    lists = [next((path for path in files if path.name == name), None) for name in ("trainval.txt", "test.txt")]
    published: dict[str, int] = {}
    if lists[0] and lists[1]:
        trained, defective = (_listed(path, pairs) for path in lists if path)
        templates = [(stem, "train") for stem in trained] + [(stem, "test") for stem in defective]
        published = {"train/*": 1000, f"test/{GOOD}": 500}
        notes = [
            "Split by the owner's lists; defective images of trainval.txt are left out, as training takes good ones."
        ]
    else:
        held = held_out(sorted(pairs), options.test_share, options.seed)
        templates = [(stem, "test" if stem in held else "train") for stem in pairs]
        defective = list(pairs)
        notes = [
            f"No lists of the owner: {options.test_share:g} of the templates, seed {options.seed}, are for testing."
        ]
    items = [Item(pairs[stem].good, split, GOOD, pairs[stem].good.name) for stem, split in templates]
    for stem in defective:
        boxes = _boxes(pairs[stem].boxes)
        types = {TYPES[box[4]] for box in boxes}
        kind = types.pop() if len(types) == 1 else MIXED
        path = pairs[stem].defective
        items.append(Item(path, "test", kind, path.name, partial(_mask, path, boxes)))
    return [Plan(options.category or "deeppcb", items, [*_NOTES, *notes], published)]


def _pairs(source: Path) -> dict[str, _Pair]:
    found: dict[str, _Pair] = {}
    for good in (path for path in walk(source).files if path.name.endswith("_temp.jpg")):
        stem = good.name.removesuffix("_temp.jpg")
        pair = _Pair(
            good, good.with_name(f"{stem}_test.jpg"), good.parent.parent / f"{good.parent.name}_not" / f"{stem}.txt"
        )
        for path in pair[1:]:
            if not path.is_file():
                raise DataError(f"{path}: missing beside {good}: unpack the dataset again, or remove the template")
        if stem in found:
            raise DataError(f"{good} and {found[stem].good} have one name: convert one group at a time")
        found[stem] = pair
    if not found:
        raise DataError(f"{source}: no *_temp.jpg in any folder: give the folder PCBData, or a group of it")
    return found


def _listed(path: Path, pairs: dict[str, _Pair]) -> list[str]:
    """Stems of a list, whose lines are `group/NAME.jpg group_not/NAME.txt`."""
    stems = [Path(line.split()[0]).stem for line in _lines(path) if line.strip()]
    for stem in stems:
        if stem not in pairs:
            raise DataError(f"{path}: names {stem:.100}, of which there are no images: unpack the whole dataset")
    return stems


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}): unpack the dataset again") from error


def _boxes(path: Path) -> list[tuple[int, ...]]:
    boxes = []
    for number, line in enumerate(_lines(path), start=1):
        values = line.replace(",", " ").split()
        if not values:
            continue
        if (
            len(values) != 5
            or not all(v.isascii() and v.isdigit() and len(v) < 10 for v in values)
            or int(values[4]) not in TYPES
        ):
            raise DataError(f"{path}:{number}: {line[:100]!r} is not `x1 y1 x2 y2 type` with a type of 1..6")
        boxes.append(tuple(int(v) for v in values))
    if not boxes:
        raise DataError(f"{path}: has no box, though its image is a defective one: remove the pair")
    return boxes


def _mask(path: Path, boxes: list[tuple[int, ...]]) -> bytes:
    with Image.open(path) as image:
        mask = np.zeros((image.height, image.width), np.bool_)
    for x1, y1, x2, y2, _ in boxes:
        box = mask[min(y1, y2) : max(y1, y2) + 1, min(x1, x2) : max(x1, x2) + 1]
        if not box.size:
            raise DataError(f"{path}: box {x1} {y1} {x2} {y2} lies outside its {mask.shape[1]}x{mask.shape[0]} pixels")
        box[:] = True
    return png(mask)
