"""The two things that travel through oddpatch: a `Batch` into the backbone, a `Prediction` out of the detector."""

from typing import NamedTuple

from torch import Tensor

#: Mask value of pixels whose truth is not known: no metric looks at them.
IGNORE = 255


class Batch(NamedTuple):
    """Images with their ground truth, as a DataLoader collates them."""

    image: Tensor  # (B, 3, H, W) float32, normalised for the backbone; (B, 3, 0, 0) where features are known already
    mask: Tensor  # (B, 1, H, W) uint8, 1 = defect, 0 = normal, IGNORE = not known (a defect image without a mask)
    label: Tensor  # (B,) int64, 0 good, 1 anomalous
    index: Tensor  # type: ignore[assignment]  # (B,) int64, position in the dataset: what makes several devices exact
    path: list[str]


class Prediction(NamedTuple):
    """What a detector says of a batch of images."""

    score: Tensor  # (B,) float32, raw distance: larger is more anomalous
    anomaly_map: Tensor | None  # (B, 1, H, W) float32; None for methods that score whole images only
