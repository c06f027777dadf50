"""Masks beside their images, as labelling tools export them: `x.jpg` with `x_mask.png`, or with `x.png`.

Good images are recognised by

* MVTec layout with masks among the images: `SOURCE/train/good`, `SOURCE/test/TYPE`
* folders: `SOURCE/good`, `SOURCE/DEFECT_TYPE`, with images at any depth
* the masks, where no folder tells: an image is good if its mask is empty
"""

from collections.abc import Iterable
from pathlib import Path

from oddpatch.data.beside import masks_beside, masks_named
from oddpatch.data.layout import GOOD, is_category, is_good
from oddpatch.data.masks import read_mask
from oddpatch.data.pairing import pair_masks
from oddpatch.data.walk import walk
from oddpatch.datatools.converting import Item, Options, Plan, find_good, good_items, images, unused
from oddpatch.errors import DataError

DEFECT_TYPE = "defect"  # where masks tell


def plan(source: Path, options: Options) -> list[Plan]:
    """One category, named like the folder. Heeds all options; masks are recognised if none says how they are named."""
    files = walk(source).files
    by_name = options.mask_suffix or options.mask_extension
    beside = masks_named(files, options.mask_suffix, options.mask_extension) if by_name else masks_beside(files)
    if not beside:
        raise DataError(
            f"{source}: no mask is found beside an image: give --mask-suffix, what masks have behind their image's "
            "stem, or --mask-extension"
        )
    masks = _by_image(beside.items())
    parts = [path for path in files if path not in beside]
    if is_category(source):
        items, told = _sorted_already(source, parts, masks), "the folders, split as they are"
    elif find_good(source, options) is not None:
        items, told = _by_folder(source, parts, masks, options), "the folders"
    else:
        items, told = _by_mask(parts, masks, options), f"the masks; what they show is of type {DEFECT_TYPE!r}"
    notes = [f"{len(masks)} masks are beside their images. Good parts are recognised by {told}."]
    if not is_category(source):
        notes.append(f"{options.test_share:g} of the good images, seed {options.seed}, are for testing.")
    return [Plan(options.category or source.resolve().name, items, notes, left_out=unused(source, items, beside))]


def _by_image(pairs: Iterable[tuple[Path, Path]]) -> dict[Path, Path]:
    masks: dict[Path, Path] = {}
    for mask, image in pairs:
        if image in masks:
            raise DataError(f"{image} has two masks, {masks[image].name} and {mask.name}: remove one")
        masks[image] = mask
    return masks


def _sorted_already(source: Path, parts: list[Path], masks: dict[Path, Path]) -> list[Item]:
    items, truth = [], source / "ground_truth"
    for folder in sorted({path.parent for path in parts}):
        split, *types = folder.relative_to(source).parts or ("",)
        if split not in ("train", "test") or not types:
            continue
        kind = GOOD if is_good(folder.name) else folder.name
        files = [path for path in parts if path.parent == folder]
        there = truth.joinpath(*types)
        apart = (
            {} if kind == GOOD else pair_masks(folder, [p.name for p in files], there, [p.name for p in images(there)])
        )
        own = _by_image([*((masks[p], p) for p in files if p in masks), *((m, folder / n) for n, m in apart.items())])
        items += [_item(path, split if kind == GOOD else "test", kind, own.get(path)) for path in files]
    return items


def _by_folder(source: Path, parts: list[Path], masks: dict[Path, Path], options: Options) -> list[Item]:
    good = find_good(source, options)
    typed = [path for path in parts if path.parent != source]
    items = [_item(i.source, i.split, GOOD, masks.get(i.source)) for i in good_items(
        [path for path in typed if good in path.parents], options
    )]  # fmt: skip
    return items + [
        _item(path, "test", path.relative_to(source).parts[0], masks.get(path))
        for path in typed
        if good not in path.parents
    ]


def _by_mask(parts: list[Path], masks: dict[Path, Path], options: Options) -> list[Item]:
    good: list[Path] = []
    items: list[Item] = []
    for path in parts:
        if path not in masks:
            raise DataError(
                f"{path}: has no mask beside it, so nothing tells whether it is good: put good images in a folder "
                f"{GOOD}, and defective ones in a folder named after the defect"
            )
        if read_mask(masks[path]).any():
            items.append(Item(path, "test", DEFECT_TYPE, path.name, masks[path]))
        else:
            good.append(path)
    return good_items(good, options) + items


def _item(path: Path, split: str, kind: str, mask: Path | None) -> Item:
    if kind == GOOD and mask is not None:
        if read_mask(mask).any():
            raise DataError(f"{mask}: shows a defect, but {path} is among the good images: move it to its defect type")
        mask = None
    return Item(path, split, kind, path.name, mask)
