"""A folder of one's own: one sub-folder of good images, one for each defect type, and masks if there are any.

SOURCE/good/*, SOURCE/DEFECT_TYPE/*, SOURCE/ground_truth/DEFECT_TYPE/STEM_mask.* or STEM.*
"""

from pathlib import Path

from oddpatch.data.beside import iter_masks_beside
from oddpatch.data.pairing import pair_masks
from oddpatch.data.walk import listing
from oddpatch.datatools.converting import Item, Options, Plan, find_good, good_items, images, unused
from oddpatch.errors import DataError


def plan(source: Path, options: Options) -> list[Plan]:
    """One category, named like the folder. Heeds category, test_share, seed, good and masks."""
    folders = [source / name for name in listing(source).folders if name != options.masks]
    good = find_good(source, options)
    if good is None or not images(good):
        there = ", ".join(path.name for path in folders) or "no folder"
        raise DataError(f"{source / options.good}: no images of good parts there; {source} has {there}: set --good")
    for mask, image in iter_masks_beside(path for folder in folders for path in images(folder)):
        raise DataError(
            f"{mask} looks like the mask of {image.name} beside it and would be taken for an image: name the layout "
            "beside instead of folder"
        )
    items = good_items(images(good), options)
    for folder in folders:
        if folder == good:
            continue
        files = images(folder)
        masks = images(source / options.masks / folder.name)
        paired = pair_masks(
            folder, [p.name for p in files], source / options.masks / folder.name, [m.name for m in masks]
        )
        items += [Item(path, "test", folder.name, path.name, paired.get(path.name)) for path in files]
    note = f"{options.test_share:g} of the good images, seed {options.seed}, are for testing."
    return [Plan(options.category or source.resolve().name, items, [note], left_out=unused(source, items))]
