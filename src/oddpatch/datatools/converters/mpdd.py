"""MPDD: in MVTec layout already, masks included; checked against the owner's counts.

Jezek et al., Deep learning-based defect detection of metal parts, ICUMT 2021. https://github.com/stepanje/MPDD
"""

from pathlib import Path

from oddpatch.data.layout import categories, scan
from oddpatch.datatools.converting import Item, Options, Plan, category_folders

_TRAIN = {
    "bracket_black": 289, "bracket_brown": 185, "bracket_white": 110, "connector": 128, "metal_plate": 54, "tubes": 122,
}  # fmt: skip


def plan(source: Path, options: Options) -> list[Plan]:
    """One category for each part, by the owner's split. Heeds category (one part)."""
    plans = []
    for folder in category_folders(map(source.joinpath, categories(source)), options, source, "PART/train/good"):
        name, found = folder.name, scan(source, folder.name)
        items = [Item(s.path, "train", s.defect_type, s.path.name) for s in found.train]
        items += [Item(s.path, "test", s.defect_type, s.path.name, s.mask_path) for s in found.test]
        plans.append(Plan(name, items, found.warnings, {"train/*": _TRAIN[name]} if name in _TRAIN else {}))
    return plans
