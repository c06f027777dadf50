"""CAM: a classifier of good and anomalous images, whose last maps show what it looked at (arXiv 1512.04150)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oddpatch.errors import ConfigError, DataError
from oddpatch.models.base import ProgressFn, no_progress
from oddpatch.models.state import RunningMoments
from oddpatch.models.trainable import Criterion, TrainableDetector
from oddpatch.ops.maps import anomaly_map
from oddpatch.ops.patches import join
from oddpatch.types import Batch, Prediction

if TYPE_CHECKING:
    from oddpatch.backbones.base import Backbone

#: Its logit among those of good and anomaly.
ANOMALY = 1
#: Of a channel's variance, averaged over all places, that is added to the variance at each place: where good images
#: hardly differ, a difference that is no larger than elsewhere is none.
FLOOR = 0.1
#: Of `place_channels`: a file must not ask for all memory.
MOST_CHANNELS = 4096


class CAM(TrainableDetector):
    """One dense layer on the average of the backbone's last maps, trained with the last convolutions of the backbone.

    The image score is the probability of `anomaly`. The anomaly map is the class activation map: the sum of the last
    maps, each times its weight in the dense layer for `anomaly`, without the bias. It is not scaled to [0, 1] image by
    image, which would hide how strong a finding is.

    With `place_channels`, which is not in the paper, it knows what belongs at each place of parts that are aligned: the
    backbone's maps are joined on the finest grid and standardised at each place by the good training images, then over
    the image, which takes out how it is lit. A convolution of 1 x 1 and a ReLU make the last maps of them.

    Args:
        channels: channels of each feature map the backbone gives; the last map is used, with `place_channels` all.
        strides: strides of each.
        trained_layers: how many of the backbone's convolutions are trained, the last ones. BatchNorm stays as it is.
        pool: side of the windows whose maxima are averaged, in positions of the map; 1 averages the map itself.
        place_channels: channels of the convolution over standardised maps; None for the backbone's last maps.
        seed: of the first weights of what is new.

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
    fitted_buffers = ("place_mean", "place_deviation")
    place_mean: Tensor  # (sum C_l, h, w) of good images, of the joined maps
    place_deviation: Tensor  # (sum C_l, h, w) their standard deviation

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        trained_layers: int = 3,
        pool: int = 2,
        place_channels: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(channels, strides)
        for name, value, least in (("trained_layers", trained_layers, 0), ("pool", pool, 1)):
            if value < least:
                raise ConfigError(f"model.{name}={value} must be at least {least}")
        if place_channels is not None and not 1 <= place_channels <= MOST_CHANNELS:
            raise ConfigError(f"model.place_channels={place_channels}: choose 1..{MOST_CHANNELS}, or null for none")
        if place_channels is not None and trained_layers:
            raise ConfigError(
                f"model.place_channels={place_channels} compares maps with those of good images, so the backbone must "
                "stay as it is: set model.trained_layers=0"
            )
        self.trained_layers, self.pool = trained_layers, pool
        drawn = torch.Generator().manual_seed(seed)
        self.dense = nn.Linear(place_channels or self.channels[-1], 2)
        _draw(self.dense, self.dense.in_features, drawn)
        self.convolution: nn.Conv2d | None = None
        self.moments: RunningMoments | None = None
        if place_channels is not None:
            self.convolution = nn.Conv2d(sum(self.channels), place_channels, 1)
            _draw(self.convolution, self.convolution.in_channels, drawn)
            self.moments = RunningMoments()  # each channel at each place by itself
            for name in self.fitted_buffers:
                self.register_buffer(name, torch.empty(0))

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

    @torch.no_grad()
    def update(self, features: list[Tensor], index: Tensor) -> None:
        """Add a batch of good images to mean and variance of the maps at each place.

        Raises:
            ConfigError: without `place_channels` there are none.
        """
        if self.moments is None:
            super().update(features, index)
            return
        joined = self.joined(features)
        count, channels, height, width = joined.shape
        values = joined.flatten(1).T[..., None]  # (sum C_l * h * w, B, 1)
        self.moments.add_parts([(slice(0, len(values)), values)], (channels * height, width), count)

    @torch.no_grad()
    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Keep what belongs at each place, if good images were shown; the parameters are marked as learned.

        Raises:
            DataError: a single good image was shown.
        """
        if self.moments is not None and self.moments.grid is not None:
            rows, width = self.moments.grid
            count, mean, scatter = self.moments.take()
            if count < 2:
                raise DataError(f"model.place_channels needs at least 2 good images, it was given {count}: add images")
            shape = (sum(self.channels), rows // sum(self.channels), width)
            variance = scatter.view(shape) / (count - 1)
            variance += FLOOR * variance.mean((1, 2), keepdim=True)
            self.place_mean = mean.view(shape).float()
            self.place_deviation = variance.clamp(min=1e-12).sqrt().float()
        self.finish()

    def joined(self, features: list[Tensor]) -> Tensor:
        """All maps on the finest grid (B, sum C_l, h, w)."""
        return join(self.select(features), "bilinear")

    def maps(self, features: list[Tensor]) -> Tensor:
        """The maps (B, C, h, w) that are pooled, and weighted where an image is anomalous.

        Raises:
            DataError: images are of another size than those that were shown to it first.
        """
        if self.convolution is None:
            return self.select(features)[-1]
        joined = self.joined(features)
        fitted, given = self.place_mean.shape[1:], joined.shape[2:]
        if not torch.compiler.is_exporting() and fitted != given:
            raise DataError(
                f"images give a grid of {given[0]}x{given[1]} places, CAM was fitted on "
                f"{'x'.join(map(str, fitted)) or 'none'}: use images of the size it was fitted with"
            )
        odd = (joined - self.place_mean) / self.place_deviation
        odd = odd - odd.mean((2, 3), keepdim=True)
        odd = odd / odd.square().mean((2, 3), keepdim=True).sqrt().clamp(min=1e-6)
        return F.relu(self.convolution(odd))

    def logits(self, features: list[Tensor]) -> Tensor:
        """Of good and anomaly (B, 2)."""
        return self._logits(self.maps(features))

    def _logits(self, maps: Tensor) -> Tensor:
        # What is left of a window at the border counts as one, so that no row or column of the map is left out.
        pooled = F.max_pool2d(maps, self.pool, ceil_mode=True)  # (B, C, h', w')
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
        self.require_fitted()
        maps = self.maps(features)
        activation = torch.einsum("bchw,c->bhw", maps, self.dense.weight[ANOMALY])
        return Prediction(self._logits(maps).softmax(1)[:, ANOMALY], anomaly_map(activation, image_size, sigma=0))


def _draw(layer: nn.Module, inputs: int, generator: torch.Generator) -> None:
    """First weights and biases, within the bounds of torch's own layers, from a generator of ours."""
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
