"""Where the time of a run goes, in a table that fits a terminal."""

import math
from typing import Any

from lightning.pytorch.profilers import SimpleProfiler
from rich.console import Console
from rich.table import Table
from rich.text import Text

#: Actions that take less than this share of the time are left to the file.
SHARE = 0.01
ROWS = 15


class StageProfiler(SimpleProfiler):
    """Lightning's `SimpleProfiler`, whose whole report goes to a file and its upper part to the terminal."""

    def describe(self) -> None:
        """Print what takes long, and write the rest."""
        super().describe()
        spent = {action: math.fsum(times) for action, times in self.recorded_durations.items()}
        whole = max(spent.values(), default=0.0)  # actions lie inside of one another
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(f"{self._stage or 'run'}: action", overflow="fold")
        for name in ("calls", "seconds", "share"):
            table.add_column(name, justify="right", no_wrap=True)
        rows = sorted(spent.items(), key=lambda row: -row[1])
        for action, seconds in [row for row in rows if row[1] >= SHARE * whole][:ROWS]:
            calls = len(self.recorded_durations[action])
            table.add_row(Text(short(action)), f"{calls}", f"{seconds:.2f}", f"{100 * seconds / whole:.0f} %")
        if spent:
            Console().print("", table)

    def teardown(self, stage: str | None) -> None:
        """Close the file, and begin anew: each stage has its own report."""
        super().teardown(stage=stage)


def short(action: Any) -> str:
    """'[LightningModule]AnomalyModule.on_train_end' -> 'AnomalyModule.on_train_end'; likewise for the rest."""
    name = str(action)
    return name.rpartition("]")[2] or name
