"""MH-PatchCore: PatchCore in whitened principal components (arXiv 2605.27748)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from oddpatch.errors import ConfigError, DataError
from oddpatch.models.base import FeatureShape, PatchDetector, ProgressFn, no_progress
from oddpatch.models.state import Rows, RunningMoments
from oddpatch.ops.coreset import k_center_greedy
from oddpatch.ops.neighbours import NearestIndex, plain_nearest
from oddpatch.ops.patches import pool_patches
from oddpatch.ops.statistics import principal_components
from oddpatch.settings import require_at_least


class MHPatchCore(PatchDetector):
    """A small coreset by merge and reduce; the score is the squared Mahalanobis distance to its nearest entry.

    All patches are held until `fit`, which needs one pass over the images; the released code makes three passes, holds
    less, and depends on the order of its batches. Blocks are of images in the order of the dataset here.

    Args:
        channels: channels of each feature map the backbone gives.
        strides: strides of each.
        variance: share of the variance that the principal components hold.
        shrinkage: of their variances towards the mean of these.
        coreset_size: most patches of the memory bank.
        block_images: images whose patches are thinned at a time.
        block_size: patches that a block, or two that are merged, is thinned to.
        num_neighbors: entries of the bank around the nearest one that the image score is weighted by; 1 does not.
        embedding_dim: of PatchCore's pooled embedding.
        patch_size: side of the neighbourhood that is pooled.
        smoothing: sigma of the Gaussian filter on the map, in pixels; 0 for none.
        finest_stride: feature maps of smaller stride are left out.

    Examples:
        >>> import torch
        >>> from oddpatch.models.mh_patchcore import MHPatchCore
        >>> good = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))  # a feature map of 8 images
        >>> detector = MHPatchCore(channels=[4], strides=[8])
        >>> detector.update([good], torch.arange(8))
        >>> detector.fit()
        >>> odd = good[:1].clone()
        >>> odd[..., 3, 2] += 9
        >>> bool(detector([odd], (48, 48)).score > detector([good[:1]], (48, 48)).score)
        True
    """

    fitted_buffers = ("mean", "whitening", "memory_bank")
    mean: Tensor  # (D,)
    whitening: Tensor  # (D, d)
    memory_bank: Tensor  # (M, d)

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        variance: float = 0.99,
        shrinkage: float = 0.07,
        coreset_size: int = 1000,
        block_images: int = 16,
        block_size: int = 256,
        num_neighbors: int = 9,
        embedding_dim: int | None = None,
        patch_size: int = 3,
        smoothing: float = 4.0,
        finest_stride: int = 8,
    ) -> None:
        super().__init__(channels, strides, finest_stride, smoothing)
        if not (0 < variance < 1 and 0 <= shrinkage <= 1):
            raise ConfigError(f"variance={variance} and shrinkage={shrinkage} are shares: choose between 0 and 1")
        require_at_least(1, coreset_size=coreset_size, block_images=block_images, block_size=block_size)
        require_at_least(1, num_neighbors=num_neighbors, embedding_dim=embedding_dim, patch_size=patch_size)
        self.variance, self.shrinkage, self.num_neighbors = variance, shrinkage, num_neighbors
        self.coreset_size, self.block_images, self.block_size = coreset_size, block_images, block_size
        self.dim, self.patch_size = embedding_dim or min(1024, sum(self.channels)), patch_size
        for name in self.fitted_buffers:
            self.register_buffer(name, torch.empty(0))
        self.held, self.moments = Rows(), RunningMoments()
        self._index: tuple[Tensor, NearestIndex] | None = None

    def embed(self, features: list[Tensor]) -> Tensor:
        """PatchCore's pooled embeddings (B, h, w, D)."""
        return pool_patches(self.select(features), self.patch_size, 1, self.dim, "bilinear")

    def accumulate(self, patches: Tensor, index: Tensor, positions: Tensor) -> None:
        """Keep all patches (B, P, D), and their covariance."""
        self.held.add(index, patches)
        self.moments.add(patches.flatten(0, 1))

    @torch.no_grad()
    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Whiten the patches and select the memory bank among them.

        Raises:
            DataError: there is no image, or all patches are alike.
        """
        if not len(self.held):
            raise DataError("MH-PatchCore needs at least one good image, it was given none: add images")
        count, mean, scatter = self.moments.take()
        values, vectors = principal_components(scatter[0] / (count - 1), self.variance)
        values = (1 - self.shrinkage) * values + self.shrinkage * values.mean()
        self.mean, self.whitening = mean[0].float(), (vectors / values.sqrt()).float()
        _, patches = self.held.take()  # (N, P, D)
        blocks = [self.whiten(block.flatten(0, 1)) for block in patches.split(self.block_images)]
        del patches
        self.memory_bank = self.merge_and_reduce(blocks, progress)
        self.finish()

    def whiten(self, patches: Tensor) -> Tensor:
        """Patches (..., D) in the whitened space (..., d)."""
        return (patches - self.mean) @ self.whitening

    def merge_and_reduce(self, blocks: list[Tensor], progress: ProgressFn) -> Tensor:
        """The bank (M, d): of each two blocks (n, d) of one level, thinned, comes one of the next."""
        levels: dict[int, Tensor] = {}
        for done, block in enumerate(blocks, start=1):
            level, reduced = 0, _thin(block, self.block_size)
            while level in levels:
                reduced = _thin(torch.cat([levels.pop(level), reduced]), self.block_size)
                level += 1
            levels[level] = reduced
            progress(done, len(blocks), "coreset")
        return _thin(torch.cat([levels[level] for level in sorted(levels)]), self.coreset_size)

    def _search(self, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """Squared distances (Q, k) to the nearest entries of the bank, and their rows."""
        if torch.compiler.is_exporting():
            distances, found = plain_nearest(queries, self.memory_bank, k)
        else:
            if self._index is None or self._index[0] is not self.memory_bank:
                self._index = (self.memory_bank, NearestIndex(self.memory_bank))
            distances, found = self._index[1].search(queries, k)
        return distances.square(), found

    def score_patches(self, patches: Tensor) -> Tensor:
        """Squared distances (B, P) to the memory bank."""
        squared, _ = self._search(self.whiten(patches).flatten(0, 1))
        return squared.view(patches.shape[:2])

    def score_images(self, scores: Tensor, patches: Tensor, anomaly_map: Tensor) -> Tensor:
        """The largest patch score, weighted as in PatchCore's equation 7, with squared distances."""
        highest, hottest = scores.max(dim=1)
        count = min(self.num_neighbors, len(self.memory_bank))
        if count < 2:
            return highest
        rows = torch.arange(hottest.shape[0], device=hottest.device)
        queries = self.whiten(patches[rows, hottest])  # (B, d)
        _, nearest = self._search(queries)
        _, around = self._search(self.memory_bank[nearest[:, 0]], count)
        squared = (queries[:, None] - self.memory_bank[around]).square().sum(dim=2)  # (B, b)
        return highest * (1 - torch.exp(highest - torch.logsumexp(squared, dim=1))).clamp(0, 1)

    def required_memory(self, shapes: Sequence[FeatureShape], num_images: int) -> tuple[int, str]:
        """All patches, once more while they are joined or whitened."""
        needed, _ = super().required_memory(shapes, num_images)
        return needed, "choose model=patchcore with model.max_bank_memory, or lower data.resize and data.crop"


def _thin(points: Tensor, count: int) -> Tensor:
    """The `count` points that k-center picks, beginning with the one that is farthest from the mean."""
    if len(points) <= count:
        return points
    start = int((points - points.mean(dim=0)).square().sum(dim=1).argmax())
    return points[k_center_greedy(points, count, start=start)]
