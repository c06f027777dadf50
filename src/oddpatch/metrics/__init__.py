"""Metrics of anomaly detection: exact, ties included. Pure functions, and two torchmetrics classes that call them."""

from typing import TYPE_CHECKING, Any

from oddpatch.metrics.arrays import NonFiniteScoreError, UndefinedMetricError
from oddpatch.metrics.curves import precision_recall_curve, roc_curve
from oddpatch.metrics.pixel import PixelRanking, PixelResult, pixel_metrics, rank_pixels
from oddpatch.metrics.pro import au_pro, pro_curve
from oddpatch.metrics.ranking import MetricResult, Ranking, auroc, auroc_by_type, average_precision, f1_max, rank
from oddpatch.metrics.regions import Regions, find_regions

if TYPE_CHECKING:
    from oddpatch.metrics.classes import ImageMetrics, PixelMetrics

__all__ = [
    "ImageMetrics",
    "MetricResult",
    "NonFiniteScoreError",
    "PixelMetrics",
    "PixelRanking",
    "PixelResult",
    "Ranking",
    "Regions",
    "UndefinedMetricError",
    "au_pro",
    "auroc",
    "auroc_by_type",
    "average_precision",
    "f1_max",
    "find_regions",
    "pixel_metrics",
    "precision_recall_curve",
    "pro_curve",
    "rank",
    "rank_pixels",
    "roc_curve",
]


def __getattr__(name: str) -> Any:
    # torchmetrics takes longer to import than torch itself: who calls the functions only should not wait for it.
    if name in ("ImageMetrics", "PixelMetrics"):
        from oddpatch.metrics import classes

        return getattr(classes, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
