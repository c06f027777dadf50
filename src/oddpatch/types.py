"""What travels: a `Batch` into the backbone, whose maps `FeatureInfo` describes, a `Prediction` out of the detector."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

#: Mask value of pixels whose truth is not known: no metric looks at them.
IGNORE = 255


class Batch(NamedTuple):
    """Images with their ground truth, as a DataLoader collates them."""

    image: "Tensor"  # (B, 3, H, W) float32, normalised for the backbone; (B, 3, 0, 0) where features are known already
    mask: "Tensor"  # (B, 1, H, W) uint8, 1 = defect, 0 = normal, IGNORE = not known (a defect image without a mask)
    label: "Tensor"  # (B,) int64, 0 good, 1 anomalous
    index: "Tensor"  # type: ignore[assignment]  # (B,) int64, position in the dataset: what makes several devices exact
    path: list[str]


@dataclass(frozen=True)
class FeatureInfo:
    """The feature maps that a backbone gives, and the images that it expects."""

    channels: list[int]  # C_l of each map, in the order in which they come
    strides: list[int]  # image pixels per feature position of each map; 0 of a class token, a map of one position
    layers: list[Any]  # what the backbone calls the layers that they are taken from
    #: Normalisation that the weights were trained with, per RGB channel, for images in [0, 1].
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


class Prediction(NamedTuple):
    """What a detector says of a batch of images."""

    score: "Tensor"  # (B,) float32, raw distance: larger is more anomalous
    anomaly_map: "Tensor | None"  # (B, 1, H, W) float32; None for methods that score whole images only
