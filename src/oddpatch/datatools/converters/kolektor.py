"""KolektorSDD (`kosNN/PartN.jpg` with `PartN_label.bmp`) and KolektorSDD2 (`train|test/N.png` with `N_GT.png`).

Tabernik et al., Segmentation-Based Deep-Learning Approach for Surface-Defect Detection, JIM 2019.
Bozic et al., Mixed supervision for surface-defect detection, Computers in Industry 2021.
"""

from pathlib import Path

from oddpatch.data.layout import GOOD
from oddpatch.data.masks import read_mask
from oddpatch.datatools.converting import Item, Options, Plan, good_items, images, with_masks
from oddpatch.errors import DataError
from oddpatch.wording import counted

DEFECT_TYPE = "defect"


def plan(source: Path, options: Options) -> list[Plan]:
    """Whichever of the two it is; an image is defective if its mask is not empty. Heeds test_share, seed, category."""
    if any(images(folder) for folder in source.glob("kos*")):
        return [_first(source, options)]
    if images(source / "train") and images(source / "test"):
        return [_second(source, options)]
    raise DataError(f"{source}: neither kosNN/ (KolektorSDD) nor train/ and test/ with N_GT.png (KolektorSDD2)")


def _first(source: Path, options: Options) -> Plan:
    good, items = [], []
    for folder in sorted(source.glob("kos*")):
        for path, mask in _pairs(folder, "_label"):
            if read_mask(mask).any():
                items.append(Item(path, "test", DEFECT_TYPE, f"{folder.name}_{path.name}", mask))
            else:
                good.append(path)
    items += [Item(i.source, i.split, GOOD, f"{i.source.parent.name}_{i.name}") for i in good_items(good, options)]
    note = f"No split of the owner: {options.test_share:g} of the good images, seed {options.seed}, are for testing."
    # Of 399 images 52 are defective.
    return Plan(options.category or "kolektorsdd", items, [note], {f"test/{DEFECT_TYPE}": 52, "*/good": 347})


def _second(source: Path, options: Options) -> Plan:
    items, left_out = [], 0
    for split in ("train", "test"):
        for path, mask in _pairs(source / split, "_GT"):
            defective = bool(read_mask(mask).any())
            if defective and split == "train":
                left_out += 1
                continue
            kind = DEFECT_TYPE if defective else GOOD
            items.append(Item(path, split, kind, path.name, mask if defective else None))
    note = (
        f"By the owner's split; left out of train: {counted(left_out, 'defective image')}, as training takes good ones."
    )
    published = {"train/*": 2085, f"test/{GOOD}": 894, f"test/{DEFECT_TYPE}": 110}
    return Plan(options.category or "kolektorsdd2", items, [note], published)


def _pairs(folder: Path, suffix: str) -> list[tuple[Path, Path]]:
    masks = [path for path in images(folder) if path.stem.endswith(suffix)]
    return with_masks([path for path in images(folder) if path not in masks], masks, suffix)
