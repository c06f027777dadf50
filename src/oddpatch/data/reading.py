"""Reading files that may never answer: on a network mount that is gone, a failing disk, a pipe in a file's place."""

import threading
from collections import defaultdict
from pathlib import Path, PosixPath

from oddpatch.errors import DataError

#: Reads that may hang in one folder at a time: each holds a thread until the system gives it up.
HANGING = 3

_lock = threading.Lock()
_hanging: dict[Path, int] = defaultdict(int)


class FileContent(PosixPath):
    """The path of a file whose content has been read already; whatever decodes a path takes it."""

    data: bytes


def read_bytes(path: str | Path) -> bytes:
    """The content of a regular file.

    Raises:
        DataError: it is something else, such as a pipe named like an image, which would be waited for.
        OSError: it cannot be read.
    """
    if isinstance(path, FileContent):
        return path.data
    path = Path(path)
    if not path.is_file() and path.exists():
        raise DataError("is a folder" if path.is_dir() else "is no regular file but a pipe or a device: remove it")
    return path.read_bytes()


def read_within(path: str | Path, seconds: float) -> FileContent:
    """A file, read in a thread that is left behind if it takes longer.

    A folder in which `HANGING` reads hang is not tried again until one of them ends, so that a mount that is gone costs
    a few waits and not one for each of its files.

    Raises:
        DataError: it took longer, or it is no regular file.
        OSError: it cannot be read.
    """
    folder = Path(path).parent
    with _lock:
        hanging = _hanging[folder]
    if hanging >= HANGING:
        raise DataError(f"not read: {hanging} files of this folder hang, see to its disk or mount")
    reading = _Reading(path)
    reading.start()
    reading.join(seconds)
    return reading.result(seconds)


class _Reading(threading.Thread):
    def __init__(self, path: str | Path) -> None:
        super().__init__(daemon=True)
        self._path, self._folder = path, Path(path).parent
        self._data: bytes | None = None
        self._error: BaseException | None = None
        self._done = self._given_up = False

    def run(self) -> None:
        try:
            self._data = read_bytes(self._path)
        except BaseException as error:
            self._error = error
        with _lock:
            self._done = True
            if self._given_up:
                self._data = None
                _hanging[self._folder] -= 1

    def result(self, seconds: float) -> FileContent:
        with _lock:
            if not self._done:
                self._given_up = True
                _hanging[self._folder] += 1
                raise DataError(f"not read within {seconds:g} s: see to its disk or mount, or raise the timeout")
        if self._error is not None:
            raise self._error
        content = FileContent(self._path)
        content.data = self._data or b""
        return content
