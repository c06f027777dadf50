"""Good images scored by a fit without them, for a threshold where a method cannot leave one image out by itself."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from oddpatch.models.base import Detector, ProgressFn
from oddpatch.types import Prediction


class FoldDetectors(nn.Module):
    """A detector for each fold of `cross`, fitted without it, so that every good image can be scored as a new one.

    All accumulate the same features in the one epoch; the backbone runs once.

    Args:
        detector: not fitted yet; each fold gets a copy.
        folds: the fold of each training image.
    """

    def __init__(self, detector: Detector, folds: Sequence[int]) -> None:
        super().__init__()
        self.detectors = nn.ModuleList(deepcopy(detector) for _ in range(max(folds) + 1))
        self.folds = torch.tensor(folds)

    def update(self, features: list[Tensor], index: Tensor) -> None:
        """Accumulate features [(B, C_l, h_l, w_l)] of the training images `index` (B,)."""
        for fold, detector in enumerate(self.detectors):
            kept = self.folds[index.cpu()] != fold
            if kept.any():
                detector.update([map_[kept] for map_ in features], index[kept])  # type: ignore[operator]

    def fit(self, progress: ProgressFn) -> None:
        """Fit every detector to what it accumulated."""
        for detector in self.detectors:
            detector.fit(progress)  # type: ignore[operator]

    def forward(self, features: list[Tensor], index: Tensor, image_size: tuple[int, int]) -> Prediction:
        """Prediction of training images, each by the detector that has not seen it."""
        folds = self.folds[index.cpu()]
        score = torch.empty(len(index), device=index.device)
        maps = torch.empty(len(index), 1, *image_size, device=index.device)
        localizes = True
        for fold in folds.unique().tolist():
            chosen = folds == fold
            prediction = self.detectors[fold]([map_[chosen] for map_ in features], image_size)
            score[chosen] = prediction.score
            localizes = prediction.anomaly_map is not None
            if localizes:
                maps[chosen] = prediction.anomaly_map
        return Prediction(score, maps if localizes else None)
