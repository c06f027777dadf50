"""Metrics of anomaly detection: exact, ties included. Pure functions, and two torchmetrics classes that call them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oddpatch.metrics.arrays import NonFiniteScoreError, UndefinedMetricError
    from oddpatch.metrics.classes import ImageMetrics, PixelMetrics
    from oddpatch.metrics.curves import precision_recall_curve, roc_curve
    from oddpatch.metrics.pixel import PixelRanking, PixelResult, pixel_metrics, rank_pixels
    from oddpatch.metrics.pro import au_pro, pro_curve
    from oddpatch.metrics.ranking import MetricResult, Ranking, auroc, auroc_by_type, average_precision, f1_max, rank
    from oddpatch.metrics.regions import Regions, find_regions

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

_WHERE = {
    "arrays": ("NonFiniteScoreError", "UndefinedMetricError"),
    "classes": ("ImageMetrics", "PixelMetrics"),
    "curves": ("precision_recall_curve", "roc_curve"),
    "pixel": ("PixelRanking", "PixelResult", "pixel_metrics", "rank_pixels"),
    "pro": ("au_pro", "pro_curve"),
    "ranking": ("MetricResult", "Ranking", "auroc", "auroc_by_type", "average_precision", "f1_max", "rank"),
    "regions": ("Regions", "find_regions"),
}


def __getattr__(name: str) -> Any:
    # torchmetrics takes longer to import than torch itself, and thresholds need neither.
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(f"oddpatch.metrics.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
