"""Scores of good images that a model was not fitted to: all that decisions and p-values need of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oddpatch.metrics.thresholds import Promise, Threshold, conformal_p_values, conformal_threshold

#: Why an image is anomalous that is unlike the good images of every product.
NO_PRODUCT = "belongs to no product"
#: Of a product is what is less than half as far from it as from any other.
CLEAR = 0.5


@dataclass(frozen=True, eq=False)
class GoodScores:
    """Thresholds and p-values of a fitted model, whatever it runs on."""

    image_scores: NDArray[np.float64]  # (n,) ascending
    pixel_scores: NDArray[np.float64]  # (n,) ascending; none if there are no maps
    f1_threshold: float  # F1-max threshold of labelled validation images; NaN if there were none
    target_fpr: float  # wanted rate of false alarms
    absent: str | None  # why there is no threshold and what to do, where there is none
    promise: Promise = "marginal"  # of the rate, see `conformal_threshold`
    #: (n,) each, in the order of the scores: those of `oddpatch.data.light.STATISTICS` that are known of their images.
    statistics: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    products: tuple[str, ...] = ()  # where the model is of several
    #: (n,) ascending, ratios of good images, see `oddpatch.models.products`.
    product_ratios: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @property
    def calibrated(self) -> bool:
        """Whether there is a threshold from good images."""
        return len(self.image_scores) > 0

    def image_at(self, target_fpr: float) -> Threshold:
        """Threshold of image scores for a wanted rate of false alarms."""
        return conformal_threshold(self.image_scores, target_fpr, self.promise)

    def pixel_at(self, target_fpr: float) -> Threshold | None:
        """Threshold of pixels, see `oddpatch.models.calibration.Calibration`."""
        if not len(self.pixel_scores):
            return None
        return conformal_threshold(self.pixel_scores, target_fpr, self.promise)

    def product_at(self, target_fpr: float) -> Threshold | None:
        """Ratio above which an image belongs to none of several products."""
        if not len(self.product_ratios):
            return None
        return conformal_threshold(np.maximum(self.product_ratios, CLEAR), target_fpr, self.promise)

    def thresholds(self, target_fpr: float) -> dict[str, float]:
        """Image thresholds by where they come from: "conformal", "validation"; an image above one is anomalous."""
        found = {"conformal": self.image_at(target_fpr).value} if self.calibrated else {}
        if not np.isnan(self.f1_threshold):
            # F1-max counts a score equal to it as anomalous.
            found["validation"] = float(np.nextafter(self.f1_threshold, -np.inf))
        return found

    def p_values(self, scores: Any) -> Any:
        """Of image scores (...), see `conformal_p_values`."""
        return conformal_p_values(scores, self.image_scores)
