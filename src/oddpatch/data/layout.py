"""Reading a folder in MVTec layout: which images there are, what they are, and which mask belongs to which.

    ROOT/CATEGORY/train/good/*             good parts to learn from
    ROOT/CATEGORY/test/good/*              good parts to test on
    ROOT/CATEGORY/test/DEFECT_TYPE/*       defective parts
    ROOT/CATEGORY/ground_truth/DEFECT_TYPE/STEM_mask.* or STEM.*

Only `train/good` is needed. Types may lie one folder deeper, as in `ground_truth/defective/DEFECT_TYPE`. Masks are
paired with images by stem. Masks in `ground_truth/good` are not read: a good image has no defect.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path, PurePath
from typing import NamedTuple

from oddpatch.data.decoding import is_image_name
from oddpatch.errors import DataError

GOOD = "good"
MASK_SUFFIX = "_mask"
# Folders that people mean as ground_truth, in lower case without separators.
_MASK_FOLDER_NAMES = {"groundtruth", "groundtruths", "gt", "mask", "masks", "label", "labels", "annotations"}


class Sample(NamedTuple):
    """One image of a dataset."""

    path: Path
    label: int  # 0 good, 1 anomalous
    defect_type: str
    mask_path: Path | None


class Layout(NamedTuple):
    """All images of a category; the position in `train` or `test` is the image's index."""

    train: list[Sample]
    test: list[Sample]
    warnings: list[str]


class _Folder(NamedTuple):
    images: list[str]  # names, sorted
    folders: list[str]  # names, sorted
    others: list[str]  # names of files that are not images, sorted


def categories(root: str | Path) -> list[str]:
    """Names of the folders of `root` that hold `train/good`, sorted.

    Raises:
        DataError: `root` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such data folder: point data.root at the folder that holds the categories")
    return [name for name in _list(root).folders if (root / name / "train" / GOOD).is_dir()]


def scan(root: str | Path, category: str) -> Layout:
    """Find the images of a category and pair them with their masks. No image is opened.

    Returns:
        Samples in the order of their paths, whatever order the file system lists them in.

    Raises:
        DataError: a folder is missing or misnamed, or masks and images cannot be paired without guessing.
    """
    base = _category_folder(Path(root), category)
    warnings: list[str] = []
    train = _scan_train(base, warnings)
    test = _scan_test(base, warnings)
    return Layout(train, test, warnings)


def scan_types(folder: str | Path) -> list[Sample]:
    """Labelled images without masks: FOLDER/good and a folder for each defect type, as below `test`.

    Raises:
        DataError: there is no such folder, or no image in a folder of its type.
    """
    types = _type_folders(Path(folder), [])
    if not types:
        raise DataError(
            f"{folder} holds no images in folders of their type: expected {folder}/{GOOD} and {folder}/TYPE"
        )
    return [
        Sample(path / image, int(name != GOOD), name, None)
        for name, (path, images) in types.items()
        for image in images
    ]


def _category_folder(root: Path, category: str) -> Path:
    known = categories(root)
    base = root / category
    if base.is_dir():
        return base
    if (root / "train" / GOOD).is_dir():
        raise DataError(f"{root} is itself a category: set data.root={root.parent} and data.category={root.name}")
    found = f"there are {', '.join(known)}" if known else f"{root} holds no folder with train/{GOOD} in it"
    raise DataError(f"{base}: no such category; {found}")


def _scan_train(base: Path, warnings: list[str]) -> list[Sample]:
    good = base / "train" / GOOD
    if not good.is_dir():
        raise DataError(f"{good}: no such folder: put the images of good parts to learn from there")
    train = _list(base / "train")
    for name in train.folders:
        if name != GOOD and (count := _count_images(base / "train" / name)):
            raise DataError(
                f"{base / 'train' / name} holds {count} images that are not said to be good, and training takes good "
                f"parts only: move them to {base / 'test' / name}, or to {good} if they are good"
            )
    if train.images:
        warnings.append(f"{base / 'train'}: {len(train.images)} images outside {GOOD}/ are left out")
    folder = _list(good)
    if not folder.images:
        raise DataError(f"{good} holds no image that can be read{_instead(folder)}: put images of good parts there")
    _warn_nested(good, folder, warnings)
    return [Sample(good / name, 0, GOOD, None) for name in folder.images]


def _scan_test(base: Path, warnings: list[str]) -> list[Sample]:
    types = _type_folders(base / "test", warnings)
    masks = _type_folders(base / "ground_truth", [])
    defects = [name for name in types if name != GOOD]
    _check_folder_names(base, defects, warnings)
    orphans = {name: folder for name, (folder, _) in masks.items() if name not in types and name != GOOD}
    for name, folder in orphans.items():
        known = ", ".join(defects) or "no defect type"
        raise DataError(f"{folder} holds masks, but there are no images in {base / 'test' / name}; test has {known}")
    samples = []
    for name, (folder, images) in types.items():
        if name == GOOD:
            samples += [Sample(folder / image, 0, GOOD, None) for image in images]
            continue
        paired = pair_masks(folder, images, *masks[name]) if name in masks else {}
        missing = [image for image in images if image not in paired]
        if missing and masks.keys() - {GOOD}:
            warnings.append(
                f"{folder}: {len(missing)} of {len(images)} images have no mask ({some(missing)}): "
                "they are left out of the pixel metrics"
            )
        samples += [Sample(folder / image, 1, name, paired.get(image)) for image in images]
    return samples


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
    suffixed: dict[str, list[str]] = {}
    named: dict[str, list[str]] = {}
    for mask in masks:
        stem = _stem(mask)
        base = stem.removesuffix(MASK_SUFFIX)
        suffixed[mask] = [base] if base != stem and base in stems else []
        named[mask] = [stem] if stem in stems else []
    if all(suffixed.values()) != all(named.values()):
        return suffixed if all(suffixed.values()) else named
    return {mask: suffixed[mask] + named[mask] for mask in masks}


def _type_folders(base: Path, warnings: list[str]) -> dict[str, tuple[Path, list[str]]]:
    """Folder and image names of each type below `base`, looking one deeper where a folder only wraps others."""
    found: dict[str, tuple[Path, list[str]]] = {}
    listing = _list(base)
    if listing.images:
        raise DataError(
            f"{base} holds {len(listing.images)} images outside a folder of their type ({some(listing.images)}): "
            f"move them to {base / GOOD}, or to a folder named after the defect"
        )
    for name in listing.folders:
        folder = _list(base / name)
        inner = [] if folder.images or name == GOOD else folder.folders
        inner = [name_ for name_ in inner if _list(base / name / name_).images]
        for path in [base / name / name_ for name_ in inner] or [base / name]:
            if path.name in found:
                raise DataError(f"{path} and {found[path.name][0]} are of the same type: merge or rename one")
            listed = _list(path)
            _warn_nested(path, listed, warnings)
            if listed.images:
                found[path.name] = (path, listed.images)
            elif listed.others:
                warnings.append(f"{path} holds no image that can be read{_instead(listed)}")
    return dict(sorted(found.items()))


def _check_folder_names(base: Path, defects: list[str], warnings: list[str]) -> None:
    """Refuse what looks like masks under another name: without them the pixel metrics would silently be missing."""
    others = [name for name in _list(base).folders if name not in ("train", "test", "ground_truth")]
    if not (base / "ground_truth").is_dir():
        for name in others:
            plain = "".join(filter(str.isalnum, name.lower()))
            if plain in _MASK_FOLDER_NAMES or set(_list(base / name).folders) & set(defects):
                raise DataError(
                    f"{base / name} looks like masks, which are read from {base / 'ground_truth'}: rename it"
                )
    if others and not (base / "test").is_dir():
        warnings.append(f"{base} has no folder test, so there is nothing to test on (there is {', '.join(others)})")


def _warn_nested(path: Path, listing: _Folder, warnings: list[str]) -> None:
    counts = {name: _count_images(path / name) for name in listing.folders}
    warnings += [
        f"{path / name}: {count} images in this sub-folder are left out" for name, count in counts.items() if count
    ]


def _list(folder: Path) -> _Folder:
    """What a folder holds, hidden files and the litter of desktops aside; empty if there is no such folder."""
    images: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith((".", "__MACOSX")) or entry.name.lower() in ("thumbs.db", "desktop.ini"):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                else:
                    (images if is_image_name(entry.name) else others).append(entry.name)
    return _Folder(sorted(images), sorted(folders), sorted(others))


def _count_images(folder: Path) -> int:
    listing = _list(folder)
    return len(listing.images) + sum(_count_images(folder / name) for name in listing.folders)


def _instead(listing: _Folder) -> str:
    held = [f"{name}/" for name in listing.folders] + listing.others
    return f" (but {some(held)})" if held else ""


def some(names: list[str], limit: int = 3) -> str:
    """The first of many names, for a line of text."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _stem(name: str) -> str:
    # The same letters may be stored composed or decomposed, depending on the system that wrote the file.
    return unicodedata.normalize("NFC", PurePath(name).stem)
