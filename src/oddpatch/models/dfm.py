"""DFM: how far the features of a whole image are from the principal subspace of good ones (arXiv 1909.11786)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from oddpatch.errors import ConfigError, DataError
from oddpatch.models.base import Detector, FeatureShape, ProgressFn, no_progress
from oddpatch.models.state import Rows
from oddpatch.ops.maps import anomaly_map
from oddpatch.ops.statistics import leading
from oddpatch.types import Prediction


class DFM(Detector):
    """Principal components of the pooled deepest map of good images; scored by reconstruction or by likelihood.

    Args:
        channels: channels of each feature map the backbone gives; the deepest is used.
        strides: strides of each.
        variance: share of the variance that the components hold.
        pooling: side of the windows that the map is averaged over, without overlap; what is left at the end is not
            looked at, as in the released code.
        score: "reconstruction": squared length of what the components leave; "likelihood": negative log likelihood of
            the components, which has no map.
        finest_stride: feature maps of smaller stride are left out.

    Examples:
        >>> import torch
        >>> from oddpatch.models.dfm import DFM
        >>> good = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))  # a feature map of 8 images
        >>> detector = DFM(channels=[4], strides=[8], variance=0.5, pooling=2)
        >>> detector.update([good], torch.arange(8))
        >>> detector.fit()
        >>> odd = good[:1].clone()
        >>> odd[..., 3, 2] += 9
        >>> bool(detector([odd], (48, 48)).score > detector([good[:1]], (48, 48)).score)
        True
    """

    inspects_regions = True
    fitted_buffers = ("mean", "basis", "variances")
    mean: Tensor  # (D,)
    basis: Tensor  # (D, r)
    variances: Tensor  # (r,)

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        variance: float = 0.97,
        pooling: int = 4,
        score: str = "reconstruction",
        finest_stride: int = 1,
    ) -> None:
        super().__init__(channels, strides, finest_stride)
        if not 0 < variance < 1:
            raise ConfigError(f"variance={variance} is a share: choose above 0 and below 1")
        if pooling < 1 or score not in ("reconstruction", "likelihood"):
            raise ConfigError(f"pooling={pooling} and score={score!r}: choose 1 or more, reconstruction or likelihood")
        self.variance, self.pooling, self.score = variance, pooling, score
        self.localizes = score == "reconstruction"
        for name in self.fitted_buffers:
            self.register_buffer(name, torch.empty(0))
        self.held = Rows(unique=True)

    def pool(self, features: list[Tensor]) -> tuple[Tensor, tuple[int, int]]:
        """The pooled map inside the region (B, P, C), and its grid (h, w)."""
        feature = features[self.layers[-1]]
        pooled = F.avg_pool2d(feature, min(self.pooling, *feature.shape[-2:])).permute(0, 2, 3, 1)  # (B, h, w, C)
        grid = (pooled.shape[1], pooled.shape[2])
        return self.region.take(pooled.flatten(1, 2), grid, dim=1), grid

    @torch.no_grad()
    def update(self, features: list[Tensor], index: Tensor) -> None:
        """Keep one vector per image."""
        self.held.add(index, self.pool(features)[0].flatten(1))

    @torch.no_grad()
    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Find the components, in float64.

        Raises:
            DataError: there are fewer than two images, or all are alike.
        """
        if len(self.held) < 2:
            raise DataError(f"DFM needs at least two good images, it was given {len(self.held)}: add images")
        _, vectors = self.held.take()
        vectors = vectors.double()
        mean = vectors.mean(dim=0)
        _, singular, directions = torch.linalg.svd(vectors - mean, full_matrices=False)
        variances = singular.square() / len(vectors)
        rank = leading(variances, self.variance)
        self.mean, self.basis = mean.float(), directions[:rank].mT.float().contiguous()
        self.variances = variances[:rank].float()
        self.finish()

    def forward(self, features: list[Tensor], image_size: tuple[int, int]) -> Prediction:
        """Score a batch; the map is the squared error of each pooled position, resized bilinearly."""
        self.require_fitted()
        pooled, grid = self.pool(features)
        centred = pooled.flatten(1) - self.mean
        along = centred @ self.basis  # (B, r)
        if self.score == "likelihood":
            return Prediction((along.square() / self.variances).sum(dim=1) + self.variances.log().sum(), None)
        squared = (centred - along @ self.basis.mT).square()
        by_position = self.region.spread(squared.unflatten(1, pooled.shape[1:]).sum(dim=2), grid)  # (B, h, w)
        return Prediction(squared.sum(dim=1), self.region.cut(anomaly_map(by_position, image_size, 0)))

    def required_memory(self, shapes: Sequence[FeatureShape], num_images: int) -> tuple[int, str]:
        """The vectors in float64, their factors, and the work on them."""
        vectors, _ = super().required_memory(shapes, num_images)
        return 4 * vectors, "raise model.pooling, or lower data.resize and data.crop"
