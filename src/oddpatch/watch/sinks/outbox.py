"""Alarms on their way: in order, on disk until somebody has accepted them."""

import logging
import sqlite3
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from oddpatch.watch.sinks.database import open_database

log = logging.getLogger(__name__)
#: Bytes of alarms that wait at most: tens of thousands.
LIMIT = 32 * 10**6
#: Seconds between attempts to write to a disk that has refused.
AGAIN = 1.0
_INSERT = "INSERT INTO alarms VALUES (?, ?, ?)"


class Alarm(NamedTuple):
    """An event as it is sent."""

    number: int
    id: str
    body: bytes


class Outbox:
    """A queue that survives a kill and a power cut. Memory holds it, too: a full disk stops no alarm.

    Where more waits than `limit`, the oldest alarms are lost: counted, and told.

    Args:
        path: of the file, which no other process may use meanwhile.
        limit: bytes of alarms that wait at most.

    Attributes:
        lost: alarms that were dropped.

    Raises:
        ConfigError, DataError, ResourceError: see `open_database`.
    """

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self.path, self.limit, self.lost = path, limit, 0
        self._disk, rows = open_database(
            path,
            "CREATE TABLE IF NOT EXISTS alarms (number INTEGER PRIMARY KEY, id TEXT NOT NULL, body BLOB NOT NULL)",
            "SELECT number, id, body FROM alarms ORDER BY number",
        )
        self._alarms = deque(Alarm(*row) for row in rows)
        self._bytes = sum(len(alarm.body) for alarm in self._alarms)
        self._next = self._alarms[-1].number + 1 if self._alarms else 0
        self._changed = threading.Condition()
        self._refused: float | None = None  # when the disk last refused; what it holds is then out of date
        self._closing = self._losing = False

    def __len__(self) -> int:
        return len(self._alarms)

    def put(self, identity: str, body: bytes) -> None:
        """Add an alarm; it is on disk when this returns, unless the disk refuses."""
        with self._changed:
            alarm = Alarm(self._next, identity, body)
            self._next += 1
            self._alarms.append(alarm)
            self._bytes += len(body)
            statements: list[tuple[str, Any]] = [(_INSERT, alarm)]
            while self._bytes > self.limit and len(self._alarms) > 1:
                if not self._losing:
                    log.error(
                        "%s holds %d alarms, and no more than %.3g MB: the oldest are lost from now on, first %s",
                        self.path, len(self._alarms), self.limit / 1e6, self._alarms[0].id,
                    )  # fmt: skip
                statements.append(self._drop_first())
                self.lost += 1
                self._losing = True
            self._write(statements)
            self._changed.notify()

    def first(self) -> Alarm | None:
        """The oldest alarm, waited for; None when the queue is empty and closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._alarms or self._closing)
            return self._alarms[0] if self._alarms else None

    def done(self, alarm: Alarm) -> None:
        """Forget the oldest alarm: somebody has accepted it, or never will."""
        with self._changed:
            if self._alarms and self._alarms[0] == alarm:  # else it was dropped meanwhile
                self._write([self._drop_first()])
            self._losing = False

    def stop_waiting(self) -> None:
        """Have `first` no longer wait for alarms to come."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def close(self) -> None:
        """Close the file; what waits stays there."""
        with self._changed:
            if self._refused is not None:
                self._refused = 0.0
                self._write([])
            self._disk.close()

    def _drop_first(self) -> tuple[str, Any]:
        alarm = self._alarms.popleft()
        self._bytes -= len(alarm.body)
        return "DELETE FROM alarms WHERE number = ?", (alarm.number,)

    def _write(self, statements: list[tuple[str, Any]]) -> None:
        """Bring the disk up to date; once it has refused, by writing all that waits."""
        before = self._refused
        if before is not None:
            if time.monotonic() < before + AGAIN:
                return
            statements = [("DELETE FROM alarms", ()), *((_INSERT, alarm) for alarm in self._alarms)]
        try:
            with self._disk:
                for statement in statements:
                    self._disk.execute(*statement)
        except sqlite3.Error as error:
            self._refused = time.monotonic()
            if before is None:
                log.error(
                    "%s cannot be written (%s): alarms are sent, but those that wait are lost if the program ends now; "
                    "free disk space", self.path, error,
                )  # fmt: skip
        else:
            self._refused = None
            if before is not None:
                log.warning("%s is written again: all alarms that wait are safe", self.path)
