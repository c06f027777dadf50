"""BTAD: `01|02|03/{train/ok,test/ok,test/ko,ground_truth/ko}`.

Mishra et al., VT-ADL: A Vision Transformer Network for Image Anomaly Detection and Localization, ISIE 2021.
"""

from pathlib import Path

from oddpatch.data.layout import GOOD
from oddpatch.datatools.converting import Item, Options, Plan, by_stem, images
from oddpatch.errors import DataError

DEFECT_TYPE = "ko"
_TRAIN = {"01": 400, "02": 399, "03": 1000}


def plan(source: Path, options: Options) -> list[Plan]:
    """One category for each product, by the owner's split. Heeds category (one product)."""
    folders = sorted(p.parents[1] for p in [*source.glob("*/train/ok"), *source.glob("*/*/train/ok")])
    folders = [folder for folder in folders if options.category in ("", folder.name)]
    if not folders:
        raise DataError(f"{source}: no PRODUCT/train/ok{' of ' + options.category if options.category else ''}")
    return [_product(folder) for folder in folders]


def _product(folder: Path) -> Plan:
    masks = by_stem(images(folder / "ground_truth" / DEFECT_TYPE))
    items = [Item(path, "train", GOOD, path.name) for path in images(folder / "train" / "ok")]
    items += [Item(path, "test", GOOD, path.name) for path in images(folder / "test" / "ok")]
    items += [Item(p, "test", DEFECT_TYPE, p.name, masks.get(p.stem)) for p in images(folder / "test" / DEFECT_TYPE)]
    published = {"train/*": _TRAIN[folder.name]} if folder.name in _TRAIN else {}
    return Plan(folder.name, items, ["ok is good; the owner gives no defect types: all are 'ko'."], published)
