"""Thin shells: each hands the `TestResult` of a test to the function that writes it; their order does not matter."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from oddpatch.callbacks.loggers import log_result
from oddpatch.callbacks.mlflow import MLflowLogger
from oddpatch.errors import ConfigError
from oddpatch.figures.run import write_figures
from oddpatch.files import write_whole
from oddpatch.learning.scoring import AnomalyModule
from oddpatch.metrics.uncertainty.bootstrap import Confidence
from oddpatch.report.html import render_report
from oddpatch.results.files import write_results
from oddpatch.results.test_result import TestResult, Wanted


class Writer(L.Callback):
    """Writes a `TestResult` at the end of a test, on the first rank."""

    #: What the time it takes is called; empty if that is not counted.
    stage = ""

    def want(self, wanted: Wanted) -> None:
        """Say what a test should keep for this."""

    def write(self, result: TestResult, trainer: L.Trainer) -> None:
        """Write it."""
        raise NotImplementedError

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Before anything runs."""
        assert isinstance(pl_module, AnomalyModule)
        self.want(pl_module.wanted)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Of a successful test; where there was nothing to test on, no other hook runs."""
        assert isinstance(pl_module, AnomalyModule)
        if stage == "test" and trainer.is_global_zero:
            with pl_module.timed(self.stage) if self.stage else nullcontext():
                self.write(pl_module.result, trainer)


class Results(Writer):
    """Writes `metrics.json`, `predictions.csv` and, if there are masks, `pixel_statistics.npz`.

    Args:
        folder: where they go.
        confidence: draws, level and seed of the confidence intervals, see `uncertainty.bootstrap.Confidence`.

    Raises:
        ConfigError: a value of `confidence` cannot work.

    Examples:
        >>> from pathlib import Path
        >>> from oddpatch.callbacks.writers import Results
        >>> callback = Results("found")
        >>> callback.write(result, trainer)  # as at the end of a test; `evaluate` gives a result
        >>> sorted(path.name for path in Path("found").iterdir())
        ['metrics.json', 'pixel_statistics.npz', 'predictions.csv']
    """

    def __init__(self, folder: str, confidence: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.confidence = Confidence(**(confidence or {}))

    def want(self, wanted: Wanted) -> None:
        """Statistics and intervals."""
        wanted.statistics, wanted.confidence = True, self.confidence

    def write(self, result: TestResult, trainer: L.Trainer) -> None:
        """Write the files."""
        write_results(result, self.folder)


class Pictures(Writer):
    """Writes `figures/`: a picture of each chosen image, `overview.png` of all, and `roc.png` and its like.

    The report shows them and loggers get them, if they take images.

    Args:
        folder: the run's folder; the pictures go into `figures` in it.
        worst: how many anomalous images of the lowest scores, and as many good ones of the highest; of those that the
            threshold was set on as many, and twice as many where nothing was tested.
        typical: how many images near the median score of their type.

    Raises:
        ConfigError: a number is negative.

    Examples:
        >>> from pathlib import Path
        >>> from oddpatch.callbacks.writers import Pictures
        >>> callback = Pictures("found")
        >>> callback.write(result, trainer)  # as at the end of a test; `evaluate` gives a result
        >>> Path("found/figures/overview.png").is_file()
        True
    """

    stage = "figures"

    def __init__(self, folder: str, worst: int = 4, typical: int = 4) -> None:
        for name, value in {"worst": worst, "typical": typical}.items():
            if value < 0:
                raise ConfigError(f"callbacks.pictures.{name}={value} must be 0 or more")
        self.folder = Path(folder) / "figures"
        self.examples = (worst, typical)

    def want(self, wanted: Wanted) -> None:
        """Examples."""
        wanted.examples = self.examples

    def write(self, result: TestResult, trainer: L.Trainer) -> None:
        """Write the pictures."""
        write_figures(result, self.folder)


class HtmlReport(Writer):
    """Writes `report.html`, with pictures if there are `Pictures`.

    Args:
        folder: the run's folder.

    Examples:
        >>> from pathlib import Path
        >>> from oddpatch.callbacks.writers import HtmlReport
        >>> callback = HtmlReport("found")
        >>> callback.write(result, trainer)  # as at the end of a test; `evaluate` gives a result
        >>> Path("found/report.html").is_file()
        True
    """

    stage = "report"

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def want(self, wanted: Wanted) -> None:
        """The normal patches that the examples are compared with."""
        wanted.neighbours = True

    def write(self, result: TestResult, trainer: L.Trainer) -> None:
        """Write the report."""
        write_whole(self.folder / "report.html", render_report(result, self.folder))


class Log(Writer):
    """Gives W&B, TensorBoard and MLflow more than metrics: the config, to filter runs by, and what they can show.

    Examples:
        >>> from lightning import Trainer
        >>> from lightning.pytorch.loggers import TensorBoardLogger
        >>> from oddpatch.callbacks.writers import Log
        >>> Trainer(callbacks=[Log()], logger=TensorBoardLogger("logs"), accelerator="cpu").log_dir
        'logs/lightning_logs/version_0'
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Before anything else, so that a run that fails can be identified too."""
        assert isinstance(pl_module, AnomalyModule)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger | TensorBoardLogger | MLflowLogger):
                logger.log_hyperparams(pl_module.config)

    def write(self, result: TestResult, trainer: L.Trainer) -> None:
        """Log the result."""
        log_result(trainer.loggers, result)
