"""A Lightning callback that stops a run where a test wants to end it, and says so."""

import sys
import time
from typing import Any

from lightning import Callback


class Wait(Callback):
    """Wait in `fit` or `test`; with `swallow`, whatever ends the wait is lost, as in code that C calls back."""

    def __init__(self, where: str, swallow: bool = False, seconds: float = 600) -> None:
        self.where, self.swallow, self.seconds = where, swallow, seconds

    def _wait(self, where: str) -> None:
        if where != self.where:
            return
        sys.stdout.write(f"waiting in {where}\n")
        sys.stdout.flush()
        try:
            time.sleep(self.seconds)
        except BaseException:
            if not self.swallow:
                raise
            time.sleep(self.seconds)

    def on_train_batch_end(self, *_: Any) -> None:
        self._wait("fit")

    def on_test_batch_end(self, *_: Any) -> None:
        self._wait("test")
