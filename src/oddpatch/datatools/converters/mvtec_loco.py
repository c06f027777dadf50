"""MVTec LOCO AD: `CATEGORY/{train/good,validation/good,test/TYPE}`, masks of STEM in `ground_truth/TYPE/STEM/*`.

Bergmann et al., Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and Localization,
IJCV 2022. https://www.mvtec.com/company/research/datasets/mvtec-loco
"""

from functools import partial
from pathlib import Path

import numpy as np

from oddpatch.data.decoding import read_mask
from oddpatch.data.layout import GOOD
from oddpatch.datatools.converting import Item, Options, Plan, images
from oddpatch.datatools.writing import png
from oddpatch.errors import DataError

TYPES = ("logical_anomalies", "structural_anomalies")
# Images in train, validation, and of test the good, logical and structural ones.
_COUNTS = {
    "breakfast_box": (351, 62, 102, 83, 90), "juice_bottle": (335, 54, 94, 142, 94), "pushpins": (372, 69, 138, 91, 81),
    "screw_bag": (360, 60, 122, 137, 82), "splicing_connectors": (354, 59, 119, 108, 85),
}  # fmt: skip
_KEYS = (f"train/{GOOD}", f"validation/{GOOD}", f"test/{GOOD}", *(f"test/{name}" for name in TYPES))
_NOTES = [
    "An image has a mask for each of its defects; they are joined into one of 0 and 255.",
    "The owner's metric sPRO, which lets a defect be covered in part (defects_config.json), is not computed from it.",
    "validation/good is kept beside train and test; training and testing do not read it.",
]


def plan(source: Path, options: Options) -> list[Plan]:
    """One category for each object, by the owner's split. Heeds category (one object)."""
    folders = sorted({path.parents[1] for name in TYPES for path in source.glob(f"*/test/{name}")})
    folders = [folder for folder in folders if options.category in ("", folder.name)]
    if not folders:
        of = f" of {options.category}" if options.category else ""
        raise DataError(f"{source}: no CATEGORY/test/logical_anomalies or structural_anomalies{of}")
    return [_category(folder) for folder in folders]


def _category(folder: Path) -> Plan:
    items = [
        Item(path, split, GOOD, path.name)
        for split in ("train", "validation", "test")
        for path in images(folder / split / GOOD)
    ]
    for name in TYPES:
        for path in images(folder / "test" / name):
            masks = images(folder / "ground_truth" / name / path.stem)
            if not masks:
                where = folder / "ground_truth" / name / path.stem
                raise DataError(f"{path}: has no mask in {where}: unpack the dataset again, or remove it")
            items.append(Item(path, "test", name, path.name, partial(_join, masks)))
    published = dict(zip(_KEYS, _COUNTS[folder.name], strict=True)) if folder.name in _COUNTS else {}
    return Plan(folder.name, items, _NOTES, published)


def _join(masks: list[Path]) -> bytes:
    """The union of masks whose defects have any value above 0, as an encoded PNG."""
    joined = read_mask(masks[0]).numpy() > 0  # (H, W)
    for path in masks[1:]:
        mask = read_mask(path).numpy() > 0
        if mask.shape != joined.shape:
            raise DataError(f"{path}: the mask is of another size than {masks[0]}: unpack the dataset again")
        joined = np.logical_or(joined, mask)
    return png(joined)
