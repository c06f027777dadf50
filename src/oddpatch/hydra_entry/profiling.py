"""Where the time of a run goes, in a table that fits a terminal."""

import math
import time
from typing import Any

from lightning.pytorch.profilers import SimpleProfiler
from rich.console import Console
from rich.table import Table
from rich.text import Text

#: Actions that take less than this share of the time are left to the file.
SHARE = 0.01
ROWS = 15


class StageProfiler(SimpleProfiler):
    """Lightning's `SimpleProfiler` for each stage apart; all of it goes to files, the upper part to the terminal.

    Examples:
        >>> from oddpatch.hydra_entry.profiling import StageProfiler
        >>> profiler = StageProfiler()
        >>> with profiler.profile("read"):
        ...     seconds = sum(range(1000))
        >>> "read" in profiler.summary()
        True
    """

    def describe(self) -> None:
        """Write what was spent since the last time, print what took long, and reset."""
        super().describe()
        whole = time.perf_counter() - self.start_time
        spent = {action: math.fsum(times) for action, times in self.recorded_durations.items()}
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(f"{getattr(self._stage, 'value', 'run')}, {whole:.1f} s", overflow="fold")
        for name in ("calls", "seconds", "share"):
            table.add_column(name, justify="right", no_wrap=True)
        # Actions lie inside one another, so that their shares do not add up to the whole.
        rows = sorted(spent.items(), key=lambda row: -row[1])
        for action, seconds in [row for row in rows if row[1] >= SHARE * whole][:ROWS]:
            calls = len(self.recorded_durations[action])
            table.add_row(Text(short(action)), f"{calls}", f"{seconds:.2f}", f"{100 * seconds / whole:.0f} %")
        if spent:
            Console().print("", table)
        self.recorded_durations.clear()
        self.start_time = time.perf_counter()


def short(action: Any) -> str:
    """'[LightningModule]AnomalyModule.on_train_end' -> 'AnomalyModule.on_train_end'; likewise for the rest."""
    name = str(action)
    return name.rpartition("]")[2].lstrip(".") or name
