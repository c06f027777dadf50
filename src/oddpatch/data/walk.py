"""Looking for images in folders: one rule for training, prediction and the data tools.

* Links to folders and files are followed. A link back to a folder that holds it is not, or the walk would not end; a
  folder that is reached by two names is looked into under both.
* A file is an image if its suffix says so. Every other file is left out, and so are hidden files and folders (`.name`),
  broken links, and folders that cannot be read: each is listed with the reason, so that callers can say so.
* What operating systems leave behind (`Thumbs.db`, `.DS_Store`, `._name`, `__MACOSX`, ...) is no file of the user's,
  and is not listed.

No file is opened.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import NamedTuple

from oddpatch.data.decoding import is_image_name, missing_plugin
from oddpatch.data.video import is_video_name
from oddpatch.files import shown
from oddpatch.wording import some

NO_SUFFIX = "no suffix"
UNKNOWN_SUFFIX = "unknown suffix"
HIDDEN = "hidden"
BROKEN_LINK = "broken link"
VIDEO = "a video, of which `oddpatch predict FILE` inspects the frames"
LOOP = "link back to a folder that holds it"
SPECIAL = "neither a file nor a folder"
UNREADABLE = "cannot be read"  # followed by what the system says

_LITTER = {
    ".ds_store", ".fseventsd", ".git", ".ipynb_checkpoints", ".spotlight-v100", ".trashes", "$recycle.bin", "@eadir",
    "__macosx", "desktop.ini", "system volume information", "thumbs.db",
}  # fmt: skip


class LeftOut(NamedTuple):
    """A file or folder that was not looked at, and why: one of this module's reasons."""

    path: Path
    reason: str


class Walk(NamedTuple):
    """Files that were found, in the order of their paths, and what was left out, likewise."""

    files: list[Path]
    left_out: list[LeftOut]


class Listing(NamedTuple):
    """One folder: names of its image files and of its folders, both sorted, and what was left out."""

    images: list[str]
    folders: list[str]
    left_out: list[LeftOut]


def walk(folder: str | Path, *, recursive: bool = True, all_files: bool = False) -> Walk:
    """Image files in `folder` and, if `recursive`, in all folders below it; empty if there is no such folder.

    Args:
        all_files: every file, whatever its name, hidden ones too.
    """
    files: list[Path] = []
    left_out: list[LeftOut] = []
    pending: list[tuple[Path, frozenset[tuple[int, int]]]] = [(Path(folder), frozenset())]
    while pending:
        path, holders = pending.pop()
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            left_out.append(_unreadable(path, error))
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in holders:
            left_out.append(LeftOut(path, LOOP))
            continue
        found = listing(path, all_files=all_files)
        files += [path / name for name in found.images]
        left_out += found.left_out
        if recursive:
            pending += [(path / name, holders | {identity}) for name in found.folders]
    return Walk(sorted(files), sorted(left_out))


def listing(folder: str | Path, *, all_files: bool = False) -> Listing:
    """What `folder` itself holds; empty if there is no such folder."""
    folder = Path(folder)
    images: list[str] = []
    folders: list[str] = []
    left_out: list[LeftOut] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("._") or name.lower() in _LITTER:
                    continue
                kind = _kind(entry)
                if kind == "folder" and (all_files or not name.startswith(".")):
                    folders.append(name)
                elif kind == "file" and (all_files or is_image_name(name)):
                    images.append(name)
                else:
                    reason = kind if kind not in ("file", "folder") else _reason(name)
                    left_out.append(LeftOut(folder / name, reason))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        left_out.append(_unreadable(folder, error))
    return Listing(sorted(images), sorted(folders), sorted(left_out))


def summary(left_out: Iterable[LeftOut]) -> list[str]:
    """One line for each reason, with the number of files or folders and the first names."""
    by_reason: dict[str, list[Path]] = defaultdict(list)
    for path, reason in left_out:
        by_reason[reason].append(path)
    return [
        f"{len(paths)} left out, {reason}: {some(map(shown, sorted(paths)))}"
        for reason, paths in sorted(by_reason.items())
    ]


def _kind(entry: "os.DirEntry[str]") -> str:
    """`folder`, `file`, or why it is neither. Costs a look at the disk for links only."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError as error:  # such as links in a circle, or through a folder that is closed to us
        return BROKEN_LINK if entry.is_symlink() else _unreadable(Path(entry.path), error).reason
    return BROKEN_LINK if entry.is_symlink() else SPECIAL


def _reason(name: str) -> str:
    if name.startswith("."):
        return HIDDEN
    if remedy := missing_plugin(name):
        return f"{PurePath(name).suffix.lower()} needs `{remedy}`"
    if is_video_name(name):
        return VIDEO
    return UNKNOWN_SUFFIX if PurePath(name).suffix else NO_SUFFIX


def _unreadable(path: Path, error: OSError) -> LeftOut:
    return LeftOut(path, f"{UNREADABLE} ({error.strerror})")
