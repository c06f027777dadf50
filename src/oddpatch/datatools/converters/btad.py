"""BTAD: `01|02|03/{train/ok,test/ok,test/ko,ground_truth/ko}`.

Mishra et al., VT-ADL: A Vision Transformer Network for Image Anomaly Detection and Localization, ISIE 2021.
"""

from pathlib import Path

from oddpatch.datatools.converting import Options, Plan, category_folders, folder_items, images

DEFECT_TYPE = "ko"
_TRAIN = {"01": 400, "02": 399, "03": 1000}


def plan(source: Path, options: Options) -> list[Plan]:
    """One category for each product, by the owner's split. Heeds category (one product)."""
    folders = [p.parents[1] for p in (*source.glob("*/train/ok"), *source.glob("*/*/train/ok"))]
    return [_product(folder) for folder in category_folders(folders, options, source, "PRODUCT/train/ok")]


def _product(folder: Path) -> Plan:
    items = [item for split in ("train", "test") for item in folder_items(folder / split / "ok", split)]
    masks = images(folder / "ground_truth" / DEFECT_TYPE)
    items += folder_items(folder / "test" / DEFECT_TYPE, "test", DEFECT_TYPE, masks)
    published = {"train/*": _TRAIN[folder.name]} if folder.name in _TRAIN else {}
    return Plan(folder.name, items, ["ok is good; the owner gives no defect types: all are 'ko'."], published)
