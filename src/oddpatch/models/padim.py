"""PaDiM: one Gaussian per patch position (Defard et al., arXiv 2011.08785)."""

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from oddpatch.errors import ConfigError, DataError
from oddpatch.models.base import Detector, FeatureShape, ProgressFn, no_progress
from oddpatch.models.state import Rows, RunningMoments, split_positions
from oddpatch.ops.maps import anomaly_map
from oddpatch.ops.patches import ALIGNMENTS, by_position, join
from oddpatch.ops.projection import semi_orthogonal
from oddpatch.ops.statistics import (
    are_split,
    empty_blocks,
    fill_blocks,
    from_blocks,
    left_out_from_samples,
    left_out_mahalanobis,
    mahalanobis,
    whiten_,
)
from oddpatch.settings import require_one_of
from oddpatch.types import Prediction

log = logging.getLogger(__name__)

#: Bytes of embeddings that are accumulated or scored at a time: small enough for a CPU's cache, enough for a GPU.
PART_BYTES = {"cpu": 4 * 2**20, "gpu": 256 * 2**20}
#: Bytes of float64 covariances that are inverted at a time.
#: Small enough to stay in cache, which is several times faster.
CHUNK_BYTES = 4 * 2**20


class PaDiM(Detector):
    """Mean and covariance of the patch embeddings at every position; the score is the Mahalanobis distance.

    Mean and covariance are streamed: memory does not grow with the number of images.

    Args:
        channels: channels of each feature map the backbone gives.
        strides: strides of each.
        num_features: dimensions that are kept of the joined embedding; None keeps all.
        reduction: "random" keeps channels drawn at random (the paper), "semi_orthogonal" projects onto a random
            orthonormal basis (Kim et al., arXiv 2105.14737).
        epsilon: added to the diagonal of every covariance (paper: 0.01).
        alignment: how coarser maps are brought to the finest grid: "nearest", "bilinear" or "unfold".
        interpolation: how distances are resized to the image: "bilinear" or "bicubic".
        smoothing: sigma of the Gaussian filter on the map, in pixels (paper: 4); 0 for none.
        score_from: the image score is the maximum of the "smoothed" (paper) or of the "raw" resized map.
        seed: of the generator that draws the reduction; what was drawn is saved.
        finest_stride: feature maps of smaller stride are left out.

    Examples:
        >>> import torch
        >>> from oddpatch.models.padim import PaDiM
        >>> good = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))  # a feature map of 8 images
        >>> detector = PaDiM(channels=[4], strides=[8], num_features=4)
        >>> detector.update([good], torch.arange(8))
        >>> detector.fit()
        >>> odd = good[:1].clone()
        >>> odd[..., 3, 2] += 9
        >>> score, anomaly_map = detector([odd], (48, 48))
        >>> [position // 8 for position in divmod(int(anomaly_map.argmax()), 48)]  # the patch with the highest pixel
        [3, 2]
    """

    inspects_regions = True
    fitted_buffers = ("mean", "grid")
    mean: Tensor  # (P, D)
    grid: Tensor  # (2,) height and width of the grid of positions
    num_images: Tensor  # () fitted to

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_features: int | None = 100,
        reduction: str = "random",
        epsilon: float = 0.01,
        alignment: str = "nearest",
        interpolation: str = "bilinear",
        smoothing: float = 4.0,
        score_from: str = "smoothed",
        seed: int = 0,
        finest_stride: int = 1,
    ) -> None:
        super().__init__(channels, strides, finest_stride)
        total = sum(self.channels)
        if num_features is not None and not 1 <= num_features <= total:
            raise ConfigError(
                f"num_features={num_features} but this backbone gives {total}: choose 1..{total}, or more layers"
            )
        require_one_of(("random", "semi_orthogonal"), reduction=reduction)
        require_one_of(ALIGNMENTS, alignment=alignment)
        require_one_of(("smoothed", "raw"), score_from=score_from)
        if epsilon < 0:
            raise ConfigError(f"epsilon={epsilon}: it is added to variances and must not be negative")
        self.num_features = num_features or total
        self.epsilon = epsilon
        self.alignment = alignment
        self.interpolation = interpolation
        self.smoothing = smoothing
        self.score_from = score_from
        self._draw_reduction(reduction, seed)
        for name in self.fitted_buffers:
            self.register_buffer(name, torch.empty(0))
        self._block_names = [f"block_{i}" for i in range(len(empty_blocks(0, self.num_features)))]
        for name in self._block_names:
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.read_buffers()
        self.register_buffer("num_images", torch.tensor(0), persistent=False)
        self.moments = RunningMoments(torch.float32)
        self.samples = Rows("cpu")  # embeddings (P, D) of each image, where these are few

    @classmethod
    def draws(cls, settings: Mapping[str, Any]) -> bool:
        """The reduction, unless all features are kept."""
        return settings["num_features"] is not None

    def _draw_reduction(self, reduction: str, seed: int) -> None:
        total = sum(self.channels)
        generator = torch.Generator().manual_seed(seed)
        self.channel_index: Tensor | None
        self.projection: Tensor | None
        if reduction == "random" or self.num_features == total:
            drawn = torch.randperm(total, generator=generator)[: self.num_features].sort().values
            self.register_buffer("channel_index", drawn)  # (D,)
            self.register_buffer("projection", None)
        else:
            self.register_buffer("channel_index", None)
            self.register_buffer("projection", semi_orthogonal(total, self.num_features, generator))  # (sum C_l, D)

    def embed(self, features: list[Tensor]) -> Iterator[tuple[slice, Tensor]]:
        """Reduced embeddings (p, B, D) of some positions at a time, of feature maps [(B, C_l, h_l, w_l)].

        All at once they are larger than the feature maps by far; a part of them stays within the cache.
        """
        features = self.select(features)
        batch, _, height, width = features[0].shape
        if torch.compiler.is_exporting():  # neither the batch nor the channels drawn may decide what is done
            joined = join(features, self.alignment).permute(2, 3, 0, 1).flatten(0, 1)  # (P, B, sum C_l)
            reduced = joined[..., self.channel_index] if self.projection is None else joined @ self.projection
            yield slice(0, height * width), reduced
            return
        layers, first = [], 0
        # Both reductions are linear, so each layer is reduced before it is brought to the finest grid.
        for feature, channels in zip(features, self.channels, strict=True):
            patches = feature.permute(2, 3, 0, 1)  # (h_l, w_l, B, C_l)
            if self.projection is None:
                reduced = patches.index_select(3, self._chosen_in(first, first + channels))
            else:
                reduced = patches @ self.projection[first : first + channels]
            layers.append(by_position(reduced.permute(2, 3, 0, 1), (height, width), self.alignment))
            first += channels
        part_bytes = PART_BYTES["cpu" if features[0].device.type == "cpu" else "gpu"]
        for part in split_positions(height * width, 4 * batch * self.num_features, part_bytes):
            of_layers = [layer.at(part) for layer in layers]  # (p, B, C) each
            yield part, torch.cat(of_layers, dim=2) if self.projection is None else torch.stack(of_layers).sum(dim=0)

    def _chosen_in(self, first: int, last: int) -> Tensor:
        """Which of one layer's channels, numbered first..last-1 in the joined embedding, were drawn."""
        assert self.channel_index is not None
        return self.channel_index[bisect_left(self._drawn, first) : bisect_left(self._drawn, last)] - first

    def read_buffers(self) -> None:
        """Keep small buffers as numbers, too: to read them in each batch would have the CPU wait for the GPU."""
        self._drawn: list[int] = [] if self.channel_index is None else self.channel_index.tolist()
        self._fitted_grid = tuple(self.grid.tolist())

    @property
    def blocks(self) -> list[Tensor]:
        """What `whitening` is kept as, see `oddpatch.ops.statistics.empty_blocks`."""
        return [getattr(self, name) for name in self._block_names]

    def _keep(self, blocks: list[Tensor]) -> None:
        for name, block in zip(self._block_names, blocks, strict=True):
            setattr(self, name, block)

    @property
    def whitening(self) -> Tensor:
        """Inverse Cholesky factors (P, D, D) of the covariances, as they are saved."""
        return from_blocks(self.blocks) if self.is_fitted else torch.empty(0)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "whitening"] = self.whitening

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str], *args: Any
    ) -> None:
        whitening = state_dict.pop(prefix + "whitening", None)
        if whitening is None:
            missing.append(prefix + "whitening")
        elif len(whitening):
            self._keep(blocks := empty_blocks(len(whitening), self.num_features, self.fitted.device))
            fill_blocks(blocks, slice(None), whitening)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *args)

    @torch.no_grad()
    def update(self, features: list[Tensor], index: Tensor) -> None:
        """Add one batch to the running mean and covariance.

        Raises:
            DataError: its images are of another size than those before.
        """
        finest = features[self.layers[0]]
        parts = self.embed(features)
        if self._are_few(self.moments.count + len(finest)) and not self._expects_many:
            parts = iter(kept := list(parts))
            self.samples.add(index, torch.cat([samples.transpose(0, 1) for _, samples in kept], dim=1))
        else:
            self.samples.clear()
        self.moments.add_parts(parts, (finest.shape[2], finest.shape[3]), len(finest))

    def _are_few(self, count: int) -> bool:
        """Whether `score_left_out` needs the embeddings of so many images."""
        return self.left_out_expected and self.epsilon > 0 and 4 * count <= 5 * self.num_features

    @property
    def _expects_many(self) -> bool:
        """Whether there will not be few images, though a third of the files turn out not to be readable.

        Embeddings, which take about the memory of the fit, are not kept then.
        """
        return self.images_expected is not None and not self._are_few(2 * self.images_expected // 3)

    @torch.no_grad()
    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Factorise the covariance of every position.

        Raises:
            DataError: fewer than two images.
            ConfigError: a covariance is not positive definite.
        """
        count, grid = self.moments.count, self.moments.grid
        if count < 2:
            raise DataError(f"PaDiM needs at least 2 good images for a covariance, it was given {count}: add images")
        _, mean, scatter = self.moments.take()
        positions, dim = mean.shape
        blocks = empty_blocks(positions, dim, scatter.device) if are_split(dim) else [scatter]
        for part in split_positions(positions, 8 * dim * dim, CHUNK_BYTES):
            whiten_(scatter, count, self.epsilon, part.start, part.stop)
            if len(blocks) > 1:
                fill_blocks(blocks, part, scatter[part])
            progress(part.stop, positions, "inverting covariances")
        del scatter
        device = self.fitted.device
        self.mean = mean.float()
        self._keep(blocks)
        self.num_images, self.grid = torch.tensor(count, device=device), torch.tensor(grid, device=device)
        self.read_buffers()
        self.left_out = torch.empty(0, device=device)
        if self._are_few(count) and not self._expects_many:
            self._measure_left_out()
        elif self._are_few(count):
            log.warning(
                "PaDiM was given %d of %d images: distances of good images left out, and thresholds with them, are "
                "bounds from above; replace the files that were skipped, and fit again",
                count,
                self.images_expected,
            )
        self.finish()

    def _measure_left_out(self) -> None:
        """Distances (images, P) of the few images whose embeddings were kept, see `left_out_from_samples`."""
        index, samples = self.samples.take()  # (N,), (N, P, D)
        distances = [
            left_out_from_samples(samples[:, part].transpose(0, 1).to(self.fitted.device), self.epsilon)
            for part in split_positions(samples.shape[1], 8 * len(samples) ** 2, CHUNK_BYTES)
        ]
        self.keep_left_out(index, torch.cat(distances).T)

    def score_left_out(self, features: list[Tensor], index: Tensor, image_size: tuple[int, int]) -> Prediction:
        """As `forward` of a fit without the images: exactly where they are few, else by a close upper bound.

        See `oddpatch.ops.statistics.left_out_mahalanobis` for the bound, which exceeds the distances by 1 in twice the
        number of images at most.
        """
        self.require_fitted()
        if len(self.left_out):
            height, width = self._fitted_grid
            return self._predict(self.left_out[index.to(self.left_out.device)].T, (height, width), image_size)
        return self._score(features, image_size, partial(left_out_mahalanobis, count=int(self.num_images)))

    def _require_grid(self, height: int, width: int) -> None:
        if torch.compiler.is_exporting():  # the sizes that are exported have been scored before
            return
        if self._fitted_grid != (height, width):
            rows, columns = self._fitted_grid
            raise DataError(
                f"images give a grid of {height}x{width} patches, PaDiM was fitted on {rows}x{columns}: "
                "use images of the size it was fitted with"
            )

    def forward(self, features: list[Tensor], image_size: tuple[int, int]) -> Prediction:
        """Mahalanobis distance of every patch; the image score is the maximum of the map."""
        self.require_fitted()
        return self._score(features, image_size, mahalanobis)

    def _score(
        self,
        features: list[Tensor],
        image_size: tuple[int, int],
        measure: Callable[[Tensor, Tensor, Sequence[Tensor]], Tensor],
    ) -> Prediction:
        height, width = features[self.layers[0]].shape[-2:]
        self._require_grid(height, width)
        distances = torch.cat(
            [
                measure(samples, self.mean[part], [block[part] for block in self.blocks])
                for part, samples in self.embed(features)
            ]
        )  # (P, B)
        return self._predict(distances, (height, width), image_size)

    def _predict(self, distances: Tensor, grid: tuple[int, int], image_size: tuple[int, int]) -> Prediction:
        """Map and score from the distances (P, B) of every patch of a grid (h, w)."""
        height, width = grid
        inside = self.region.take(distances, (height, width))  # (P', B)
        scores = self.region.spread(inside.T, (height, width))  # (B, h, w)
        smoothed = self.region.cut(anomaly_map(scores, image_size, self.smoothing, self.interpolation))  # (B, 1, H, W)
        if self.score_from == "smoothed":
            return Prediction(smoothed.amax(dim=(1, 2, 3)), smoothed)
        raw = self.region.cut(anomaly_map(scores, image_size, 0, self.interpolation))
        return Prediction(raw.amax(dim=(1, 2, 3)), smoothed)

    def required_memory(self, shapes: Sequence[FeatureShape], num_images: int) -> tuple[int, str]:
        """Covariances of all positions; a few at a time are inverted, in place or into blocks."""
        moments = self.probe(shapes).moments
        needed = moments.required(num_images) + max(3 * CHUNK_BYTES, 24 * self.num_features**2)
        if are_split(self.num_features):
            needed += sum(block.nbytes for block in empty_blocks(1, self.num_features)) * math.prod(moments.grid or ())
        remedy = f"lower model.num_features ({self.num_features}), data.resize and data.crop, or drop the finest layer"
        return needed, remedy
