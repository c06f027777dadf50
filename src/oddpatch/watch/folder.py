"""A folder that images fall into: each is judged once it is complete."""

import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from oddpatch.data.decoding import is_image_name, read_file, read_pixels
from oddpatch.data.walk import BROKEN_LINK, LeftOut, listing, walk
from oddpatch.errors import DataError
from oddpatch.watch.sources import ConnectionLostError, Picture
from oddpatch.wording import counted

log = logging.getLogger(__name__)

#: Seconds in which a file must not have changed, and after which one that cannot be read is given up.
SETTLED, PATIENCE = 0.2, 10.0
#: Seconds after which the whole folder is looked through again: the system does not tell of every file on a network.
ROUND = 30.0
#: Files left out that are named at the end, for each reason.
NAMED = 3

#: Inode, size and time of the last change of a file: what changes with its content.
Stamp = tuple[int, int, int]


@dataclass
class _Falling:
    """A file that is perhaps still being written."""

    inode: int
    stamp: Stamp | None  # None: it is gone
    noticed: float  # when it was first seen, in seconds since the epoch
    since: float  # when it changed last, by the monotonic clock
    error: DataError | None = None  # with which it could not be read as it is


class Folder:
    """All images that fall into a folder or one below it, from now on, in the order in which they are complete.

    A file is read once it has not changed for a while. If it cannot be decoded, it is waited for: half of it may be
    there. What stays broken, and what is gone before it was read, is an error in place of its image. One that is
    written again under its name is a new image. Whatever was there before is left out, and so are files that are no
    images by their names, broken links and folders that cannot be read; all are logged. A picture was taken when its
    file was noticed.
    """

    keep_all, moving = True, False

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path
        self._known: dict[Path, Stamp] | None = None
        self._falling: dict[Path, _Falling] = {}
        self._left_out: set[LeftOut] = set()  # of what is there now
        self._unread: dict[str, list[str]] = {}  # names of the first, by reason
        self._counts: Counter[str] = Counter()  # of all, by reason

    @property
    def ready(self) -> bool:
        """Whether what falls from now on is seen."""
        return self._known is not None

    @property
    def falling(self) -> list[Path]:
        """Files that are perhaps still being written."""
        return list(self._falling)

    def pictures(self, stop: threading.Event) -> Iterator[Picture]:
        """See `Source`."""
        import watchfiles

        changes = watchfiles.watch(
            self._path, stop_event=stop, step=20, debounce=200, rust_timeout=100, yield_on_timeout=True,
            watch_filter=None, raise_interrupt=False, ignore_permission_denied=True,
        )  # fmt: skip
        looked = -math.inf
        try:
            for changed in changes:  # the first comes at once, and from then on the system tells of what falls
                paths = [Path(path) for _, path in changed]
                if time.monotonic() - looked > ROUND or any(path.is_dir() for path in paths):
                    paths += self._look()
                    looked = time.monotonic()
                if not self._path.is_dir():
                    raise ConnectionLostError("the folder is gone")
                for path in sorted(set(paths), key=lambda path: ((_stamp(path) or (0, 0, 0))[2], path)):  # as written
                    self._notice(path)
                yield from self._settled()
        except FileNotFoundError:
            raise ConnectionLostError("the folder is gone") from None
        finally:
            for reason, count in self._counts.items():
                more = f", {count - len(self._unread[reason])} more" if count > len(self._unread[reason]) else ""
                log.warning(
                    "%s: %d left out, %s: %s%s", self.name, count, reason, ", ".join(self._unread[reason]), more
                )
            self._counts.clear()
            self._unread.clear()

    def _look(self) -> list[Path]:
        """The images there are; before the first look there were none to know of."""
        found = walk(self._path)
        self._leave_out(found.left_out)
        self._left_out.intersection_update(found.left_out)
        if self._known is None:
            self._known = {path: stamp for path in found.files if (stamp := _stamp(path)) is not None}
            if self._known:
                log.warning(
                    "%s: %s there before, not inspected: `oddpatch predict` inspects them",
                    self.name, counted(len(self._known), "image was", "images were"),
                )  # fmt: skip
        self._known = {path: stamp for path, stamp in self._known.items() if path.exists()}
        return found.files

    def _notice(self, path: Path) -> None:
        assert self._known is not None
        stamp = _stamp(path)
        before = self._falling.get(path)
        if before is not None:
            if stamp != before.stamp:
                before.stamp, before.since, before.error = stamp, time.monotonic(), None
        elif stamp is None and path.is_symlink():  # whose target is not there
            self._leave_out([LeftOut(path, BROKEN_LINK)])
        elif stamp is not None and stamp != self._known.get(path):
            if is_image_name(path.name):
                self._falling[path] = _Falling(stamp[0], stamp, time.time(), time.monotonic())
            elif path.is_file():
                self._known[path] = stamp
                self._leave_out(item for item in listing(path.parent).left_out if item.path == path)

    def _leave_out(self, items: Iterable[LeftOut]) -> None:
        """Count what is left out from now on, and name the first for each reason at once: a watch ends late."""
        for item in items:
            if item in self._left_out:
                continue
            self._left_out.add(item)
            self._counts[item.reason] += 1
            first = self._unread.setdefault(item.reason, [])
            if not first:
                log.warning("%s: left out, %s: %s; more such are counted", self.name, item.reason, item.path)
            if len(first) < NAMED:
                first.append(str(item.path))

    def _settled(self) -> Iterator[Picture]:
        """The pictures of files that have not changed for long enough."""
        assert self._known is not None
        for path, file in list(self._falling.items()):
            self._notice(path)
            still = time.monotonic() - file.since
            if still < SETTLED:
                continue
            if file.stamp is None:
                del self._falling[path]
                there = [one.inode for one in self._falling.values() if one.stamp] + [
                    one[0] for one in self._known.values()
                ]
                if file.inode not in there:  # else it has another name now
                    yield Picture(DataError("was removed before it was read"), file.noticed, str(path))
                continue
            if file.error is None:
                try:
                    content = read_file(path, PATIENCE)
                    read_pixels(content)
                except DataError as error:
                    file.error = error
                else:
                    self._notice(path)
                    if file.error is None and time.monotonic() - file.since >= SETTLED and file.stamp is not None:
                        self._done(path, file.stamp)
                        yield Picture(content, file.noticed, str(path))
                    continue
            if still > PATIENCE:
                self._done(path, file.stamp)
                yield Picture(file.error, file.noticed, str(path))

    def _done(self, path: Path, stamp: Stamp) -> None:
        assert self._known is not None
        self._known[path] = stamp
        del self._falling[path]


def _stamp(path: Path) -> Stamp | None:
    """None where there is no such file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - thousands of them
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
