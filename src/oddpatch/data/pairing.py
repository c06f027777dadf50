"""Which mask belongs to which image of a folder, by their names."""

import unicodedata
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path, PurePath

from oddpatch.errors import DataError

MASK_SUFFIX = "_mask"


def pair_masks(folder: Path, images: list[str], mask_folder: Path, masks: list[str]) -> dict[str, Path]:
    """Pair masks with images by stem: image `STEM.*` with mask `STEM_mask.*` or `STEM.*`.

    A mask `a_mask.png` where there are images `a.png` and `a_mask.png` could be either's. It is decided by the one
    naming that explains every mask of the folder, if there is only one.

    Returns:
        Mask path by image name; images without a mask are left out.

    Raises:
        DataError: a mask has no image, or an image or a mask could be paired in two ways.
    """
    by_stem = defaultdict(list)
    for image in images:
        by_stem[_stem(image)].append(image)
    pairs: dict[str, list[str]] = defaultdict(list)  # mask names by image stem
    for mask, owners in _owners(by_stem.keys(), masks).items():
        if len(owners) > 1:
            raise DataError(
                f"{mask_folder / mask} could be the mask of {by_stem[owners[0]][0]} or of {by_stem[owners[1]][0]} in "
                f"{folder}: name every mask STEM{MASK_SUFFIX}, after its image"
            )
        if not owners:
            raise DataError(
                f"{mask_folder / mask}: there is no image {_stem(mask).removesuffix(MASK_SUFFIX)}.* for this mask in "
                f"{folder}: name masks after their image, or remove it"
            )
        pairs[owners[0]].append(mask)
    for stem, names in pairs.items():
        if len(names) > 1:
            raise DataError(f"{folder / by_stem[stem][0]} has two masks, {names[0]} and {names[1]}: remove one")
        if len(by_stem[stem]) > 1:
            first, second = by_stem[stem][:2]
            raise DataError(f"{mask_folder / names[0]} could be the mask of {first} or of {second}: rename one")
    return {by_stem[stem][0]: mask_folder / names[0] for stem, names in pairs.items()}


def _owners(stems: Collection[str], masks: list[str]) -> dict[str, list[str]]:
    """Image stems that each mask could belong to."""
    named = {mask: [_stem(mask)] if _stem(mask) in stems else [] for mask in masks}
    suffixed: dict[str, list[str]] = {}
    for mask in masks:
        base = _stem(mask).removesuffix(MASK_SUFFIX)
        suffixed[mask] = [base] if base != _stem(mask) and base in stems else []
    if all(suffixed.values()) != all(named.values()):
        return suffixed if all(suffixed.values()) else named
    return {mask: suffixed[mask] + named[mask] for mask in masks}


def _stem(name: str) -> str:
    # The same letters may be stored composed or decomposed, depending on the system that wrote the file.
    return unicodedata.normalize("NFC", PurePath(name).stem)
