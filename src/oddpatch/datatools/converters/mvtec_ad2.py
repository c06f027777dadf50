"""MVTec AD 2: `CATEGORY/{train/good,validation/good,test_public/{good,bad,ground_truth/bad}}`, masks `STEM_mask.png`.

Heckler-Kram et al., The MVTec AD 2 Dataset: Advanced Scenarios for Unsupervised Anomaly Detection, arXiv 2503.21622.
https://www.mvtec.com/company/research/datasets/mvtec-ad-2
"""

from pathlib import Path

from oddpatch.data.layout import GOOD, MASK_SUFFIX
from oddpatch.datatools.converting import Item, Options, Plan, by_stem, images
from oddpatch.errors import DataError

DEFECT_TYPE = "bad"  # the owner gives no defect types
# Images in train, validation, and of test_public the good and the bad ones.
_COUNTS = {
    "can": (412, 46, 72, 90), "fabric": (387, 43, 66, 90), "fruit_jelly": (263, 37, 20, 60), "rice": (313, 35, 42, 90),
    "sheet_metal": (137, 19, 24, 90), "vial": (291, 41, 35, 105), "wallplugs": (293, 33, 60, 90),
    "walnuts": (432, 48, 60, 90),
}  # fmt: skip
_KEYS = (f"train/{GOOD}", f"validation/{GOOD}", f"test/{GOOD}", f"test/{DEFECT_TYPE}")
_NOTES = [
    "Tested on test_public: test_private and test_private_mixed have no public truth and are left out.",
    "validation/good is kept beside train and test; training and testing do not read it.",
    "The owner gives no defect types: all are 'bad'.",
]


def plan(source: Path, options: Options) -> list[Plan]:
    """One category for each object, by the owner's split. Heeds category (one object)."""
    folders = sorted(path.parent for path in source.glob("*/test_public") if options.category in ("", path.parent.name))
    if not folders:
        raise DataError(f"{source}: no CATEGORY/test_public{' of ' + options.category if options.category else ''}")
    return [_category(folder) for folder in folders]


def _category(folder: Path) -> Plan:
    public = folder / "test_public"
    masks = by_stem(images(public / "ground_truth" / DEFECT_TYPE), MASK_SUFFIX)
    splits = ("train", "validation")
    items = [Item(path, split, GOOD, path.name) for split in splits for path in images(folder / split / GOOD)]
    items += [Item(path, "test", GOOD, path.name) for path in images(public / GOOD)]
    for path in images(public / DEFECT_TYPE):
        if path.stem not in masks:
            raise DataError(f"{path}: has no mask {path.stem}{MASK_SUFFIX}.*: unpack the dataset again, or remove it")
        items.append(Item(path, "test", DEFECT_TYPE, path.name, masks[path.stem]))
    published = dict(zip(_KEYS, _COUNTS[folder.name], strict=True)) if folder.name in _COUNTS else {}
    return Plan(folder.name, items, _NOTES, published)
