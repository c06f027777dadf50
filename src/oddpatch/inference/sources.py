"""Which images a user means by files, folders and glob patterns."""

import glob
import os
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from oddpatch.data.walk import BROKEN_LINK, LeftOut, Walk, listing, summary, walk


class Found(NamedTuple):
    """What sources hold."""

    images: list[Path]  # each once, in the order of the sources and by name
    left_out: list[LeftOut]
    errors: dict[str, str]  # by source: why there is no image in it


def find_images(sources: list[str], all_files: bool = False) -> Found:
    """Look for images in each source.

    A file is taken whatever its name, a folder is walked (see `oddpatch.data.walk`), and so is every folder that a
    pattern matches; of the files that a pattern matches those are taken that a walk would take.

    Args:
        all_files: take files whatever their names.
    """
    images: dict[Path, None] = {}
    left_out: dict[LeftOut, None] = {}
    errors: dict[str, str] = {}
    for source in sources:
        path = Path(source)
        if os.path.isfile(path):  # noqa: PTH113 - pathlib's raises where a folder above is closed to us
            found = Walk([path], [])
        elif os.path.isdir(path):  # noqa: PTH112
            found = walk(path, all_files=all_files)
        else:
            found = _matches(source, all_files)
        images.update(dict.fromkeys(found.files))
        left_out.update(dict.fromkeys(found.left_out))
        if not found.files:
            errors[source] = f"{source}: {_why(path, found)}"
    return Found(list(images), list(left_out), errors)


def _why(path: Path, found: Walk) -> str:
    if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH114, PTH110
        return BROKEN_LINK
    but = f" ({'; '.join(summary(found.left_out))})" if found.left_out else ""
    if os.path.isdir(path):  # noqa: PTH112
        return f"no image in this folder{but}"
    return f"no image matches{but}" if but else "no such file or folder"


def _matches(pattern: str, all_files: bool) -> Walk:
    head, tail = _split(pattern)
    found = Walk([], [])
    single: dict[Path, set[str]] = defaultdict(set)  # names of the files that match, by folder
    for base in map(Path, glob.glob(head)):  # noqa: PTH207 - pathlib's takes no absolute patterns
        if not base.is_dir():
            single[base.parent].add(base.name)
            continue
        files, left_out = walk(base, all_files=all_files)
        found.files.extend(path for path in files if _fits(path.relative_to(base).parts, tail))
        found.left_out.extend(
            item  # a folder that is not looked into may hold what fits
            for item in left_out
            if _fits(item.path.relative_to(base).parts, tail) or not item.path.is_file()
        )
    for folder, names in single.items() if not tail else ():
        there = listing(folder, all_files=all_files)
        found.files.extend(folder / name for name in there.images if name in names)
        found.left_out.extend(item for item in there.left_out if item.path.name in names)
    return Walk(sorted(found.files), sorted(found.left_out))


def _split(pattern: str) -> tuple[str, tuple[str, ...]]:
    """What comes before the first `**`, and the rest: links in a circle would never end for `glob`."""
    parts = Path(pattern).parts
    first = parts.index("**") if "**" in parts else len(parts)
    return str(Path(*parts[:first])), parts[first:]


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a path, or a folder that holds it, matches; `**` stands for any number of folders."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_fits(parts[k:], pattern[1:]) for k in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
