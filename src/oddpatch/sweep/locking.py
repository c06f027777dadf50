"""One job, one owner: a lock in the job's folder that the kernel lets go of when its owner dies."""

import errno
import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from oddpatch.errors import ConfigError, OddpatchError, in_one_line
from oddpatch.files import parse_json, shown
from oddpatch.temporary import unwritable

#: Names of the files that are locked, by a job of a sweep and by a run.
NAME, RUN = ".lock", ".run.lock"
log = logging.getLogger(__name__)
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


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
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            return False
        return False


class JobBusyError(Exception):
    """Another process runs the job."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(f"{holder} runs it")
        self.holder = holder


class NoLocksError(ConfigError):
    """The file system has no locks."""


class JobLock:
    """Holds a job's folder for this process and for the process it hands the lock to.

    flock is let go of by the kernel when the last process that holds it is gone, however it ended, so there is no
    stale lock to take over. On a network file system the server does that, if it is mounted with locks (NFS 4, or
    NFS 3 with lockd; Lustre with `-o flock`); mounted with `nolock` or `local_lock`, machines do not see each other.

    Args:
        folder: of the job.
        patience: seconds to wait while the lock is held for an owner that is dead: its job is about to end.
            For others it waits a second, as a look at the lock takes it for a moment.
        name: of the file that is locked.

    Raises:
        JobBusyError: on entering, another process holds it.
        NoLocksError: the file system has no locks.
    """

    def __init__(self, folder: Path, patience: float = 30.0, name: str = NAME) -> None:
        self.path = folder / name
        self.patience = patience
        self._file = -1

    def __enter__(self) -> "JobLock":
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._acquire()
        except BaseException:
            self._close()
            raise
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(Holder(socket.gethostname(), os.getpid())._asdict()).encode(), 0)
        return self

    def __exit__(self, *_: Any) -> None:
        self._close()

    def _acquire(self) -> None:
        start = time.monotonic()
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                holder = self._holder()
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    raise NoLocksError(
                        f"{self.path.parent} is on a file system without locks ({error.strerror}): mount it with "
                        "locks, or set hydra.sweep.dir to another folder"
                    ) from error
                raise
            if time.monotonic() - start > (self.patience if holder.is_dead() else min(self.patience, 1.0)):
                raise JobBusyError(holder)
            time.sleep(0.1)

    def _holder(self) -> Holder:
        for _ in range(10):
            try:
                holder = Holder(**parse_json(os.pread(self._file, 4096, 0).decode()))
                return Holder(str(holder.host), int(holder.pid))
            except (ValueError, TypeError, OverflowError):  # taken this moment, and not signed yet
                time.sleep(0.05)
        return Holder("an unknown host", 0)

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __getstate__(self) -> dict[str, Any]:
        """Hand the open file to a process that is being started: the lock is held until both have ended."""
        from multiprocessing.reduction import DupFd

        return {**self.__dict__, "_file": DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "_file": state["_file"].detach()})


def held_by(folder: Path) -> Holder | None:
    """The process that runs the job of `folder` now; None if nobody does."""
    if not (folder / NAME).is_file():
        return None
    try:
        with JobLock(folder, patience=0):
            return None
    except JobBusyError as error:
        return error.holder


_held: dict[Path, JobLock] = {}


def hold(folder: Path) -> None:
    """Keep a run's folder for this process until it ends, so that no two runs write into it at once.

    The lock is another than that of a sweep's job, which is the sweep's. Ranks are covered by rank zero, or by the
    process that has started them.

    Raises:
        ConfigError: another process writes there.
    """
    folder = folder.resolve()
    if folder in _held or os.environ.get("RANK", "0") != "0" or "ODDPATCH_RESULT" in os.environ:
        return
    lock = JobLock(folder, name=RUN)
    try:
        _held[folder] = lock.__enter__()
    except JobBusyError as busy:
        raise ConfigError(
            f"{folder}: {busy.holder} writes there: wait until it has ended, or set hydra.run.dir to another folder"
        ) from None
    except NoLocksError as error:
        log.warning("%s: two runs would not notice each other there", error)


class HoldFolder(Callback):
    """A Hydra callback: a run's folder is held before Hydra writes the config and a log into it."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Of a single run, which a job of a sweep is, too."""
        with _in_one_line():
            folder = _folder(config, "run")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                hold(folder)
            except OSError as error:
                raise unwritable(folder, error) from error

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """A sweep's folder is its jobs' to hold; here it is only looked at."""
        with _in_one_line():
            _folder(config, "sweep")


def _folder(config: DictConfig, kind: str) -> Path:
    HydraConfig.instance().set_config(config)  # the folder's name refers to it; Hydra sets it a moment later
    folder = Path(str(config.hydra[kind].dir)).absolute()
    if "${" in str(folder):  # Hydra hands the name on as a text with references in it
        raise ConfigError(f"{folder}: has ${{ in its name: set hydra.{kind}.dir to another folder")
    return folder


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Exit with the error itself: Hydra turns what a callback raises into a warning."""
    try:
        yield
    except (OddpatchError, OmegaConfBaseException) as error:
        terminal = Console(stderr=True)
        told = shown(in_one_line(error) or error)
        terminal.print(f"error: {told}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
