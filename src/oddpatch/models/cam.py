"""CAM: a classifier of good and anomalous images, whose last maps show what it looked at (arXiv 1512.04150)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oddpatch.errors import ConfigError
from oddpatch.models.trainable import Criterion, TrainableDetector
from oddpatch.ops.maps import anomaly_map
from oddpatch.types import Batch, Prediction

if TYPE_CHECKING:
    from oddpatch.backbones.base import Backbone

#: Its logit among those of good and anomaly.
ANOMALY = 1


class CAM(TrainableDetector):
    """One dense layer on the average of the backbone's last maps, trained with the last convolutions of the backbone.

    The image score is the probability of `anomaly`. The anomaly map is the class activation map: the sum of the last
    maps, each times its weight in the dense layer for `anomaly`, without the bias. It is not scaled to [0, 1] image by
    image, which would hide how strong a finding is.

    Args:
        channels: channels of each feature map the backbone gives; the last map is used.
        strides: strides of each.
        trained_layers: how many of the backbone's convolutions are trained, the last ones. BatchNorm stays as it is.
        pool: side of the windows whose maxima are averaged, in positions of the map; 1 averages the map itself.
        seed: of the dense layer's first weights.

    Raises:
        ConfigError: a setting cannot work.

    Examples:
        >>> import torch
        >>> from oddpatch.models.cam import CAM
        >>> features = [torch.ones(2, 4, 6, 6)]  # a feature map of 2 images
        >>> detector = CAM(channels=[4], strides=[8])
        >>> detector.logits(features).shape  # of good and anomaly: `loss` compares them with the labels
        torch.Size([2, 2])
    """

    decides_at = 0.5

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], trained_layers: int = 3, pool: int = 2, seed: int = 0
    ) -> None:
        super().__init__(channels, strides)
        for name, value, least in (("trained_layers", trained_layers, 0), ("pool", pool, 1)):
            if value < least:
                raise ConfigError(f"model.{name}={value} must be at least {least}")
        self.trained_layers, self.pool = trained_layers, pool
        self.dense = nn.Linear(self.channels[-1], 2)
        drawn, bound = torch.Generator().manual_seed(seed), self.channels[-1] ** -0.5  # the bound of nn.Linear
        for parameter in self.dense.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=drawn)

    def adapt_backbone(self, backbone: "Backbone") -> None:
        """Have the last convolutions learn.

        Raises:
            ConfigError: it has fewer of them than `trained_layers`.
        """
        convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
        frozen = len(convolutions) - self.trained_layers
        if frozen < 0:
            raise ConfigError(
                f"model.trained_layers={self.trained_layers}: this backbone has {len(convolutions)} convolutions: "
                f"choose 0..{len(convolutions)}"
            )
        for convolution in convolutions[frozen:]:
            convolution.requires_grad_(True)

    def logits(self, features: list[Tensor]) -> Tensor:
        """Of good and anomaly (B, 2)."""
        # What is left of a window at the border counts as one, so that no row or column of the map is left out.
        pooled = F.max_pool2d(features[-1], self.pool, ceil_mode=True)  # (B, C, h', w')
        return self.dense(pooled.mean((2, 3)))

    def loss(self, features: list[Tensor], batch: Batch, criterion: Criterion) -> Tensor:
        """Mean over the images of what `criterion` gives for logits (B, 2) and labels (B,)."""
        return criterion(self.logits(features), batch.label).mean()

    def image_score(self, features: list[Tensor], image_size: tuple[int, int]) -> Tensor:
        """Probability (B,) of `anomaly`."""
        self.require_fitted()
        return self.logits(features).softmax(1)[:, ANOMALY]

    def forward(self, features: list[Tensor], image_size: tuple[int, int]) -> Prediction:
        """The probability, and the class activation map resized bilinearly."""
        score = self.image_score(features, image_size)
        activation = torch.einsum("bchw,c->bhw", features[-1], self.dense.weight[ANOMALY])
        return Prediction(score, anomaly_map(activation, image_size, sigma=0))
