"""Fitting in a process of its own, which the page starts, follows and can end.

The process reads one line of JSON, a job, and writes lines of JSON: {"done", "total", "what"} as it comes along, and
at its end {"run"} or {"error"}. It ends when its standard input is closed, so it never outlives the page.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from oddpatch.demo.boards import Boards
from oddpatch.ending import ending_when_told
from oddpatch.errors import in_one_line

#: Seconds that a process has to put its files away.
GRACE = 5.0


class Fit:
    """A fit that runs.

    Args:
        images: folder of good images, below a folder of its own.
        settings: by their names in the config.
        run: folder to write the run to.
        boards: to be rendered first, if they are not there yet.

    Attributes:
        done, total, what: how far it has come, and with what.
        error: one line that says why it failed; None as long as it has not.
    """

    def __init__(self, images: Path, settings: dict[str, Any], run: Path, boards: Boards | None = None) -> None:
        job = {"images": str(images), "settings": settings, "run": str(run), "boards": boards}
        self.run = run
        self.done, self.total, self.what = 0, 1, "starting"
        self.error: str | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
            start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        self._follower = threading.Thread(target=self._follow, daemon=True)
        self._follower.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._follower.is_alive()

    def cancel(self) -> None:
        """End it, and wait until it has ended."""
        with suppress(ProcessLookupError):
            self._process.terminate()
            try:
                self._process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._follower.join(GRACE)

    def _follow(self) -> None:
        assert self._process.stdout is not None
        finished = False
        for line in self._process.stdout:
            told = json.loads(line)
            finished |= "run" in told
            self.error = told.get("error", self.error)
            if "what" in told:
                self.done, self.total, self.what = told["done"], told["total"], told["what"]
        code = self._process.wait()
        if not finished and self.error is None:
            self.error = "it was ended" if code == -signal.SIGTERM or code > 128 else _killed(code)


def _killed(code: int) -> str:
    return f"the process ended with code {code}: the terminal may say why; is there enough memory?"


def main() -> None:
    """Do the job that the first line of the standard input describes."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what others print is for the terminal

    def tell(**content: Any) -> None:
        channel.write(json.dumps(content) + "\n")
        channel.flush()

    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with ending_when_told(lambda word: None):
        try:
            _fit(job, tell)
        except Exception as error:
            told = in_one_line(error)
            if told is None:
                traceback.print_exc()
                told = f"{type(error).__name__}: {error}: this is a fault of oddpatch, the terminal shows where"
            tell(error=told)
        else:
            tell(run=job["run"])


def _end_with_parent() -> None:
    os.read(0, 1)  # not by sys.stdin, whose lock data loaders would inherit as they are forked, and wait for
    os.kill(os.getpid(), signal.SIGTERM)


def _fit(job: dict[str, Any], tell: Any) -> None:
    from oddpatch.demo import reporting

    if job["boards"] is not None:
        Boards(*job["boards"]).render(lambda done, total: tell(done=done, total=total, what="rendering boards"))
    tell(done=0, total=1, what="loading the network")
    from oddpatch import fitting  # which loads Lightning and Hydra

    reporting.tell = tell
    callback = f"{reporting.__name__}.{reporting.Reporting.__qualname__}"
    settings = {**job["settings"], "callbacks.progress._target_": callback, "logger": "none"}
    fitting.fit(job["images"], settings, Path(job["run"]))


if __name__ == "__main__":
    main()
