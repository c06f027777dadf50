"""Images that visitors upload: what is taken, and what is refused and why. Nobody's file name becomes a path."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple, Protocol

from oddpatch.data.beside import iter_masks_beside
from oddpatch.data.decoding import image_suffixes, missing_plugin, read_planes
from oddpatch.data.reading import FileContent
from oddpatch.errors import DataError, ResourceError
from oddpatch.files import shown, write_whole
from oddpatch.wording import counted

#: What a session may upload: files, bytes of one file (a whole number of MiB) and of all, and pixels of an image.
FILES, FILE_BYTES, BYTES, PIXELS = 500, 32 * 2**20, 2**30, 25_000_000
#: Letters of a file's name that are shown.
NAME_LENGTH = 60


class Upload(NamedTuple):
    """A file that was uploaded, as it is kept."""

    name: str  # to be shown
    path: Path
    own_name: str  # of the file, whole, without folders


class Sent(Protocol):
    """A file as Streamlit gives it."""

    @property
    def name(self) -> str:
        """As the browser says."""

    @property
    def size(self) -> int:
        """In bytes."""

    def getvalue(self) -> bytes:
        """The content."""


def take(files: Iterable[Sent], folder: Path, count: int = 0, size: int = 0) -> tuple[list[Upload], list[str]]:
    """Keep the images among the files in `folder`, under numbers.

    Args:
        files: of a visitor.
        folder: is made if need be.
        count: files that the session has already, which the numbers go on from.
        size: their bytes.

    Returns:
        What was kept, and a line for each file that was refused, with its name, the reason and a remedy; files beyond
        the number that is allowed share one.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept: list[Upload] = []
    refused: list[str] = []
    beyond = 0
    for file in files:
        if count + len(kept) >= FILES:
            beyond += 1
            continue
        name = shorten(file.name)
        path = folder / f"{count + len(kept):05}{PurePath(file.name).suffix.lower()}"
        try:
            content = _check(file, name, size)
            write_whole(path, content)
        except (DataError, ResourceError) as error:
            refused.append(str(error).replace(str(path), name))
            continue
        kept.append(Upload(name, path, _last(file.name)))
        size += len(content)
    if beyond:
        refused.append(f"{counted(beyond, 'file')} not taken: a session holds {FILES} images, fit to fewer")
    return kept, refused


def leave_out_masks(good: Sequence[Upload]) -> tuple[list[Upload], list[str]]:
    """Remove masks from among good parts: an image is known by the names of all and by what it shows.

    Returns:
        What is left, and a line for each mask. Its file is removed.
    """
    named = {Path(one.own_name): one for one in good}
    kept = {path: one.path for path, one in named.items()}
    masks = dict(iter_masks_beside(named, kept))
    left, refused = [], []
    for one in good:
        if (image := masks.get(Path(one.own_name))) is None:
            left.append(one)
        else:
            one.path.unlink()
            refused.append(f"{one.name} looks like the mask of {named[image].name}: it is not taken for a good part")
    return left, refused


def shorten(name: str) -> str:
    """A file's name in one line, without folders, as it can be shown."""
    name = shown(_last(name)) or "unnamed"
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH // 2]}...{name[-NAME_LENGTH // 2 :]}"


def _last(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _check(file: Sent, name: str, size: int) -> bytes:
    """The content of a file that is an image and is not too large.

    Raises:
        DataError: it is not.
    """
    if file.size > FILE_BYTES:
        raise DataError(f"{name}: {file.size / 2**20:.0f} MiB, more than {FILE_BYTES // 2**20}: make it smaller")
    if size + file.size > BYTES:
        raise DataError(f"{name}: a session holds {BYTES // 2**20} MiB of images: reload the page to start again")
    suffix = PurePath(file.name).suffix.lower()
    if suffix not in image_suffixes():
        remedy = missing_plugin(file.name) or "save it as PNG, TIFF or JPEG"
        raise DataError(f"{name}: no image by its name: {remedy}")
    content = FileContent(f"{name}{'' if name.lower().endswith(suffix) else suffix}")
    content.data = file.getvalue()
    read_planes(content, max_pixels=PIXELS)  # all of it, so that a file that is cut short is noticed here
    return content.data
