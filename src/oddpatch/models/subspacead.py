"""SubspaceAD: distance of a patch to the principal subspace of good patches (arXiv 2602.23013)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from oddpatch.errors import ConfigError, DataError
from oddpatch.models.base import FeatureShape, PatchDetector, ProgressFn, no_progress
from oddpatch.models.state import RunningMoments
from oddpatch.ops.patches import align
from oddpatch.ops.statistics import principal_components


class SubspaceAD(PatchDetector):
    """Principal components of all good patches; the score is the squared length of what they leave of a patch.

    Args:
        channels: channels of each feature map the backbone gives; of a transformer all are alike, and are averaged.
        strides: strides of each.
        variance: share of the variance that the subspace holds; a patch's residual is what the rest of it sees.
        top: share of the pixels of the map whose mean is the image score, the highest.
        smoothing: sigma of the 3 x 3 Gaussian filter on the map; 0 for none.
        finest_stride: feature maps of smaller stride are left out.

    Examples:
        >>> import torch
        >>> from oddpatch.models.subspacead import SubspaceAD
        >>> good = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))  # a feature map of 8 images
        >>> detector = SubspaceAD(channels=[4], strides=[8], variance=0.5)
        >>> detector.update([good], torch.arange(8))
        >>> detector.fit()
        >>> odd = good[:1].clone()
        >>> odd[..., 3, 2] += 9
        >>> score, anomaly_map = detector([odd], (48, 48))
        >>> [position // 8 for position in divmod(int(anomaly_map.argmax()), 48)]  # the patch with the highest pixel
        [3, 2]
    """

    fitted_buffers = ("mean", "basis")
    mean: Tensor  # (C,)
    basis: Tensor  # (C, r) orthonormal columns

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        variance: float = 0.99,
        top: float = 0.01,
        smoothing: float = 4.0,
        finest_stride: int = 8,
    ) -> None:
        super().__init__(channels, strides, finest_stride, smoothing, smoothing_radius=1, top=top)
        if not 0 < variance < 1:
            raise ConfigError(f"variance={variance} is a share: choose above 0 and below 1")
        self.variance = variance
        self.averages = len(set(self.channels)) == 1
        self.dim = self.channels[0] if self.averages else sum(self.channels)
        self.moments = RunningMoments()
        for name in self.fitted_buffers:
            self.register_buffer(name, torch.empty(0))

    def embed(self, features: list[Tensor]) -> Tensor:
        """Mean (B, h, w, C) of the maps where all have as many channels, else the maps joined."""
        maps = self.select(features)
        aligned = [align(m, (maps[0].shape[2], maps[0].shape[3])) for m in maps]
        joined = torch.stack(aligned).mean(0) if self.averages else torch.cat(aligned, dim=1)
        return joined.permute(0, 2, 3, 1)

    def accumulate(self, patches: Tensor, index: Tensor, positions: Tensor) -> None:
        """Add to the running mean and covariance, whose size does not grow."""
        self.moments.add(patches.flatten(0, 1))

    @torch.no_grad()
    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Find the fewest components that hold the share of the variance, in float64.

        Raises:
            DataError: there is no image, or all patches are alike.
        """
        if self.moments.count < 2:
            raise DataError("SubspaceAD needs at least one good image, it was given none: add images")
        _, mean, scatter = self.moments.take()
        _, basis = principal_components(scatter[0], self.variance)
        self.mean, self.basis = mean[0].float(), basis.float()
        self.finish()

    def score_patches(self, patches: Tensor) -> Tensor:
        """Squared residuals (B, P)."""
        centred = patches - self.mean
        return (centred - centred @ self.basis @ self.basis.mT).square().sum(dim=2)

    def required_memory(self, shapes: Sequence[FeatureShape], num_images: int) -> tuple[int, str]:
        """The covariance and its eigenvectors, or the work on the patches of one image, of which a few copies exist."""
        covariance, remedy = super().required_memory(shapes, num_images)
        _, height, width = shapes[self.layers[0]]
        return max(5 * covariance, 20 * height * width * self.dim), remedy
