"""Metrics of anomaly detection: exact, ties included. Pure functions, and two torchmetrics classes that call them."""

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
