"""One progress bar for each stage of a run: accumulating, fitting, scoring."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress(ProgressBar):
    """Shows the stage, how far it is, and the time left; nothing where the output is not a terminal.

    Examples:
        >>> from lightning import Trainer
        >>> from oddpatch.callbacks.progress import Progress
        >>> trainer = Trainer(callbacks=[Progress()], logger=False, accelerator="cpu")  # in place of Lightning's own
        >>> type(trainer.progress_bar_callback).__name__
        'Progress'
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Bar | None = None

    def disable(self) -> None:
        """Show nothing: Lightning calls this on every rank but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show bars again."""
        self._enabled = True

    def _show(self, done: int, total: int, what: str) -> None:
        if not self._enabled:
            return
        if self._bar is None:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Bar(TextColumn("{task.description:<26}"), *columns, transient=True)
            if not self._bar.console.is_terminal:
                self.disable()
                self._bar = None
                return
            self._bar.start()
            self._task = self._bar.add_task(what, total=total)
        self._bar.update(self._task, completed=done, total=total, description=what)
        if done >= total:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Have the module report the steps of its fit here."""
        pl_module.progress = self._show
        self._show(0, int(trainer.num_training_batches), pl_module.training_status)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """One batch of training images was used."""
        self._show(batch_idx + 1, int(trainer.num_training_batches), pl_module.training_status)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """One batch of held-out or validation images was scored."""
        what = "validating" if trainer.state.fn == "fit" else "scoring for the threshold"
        self._show(batch_idx + 1, int(trainer.num_val_batches[dataloader_idx]), what)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """One batch of test images was scored."""
        self._show(batch_idx + 1, int(trainer.num_test_batches[dataloader_idx]), "scoring test images")

    def on_test_end(self, trainer: L.Trainer, pl_module: Any, exception: BaseException | None = None) -> None:
        """Give the line back: to the bar of the fit, or to the terminal."""
        self._close()

    on_train_end = on_exception = on_test_end
