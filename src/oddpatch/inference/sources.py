"""Where images come from: files, folders and glob patterns, as frames. Cameras are in `oddpatch.watch.capture`.

A source is an iterable of `Frame`, whose consumer asks neither for files nor, before it has ended, for its length.
"""

import glob
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import chain, count
from pathlib import Path, PurePath
from typing import NamedTuple

from oddpatch.data.video import is_video_name, num_frames, read_video
from oddpatch.data.walk import BROKEN_LINK, LeftOut, Walk, listing, summary, walk
from oddpatch.errors import DataError
from oddpatch.inference.scorer import ImageLike


class Frame(NamedTuple):
    """One image of a source, or why there is none."""

    name: str  # what to call it in results and errors, such as its path
    image: ImageLike | DataError  # a path is decoded when it is its turn; an error stands in the place of the image
    time: float | None = None  # when it was taken, in seconds since the epoch; None of a file
    output: PurePath = PurePath("image")  # name of files made from it, without a suffix; no other frame has it


class Files:
    """The images that files, folders and patterns stand for, each once, in the order of these and by name.

    A file is taken whatever its name, a folder is walked (see `oddpatch.data.walk`), and so is every folder that a
    pattern matches; of the files that a pattern matches those are taken that a walk would take. A video that is named
    gives all its frames. No file is opened before its turn.

    >>> source = Files(["part.png", "parts/good/00[01].png"])
    >>> [frame.name for frame in source], source.left_out
    (['part.png', 'parts/good/000.png', 'parts/good/001.png'], [])

    Args:
        sources: files, folders and patterns; one that holds no image gives a frame with an error, before all others.
        all_files: take files whatever their names.

    Attributes:
        paths: of the images and videos.
        left_out: files and folders that were not looked at, and why.
        errors: by source, why there is no image in it.
    """

    def __init__(self, sources: list[str], all_files: bool = False) -> None:
        images: dict[Path, None] = {}
        left_out: dict[LeftOut, None] = {}
        self.errors: dict[str, str] = {}
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
                self.errors[source] = f"{source}: {_why(path, found)}"
        self.paths, self.left_out = list(images), list(left_out)

    @property
    def videos(self) -> list[Path]:
        """Those of the paths that are videos."""
        return [path for path in self.paths if is_video_name(path.name)]

    def total(self) -> int | None:
        """How many frames there are; None if the header of a video does not say."""
        counts = [num_frames(path) for path in self.videos]
        known = [count for count in counts if count is not None]
        images = len(self.errors) + len(self.paths) - len(counts)
        return images + sum(known) if len(known) == len(counts) else None

    def __iter__(self) -> Iterator[Frame]:
        for source, error in self.errors.items():
            yield Frame(source, DataError(error))
        for path, output in output_names(self.paths).items():
            if is_video_name(path.name):
                yield from _frames(path, output)
            else:
                yield Frame(str(path), path, output=output)


def _frames(path: Path, output: Path) -> Iterator[Frame]:
    """Those of a video; what is wrong with all of it is a frame with an error of its own."""
    try:
        for number, shot in enumerate(read_video(path)):
            name = f"{path}#{number:06}"
            image = DataError(f"{name}: {shot.image}") if isinstance(shot.image, DataError) else shot.image
            assert image is not None
            yield Frame(name, image, output=output.with_name(path.name) / f"{number:06}")  # no folder has a file's name
    except DataError as error:
        yield Frame(str(path), error)


def output_names(paths: list[Path]) -> dict[Path, Path]:
    """A name below an output folder for each image, without its suffix: its path below what all have in common.

    Two images that differ in suffix alone keep it, so that neither's results are written over the other's.
    """
    if not paths:
        return {}
    folders = [path.resolve().parent for path in paths]
    common = os.path.commonpath(folders)
    names = {path: folder.relative_to(common) / path.stem for path, folder in zip(paths, folders, strict=True)}
    counts = Counter(names.values())
    taken = {name for name, times in counts.items() if times == 1}
    for path, name in names.items():
        if counts[name] > 1:
            own = name.with_name(path.name.replace(".", "_"))
            tried = (own.with_name(f"{own.name}_{number}") for number in count(2))
            names[path] = next(free for free in chain([own], tried) if free not in taken)
            taken.add(names[path])
    return names


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
