"""Temporary files and folders: what is written appears under its name when it is complete, and nothing stays behind."""

import errno
import os
import re
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from oddpatch.errors import REMEDIES, NameTooLongError, ResourceError

#: Endings of temporary files and of drafts of folders, and how many letters they have of the name that they are for.
PARTIAL, DRAFT, LABEL = ".partial", ".draft", 40
#: Seconds after which a temporary file of another machine's process, of which nothing is known, is left over.
ABANDONED = 24 * 3600.0
#: In what Pillow tells, without an error number, where it cannot write.
_FROM_PILLOW = "when writing image file"
_TEMPORARY = re.compile(
    rf"\..*\.(?P<host>[0-9a-f]{{8}})-(?P<pid>\d+)(?P<kind>{re.escape(PARTIAL)}|{re.escape(DRAFT)})", re.DOTALL
)


@contextmanager
def placing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, for a file that is moved to `path` if the block ends without an error.

    Raises:
        ResourceError: it cannot be written; nothing is left of it.
    """
    # Short, so that it fits wherever the name itself fits.
    partial = path.with_name(f".{path.name[:LABEL]}.{_owner()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clean_once(path.parent.absolute())
        yield partial
        partial.replace(path)
    except OSError as error:
        if not _is_about(error, path, lambda named: named in (partial, path, *path.parents)):
            raise
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def drafting(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, to make in it what is to be moved there; it is removed in the end.

    Drafts of processes that were killed are removed first.

    Raises:
        ResourceError: there cannot be one, or the block cannot write into it.
    """
    ours = [folder, *folder.parents]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent, recursive=False)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name[:LABEL]}.", suffix=f".{_owner()}{DRAFT}", dir=folder.parent,
            ignore_cleanup_errors=True,
        ) as draft:  # fmt: skip
            ours.append(Path(draft))
            yield Path(draft)
    except OSError as error:
        if not _is_about(error, folder, lambda named: named in ours or ours[-1] in named.parents):
            raise
        raise unwritable(folder, error) from error


def unwritable(path: Path, error: OSError) -> ResourceError:
    """What to raise where `path` could not be written: the file, the system's reason, and what can be done."""
    code = error.errno or _refusal(path.parent)  # Pillow's encoders and archives do not say
    reason = os.strerror(code) if code else " ".join(str(error).split())
    kind = NameTooLongError if code == errno.ENAMETOOLONG else ResourceError
    return kind(f"{path} cannot be written ({reason}): {REMEDIES.get(code or 0, 'choose another folder')}")


def remove_leftovers(folder: Path, *, recursive: bool = True) -> None:
    """Remove temporary files and drafts in `folder`, and below it, of processes that have ended without doing so."""
    if not folder.is_dir():
        return
    for path in folder.rglob(".*") if recursive else folder.glob(".*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or not _is_left(path, match["host"], int(match["pid"])):
            continue
        with suppress(OSError):
            if match["kind"] == DRAFT:
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_about(error: OSError, path: Path, is_ours: Callable[[Path], bool]) -> bool:
    """Whether an error is that `path` cannot be written: not one of a file that is read meanwhile."""
    names = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if error.errno is None and _FROM_PILLOW not in str(error) and _refusal(path.parent) is None:
        return False
    return not names or any(map(is_ours, names))


@cache
def _clean_once(folder: Path) -> None:
    remove_leftovers(folder, recursive=False)


def _is_left(path: Path, host: str, pid: int) -> bool:
    import psutil

    try:
        written = path.lstat().st_mtime
        if host == host_code():
            # Another process may have got the number since.
            return not psutil.pid_exists(pid) or psutil.Process(pid).create_time() > written + 1
    except psutil.NoSuchProcess:
        return True
    except (OSError, psutil.Error):
        return False
    return time.time() - written > ABANDONED


def _refusal(folder: Path) -> int | None:
    """Error number with which the system refuses another file in a folder; None if it takes it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))  # of a disk, quota or limit that has just been used up nothing is left
    except OSError as error:
        return error.errno
    return None


def host_code() -> str:
    """Eight digits that stand for this machine in the names of temporary files."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _owner() -> str:
    return f"{host_code()}-{os.getpid()}"
