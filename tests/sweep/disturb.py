"""Callbacks that make a job of a sweep wait, or die, as machines do."""

import os
import signal
import time
from pathlib import Path

import lightning as L


class Hold(L.Callback):
    """Says that it is there, and waits until the file `until` is."""

    def __init__(self, here: str, until: str) -> None:
        self.here, self.until = Path(here), Path(until)

    def on_train_start(self, trainer, pl_module) -> None:
        self.here.with_name(f"{self.here.name}.{os.getpid()}").touch()
        deadline = time.monotonic() + 600  # no job of a test that was killed stays
        while not self.until.exists() and time.monotonic() < deadline:
            time.sleep(0.05)


class Die(L.Callback):
    """Is killed as by a machine that has no memory left, if `when`."""

    def __init__(self, when: bool) -> None:
        self.when = when

    def on_train_start(self, trainer, pl_module) -> None:
        if self.when:
            os.kill(os.getpid(), signal.SIGKILL)
