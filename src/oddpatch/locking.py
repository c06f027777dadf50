"""One folder, one writer: locks that the kernel releases when their owner dies, however it ends."""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
from filelock import FileLock, Timeout

from oddpatch.errors import ConfigError
from oddpatch.files import parse_json

#: Names of the files that are locked, by a sweep for each of its jobs and by a run.
JOB, RUN = ".lock", ".run.lock"
log = logging.getLogger(__name__)


class Holder(NamedTuple):
    """The process that holds a lock."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_dead(self) -> bool:
        """Whether the process is known to be gone; of another machine's nothing is known."""
        if self.host != socket.gethostname():
            return False
        try:
            return not psutil.pid_exists(self.pid)
        except OverflowError:  # whatever wrote the file, it is no process of this machine
            return True


class JobBusyError(Exception):
    """Another process runs the job."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(f"{holder} runs it")
        self.holder = holder


class NoLocksError(ConfigError):
    """The file system has no locks."""


def _acquire(path: Path, patience: float = 1.0) -> FileLock:
    """Lock a file and sign it, waiting for `patience` seconds: by default for one who only looks at the lock.

    On a network file system the server releases the lock of a machine that is gone, if it is mounted with locks (NFS 4,
    or NFS 3 with lockd; Lustre with `-o flock`); mounted with `nolock` or `local_lock`, machines do not see each other.

    Raises:
        JobBusyError: another process holds it.
        NoLocksError: the file system has no locks.
    """
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=patience, poll_interval=0.1)
    except Timeout:
        raise JobBusyError(_holder(path)) from None
    except OSError as error:
        if error.filename is not None:  # it cannot be opened
            raise
        raise NoLocksError(
            f"{path.parent} is on a file system without locks ({error.strerror}): mount it with locks, or set "
            "hydra.sweep.dir to another folder"
        ) from error
    path.write_text(json.dumps(Holder(socket.gethostname(), os.getpid())._asdict()), encoding="utf-8")
    return lock


def _holder(path: Path) -> Holder:
    for _ in range(10):
        try:
            holder = Holder(**parse_json(path.read_text(encoding="utf-8")))
            return Holder(str(holder.host), int(holder.pid))
        except (ValueError, TypeError, OverflowError):  # taken this moment, and not signed yet
            time.sleep(0.05)
    return Holder("an unknown host", 0)


@contextmanager
def job_lock(folder: Path, patience: float = 30.0) -> Iterator[None]:
    """Hold a job's folder for a sweep.

    The job itself runs in another process, which holds the folder as a run: where its sweep has died, it does so until
    it has put its files away.

    Args:
        folder: of the job.
        patience: seconds to wait for a run in the folder to end.

    Raises:
        JobBusyError: on entering, another process holds it.
        NoLocksError: the file system has no locks.
    """
    with _acquire(folder / JOB):
        _acquire(folder / RUN, patience).release()
        yield


def held_by(folder: Path) -> Holder | None:
    """The process that runs the job of `folder` now; None if nobody does."""
    try:
        for path in (folder / JOB, folder / RUN):
            if path.is_file():
                _acquire(path, patience=0).release()
    except JobBusyError as error:
        return error.holder
    return None


_held: dict[Path, FileLock] = {}


def hold(folder: Path) -> None:
    """Keep a run's folder for this process until it ends, so that no two runs write into it at once.

    Ranks are covered by rank zero, or by the process that has started them.

    Raises:
        ConfigError: another process writes there.
    """
    folder = folder.resolve()
    if folder in _held or os.environ.get("RANK", "0") != "0" or "ODDPATCH_RESULT" in os.environ:
        return
    try:
        _held[folder] = _acquire(folder / RUN)
    except JobBusyError as busy:
        raise ConfigError(
            f"{folder}: {busy.holder} writes there: wait until it has ended, or set hydra.run.dir to another folder"
        ) from None
    except NoLocksError as error:
        log.warning("%s: two runs would not notice each other there", error)
