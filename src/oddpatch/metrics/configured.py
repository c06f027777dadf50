"""The metrics that a config lists, as one: each gets what its `update` asks for."""

import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torchmetrics import Metric

from oddpatch.errors import ConfigError
from oddpatch.metrics.arrays import UndefinedMetricError
from oddpatch.types import Batch, Prediction

#: What `update` may ask for, by the names of its arguments; torchmetrics' own call score and label `preds`, `target`.
OF_IMAGES = ("score", "label", "index", "preds", "target")
OF_PIXELS = ("anomaly_map", "mask")
#: What else is known of the test: files (B,), how images were prepared, and what good images set, as `AtTest` says.
OF_TEST = ("path", "preprocess", "thresholds", "pixel_threshold", "min_area", "no_threshold")
#: What else metrics.json says: no metric can be called so.
RESERVED = (
    "run", "image_auroc_by_defect_type", "confidence", "confidence_settings", "thresholds", "operating", "absent",
    "num_train_images", "num_test_images", "test_set", "skipped", "inspected", "alignment", "left_out",
    "categories", "category_mean", "timing", "peak_memory_bytes", "weights", "versions", "git_commit", "fpr_limits",
    "settings",
)  # fmt: skip


class AtTest(NamedTuple):
    """What is the same for all images of a test."""

    preprocess: Any  # an `oddpatch.data.transforms.Preprocess`
    thresholds: Mapping[str, float]  # of image scores, by where they come from: "conformal", "validation"
    pixel_threshold: float | None  # from good images
    min_area: int  # pixels that may lie above it on an image without alarm
    no_threshold: str  # why good images gave none, and what to do


class Metrics(nn.Module):
    """Metrics by name, such as `ImageMetrics`, `PixelMetrics` and a user's own.

    `compute` of a metric gives its values by name, or one value, which is called as the metric is in the config. Where
    it raises an `UndefinedMetricError` or gives what is no finite number, there is a reason in place of a value.

    Args:
        metrics: torchmetrics' `Metric` by name. Their `update` names of `OF_IMAGES`, `OF_PIXELS` and `OF_TEST`
            what it needs.

    Raises:
        ConfigError: one is no `Metric`, needs something else, or has a name that is taken.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        super().__init__()
        self._needs = {key: _needs(key, metric) for key, metric in metrics.items()}
        self.by_key = dict(metrics)
        self._moved = nn.ModuleDict(metrics)  # to the device, with this module
        names = [name for key in metrics for name in self._names(key)]
        if taken := [name for name in names if names.count(name) > 1 or name in RESERVED]:
            raise ConfigError(f"metrics: {taken[0]} is the name of something else in metrics.json: choose another")

    def _names(self, key: str) -> tuple[str, ...]:
        return tuple(getattr(self.by_key[key], "names", (key,)))

    def _of_pixels(self, key: str) -> bool:
        return not self._needs[key].isdisjoint(OF_PIXELS)

    @property
    def need_maps(self) -> bool:
        """Whether any needs anomaly maps or masks."""
        return any(map(self._of_pixels, self.by_key))

    def absent(self, reason: str, of_pixels_only: bool = False) -> dict[str, str]:
        """`reason` for the name of each value, or of each that needs maps."""
        keys = [key for key in self.by_key if self._of_pixels(key) or not of_pixels_only]
        return {name: reason for key in keys for name in self._names(key)}

    def update(self, prediction: Prediction, batch: Batch, with_pixels: bool, test: AtTest | None = None) -> None:
        """Give one batch to each metric; to those that need maps only `with_pixels`."""
        given = {
            **dict(zip(("score", "anomaly_map"), prediction, strict=True)),
            **{"preds": prediction.score, "target": batch.label},
            **{"label": batch.label, "index": batch.index, "mask": batch.mask, "path": batch.path},
            **(test._asdict() if test else {}),
        }
        for key, metric in self.by_key.items():
            if with_pixels or not self._of_pixels(key):
                metric.update(**{name: given[name] for name in self._needs[key]})

    def compute(self, with_pixels: bool) -> tuple[dict[str, float], dict[str, str]]:
        """Values by name, and for each other name why it has none; the metrics forget what they have seen."""
        values: dict[str, float] = {}
        reasons: dict[str, str] = {}
        for key, metric in self.by_key.items():
            if self._of_pixels(key) and not with_pixels:
                continue
            try:
                found = metric.compute()
            except UndefinedMetricError as error:
                found, reasons[key] = {}, str(error)
            for name, value in (found if isinstance(found, Mapping) else {key: found}).items():
                number, reason = _number(value)
                if name in values or name in RESERVED:
                    name, reason = f"{key}.{name}", f"{name} is the name of something else in metrics.json"
                if reason:
                    reasons[name] = reason
                else:
                    values[name] = number
            reasons |= getattr(metric, "reasons", {})
            metric.reset()
        return values, reasons


def _needs(key: str, metric: Any) -> frozenset[str]:
    """The arguments of its `update`."""
    if not isinstance(metric, Metric):
        raise ConfigError(f"metrics.{key} is a {type(metric).__name__}: give a torchmetrics.Metric")
    parameters = inspect.signature(metric.update).parameters.values()
    named = [it for it in parameters if it.kind not in (it.VAR_POSITIONAL, it.VAR_KEYWORD)]
    known = (*OF_IMAGES, *OF_PIXELS, *OF_TEST)
    for it in named:
        if it.name not in known and it.default is it.empty:
            raise ConfigError(f"metrics.{key}: its update needs {it.name}: it can have {', '.join(known)}")
    return frozenset(it.name for it in named if it.name in known)


def _number(value: Any) -> tuple[float, str]:
    """A finite number, or why it is none."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, float | int):
        shape = f" {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        return math.nan, f"it is a {type(value).__name__}{shape}, not one number"
    return float(value), "" if math.isfinite(value) else f"it is {value}"
