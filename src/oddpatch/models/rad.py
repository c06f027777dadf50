"""RAD: the nearest patch of the most similar good images, near the same place (arXiv 2601.22763)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from oddpatch.errors import ConfigError, DataError
from oddpatch.models.base import FeatureShape, PatchDetector, ProgressFn, no_progress
from oddpatch.models.state import Rows
from oddpatch.types import Prediction

#: Bytes of good patches that are compared at a time.
PART_BYTES = 64 * 2**20


class RAD(PatchDetector):
    """Good images are retrieved by their class tokens; a patch scores 1 - cosine to the best match in a window of them.

    Args:
        channels: channels of each feature map the backbone gives; the deepest class token retrieves images, or where
            there is none the mean of the deepest map.
        strides: strides of each; coarser maps are brought to the finest grid bilinearly.
        k: images that are retrieved; where there are fewer, all.
        window: how many patches up, down, left and right of its own place a patch is looked for; None for anywhere.
        weights: of the layers, whatever their sum; None for equal ones.
        top, top_of, smoothing, smoothing_radius: see `PatchDetector`.
        finest_stride: feature maps of smaller stride are left out.

    Examples:
        >>> import torch
        >>> from oddpatch.models.rad import RAD
        >>> good = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))  # a feature map of 8 images
        >>> detector = RAD(channels=[4], strides=[8])
        >>> detector.update([good], torch.arange(8))
        >>> detector.fit()
        >>> odd = good[:1].clone()
        >>> odd[..., 3, 2] += 9
        >>> score, anomaly_map = detector([odd], (48, 48))
        >>> [position // 8 for position in divmod(int(anomaly_map.argmax()), 48)]  # the patch with the highest pixel
        [3, 2]
    """

    fitted_buffers = ("bank", "tokens", "source")
    leaves_out_views = True
    distance = "cosine"
    bank: Tensor  # (N, P, sum C_l) unit vectors, layer by layer
    tokens: Tensor  # (N, C) unit vectors
    source: Tensor  # (N,) index of the training image

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        k: int = 150,
        window: int | None = 1,
        weights: Sequence[float] | None = None,
        top: float | None = 0.01,
        top_of: str = "pixels",
        smoothing: float = 1.0,
        smoothing_radius: int | None = 2,
        finest_stride: int = 8,
    ) -> None:
        super().__init__(channels, strides, finest_stride, smoothing, smoothing_radius, top, top_of)
        if k < 1 or (window is not None and window < 0):
            raise ConfigError(f"k={k} and window={window}: choose k of at least 1, window of at least 0 or null")
        weights = list(weights or [1.0] * len(self.channels))
        if len(weights) != len(self.channels) or min(weights) < 0 or not sum(weights):
            raise ConfigError(f"weights={weights}: give {len(self.channels)} of 0 or more, one for each layer")
        self.k, self.window = k, window
        self.weights = [weight / sum(weights) for weight in weights]
        for name in self.fitted_buffers:
            self.register_buffer(name, torch.empty(0))
        self.patches_held, self.tokens_held = Rows(), Rows()

    def embed(self, features: list[Tensor]) -> Tensor:
        """Unit vectors (B, h, w, C_l) of all layers, joined."""
        return torch.cat([F.normalize(m.permute(0, 2, 3, 1), dim=3) for m in self.aligned(features)], dim=3)

    @torch.no_grad()
    def update(self, features: list[Tensor], index: Tensor) -> None:
        """Accumulate the patches and the class tokens of one batch."""
        super().update(features, index)
        self.tokens_held.add(index, self.class_token(features))

    def accumulate(self, patches: Tensor, index: Tensor, positions: Tensor) -> None:
        """Keep all patches (B, P, D)."""
        self.patches_held.add(index, patches)

    @torch.no_grad()
    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Keep everything, in the order of the images.

        Raises:
            DataError: there is no image.
        """
        if not len(self.patches_held):
            raise DataError("RAD needs at least one good image, it was given none: add images")
        self.source, self.bank = self.patches_held.take()
        _, self.tokens = self.tokens_held.take()
        self.finish()

    def retrieve(self, features: list[Tensor], index: Tensor | None = None) -> Tensor:
        """Rows (B, k) of the most similar good images, the nearest first; none of them `index` (B,)."""
        similarity = self.class_token(features) @ self.tokens.mT  # (B, N)
        if index is not None:
            similarity = similarity.masked_fill(index[:, None] == self.source, -torch.inf)
        left_out = 0 if index is None else int((index[:, None] == self.source).sum(dim=1).max())
        return similarity.topk(min(self.k, len(self.tokens) - left_out), dim=1).indices

    def _window(self, grid: tuple[int, int]) -> Tensor:
        """Which of the patches (P, W) that are inspected lie in the window of each; itself stands for those outside."""
        height, width = grid
        assert self.window is not None
        inside = self.region.positions(grid).to(self.bank.device)  # (P,)
        number = torch.full((height * width,), -1, device=self.bank.device)
        number[inside] = torch.arange(len(inside), device=self.bank.device)
        shifts = torch.arange(-self.window, self.window + 1, device=self.bank.device)
        rows = (inside // width)[:, None, None] + shifts[:, None]  # (P, w, 1)
        columns = (inside % width)[:, None, None] + shifts  # (P, 1, w)
        within = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        found = number[(rows * width + columns).clamp(0, height * width - 1)].where(within, -1).flatten(1)
        return found.where(found >= 0, torch.arange(len(inside), device=self.bank.device)[:, None])

    def score_patches(self, patches: Tensor, near: Tensor | None = None, grid: tuple[int, int] | None = None) -> Tensor:
        """Scores (B, P), given the rows (B, k) of the images to compare with and the grid of the patches."""
        assert near is not None
        assert grid is not None
        around = None if self.window is None else self._window(grid)
        if torch.compiler.is_exporting():
            return self._match(patches, self.bank[near], around)
        step = max(1, PART_BYTES // (self.bank[0].nbytes * (1 if around is None else 2)))
        scores = torch.empty(patches.shape[:2], device=patches.device)
        for image, rows in enumerate(near):
            best = [
                self._similarities(patches[image, None], self.bank[part][None], around) for part in rows.split(step)
            ]
            scores[image] = self._weigh(torch.stack(best).amax(dim=0))[0]
        return scores

    def _match(self, patches: Tensor, good: Tensor, around: Tensor | None) -> Tensor:
        return self._weigh(self._similarities(patches, good, around))

    def _weigh(self, similarities: Tensor) -> Tensor:
        """Scores (B, P) of the largest cosines (L, B, P); of unit vectors 1 - cosine is half the squared distance."""
        scores = 1 - similarities
        if self.distance == "euclidean":
            scores = (2 * scores).clamp(min=0).sqrt()
        return sum(s * weight for s, weight in zip(scores, self.weights, strict=True))

    def _similarities(self, patches: Tensor, good: Tensor, around: Tensor | None) -> Tensor:
        """The largest cosine (L, B, P) of patches (B, P, D) to those of good images (B, n, P, D), layer by layer."""
        best = []
        for own, others in zip(patches.split(self.channels, dim=2), good.split(self.channels, dim=3), strict=True):
            if around is None:
                best.append((own @ others.flatten(1, 2).mT).amax(dim=2))
                continue
            # At each place of the bank, the patches in its window at once: the bank is read a single time.
            cosines = others.transpose(1, 2) @ own[:, around].mT  # (B, P, n, W), of place and patch in its window
            closest = cosines.amax(dim=2).flatten(1)  # (B, P * W)
            best.append(closest[:, _pairs(around)].amax(dim=2))
        return torch.stack(best)

    def forward(self, features: list[Tensor], image_size: tuple[int, int]) -> Prediction:
        """Score every patch; maps are resized bilinearly to the image and smoothed."""
        return self._score(features, image_size, None)

    def score_left_out(self, features: list[Tensor], index: Tensor, image_size: tuple[int, int]) -> Prediction:
        """As `forward` without the images themselves among those that are retrieved.

        Raises:
            ConfigError: there is one good image only.
        """
        if len(self.source.unique()) < 2:
            raise ConfigError("one good image cannot be left out: add images, or set calibration=none")
        return self._score(features, image_size, index.to(self.source.device))

    def _score(self, features: list[Tensor], image_size: tuple[int, int], index: Tensor | None) -> Prediction:
        self.require_fitted()
        patches, grid = self.patches(features)
        scores = self.score_patches(patches, self.retrieve(features, index), grid)
        return self.to_prediction(scores, patches, grid, image_size)

    def required_memory(self, shapes: Sequence[FeatureShape], num_images: int) -> tuple[int, str]:
        """All patches, and once more while they are joined."""
        needed = sum(held.required(num_images) for held in self.probe(shapes).accumulators)
        return needed, "lower data.resize and data.crop, or use fewer layers or images"


def _pairs(around: Tensor) -> Tensor:
    """For each patch and its window (P, W), where in all of these (P * W) stands the same pair seen from the other."""
    number, size = around.shape
    own = torch.arange(number, device=around.device)[:, None]
    opposite = torch.arange(size, device=around.device).flip(0).where(around != own, size // 2)
    return around * size + opposite
