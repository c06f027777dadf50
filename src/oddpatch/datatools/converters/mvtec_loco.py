"""MVTec LOCO AD: `CATEGORY/{train/good,validation/good,test/TYPE}`, masks of STEM in `ground_truth/TYPE/STEM/*`.

Bergmann et al., Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and Localization,
IJCV 2022. https://www.mvtec.com/company/research/datasets/mvtec-loco
"""

from functools import partial
from pathlib import Path

from oddpatch.data.layout import GOOD
from oddpatch.datatools.converting import Item, Options, Plan, category_folders, folder_items, images
from oddpatch.datatools.writing import join_masks
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
    "The owner's metric sPRO, which lets a defect be covered in part, reads the masks and defects_config.json where "
    "they are: keep them, and give metrics=[default,spro] metrics.spro.source=SOURCE.",
    "validation/good is kept beside train and test; training and testing do not read it.",
]


def plan(source: Path, options: Options) -> list[Plan]:
    """One category for each object, by the owner's split. Heeds category (one object)."""
    folders = (path.parents[1] for name in TYPES for path in source.glob(f"*/test/{name}"))
    expected = "CATEGORY/test/logical_anomalies or structural_anomalies"
    return [_category(folder) for folder in category_folders(folders, options, source, expected)]


def _category(folder: Path) -> Plan:
    splits = ("train", "validation", "test")
    items = [item for split in splits for item in folder_items(folder / split / GOOD, split)]
    for name in TYPES:
        for path in images(folder / "test" / name):
            where = folder / "ground_truth" / name / path.stem
            masks = images(where)
            if not masks:
                raise DataError(f"{path}: has no mask in {where}: unpack the dataset again, or remove it")
            items.append(Item(path, "test", name, path.name, partial(join_masks, masks)))
    published = dict(zip(_KEYS, _COUNTS[folder.name], strict=True)) if folder.name in _COUNTS else {}
    return Plan(folder.name, items, _NOTES, published)
