"""Unity Perception captures to MVTec layout: good and defective ones told apart by folder or by label."""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.layout import GOOD, is_good
from oddpatch.data.walk import LeftOut
from oddpatch.datatools.converting import Item, Plan, held_out
from oddpatch.datatools.masks import check_labels, label_job
from oddpatch.datatools.unity import Capture, read_recording
from oddpatch.datatools.writing import png, unique_key
from oddpatch.errors import DataError

MIXED = "mixed"
_SEQUENCE = re.compile(r"sequence\.(\d+)")


def plan_unity(
    source: Path,
    category: str,
    *,
    defects: Sequence[str] = (),
    masks: Sequence[str] = (),
    test_share: float = 0.2,
    seed: int = 0,
    skip: bool = False,
) -> Plan:
    """What `converting.write_plan` needs to make a category out of captures.

    With `defects`, a capture that shows any pixel of these labels is defective; its type is the label, or 'mixed' of
    several, and its mask is where they are. Otherwise the first folder below `source` tells: `good`, or the defect
    type; `train_good` and `test_TYPE`, or `train/good` and `test/TYPE`, tell the split as well. Good captures of
    which nothing tells the split are split by `test_share`. Defective ones are for testing.

    Args:
        masks: labels that make the masks of captures told by folder; none gives no masks.
        skip: leave out captures without the segmentation that labels are read from, and count them.

    Raises:
        DataError: nothing tells good from defective, an unknown label, a missing image, or names that meet.
    """
    recording = read_recording(source)
    check_labels(recording, [*defects, *masks], source)
    unsegmented = {capture.image for capture in recording.captures if not (capture.semantic or capture.instance)}
    left_out = unsegmented if skip and (defects or masks) else set()
    captures = [capture for capture in recording.captures if capture.image not in left_out]
    for capture in captures:
        if not capture.image.is_relative_to(source):
            raise DataError(f"{capture.image}: lies outside of {source}: give the folder above it")
        if not capture.image.is_file():
            raise DataError(f"{capture.image}: no such file, though the JSON names it: render it again")
    groups: dict[tuple[str, str], list[tuple[Capture, PurePath, NDArray[np.bool_] | None]]] = defaultdict(list)
    good: set[str] = set()
    for capture in captures:
        rest = PurePath(capture.image.relative_to(source))
        if defects:
            kind, mask = _by_label(capture, defects)
            split = "" if kind == GOOD else "test"
        else:
            split, kind, rest = by_folder(rest, source)
            if is_good(kind):
                good.add(kind)
                kind = GOOD
            mask = _mask(capture, masks) if masks and kind != GOOD else None
        groups[split, kind].append((capture, rest, mask))
    if len(good) > 1:
        raise DataError(
            f"{source}: {' and '.join(sorted(good))} both mean good parts by their names: rename one folder"
        )
    names = {key: capture_names([rest for _, rest, _ in group]) for key, group in groups.items()}
    items: list[Item] = []
    for (split, kind), group in groups.items():
        tested = held_out([rest for _, rest, _ in group], test_share, seed) if not split else set()
        for capture, rest, mask in group:
            part = split or ("test" if rest in tested else "train")
            content = partial(png, mask) if mask is not None else None
            items.append(Item(capture.image, part, kind, names[split, kind][rest], content))
    told = f"labels {', '.join(defects)}" if defects else "folders"
    notes = [f"Good and defective captures are told apart by {told}."]
    missing = [LeftOut(path, "no segmentation") for path in sorted(left_out)]
    return Plan(category, items, notes, left_out=[*recording.left_out, *missing])


def capture_names(paths: Sequence[PurePath]) -> dict[PurePath, str]:
    """File names for captures of one type: `solo_1/step0.camera.png` becomes `step0.camera_solo_1.png`.

    In a dataset with several sequences these are named too, `step0.camera_solo_1_sequence3.png`; sequences without a
    folder of their own are numbered like Unity's datasets, `step0.camera_solo.png`, `step0.camera_solo_1.png`.

    Args:
        paths: `[FOLDER/...][sequence.N/]STEM.EXT`.

    Raises:
        DataError: two captures would get one name.
    """
    sequences: dict[str, set[int]] = defaultdict(set)
    taken_apart: dict[PurePath, tuple[str, int]] = {}
    for path in paths:
        number = next((int(m[1]) for part in path.parts[:-1] if (m := _SEQUENCE.fullmatch(part))), 0)
        folder = "_".join(part for part in path.parts[:-1] if not _SEQUENCE.fullmatch(part))
        taken_apart[path] = folder, number
        sequences[folder].add(number)
    names: dict[PurePath, str] = {}
    seen: dict[str, PurePath] = {}
    for path, (folder, number) in taken_apart.items():
        tail = folder if len(sequences[folder]) == 1 else f"{folder}_sequence{number}"
        if not folder:
            tail = f"solo_{number}" if number else "solo"
        name = f"{path.stem}_{tail}"
        # Stems have to differ, and on every file system, as masks are paired by them.
        other = seen.setdefault(unique_key(Path(name)), path)
        if other != path:
            raise DataError(f"{path} and {other} would both be named {name}: rename one folder")
        names[path] = name + path.suffix
    return names


def by_folder(relative: PurePath, source: Path) -> tuple[str, str, PurePath]:
    """Split ('' if it is not told), defect type and the rest of a capture's path.

    Raises:
        DataError: the capture lies in no folder that could name a type.
    """
    first, *rest = relative.parts
    split = ""
    if first in ("train", "test") and len(rest) > 1:
        split, first, *rest = first, *rest
    elif first.startswith(("train_", "test_")):
        split, _, first = first.partition("_")
    if not rest or _SEQUENCE.fullmatch(first) or first.lower().startswith("solo"):
        raise DataError(
            f"{source / relative}: nothing tells whether it is good: sort captures into {GOOD} and DEFECT_TYPE, "
            "or name the labels of defects"
        )
    if not is_good(first):
        split = "test"  # training takes good parts only
    return split, first, PurePath(*rest)


def _mask(capture: Capture, labels: Sequence[str]) -> NDArray[np.bool_]:
    return label_job(capture, labels, capture.image).mask()


def _by_label(capture: Capture, defects: Sequence[str]) -> tuple[str, NDArray[np.bool_] | None]:
    listed = {*capture.values, *(instance.label for instance in capture.instances)}
    masks = {label: _mask(capture, [label]) for label in defects if label in listed}
    shown = {label: mask for label, mask in masks.items() if mask.any()}
    if not shown:
        if capture.semantic is None and capture.instance is None:
            raise DataError(
                f"{capture.image}: has no segmentation, so its labels cannot tell whether it is good: add a "
                "segmentation labeler to the camera, or leave such captures out by --skip"
            )
        return GOOD, None
    kind = next(iter(shown)) if len(shown) == 1 else MIXED
    return kind, np.asarray(np.any(list(shown.values()), axis=0))
