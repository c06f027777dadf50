"""What a threshold from good images gives on test images, which F1-max, an oracle, cannot promise.

SegF1 and ClassF1 are those of MVTec AD 2 (Heckler-Kram et al. 2025, arXiv 2503.21622), where maps are made binary by a
threshold that no defect was seen for: F1 of all pixels, and of images called anomalous by the pixels of their map.
"""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from oddpatch.metrics.arrays import UndefinedMetricError
from oddpatch.metrics.classes import ByImage, ImageMetrics
from oddpatch.metrics.classification import classification

#: Where thresholds of image scores come from.
SOURCES = ("conformal", "validation")


class _AtPixelThreshold(ByImage):
    """A metric of maps at their threshold; `no_threshold` says why there is none."""

    def __init__(self, name: str, states: list[str]) -> None:
        super().__init__(states=states)
        self.names, self.no_threshold = (name,), ""

    def compute(self) -> dict[str, float]:
        """Its value; `reasons` says why there is none."""
        if self.no_threshold:
            self.reasons = dict.fromkeys(self.names, self.no_threshold)
            return {}
        return self._compute(self.names, self._values)

    @abstractmethod
    def _values(self) -> tuple[float, ...]: ...


class SegF1(_AtPixelThreshold):
    """`seg_f1`: F1 of all pixels of all images at the pixel threshold from good images.

    Examples:
        >>> import torch
        >>> from oddpatch.metrics.at_threshold import SegF1
        >>> mask = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        >>> mask[..., 2:4, 2:4] = 1
        >>> metric = SegF1()
        >>> metric.update(mask.float(), mask, index=torch.tensor([0]), pixel_threshold=0.5, no_threshold="")
        >>> metric.compute()
        {'seg_f1': 1.0}
    """

    counts: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__("seg_f1", ["counts"])

    def update(
        self, anomaly_map: Tensor, mask: Tensor, index: Tensor, pixel_threshold: float | None, no_threshold: str
    ) -> None:
        """Add anomaly_map and mask, both (B, 1, H, W), and index (B,) of images, with the threshold or why none is."""
        self.no_threshold = no_threshold if pixel_threshold is None else ""
        if pixel_threshold is None:
            return
        called, defect, known = anomaly_map.double() > pixel_threshold, mask == 1, mask <= 1
        kinds = (called & defect, called & known & ~defect, ~called & defect)
        self._store(counts=torch.stack([kind.flatten(1).sum(1) for kind in kinds], 1), index=index)

    def _values(self) -> tuple[float, ...]:
        hits, alarms, misses = self._in_order("counts").sum(0).tolist()  # (3,)
        if not hits + misses:
            raise UndefinedMetricError("needs defect pixels: there are none")
        return (2 * hits / (2 * hits + alarms + misses),)


class ClassF1(_AtPixelThreshold):
    """`class_f1`: F1 of images, anomalous if more than `min_area` pixels exceed the threshold from good images.

    Examples:
        >>> import torch
        >>> from oddpatch.metrics.at_threshold import ClassF1
        >>> maps, label = torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])
        >>> maps[1, :, 2:4, 2:4] = 1
        >>> metric = ClassF1()
        >>> metric.update(maps, label, torch.arange(2), pixel_threshold=0.5, min_area=0, no_threshold="")
        >>> metric.compute()
        {'class_f1': 1.0}
    """

    called: list[Tensor] | Tensor
    labels: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__("class_f1", ["called", "labels"])

    def update(
        self,
        anomaly_map: Tensor,
        label: Tensor,
        index: Tensor,
        pixel_threshold: float | None,
        min_area: int,
        no_threshold: str,
    ) -> None:
        """Add anomaly_map (B, 1, H, W), label and index (B,) of images, with the threshold or why there is none."""
        self.no_threshold = no_threshold if pixel_threshold is None else ""
        if pixel_threshold is None:
            return
        called = (anomaly_map.double() > pixel_threshold).flatten(1).sum(1) > min_area
        self._store(called=called.long(), labels=label, index=index)

    def _values(self) -> tuple[float, ...]:
        called, labels = self._in_order("called"), self._in_order("labels")
        return (classification(called.double(), labels)["f1"],)


class BalancedAccuracy(ImageMetrics):
    """`image_balanced_accuracy@conformal` and `@validation`: of image scores, at each threshold that there is.

    Examples:
        >>> import torch
        >>> from oddpatch.metrics.at_threshold import BalancedAccuracy
        >>> metric = BalancedAccuracy()
        >>> score, label = torch.tensor([0.1, 0.2, 0.4, 0.9]), torch.tensor([0, 0, 1, 1])
        >>> metric.update(score, label, torch.arange(4), thresholds={"conformal": 0.5}, no_threshold="")
        >>> metric.compute()
        {'image_balanced_accuracy@conformal': 0.75}
    """

    names = tuple(f"image_balanced_accuracy@{source}" for source in SOURCES)

    def __init__(self) -> None:
        super().__init__()
        self.thresholds: Mapping[str, float] = {}
        self.no_threshold = ""

    def update(  # type: ignore[override]
        self, score: Tensor, label: Tensor, index: Tensor, thresholds: Mapping[str, float], no_threshold: str
    ) -> None:
        """Add score, label and index (B,) of images, with the thresholds by source."""
        super().update(score, label, index)
        self.thresholds, self.no_threshold = thresholds, no_threshold

    def compute(self) -> dict[str, float]:
        """Its values; `reasons` says why there is none at a threshold."""
        there = [source for source in SOURCES if source in self.thresholds]
        found = self._compute([f"image_balanced_accuracy@{source}" for source in there], self._values)
        without = {"conformal": self.no_threshold, "validation": "no labelled images to set it on: data.validation=0.3"}
        self.reasons |= {f"image_balanced_accuracy@{s}": without[s] for s in SOURCES if s not in there}
        return found

    def _values(self) -> tuple[float, ...]:
        scores, labels = self._in_order("scores"), self._in_order("labels")
        return tuple(
            classification(scores, labels, self.thresholds[source])["balanced_accuracy"]
            for source in SOURCES
            if source in self.thresholds
        )
