"""Sessions: each visitor's own folder, uploads and fit, which end with the session."""

import shutil
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path

from oddpatch.api import AnomalyDetector
from oddpatch.demo.boards import Boards
from oddpatch.demo.inspecting import Inspected, Item, Memory
from oddpatch.demo.uploads import BYTES, FILES, Upload
from oddpatch.demo.worker import Fit

#: How many visitors may be there at once: each holds uploads, a model and perhaps a fit.
SESSIONS = 8


@dataclass
class Setting:
    """What `oddpatch demo` was started with.

    Args:
        folder: of all sessions, for this user alone.
        boards: to work with when there are no other images.
        run: a finished run to begin with; None to fit one first.
    """

    folder: Path
    boards: Boards
    run: str | None = None


@dataclass(eq=False)
class Session:
    """What one visitor has: it goes, with its folder and its fit, when nothing refers to it any more."""

    folder: Path
    good: list[Upload] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)  # to be inspected
    found: list[Inspected] = field(default_factory=list)  # of the first of them
    parts: list[Item] = field(default_factory=list)  # that were uploaded to be inspected
    refused: list[str] = field(default_factory=list)  # one line each
    on_boards: bool = True
    run: Path | None = None
    begun: list[Fit] = field(default_factory=list)  # the last fit, for the end of the session
    doing: str = ""  # what is fitted
    detector: AnomalyDetector | None = None
    memory: Memory | str | None = None  # of the detector, once it was asked for; or why there is none
    num_files: int = 0  # that were uploaded
    num_bytes: int = 0
    num_fits: int = 0
    turned_away: int = 0  # files that were more than it may hold, since others were taken
    waiting: dict[str, int] = field(default_factory=dict)  # bytes of files that were sent and not taken yet

    @property
    def fit(self) -> Fit | None:
        """The fit that runs, or has ended and was not looked at."""
        return self.begun[0] if self.begun else None

    @fit.setter
    def fit(self, fit: Fit | None) -> None:
        self.begun[:] = [] if fit is None else [fit]

    def named(self, text: str) -> str:
        """A message with the names that were uploaded in place of paths."""
        uploaded = {one.path: one.name for one in self.good} | {one.path: one.name for one in self.parts}
        for path, name in uploaded.items():
            text = text.replace(str(path), name)
        return text.replace(f"{self.folder}/", "")

    def expect(self, file: str, size: int) -> bool:
        """Whether a file may be sent: not beyond what a session holds, apart from one more that is refused by name."""
        others = [bytes_ for name, bytes_ in self.waiting.items() if name != file]
        if self.num_files + len(others) > FILES or self.num_bytes + sum(others) > BYTES:
            self.turned_away += 1
            return False
        self.waiting[file] = size
        return True


class Sessions:
    """The open sessions by Streamlit's name for each."""

    def __init__(self) -> None:
        self._open: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()

    def get(self, name: str) -> Session | None:
        """The session of this name."""
        return self._open.get(name)

    def __len__(self) -> int:
        return len(self._open)

    def open(self, name: str, parent: Path) -> Session | None:
        """A new session with a folder of its own in `parent`; None if there are as many as there may be."""
        if len(self) >= SESSIONS:
            return None
        folder = Path(tempfile.mkdtemp(prefix="session-", dir=parent))  # for this user alone, 0700
        session = Session(folder)
        weakref.finalize(session, _close, folder, session.begun)
        self._open[name] = session
        return session


def _close(folder: Path, fits: list[Fit]) -> None:
    for fit in fits:
        fit.cancel()
    shutil.rmtree(folder, ignore_errors=True)
