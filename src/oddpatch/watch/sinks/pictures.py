"""Pictures of anomalous frames in a folder of limited size."""

import logging
import queue
import stat
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from oddpatch.errors import ConfigError, ResourceError
from oddpatch.files import write_whole
from oddpatch.watch.drawing import to_jpeg, to_png
from oddpatch.watch.events import Event, Verdict
from oddpatch.watch.sinks.database import open_database

log = logging.getLogger(__name__)
#: Frames that wait to be written: more are not kept in memory.
BACKLOG = 8
#: Pixels of the longer side of an overlay.
LONGEST = 1280
#: File in the folder that lists what was written there.
INDEX = ".pictures.sqlite"


class Pictures:
    """A sink that writes `STEM.png`, the frame as it was judged, and `STEM_overlay.jpg`, and removes the oldest.

    It removes only what it has written: what is in its list and has the size that is told there.

    Args:
        folder: where to; a list of what was written lies there, too, and no other process may use it meanwhile.
        megabytes: of all pictures together, at most.
        verdicts: events to keep.

    Raises:
        ConfigError, DataError, ResourceError: see `open_database`.
    """

    name = "pictures"

    def __init__(
        self, folder: Path, megabytes: int = 1000, verdicts: Collection[Verdict] = (Verdict.WARN, Verdict.REJECT)
    ) -> None:
        if megabytes < 1:
            raise ConfigError(f"--pictures-mb={megabytes}: choose 1 or more")
        self.folder, self.limit, self.verdicts = folder, megabytes * 10**6, frozenset(verdicts)
        self.written = self.removed = self.failed = self.dropped = 0
        self._index, rows = open_database(
            folder / INDEX,
            "CREATE TABLE IF NOT EXISTS pictures (number INTEGER PRIMARY KEY, name TEXT NOT NULL, size INT NOT NULL)",
            "SELECT name, size FROM pictures ORDER BY number",
        )
        self._kept = {name: size for name, size in rows if self._is_ours(name, size)}  # oldest first
        self._forget([name for name, _ in rows if name not in self._kept])
        self._bytes = sum(self._kept.values())
        self._make_room(0)
        self._waiting: queue.Queue[Event | None] = queue.Queue(BACKLOG)
        self._thread = threading.Thread(target=self._run, name="pictures", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def picture(self, event: Event) -> str | None:
        """Name of the picture that is kept of an event; None if none is."""
        return f"{event.stem}.png" if event.verdict in self.verdicts and event.image is not None else None

    def put(self, event: Event) -> None:
        """Keep an event's picture, unless more come than the disk takes: then it is counted as dropped."""
        if self.picture(event) is None:
            return
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                log.warning("%s: pictures come faster than they can be written: some are left out", self.folder)

    def counts(self) -> dict[str, int]:
        """Events whose pictures were written, failed or were dropped; files that are kept, and that were removed."""
        return {
            "written": self.written, "kept": len(self._kept), "removed": self.removed, "failed": self.failed,
            "dropped": self.dropped,
        }  # fmt: skip

    def close(self, timeout: float) -> None:
        """Write what waits, for at most so many seconds."""
        with suppress(queue.Full):
            self._waiting.put(None, timeout=timeout)
        self._thread.join(timeout)
        if not self._thread.is_alive():
            self._index.close()

    def _run(self) -> None:
        while event := self._waiting.get():
            try:
                self._write(event)
            except Exception as error:  # of the disk or of a picture: the next one may succeed
                self.failed += 1
                if self.failed == 1:
                    reason = error if isinstance(error, ResourceError) else repr(error)
                    log.error("pictures: %s; the watch goes on, failures are counted", reason)
            else:
                self.written += 1
            self._waiting.task_done()

    def _write(self, event: Event) -> None:
        assert event.image is not None
        files = {f"{event.stem}.png": to_png(event.image)}
        if (drawn := to_jpeg(event, LONGEST)) is not None and event.detection is not None:
            files[f"{event.stem}_overlay.jpg"] = drawn
        size = sum(map(len, files.values()))
        if size > self.limit:
            raise ResourceError(f"a picture has {size / 1e6:.1f} MB: raise --pictures-mb={self.limit // 10**6}")
        self._make_room(size)
        if taken := [name for name in files if (self.folder / name).exists()]:
            raise ResourceError(f"{self.folder / taken[0]} exists, and is not overwritten: move it away")
        with self._index:  # before the files, so that none is forgotten
            self._index.executemany(
                "INSERT INTO pictures (name, size) VALUES (?, ?)", [(name, len(data)) for name, data in files.items()]
            )
        self._kept |= {name: len(data) for name, data in files.items()}
        self._bytes += size
        try:
            for name, data in files.items():
                write_whole(self.folder / name, data)
        except BaseException:
            self._remove(list(files))
            raise

    def _make_room(self, size: int) -> None:
        """Remove the oldest pictures until there is room for so many bytes."""
        excess, gone = self._bytes + size - self.limit, []
        for name, length in self._kept.items():
            if excess <= 0:
                break
            excess -= length
            gone.append(name)
        self.removed += self._remove(gone)

    def _remove(self, names: list[str]) -> int:
        """Remove pictures, and give the number of those that were still ours."""
        removed = 0
        for name in names:
            length = self._kept.pop(name)
            self._bytes -= length
            if self._is_ours(name, length):
                (self.folder / name).unlink(missing_ok=True)
                removed += 1
        self._forget(names)
        return removed

    def _forget(self, names: list[str]) -> None:
        if names:
            with self._index:
                self._index.executemany("DELETE FROM pictures WHERE name = ?", [(name,) for name in names])

    def _is_ours(self, name: str, size: int) -> bool:
        """Whether a file is as it was written; of a list that somebody changed, names that lead elsewhere are not."""
        if Path(name).name != name:
            return False
        try:
            found = (self.folder / name).lstat()
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == size
