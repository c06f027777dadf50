"""Gaussian-AD: one Gaussian per stage of the network on globally pooled features (Rippel et al., arXiv 2005.14140)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from oddpatch.errors import ConfigError, DataError
from oddpatch.models.base import Detector, FeatureShape, ProgressFn, no_progress
from oddpatch.models.state import Rows
from oddpatch.ops.shrinkage import least_variance_components, ledoit_wolf, left_out_distances, sample_covariance
from oddpatch.settings import require_one_of
from oddpatch.types import Prediction

SHRINKAGES = ("ledoit_wolf", "epsilon")


class GaussianAD(Detector):
    """The score is the sum over stages of the Mahalanobis distance of the stage's average feature.

    It scores whole images only. What it accumulates are pooled vectors: one number per image and channel.

    Args:
        channels: channels of each feature map the backbone gives; give it all stages of a network.
        strides: strides of each.
        shrinkage: covariance estimate: "ledoit_wolf" (the authors' code) or "epsilon", the sample covariance with
            `epsilon` on its diagonal.
        epsilon: see `shrinkage`; not used by "ledoit_wolf".
        npca: keep only the components that hold this last share of each stage's variance (paper: 0.01); None keeps all.
        finest_stride: feature maps of smaller stride are left out.

    Examples:
        >>> import torch
        >>> from oddpatch.models.gaussian import GaussianAD
        >>> good = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))  # a feature map of 8 images
        >>> detector = GaussianAD(channels=[4], strides=[8])
        >>> detector.update([good], torch.arange(8))
        >>> detector.fit()
        >>> odd = good[:1].clone()
        >>> odd[..., 3, 2] += 9
        >>> bool(detector([odd], (48, 48)).score > detector([good[:1]], (48, 48)).score)
        True
    """

    localizes = False
    inspects_regions = True
    memory_remedy = "take fewer stages by backbone.layers"

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        shrinkage: str = "ledoit_wolf",
        epsilon: float = 0.01,
        npca: float | None = None,
        finest_stride: int = 1,
    ) -> None:
        super().__init__(channels, strides, finest_stride)
        require_one_of(SHRINKAGES, shrinkage=shrinkage)
        if epsilon < 0:
            raise ConfigError(f"epsilon={epsilon}: it is added to variances and must not be negative")
        if npca is not None and not 0 < npca < 1:
            raise ConfigError(f"npca={npca} is a share of the variance: choose between 0 and 1 (paper: 0.01), or null")
        self.shrinkage = shrinkage
        self.epsilon = epsilon
        self.npca = npca
        stages = range(len(self.channels))
        self.fitted_buffers = tuple(f"{name}_{stage}" for stage in stages for name in ("mean", "whitening"))
        for name in self.fitted_buffers:  # mean_i (C_i,), whitening_i (D_i, C_i) with D_i = C_i unless npca leaves less
            self.register_buffer(name, torch.empty(0))
        self.pooled = Rows("cpu", unique=True)  # (sum C_i,) of each image

    def embed(self, features: list[Tensor]) -> Tensor:
        """Global averages (B, sum C_i) of feature maps [(B, C_i, h_i, w_i)]."""
        return torch.cat([self.region.average(feature) for feature in self.select(features)], dim=1).float()

    @torch.no_grad()
    def update(self, features: list[Tensor], index: Tensor) -> None:
        """Accumulate the averages of one batch."""
        self.pooled.add(index, self.embed(features))

    @torch.no_grad()
    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Estimate and factorise the covariance of every stage, in float64.

        Raises:
            DataError: fewer than two images.
            ConfigError: a covariance is not positive definite.
        """
        images, pooled = self.pooled.take() if len(self.pooled) else (torch.empty(0), torch.empty(0))
        if len(images) < 2:
            raise DataError(
                f"GaussianAD needs at least 2 good images for a covariance, it was given {len(images)}: add images"
            )
        stages = pooled.split(self.channels, dim=1)
        if self.left_out_expected:
            scores = torch.stack([self._left_out(samples, stage) for stage, samples in enumerate(stages)]).sum(0)
            self.keep_left_out(images, scores.float())
        for stage, samples in enumerate(stages):
            mean, whitening = self._fit_stage(samples, stage)
            setattr(self, f"mean_{stage}", mean.float().to(self.fitted.device))
            setattr(self, f"whitening_{stage}", whitening.float().to(self.fitted.device))
            progress(stage + 1, len(stages), "fitting stages")
        self.finish()

    def _fit_stage(self, samples: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """Mean (C,) and whitening matrix (D, C) of samples (N, C): |W (x - mean)| is the Mahalanobis distance."""
        samples = samples.double()
        mean = samples.mean(0)
        components = least_variance_components(samples, self.npca) if self.npca is not None else None  # (D, C)
        reduced = samples if components is None else (samples - mean) @ components.mT  # (N, D)
        if self.shrinkage == "ledoit_wolf":
            covariance, _ = ledoit_wolf(reduced)
        else:
            covariance = sample_covariance(reduced, self.epsilon)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed or not len(covariance):  # npca keeps nothing of a stage that does not vary, which scored 0 for all
            # Enough to outweigh what rounding leaves of the smallest eigenvalues.
            epsilon = max(0.01, 2 * self.epsilon, 1e-12 * float(samples.var(0).sum()))
            whole = "" if self.npca is None else "model.npca=null "
            raise ConfigError(
                f"shrinkage={self.shrinkage} with {len(samples)} images: the covariance of stage {stage} is not "
                f"positive definite: set {whole}model.shrinkage=epsilon model.epsilon={epsilon:.3g}, or give more "
                "varied images"
            )
        directions = torch.eye(len(factor), dtype=factor.dtype) if components is None else components
        return mean, torch.linalg.solve_triangular(factor, directions, upper=False)

    def _left_out(self, samples: Tensor, stage: int) -> Tensor:
        """Distance (N,) of each of the samples (N, C) to the Gaussian of the others."""
        if self.npca is None:
            return left_out_distances(samples, self.epsilon if self.shrinkage == "epsilon" else None)
        distances = []
        for left_out in range(len(samples)):  # the components that are kept depend on every image
            others = torch.cat([samples[:left_out], samples[left_out + 1 :]])
            mean, whitening = self._fit_stage(others, stage)
            distances.append((whitening @ (samples[left_out].double() - mean)).norm())
        return torch.stack(distances)

    def score_left_out(self, features: list[Tensor], index: Tensor, image_size: tuple[int, int]) -> Prediction:
        """Scores (B,) as fits without the images give them, see `oddpatch.ops.shrinkage.left_out_distances`."""
        self.require_left_out()
        return Prediction(self.left_out[index.to(self.left_out.device)], None)

    def forward(self, features: list[Tensor], image_size: tuple[int, int]) -> Prediction:
        """Sum of the stages' Mahalanobis distances (B,); there is no anomaly map."""
        self.require_fitted()
        score = features[0].new_zeros(features[0].shape[0])
        for stage, samples in enumerate(self.embed(features).split(self.channels, dim=1)):
            mean, whitening = getattr(self, f"mean_{stage}"), getattr(self, f"whitening_{stage}")
            score += ((samples - mean) @ whitening.mT).norm(dim=1)
        return Prediction(score, None)

    def required_memory(self, shapes: Sequence[FeatureShape], num_images: int) -> tuple[int, str]:
        """The pooled vectors, the fitted stages, and the float64 work on the widest stage."""
        pooled, remedy = super().required_memory(shapes, num_images)
        fitted = 4 * sum(c * c for c in self.channels)
        widest = max(self.channels)
        return pooled + fitted + 8 * (4 * widest**2 + 3 * num_images * widest), remedy
