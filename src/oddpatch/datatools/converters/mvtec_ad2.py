"""MVTec AD 2: `CATEGORY/{train/good,validation/good,test_public/{good,bad,ground_truth/bad}}`, masks `STEM_mask.png`.

Heckler-Kram et al., The MVTec AD 2 Dataset: Advanced Scenarios for Unsupervised Anomaly Detection, arXiv 2503.21622.
https://www.mvtec.com/company/research/datasets/mvtec-ad-2
"""

from pathlib import Path

from oddpatch.data.layout import GOOD
from oddpatch.data.pairing import MASK_SUFFIX
from oddpatch.datatools.converting import Item, Options, Plan, category_folders, folder_items, images, with_masks

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
    folders = (path.parent for path in source.glob("*/test_public"))
    return [_category(folder) for folder in category_folders(folders, options, source, "CATEGORY/test_public")]


def _category(folder: Path) -> Plan:
    public = folder / "test_public"
    items = [item for split in ("train", "validation") for item in folder_items(folder / split / GOOD, split)]
    items += folder_items(public / GOOD, "test")
    masks = images(public / "ground_truth" / DEFECT_TYPE)
    for path, mask in with_masks(images(public / DEFECT_TYPE), masks, MASK_SUFFIX):
        items.append(Item(path, "test", DEFECT_TYPE, path.name, mask))
    published = dict(zip(_KEYS, _COUNTS[folder.name], strict=True)) if folder.name in _COUNTS else {}
    return Plan(folder.name, items, _NOTES, published)
