"""Reading a folder in MVTec layout: which images there are, what they are, and which mask belongs to which.

    ROOT/CATEGORY/train/good/*             good parts to learn from
    ROOT/CATEGORY/test/good/*              good parts to test on
    ROOT/CATEGORY/test/DEFECT_TYPE/*       defective parts
    ROOT/CATEGORY/ground_truth/DEFECT_TYPE/STEM_mask.* or STEM.*

Only `train/good` is needed. Other spellings of good are known, see `is_good`. Types may lie one folder deeper, as in
`ground_truth/defective/DEFECT_TYPE`. Masks are paired with images by stem. Masks in `ground_truth/good` are not read: a
good image has no defect. What lies in these folders and is not used is listed with the reason.
"""

import hashlib
import os
import shlex
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from oddpatch.data.beside import iter_masks_beside
from oddpatch.data.pairing import pair_masks
from oddpatch.data.walk import BROKEN_LINK, HIDDEN, NO_SUFFIX, UNKNOWN_SUFFIX, LeftOut, Listing, listing, summary, walk
from oddpatch.errors import DataError
from oddpatch.files import shown
from oddpatch.wording import counted, some

GOOD = "good"
#: Why an image is not used.
NESTED = "in a sub-folder of a type, where no images are read"
OUTSIDE = "outside a folder of its type"
BESIDE = "beside train and test, where no images are read"
# In lower case without separators.
_GOOD_NAMES = {"good", "ok", "normal", "defectfree", "nodefect", "nondefective"}
# Folders that people mean as ground_truth, in lower case without separators.
_MASK_FOLDER_NAMES = {"groundtruth", "groundtruths", "gt", "mask", "masks", "label", "labels", "annotations"}


class Sample(NamedTuple):
    """One image of a dataset."""

    path: Path
    label: int  # 0 good, 1 anomalous
    defect_type: str
    mask_path: Path | None
    category: str = ""  # where there are several

    @property
    def kind(self) -> str:
        """Its type, and of which category where there are several."""
        return f"{self.category} {self.defect_type}" if self.category else self.defect_type


class Layout(NamedTuple):
    """All images of a category; the position in `train` or `test` is the image's index."""

    train: list[Sample]
    test: list[Sample]
    warnings: list[str]
    left_out: Sequence[LeftOut] = ()  # files and folders of the category that are not used
    validation: Sequence[Sample] = ()  # labelled images, where a manifest names some


def is_good(name: str) -> bool:
    """Whether a folder's name says that its parts are good: good, ok, normal, defect_free, no_defect, non_defective,
    in any letter case and with any separators."""
    return _plain(name) in _GOOD_NAMES


def good_folder(folders: Iterable[Path], name: str = GOOD) -> Path | None:
    """The one of this name, or that `is_good`, if there is one.

    Raises:
        DataError: there are several.
    """
    found = [path for path in folders if path.name == name or is_good(path.name)]
    if len(found) > 1:
        raise DataError(f"{found[0]} and {found[1]} both hold good parts by their names: merge them, or rename one")
    return found[0] if found else None


def is_category(folder: Path) -> bool:
    """Whether a folder holds `train/good`, or another spelling of it."""
    return any(map(is_good, listing(folder / "train").folders))


def categories(root: str | Path) -> list[str]:
    """Names of the folders of `root` that hold `train/good`, sorted.

    Raises:
        DataError: `root` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            f"{root}: {_absent(root, 'no such data folder')}: point data.root at the folder that holds the categories"
        )
    return [name for name in listing(root).folders if is_category(root / name)]


def scan(root: str | Path, category: str, used: Collection[str] = ()) -> Layout:
    """Find the images of a category and pair them with their masks. No image is opened, but for one that its name and
    place call a mask among images.

    Args:
        used: names of images beside `train` and `test` that are of use elsewhere, such as that of a region.

    Returns:
        Samples in the order of their paths, whatever order the file system lists them in.

    Raises:
        DataError: a folder is missing or misnamed, masks lie among the images, or masks and images cannot be paired
            without guessing.
    """
    base = _category_folder(Path(root), category)
    warnings: list[str] = []
    left_out = left_out_beside(base, used)
    _refuse_hidden(left_out, [base / name for name in ("train", "test", "ground_truth")])
    train = _scan_train(base, left_out)
    test = _scan_test(base, warnings, left_out)
    return Layout(train, test, describe_left_out(left_out, base) + warnings, left_out)


def scan_together(root: str | Path, names: Iterable[str], used: Collection[str] = ()) -> Layout:
    """What `scan` finds in several categories, as one layout, in their order: each image knows its category.

    Raises:
        DataError: as of `scan`.
    """
    found = {name: scan(root, name, used) for name in names}
    train, test = (
        [sample._replace(category=name) for name, one in found.items() for sample in getattr(one, part)]
        for part in ("train", "test")
    )
    warnings = [line for one in found.values() for line in one.warnings]
    return Layout(train, test, warnings, [item for one in found.values() for item in one.left_out])


def left_out_beside(base: Path, used: Collection[str] = ()) -> list[LeftOut]:
    """What lies in a category's folder itself and is not used, but for a licence and other files of its owner's."""
    found = listing(base)
    images = [LeftOut(base / name, BESIDE) for name in found.images if name not in used]
    return images + [item for item in found.left_out if item.reason not in (UNKNOWN_SUFFIX, NO_SUFFIX, HIDDEN)]


def fingerprint(samples: Iterable[Sample], base: Path) -> str:
    """A hash of names below `base`, labels and sizes in bytes: that of a copy of the folder is the same."""
    rows = sorted(
        unicodedata.normalize("NFC", f"{path.relative_to(base).as_posix()}\0{label}\0{path.stat().st_size}")
        for path, label, *_ in samples
    )
    return hashlib.sha256(os.fsencode("\n".join(rows))).hexdigest()


def scan_types(folder: str | Path) -> Layout:
    """Labelled images without masks: FOLDER/good and a folder for each defect type, as below `test`.

    Returns:
        The images as `test`; `train` is empty.

    Raises:
        DataError: there is no such folder, no image in a folder of its type, or masks lie among the images.
    """
    folder = Path(folder)
    left_out: list[LeftOut] = []
    warnings: list[str] = []
    types = _type_folders(folder, warnings, left_out)
    if not types:
        raise DataError(
            f"{folder} holds no images in folders of their type: expected {folder}/{GOOD} and {folder}/TYPE"
        )
    _refuse_masks(types.values(), f"move the masks out of {folder}, where none are needed")
    samples = [
        Sample(path / image, int(name != GOOD), name, None)
        for name, (path, images) in types.items()
        for image in images
    ]
    return Layout([], samples, describe_left_out(left_out, folder) + warnings, left_out)


def _category_folder(root: Path, category: str) -> Path:
    base = root / category
    if base.is_dir():
        return base
    known = categories(root)
    refuse_category(root)
    found = f"there are {', '.join(known)}" if known else f"{root} holds no folder with train/{GOOD} in it"
    hint = "; brackets are for several: [a,b]" if category.startswith("[") and category.endswith("]") else ""
    raise DataError(f"{base}: {_absent(base, 'no such category')}; {found}{hint}")


def refuse_category(root: Path) -> None:
    """Say how to name a category whose folder was given as that of the categories.

    Raises:
        DataError: `root` is itself a category.
    """
    if is_category(root):
        whole = root.absolute()
        raise DataError(f"{root} is itself a category: set data.root={whole.parent} and data.category={whole.name}")


def _refuse_hidden(left_out: Iterable[LeftOut], folders: Collection[Path]) -> None:
    for path, reason in left_out:
        if path in folders:
            raise DataError(f"{path}: {reason}: mend it, or remove it if nothing is to be read there")


def _scan_train(base: Path, left_out: list[LeftOut]) -> list[Sample]:
    train = listing(base / "train")
    _refuse_hidden(train.left_out, [base / "train", *(path for path, _ in train.left_out if is_good(path.name))])
    folders = {name: base / "train" / name for name in train.folders}
    good = good_folder(folders.values())
    if good is None:
        good = base / "train" / GOOD
        raise DataError(f"{good}: no such folder: put the images of good parts to learn from there")
    for name, folder in folders.items():
        if folder != good and (count := len(walk(folder).files)):
            raise DataError(
                f"{folder} holds {counted(count, 'image')} not marked as good, and training uses good "
                f"parts only: move them to {base / 'test' / name}, or to {good} if they are good"
            )
    left_out += [LeftOut(base / "train" / name, OUTSIDE) for name in train.images] + train.left_out
    found = listing(good)
    if not found.images:
        raise DataError(f"{good} holds no image that can be read{_instead(found)}: put images of good parts there")
    _leave_nested(good, found.folders, left_out)
    left_out += found.left_out
    _refuse_masks([(good, found.images)], _sorting(base))
    return [Sample(good / name, 0, GOOD, None) for name in found.images]


def _scan_test(base: Path, warnings: list[str], left_out: list[LeftOut]) -> list[Sample]:
    types = _type_folders(base / "test", warnings, left_out)
    masks = _type_folders(base / "ground_truth", warnings, left_out)
    _refuse_masks(types.values(), _sorting(base))
    defects = [name for name in types if name != GOOD]
    _check_folder_names(base, defects, warnings)
    for name, (folder, _) in masks.items():
        if name not in types and name != GOOD:
            known = ", ".join(defects) or "no defect type"
            raise DataError(
                f"{folder} holds masks, but there are no images in {base / 'test' / name}; test has {known}"
            )
    samples = []
    for name, (folder, images) in types.items():
        if name == GOOD:
            samples += [Sample(folder / image, 0, GOOD, None) for image in images]
            continue
        paired = pair_masks(folder, images, *masks[name]) if name in masks else {}
        missing = [image for image in images if image not in paired]
        if missing and masks.keys() - {GOOD}:
            warnings.append(
                f"{folder}: no mask for {len(missing)} of {counted(len(images), 'image')} ({some(missing)}): "
                "left out of the pixel metrics"
            )
        samples += [Sample(folder / image, 1, name, paired.get(image)) for image in images]
    return samples


def _refuse_masks(folders: Iterable[tuple[Path, list[str]]], remedy: str) -> None:
    """Refuse masks among the images of parts, which they would be taken for."""
    for folder, images in folders:
        first = next(iter_masks_beside(folder / name for name in images), None)
        if first is not None:
            raise DataError(
                f"{first[0]} looks like the mask of {first[1].name} beside it and would be taken for an image: {remedy}"
            )


def _sorting(base: Path) -> str:
    source, target = (shlex.quote(str(path)) for path in (base.absolute(), base.absolute().parent / "sorted"))
    return f"sort images and masks by `oddpatch data convert beside {source} {target}` and set data.root={target}"


def _type_folders(base: Path, warnings: list[str], left_out: list[LeftOut]) -> dict[str, tuple[Path, list[str]]]:
    """Folder and image names of each type below `base`, looking one deeper where a folder only wraps others."""
    found: dict[str, tuple[Path, list[str]]] = {}
    top = listing(base)
    _refuse_hidden(top.left_out, [base])
    left_out += top.left_out
    if top.images:
        raise DataError(
            f"{base} holds {counted(len(top.images), 'image')} outside a folder of a type ({some(top.images)}): "
            f"move them to {base / GOOD}, or to a folder named after the defect"
        )
    for name in top.folders:
        folder = listing(base / name)
        deeper = [] if folder.images or is_good(name) else folder.folders
        inner = [name_ for name_ in deeper if listing(base / name / name_).images]
        if inner:
            left_out += folder.left_out
            _leave_nested(base / name, [name_ for name_ in deeper if name_ not in inner], left_out)
        for path in [base / name / name_ for name_ in inner] or [base / name]:
            kind = GOOD if is_good(path.name) else shown(path.name)
            if kind in found:
                raise DataError(f"{path} and {found[kind][0]} are of the same type: merge or rename one")
            listed = listing(path)
            left_out += listed.left_out
            _leave_nested(path, listed.folders, left_out)
            if listed.images:
                found[kind] = (path, listed.images)
            elif listed.left_out:
                warnings.append(f"{path} holds no image that can be read{_instead(listed)}")
    return dict(sorted(found.items()))


def _check_folder_names(base: Path, defects: list[str], warnings: list[str]) -> None:
    """Refuse what looks like masks under another name: without them the pixel metrics would silently be missing."""
    others = [name for name in listing(base).folders if name not in ("train", "test", "ground_truth")]
    if not (base / "ground_truth").is_dir():
        for name in others:
            if _plain(name) in _MASK_FOLDER_NAMES or set(listing(base / name).folders) & set(defects):
                raise DataError(
                    f"{base / name} looks like masks, which are read from {base / 'ground_truth'}: rename it"
                )
    if others and not (base / "test").is_dir():
        warnings.append(f"{base} has no folder test, so there is nothing to test on (there is {', '.join(others)})")


def _leave_nested(path: Path, folders: Iterable[str], left_out: list[LeftOut]) -> None:
    for name in folders:
        found = walk(path / name)
        left_out += [LeftOut(file, NESTED) for file in found.files] + found.left_out


def describe_left_out(left_out: Iterable[LeftOut], base: Path) -> list[str]:
    """One line for each reason, with names below `base`: the first of a layout's warnings."""
    return [f"{base}: {line}" for line in summary(LeftOut(path.relative_to(base), reason) for path, reason in left_out)]


def _absent(folder: Path, otherwise: str = "no such folder") -> str:
    return BROKEN_LINK if folder.is_symlink() and not folder.exists() else otherwise


def _instead(found: Listing) -> str:
    held = [f"{name}/" for name in found.folders] + summary(found.left_out)
    return f" (but {some(held)})" if held else ""


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
