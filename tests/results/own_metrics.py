"""Metrics that a user might write."""

import torch
from torchmetrics import Metric


class Spread(Metric):
    """Highest score of the anomalous images less that of the good ones, and highest map value by image."""

    highest: torch.Tensor

    def __init__(self, of_maps: bool = False) -> None:
        super().__init__()
        self.add_state("highest", torch.full((2,), -torch.inf), dist_reduce_fx="max")

    def update(self, score, label):
        for one, kind in zip(score, label, strict=True):
            self.highest[kind] = torch.maximum(self.highest[kind], one)

    def compute(self):
        return self.highest[1] - self.highest[0]


class Highest(Spread):
    """Of maps, for one class: what is infinite where that has no image."""

    def update(self, anomaly_map, label):
        super().update(anomaly_map.amax((1, 2, 3)), label)

    def compute(self):
        return {"good": self.highest[0], "anomalous": self.highest[1], "both": self.highest}
