"""The metrics as torchmetrics classes: they store what they are given, by image, and call the functions.

States live on the CPU, so that the memory of a GPU does not grow with the number of images. `compute` puts the images
in the order of their indices and drops those seen twice (a distributed sampler pads), so that number of devices, batch
size and order do not change a value.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from oddpatch.errors import DataError
from oddpatch.metrics.arrays import NonFiniteScoreError, UndefinedMetricError, check_fpr_limits, non_finite_message
from oddpatch.metrics.gather import gather_rows
from oddpatch.metrics.pixel import PixelRanking, rank_pixels
from oddpatch.metrics.ranking import rank
from oddpatch.metrics.uncertainty.pixel_statistics import PixelStatistics

_NOTHING_SEEN = "no image was seen: call update() first"


class ByImage(Metric):
    """A metric over rows that belong to images: `rows` of each state, put in the order of `index`."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    index: list[Tensor] | Tensor

    def __init__(self, states: Sequence[str]) -> None:
        super().__init__(dist_sync_fn=gather_rows)
        for name in (*states, "index"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        #: Why each metric that the last `compute` left out has no value.
        self.reasons: dict[str, str] = {}

    def reset(self) -> None:
        """Forget everything seen."""
        super().reset()
        self.reasons = {}

    def _store(self, **rows: Tensor) -> None:
        for name, tensor in rows.items():
            getattr(self, name).append(tensor.detach().to("cpu", copy=True))

    def _in_order(self, name: str) -> Tensor:
        """Rows of a state, one per image seen, in the order of their indices."""
        _, first = np.unique(torch.cat(_chunks(self.index)).numpy(), return_index=True)
        rows = [row for chunk in _chunks(getattr(self, name)) for row in chunk]
        return torch.stack([rows[position] for position in first])

    def _compute(self, names: Sequence[str], values: Callable[[], Sequence[float]]) -> dict[str, float]:
        """What `values` gives, by name; where it is undefined nothing, and `reasons` for each name."""
        self.reasons = {}
        try:
            if not len(self.index):
                raise UndefinedMetricError(_NOTHING_SEEN)
            return dict(zip(names, values(), strict=True))
        except UndefinedMetricError as error:
            self.reasons = dict.fromkeys(names, str(error))
            return {}


class Matches(ByImage):
    """Products and ratios of images, see `oddpatch.models.products`; `rows` of all devices after `compute`."""

    ratios: list[Tensor] | Tensor
    products: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__(states=("ratios", "products"))
        #: (ratios, products, indices), each (N,), in the order of the dataset.
        self.rows: tuple[Tensor, Tensor, Tensor] = (torch.empty(0), torch.empty(0), torch.empty(0))

    def update(self, ratio: Tensor, product: Tensor, index: Tensor) -> None:
        """Add ratio (B,), product (B,) and index (B,) of images."""
        self._store(ratios=ratio, products=product, index=index)

    def compute(self) -> dict[str, float]:
        """Nothing but `rows`."""
        if len(self.index):
            self.rows = (self._in_order("ratios"), self._in_order("products"), self._in_order("index"))
        return {}


class ImageMetrics(ByImage):
    """`image_auroc`, `image_ap`, `image_f1_max` and `image_f1_max_threshold` (an oracle) of raw image scores.

    Examples:
        >>> import torch
        >>> from oddpatch.metrics import ImageMetrics
        >>> metric = ImageMetrics()
        >>> metric.update(torch.tensor([0.1, 2.5, 1.4, 3.0]), label=torch.tensor([0, 0, 1, 1]), index=torch.arange(4))
        >>> metric.compute()["image_auroc"]  # 3 of the 4 pairs are in order
        0.75
    """

    scores: list[Tensor] | Tensor
    labels: list[Tensor] | Tensor
    names: tuple[str, ...] = ("image_auroc", "image_ap", "image_f1_max", "image_f1_max_threshold")

    def __init__(self) -> None:
        super().__init__(states=("scores", "labels"))
        #: (scores, labels, indices), each (N,), of all images over all devices, as the last `compute` saw them.
        self.rows: tuple[Tensor, Tensor, Tensor] = (torch.empty(0), torch.empty(0), torch.empty(0))

    def update(self, score: Tensor, label: Tensor, index: Tensor) -> None:
        """Add score (B,), label (B,) of 0 good and 1 anomalous, and index (B,) of the images in the dataset.

        Raises:
            DataError: the shapes are not (B,) each.
            NonFiniteScoreError: a score is NaN or infinite.
        """
        if not score.shape == label.shape == index.shape or score.ndim != 1:
            raise DataError(
                f"score {tuple(score.shape)}, label {tuple(label.shape)} and index {tuple(index.shape)}: give (B,) each"
            )
        _require_finite(score, index)
        self._store(scores=_full_precision(score), labels=label, index=index)

    def compute(self) -> dict[str, float]:
        """The metrics that have a value; `reasons` says why the others have none."""
        return self._compute(self.names, self._values)

    def _values(self) -> tuple[float, ...]:
        self.rows = (self._in_order("scores"), self._in_order("labels"), self._in_order("index"))
        ranking = rank(*self.rows[:2])
        return ranking.auroc(), ranking.average_precision(), *ranking.f1_max()


class MapMetrics(ByImage):
    """A metric of anomaly maps against masks, which it keeps on the CPU until `compute`.

    Args:
        names: of its values.
        states: what it keeps beside maps and masks, a row for each image.
    """

    maps: list[Tensor] | Tensor
    masks: list[Tensor] | Tensor

    def __init__(self, names: Sequence[str], states: Sequence[str] = ()) -> None:
        super().__init__(states=("maps", "masks", *states))
        self.names = tuple(names)

    def update(self, anomaly_map: Tensor, mask: Tensor, index: Tensor) -> None:
        """Add anomaly_map and mask, both (B, 1, H, W), and index (B,) of the images in the dataset.

        Raises:
            DataError: shapes differ, among themselves or from those of earlier batches.
            NonFiniteScoreError: a pixel is NaN or infinite, be its truth known or not: then the model is broken.
        """
        if anomaly_map.shape != mask.shape or anomaly_map.shape[:2] != (len(index), 1) or anomaly_map.ndim != 4:
            raise DataError(
                f"anomaly_map {tuple(anomaly_map.shape)}, mask {tuple(mask.shape)} and index {tuple(index.shape)}: "
                "give (B, 1, H, W) twice and (B,)"
            )
        if len(self.maps) and anomaly_map.shape[1:] != self.maps[0].shape[1:]:
            raise DataError(
                f"maps of {tuple(anomaly_map.shape[-2:])} pixels after maps of {tuple(self.maps[0].shape[-2:])}: "
                "resize all to one size"
            )
        _require_finite(anomaly_map, index)
        masks = mask.to(torch.uint8) if mask.dtype == torch.bool else mask
        self._store(maps=_full_precision(anomaly_map), masks=masks, index=index)

    def compute(self) -> dict[str, float]:
        """The metrics that have a value; `reasons` says why the others have none."""
        return self._compute(self.names, self._values)

    def ranking(self) -> PixelRanking:
        """The ranking of all pixels seen on this device, for curves (on all devices: within `sync_context()`).

        Raises:
            UndefinedMetricError: no image was seen, or there are no normal or no defect pixels.
        """
        if not len(self.index):
            raise UndefinedMetricError(_NOTHING_SEEN)
        return rank_pixels(self._in_order("maps"), self._in_order("masks"))

    def _values(self) -> tuple[float, ...]:
        raise NotImplementedError


class PixelMetrics(MapMetrics):
    """`pixel_auroc`, `pixel_ap`, `pixel_f1_max`, `pixel_f1_max_threshold` (an oracle) and `au_pro`.

    Args:
        fpr_limits: limits of AU-PRO in (0, 1]; the first is reported as `au_pro`, others as `au_pro@0.05`.

    Raises:
        ConfigError: a limit is outside (0, 1].

    Examples:
        >>> import torch
        >>> from oddpatch.metrics import PixelMetrics
        >>> mask = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        >>> mask[..., 2:5, 2:5] = 1
        >>> metric = PixelMetrics(fpr_limits=[0.3, 0.05])
        >>> metric.update(anomaly_map=mask.float(), mask=mask, index=torch.tensor([0]))
        >>> {name: round(value, 3) for name, value in metric.compute().items() if name.startswith("au_pro")}
        {'au_pro': 1.0, 'au_pro@0.05': 1.0}
    """

    def __init__(self, fpr_limits: Sequence[float] = (0.3,)) -> None:
        limits = tuple(dict.fromkeys(check_fpr_limits(fpr_limits)))
        further = (f"au_pro@{limit:g}" for limit in limits[1:])
        super().__init__(("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_f1_max_threshold", "au_pro", *further))
        self.fpr_limits = limits
        #: The pixels of all images over all devices, ranked by the last `compute`, for curves; None if it could not.
        self.computed: PixelRanking | None = None
        #: Whether `compute` also gathers `statistics`, for resampling the images; None if it could not.
        self.keep_statistics = False
        self.statistics: PixelStatistics | None = None

    def _values(self) -> tuple[float, ...]:
        self.computed, self.statistics = None, None
        self.computed = self.ranking()
        if self.keep_statistics:
            maps, masks = self._in_order("maps"), self._in_order("masks")
            self.statistics = PixelStatistics.from_maps(maps, masks, self.fpr_limits, self.computed)
        result = self.computed.metrics(self.fpr_limits)
        return result.auroc, result.ap, result.f1_max, result.f1_threshold, *result.au_pro.values()


def _chunks(state: list[Tensor] | Tensor) -> list[Tensor]:
    """A state as torchmetrics keeps it: a list of batches, or one tensor once devices were synchronised."""
    return [state] if isinstance(state, Tensor) else state


def _full_precision(scores: Tensor) -> Tensor:
    """Half precision as float32, which holds it exactly."""
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


def _require_finite(scores: Tensor, index: Tensor) -> None:
    bad = ~torch.isfinite(scores).flatten(1) if scores.ndim > 1 else ~torch.isfinite(scores)[:, None]
    if bad.any():
        images = index[bad.any(dim=1).to(index.device)].tolist()
        where = f"the batch, at image index {', '.join(map(str, images[:5]))}{', ...' if len(images) > 5 else ''}"
        raise NonFiniteScoreError(non_finite_message(int(bad.sum()), scores.numel(), where))
