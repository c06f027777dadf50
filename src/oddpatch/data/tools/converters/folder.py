"""A folder of one's own: one sub-folder of good images, one for each defect type, and masks if there are any.

SOURCE/good/*, SOURCE/DEFECT_TYPE/*, SOURCE/ground_truth/DEFECT_TYPE/STEM_mask.* or STEM.*
"""

from pathlib import Path

from oddpatch.data.layout import pair_masks
from oddpatch.data.tools.converting import Item, Options, Plan, good_items, images
from oddpatch.errors import DataError


def plan(source: Path, options: Options) -> list[Plan]:
    """One category, named like the folder. Heeds all options."""
    good = images(source / options.good)
    if not good:
        there = ", ".join(sorted(p.name for p in source.iterdir() if p.is_dir())) or "no folder"
        raise DataError(f"{source / options.good}: no images of good parts there; {source} has {there}: set --good")
    items = good_items(good, options)
    for folder in sorted(p for p in source.iterdir() if p.is_dir() and p.name not in (options.good, options.masks)):
        files = images(folder)
        masks = images(source / options.masks / folder.name)
        paired = pair_masks(
            folder, [p.name for p in files], source / options.masks / folder.name, [m.name for m in masks]
        )
        items += [Item(path, "test", folder.name, path.name, paired.get(path.name)) for path in files]
    note = f"{options.test_share:g} of the good images, seed {options.seed}, are for testing."
    return [Plan(options.category or source.resolve().name, items, [note])]
