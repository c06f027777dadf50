"""VisA: `OBJECT/Data/Images/{Normal,Anomaly}`, `OBJECT/Data/Masks/Anomaly`, split by `split_csv/1cls.csv`.

Zou et al., SPot-the-Difference Self-supervised Pre-training for Anomaly Detection and Segmentation, ECCV 2022.
https://github.com/amazon-science/spot-diff
"""

import csv
from dataclasses import replace
from functools import partial
from pathlib import Path

from oddpatch.data.layout import GOOD
from oddpatch.datatools.converting import Item, Options, Plan, category_folders, folder_items, good_items, images
from oddpatch.datatools.writing import join_masks
from oddpatch.errors import DataError
from oddpatch.files import inside

DEFECT_TYPE = "bad"  # the owner's scripts know one type
_COLUMNS = ("object", "split", "label", "image", "mask")
_ANOMALOUS = 100  # of each object
_NORMAL = {
    "candle": 1000, "capsules": 602, "cashew": 500, "chewinggum": 503, "fryum": 500, "macaroni1": 1000,
    "macaroni2": 1000, "pcb1": 1004, "pcb2": 1001, "pcb3": 1006, "pcb4": 1005, "pipe_fryum": 500,
}  # fmt: skip


def plan(source: Path, options: Options) -> list[Plan]:
    """One category for each object. Heeds category (one object), and test_share and seed if the list is missing."""
    folders = (path.parents[1] for path in source.glob("*/Data/Images"))
    objects = [path.name for path in category_folders(folders, options, source, "OBJECT/Data/Images")]
    table = source / "split_csv" / "1cls.csv"
    return [_listed(source, table, name) if table.is_file() else _drawn(source, name, options) for name in objects]


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read ({error}): unpack the dataset again") from error
    for number, row in enumerate(rows, start=1):
        absent = [column for column in _COLUMNS if not isinstance(row.get(column), str)]
        if absent:
            raise DataError(f"{table}: row {number} has no {absent[0]}: unpack the dataset again")
    return rows


def _listed(source: Path, table: Path, name: str) -> Plan:
    items = []
    for row in _rows(table):
        if row["object"] != name:
            continue
        good = row["label"] == "normal"
        paths = [inside(source, row[column], table) for column in (("image",) if good else ("image", "mask"))]
        for missing in (p for p in paths if not p.is_file()):
            raise DataError(f"{missing}: missing, though {table} names it: unpack the dataset again")
        if row["split"] not in ("train", "test"):
            raise DataError(
                f"{table}: {row['image']} has the split {row['split']!r:.100}, neither train nor test: correct it"
            )
        mask = None if good else partial(join_masks, paths[1:])
        items.append(Item(paths[0], row["split"], GOOD if good else DEFECT_TYPE, paths[0].name, mask))
    return Plan(name, items, ["Split by the owner's split_csv/1cls.csv.", _NOTE], _published(name))


_NOTE = "Masks of class indices are written as 0 and 255; the owner gives no defect types: all are 'bad'."


def _drawn(source: Path, name: str, options: Options) -> Plan:
    base = source / name / "Data"
    items = good_items(images(base / "Images" / "Normal"), options)
    for item in folder_items(base / "Images" / "Anomaly", "test", DEFECT_TYPE, images(base / "Masks" / "Anomaly")):
        items.append(replace(item, mask=partial(join_masks, [item.mask]) if isinstance(item.mask, Path) else None))
    note = f"No split_csv/1cls.csv: {options.test_share:g} of the normal images, seed {options.seed}, are for testing."
    return Plan(name, items, [note, _NOTE], {f"test/{DEFECT_TYPE}": _ANOMALOUS} if name in _NORMAL else {})


def _published(name: str) -> dict[str, int]:
    # Of the normal images a tenth is for testing, so only the sum is stated.
    return {f"test/{DEFECT_TYPE}": _ANOMALOUS, "*/good": _NORMAL[name]} if name in _NORMAL else {}
