"""MLflow as a logger."""

from collections.abc import Mapping

from lightning.pytorch.loggers import MLFlowLogger

from oddpatch.errors import ConfigError


class MLflowLogger(MLFlowLogger):
    """Lightning's logger, with names of metrics that MLflow keeps: `au_pro@0.05` is `au_pro_at_0.05` there.

    Args:
        experiment_name: that the runs are listed under.
        run_name: of this run.
        tracking_uri: address of a server, or of a database such as sqlite:///mlflow.db.

    Raises:
        ConfigError: MLflow is not installed.

    Examples:
        >>> from lightning import Trainer
        >>> from oddpatch.callbacks.mlflow import MLflowLogger
        >>> logger = MLflowLogger("housing", run_name="padim", tracking_uri="http://127.0.0.1:5000")
        >>> Trainer(logger=logger, accelerator="cpu").loggers == [logger]  # the server is asked when a run begins
        True
    """

    def __init__(self, experiment_name: str, run_name: str | None, tracking_uri: str) -> None:
        try:
            super().__init__(experiment_name, run_name, tracking_uri)
        except ModuleNotFoundError as error:
            raise ConfigError("logger=mlflow needs MLflow: pip install 'oddpatch[mlflow]'") from error

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As Lightning's."""
        super().log_metrics({name.replace("@", "_at_"): value for name, value in metrics.items()}, step)
