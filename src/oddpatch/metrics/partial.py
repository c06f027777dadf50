"""Metrics of pixels at low false-positive rates: partial AUROC, and AUPIMO, which judges each image by itself.

McClish, "Analyzing a portion of the ROC curve", Medical Decision Making 1989. Bertoldo et al., "AUPIMO: Redefining
Visual Anomaly Detection Benchmarks with High Speed and Low Tolerance", BMVC 2024, arXiv 2401.01984.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from oddpatch.errors import ConfigError, DataError
from oddpatch.metrics.arrays import ArrayLike, UndefinedMetricError, check_fpr_limits, to_floats, to_numpy, to_stack
from oddpatch.metrics.classes import MapMetrics
from oddpatch.metrics.pixel import rank_pixels
from oddpatch.types import IGNORE
from oddpatch.wording import counted


def partial_pixel_auroc(maps: ArrayLike, masks: ArrayLike, fpr_limit: float = 0.05) -> float:
    """Pixel AUROC up to a false-positive rate: 0.5 for chance, 1 for no error, as scikit-learn's `max_fpr`.

    Arguments and errors as in `oddpatch.metrics.pixel_metrics`.
    """
    (limit,) = check_fpr_limits([fpr_limit])
    return rank_pixels(maps, masks).auroc_to(limit)


def aupimo(
    maps: ArrayLike, masks: ArrayLike, labels: ArrayLike, fpr_bounds: tuple[float, float] = (1e-5, 1e-4)
) -> NDArray[np.float64]:
    """Area under the per-image overlap of each anomalous image, exact.

    At a threshold the false-positive rate is the mean over the good images of the share of their pixels at or above
    it; the overlap of an anomalous image is the share of its defect pixels at or above it. The overlap is averaged over
    the logarithm of the rate, from the lower to the upper bound, at the lowest threshold that keeps each rate.

    Args:
        maps: (N, H, W) or (N, 1, H, W) raw scores, larger being more anomalous.
        masks: as many, 0 normal, 1 defect; pixels of value IGNORE are left out.
        labels: (N,) of 0 good and 1 anomalous.
        fpr_bounds: lower and upper, in (0, 1].

    Returns:
        (M,) in [0, 1], of the anomalous images that have defect pixels, in their order.

    Raises:
        ConfigError: the bounds are not rising in (0, 1].
        UndefinedMetricError: no good image, no defect pixel, or too few good pixels to tell the upper bound from 0.
        DataError: shapes differ.
    """
    low, high = check_fpr_bounds(fpr_bounds)
    maps, masks, good = to_floats(to_stack(maps, "maps")), to_stack(masks, "masks"), to_numpy(labels) == 0
    if maps.shape != masks.shape or good.shape != maps.shape[:1]:
        raise DataError(f"maps {maps.shape}, masks {masks.shape} and labels {good.shape} are not of the same images")
    known = [maps[i][masks[i] != IGNORE] for i in np.flatnonzero(good)]
    known = [pixels for pixels in known if pixels.size]
    defects = [found for i in np.flatnonzero(~good) if (found := maps[i][masks[i] == 1]).size]
    if not known or not defects:
        raise UndefinedMetricError(
            f"needs good images and anomalous ones with a mask: got {len(known)} and {len(defects)}"
        )
    if high * sum(pixels.size for pixels in known) < 1:
        raise UndefinedMetricError(
            f"{counted(sum(pixels.size for pixels in known), 'pixel')} of good images cannot resolve a rate of "
            f"{high:g}: {int(np.ceil(1 / high))} are needed"
        )
    # Each pixel of a good image weighs one over the pixels of its image: the rate is the mean over images.
    scores = np.concatenate(known)
    weights = np.concatenate([np.full(pixels.size, 1 / pixels.size / len(known)) for pixels in known])
    order = np.argsort(scores)
    reached = np.append(np.cumsum(weights[order][::-1])[::-1], 0.0)  # (P + 1,) rate at each score; above all, none
    found = []
    for pixels in defects:
        rate = reached[np.searchsorted(scores[order], pixels, side="left")]  # (D,) at which each pixel is found
        found.append(np.mean(np.log(high / np.clip(rate, low, high)) / np.log(high / low)))
    return np.array(found)


def check_fpr_bounds(bounds: Sequence[float]) -> tuple[float, float]:
    """The bounds, if they rise in (0, 1]; else a `ConfigError`."""
    if len(bounds) != 2 or not 0 < bounds[0] < bounds[1] <= 1:
        raise ConfigError(f"fpr_bounds={tuple(bounds)}: give two rising false-positive rates in (0, 1], as [1e-5,1e-4]")
    return float(bounds[0]), float(bounds[1])


class PartialPixelAUROC(MapMetrics):
    """`pixel_auroc@0.05`, see `partial_pixel_auroc`.

    Args:
        fpr_limits: in (0, 1], a value for each.

    Raises:
        ConfigError: a limit is outside (0, 1].

    Examples:
        >>> import torch
        >>> from oddpatch.metrics.partial import PartialPixelAUROC
        >>> mask = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        >>> mask[..., 2:5, 2:5] = 1
        >>> metric = PartialPixelAUROC()
        >>> metric.update(anomaly_map=mask.float(), mask=mask, index=torch.tensor([0]))
        >>> metric.compute()
        {'pixel_auroc@0.05': 1.0}
    """

    def __init__(self, fpr_limits: Sequence[float] = (0.05,)) -> None:
        limits = tuple(dict.fromkeys(check_fpr_limits(fpr_limits)))
        super().__init__([f"pixel_auroc@{limit:g}" for limit in limits])
        self.fpr_limits = limits

    def _values(self) -> tuple[float, ...]:
        ranking = self.ranking()
        return tuple(ranking.auroc_to(limit) for limit in self.fpr_limits)


class AUPIMO(MapMetrics):
    """`aupimo`, the mean over the anomalous images, see `aupimo`.

    Args:
        fpr_bounds: lower and upper false-positive rate.

    Raises:
        ConfigError: the bounds are not rising in (0, 1].

    Examples:
        >>> import torch
        >>> from oddpatch.metrics.partial import AUPIMO
        >>> mask = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
        >>> mask[1, :, 2:5, 2:5] = 1
        >>> maps = mask + torch.linspace(0, 0.5, 64)  # a good image comes first, whose pixels set the rates
        >>> metric = AUPIMO(fpr_bounds=[1e-2, 1e-1])
        >>> metric.update(maps, mask, label=torch.tensor([0, 1]), index=torch.arange(2))
        >>> metric.compute()
        {'aupimo': 1.0}
    """

    labels: list[Tensor] | Tensor

    def __init__(self, fpr_bounds: Sequence[float] = (1e-5, 1e-4)) -> None:
        super().__init__(["aupimo"], states=["labels"])
        self.fpr_bounds = check_fpr_bounds(fpr_bounds)

    def update(  # type: ignore[override]
        self, anomaly_map: Tensor, mask: Tensor, label: Tensor, index: Tensor
    ) -> None:
        """Add anomaly_map and mask, both (B, 1, H, W), label (B,) of 0 good and 1 anomalous, and index (B,).

        Errors as in `MapMetrics.update`.
        """
        super().update(anomaly_map, mask, index)
        self._store(labels=label)

    def _values(self) -> tuple[float, ...]:
        maps, masks, labels = (self._in_order(name) for name in ("maps", "masks", "labels"))
        return (float(aupimo(maps, masks, labels, self.fpr_bounds).mean()),)
