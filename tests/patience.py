"""Waiting for what other processes and threads do.

A limit is there to end a test that hangs, not to measure: on a machine with ten times its work everything takes ten
times as long.
"""

import subprocess
import time
from collections.abc import Callable
from typing import Any

#: Seconds after which what has not come is taken to hang.
PATIENCE = 600.0


def wait_until(true: Callable[..., Any], process: subprocess.Popen | None = None) -> None:
    """Wait until `true()`; a `process` that ends before fails the test with what it printed."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert process is None or process.poll() is None or true(), process.communicate()
        assert time.monotonic() < end, f"it has not come in {PATIENCE:g} s"
        time.sleep(0.01)
