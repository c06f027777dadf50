"""Masks that lie beside their images, as labelling tools export them, told from images of parts.

A mask is recognised by its name and by what it shows:

* `STEM_mask.*`, `STEM.gt.*`, `STEM-label.*`, ... (see `_WORDS`) beside an image `STEM.*`, if two colours make up nearly
  all of it, but for soft edges, JPEG noise, or a few pixels of further classes
* `STEM.png` beside `STEM.jpg`, if one of them holds two colours at most and the other more

Names come first: where none calls for it, no file is opened.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from oddpatch.data.decoding import read_image
from oddpatch.errors import DataError

_WORDS = "mask|masks|gt|ground_?truth|label|labels|seg|segmentation|annotation"
_NAMED = re.compile(rf"(.+)[ ._-](?:{_WORDS})", re.IGNORECASE)
# Share of the pixels, and steps of each channel's own range that count as different colours: a lossy mask is noisy.
_NEARLY_ALL, _COARSE = 0.95, 8


def masks_beside(files: Iterable[Path]) -> dict[Path, Path]:
    """Image of each mask among image files of any folders."""
    return dict(iter_masks_beside(files))


def iter_masks_beside(files: Iterable[Path], kept: Mapping[Path, Path] | None = None) -> Iterator[tuple[Path, Path]]:
    """(mask, image) as they are found, for callers to whom the first will do.

    Args:
        files: by the names that their owners gave them.
        kept: the file to read in place of each, where they are kept under other names.
    """
    kept = kept or {}
    folders: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in files:
        folders[path.parent][unicodedata.normalize("NFC", path.stem)].append(path)
    for stems in folders.values():
        for stem, paths in stems.items():
            named = _NAMED.fullmatch(stem)
            images = stems.get(named[1], []) if named else []
            if images:
                yield from ((path, images[0]) for path in paths if _shows_a_mask(kept.get(path, path), nearly=True))
            elif len(paths) > 1:
                yield from _of_one_stem(paths, kept)


def masks_named(files: Iterable[Path], suffix: str, extension: str) -> dict[Path, Path]:
    """Image of each mask among image files of any folders, by name alone.

    Args:
        suffix: what a mask's stem has behind its image's, such as `_mask`; may be empty.
        extension: of masks, such as `.png`; empty for any.

    Raises:
        DataError: a file that is named like a mask has no image.
    """
    files = list(files)
    extension = f".{extension.lower().removeprefix('.')}" if extension else ""

    def named(path: Path) -> bool:
        return path.stem.endswith(suffix) and extension in ("", path.suffix.lower())

    images = {(path.parent, path.stem): path for path in files if not named(path)}
    masks = {}
    for path in filter(named, files):
        stem = path.stem.removesuffix(suffix)
        if (path.parent, stem) not in images:
            raise DataError(
                f"{path}: is named like a mask, but there is no image {stem}.* beside it: add it, remove the mask, or "
                "give another --mask-suffix or --mask-extension"
            )
        masks[path] = images[path.parent, stem]
    return masks


def _of_one_stem(paths: list[Path], kept: Mapping[Path, Path]) -> Iterator[tuple[Path, Path]]:
    masks = [path for path in paths if _shows_a_mask(kept.get(path, path))]
    images = [path for path in paths if path not in masks]
    if len(images) == 1:
        yield from ((path, images[0]) for path in masks)


def _shows_a_mask(path: Path, nearly: bool = False) -> bool:
    """Whether two colours make up all of it, or `nearly`; of a file that cannot be read, no."""
    try:
        image = read_image(path).numpy()  # (3, H, W)
    except DataError:
        return False
    low, high = image.min(axis=(1, 2), keepdims=True), image.max(axis=(1, 2), keepdims=True)  # (3, 1, 1)
    levels = _COARSE if nearly else 65535
    level = np.rint((image - low) / np.maximum(high - low, 1e-9) * levels).astype(np.int64)
    colours = (level[0] << 32) | (level[1] << 16) | level[2]  # (H, W)
    _, counts = np.unique(colours, return_counts=True)
    return bool(np.sort(counts)[-2:].sum() >= (_NEARLY_ALL if nearly else 1) * colours.size)
