"""How the data tools write: whole files under their final names or none, and nothing replaced unless asked to."""

import json
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.masks import read_mask
from oddpatch.errors import DataError
from oddpatch.files import replacing, write_cells
from oddpatch.pool import Progress, tracked
from oddpatch.temporary import drafting, placing

MANIFEST = "oddpatch_manifest.json"


class Output(NamedTuple):
    """A file to be written: a copy of `source`, or what `content` gives."""

    path: Path
    source: Path | None = None
    content: Callable[[], bytes] | None = None


def unique_key(path: Path) -> str:
    """Equal for paths that some file system takes for one: letter case and composed letters aside."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def check_targets(outputs: Sequence[Output], force: bool) -> None:
    """See that no two outputs meet and that none replaces a file.

    Raises:
        DataError: two outputs have one name, or a file is there and `force` is not set.
    """
    seen: dict[str, Output] = {}
    for output in outputs:
        other = seen.setdefault(unique_key(output.path), output)
        if other is not output:
            raise DataError(
                f"{output.path}: both {other.source or other.path} and {output.source or output.path} would be written "
                "there: rename one"
            )
    if force:
        return
    there = [output.path for output in outputs if os.path.lexists(output.path)]
    if there:
        raise DataError(f"{there[0]}: exists, and {len(there) - 1} more: choose another place, or --force to replace")


def write_all(outputs: Sequence[Output], link: bool = False, progress: Progress | None = None) -> None:
    """Write each file in one step; a copy keeps its time stamps (`shutil.copy2`), a link is absolute."""
    for output in tracked(outputs, progress):
        if output.content is not None:
            with replacing(output.path, "wb") as file:
                file.write(output.content())
        elif output.source is not None:
            place(output.source, output.path, link)


def place(source: Path, target: Path, link: bool = False) -> None:
    """Copy or link one file; it is at `target` whole or not at all."""
    with placing(target) as partial:
        if link:
            partial.symlink_to(source.absolute())
        else:
            shutil.copy2(source, partial)


def check_folder(root: Path, force: bool) -> None:
    """See that a dataset may be made at `root`.

    Raises:
        DataError: something is there; with `force` only if it is not a dataset that these tools made.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    if not force:
        raise DataError(f"{root}: exists and is not an empty folder: choose another, or --force to replace it")
    if not (root / MANIFEST).is_file():
        raise DataError(f"{root}: has no {MANIFEST}, so it was not made by these tools: remove it yourself")


def make_dataset(
    root: Path, outputs: Sequence[Output], about: Mapping[str, Any], *, force: bool, link: bool = False,
    progress: Progress | None = None,
) -> None:  # fmt: skip
    """Make a dataset of these files, whose paths are below `root`, and of a manifest; it is there when it is complete.

    Raises:
        DataError: as `check_folder`.
        ResourceError: it cannot be written.
    """
    check_folder(root, force)
    with drafting(root) as scratch:
        draft = scratch / "new"
        draft.mkdir()
        write_all([output._replace(path=draft / output.path) for output in outputs], link, progress)
        write_json(draft / MANIFEST, about)
        if root.exists():
            root.rename(scratch / "old")
        draft.rename(root)  # same file system: at once or not at all


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any]], **settings: Any) -> None:
    """Write rows, one for each file, as `.csv`, or else as JSON with the settings that they were made by."""
    if path.suffix.lower() != ".csv":
        write_json(path, {**settings, "files": rows})
        return
    with replacing(path) as file:
        write_cells(file, rows[0], rows)


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people can read."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    with replacing(path) as file:
        # What stands for a byte that is not UTF-8 is written as JSON writes any character, so that it can be read back.
        file.write(re.sub(r"[\ud800-\udfff]", lambda match: f"\\u{ord(match.group()):04x}", text) + "\n")


def png(mask: NDArray[np.bool_]) -> bytes:
    """A mask (H, W) as an 8-bit grey PNG of 0 and 255."""
    import cv2

    return bytes(cv2.imencode(".png", mask.astype(np.uint8) * 255)[1])


def join_masks(paths: Sequence[Path]) -> bytes:
    """The union of masks of any mode, as a PNG of 0 and 255.

    Raises:
        DataError: one cannot be read, or they differ in size.
    """
    masks = [read_mask(path).numpy() > 0 for path in paths]  # (H, W) each
    for path, mask in zip(paths, masks, strict=True):
        if mask.shape != masks[0].shape:
            raise DataError(f"{path}: the mask is of another size than {paths[0]}: unpack the dataset again")
    return png(np.any(masks, axis=0))
