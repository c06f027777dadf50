"""Memory banks of layers that are kept apart: what methods of frozen transformers have in common."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from oddpatch.errors import ConfigError, DataError
from oddpatch.models.base import FeatureShape, PatchDetector, ProgressFn, no_progress
from oddpatch.models.selectors import Selector, make_selector
from oddpatch.models.state import Rows
from oddpatch.ops.foreground import foreground
from oddpatch.ops.neighbours import NearestIndex, plain_nearest
from oddpatch.ops.projection import random_projection
from oddpatch.ops.statistics import lower_median
from oddpatch.settings import require_at_least, require_one_of
from oddpatch.types import Prediction

#: Scores (B, P) of patches (B, P, D), given their distances (B, P, k) to their neighbours (B, P, k, D).
Rule = Callable[[Tensor, Tensor, Tensor], Tensor]


def distance(patches: Tensor, distances: Tensor, neighbours: Tensor) -> Tensor:
    """Root of the mean squared distance."""
    return distances.square().mean(dim=2).sqrt()


def cosine(patches: Tensor, distances: Tensor, neighbours: Tensor) -> Tensor:
    """Mean of 1 - cosine, of unit vectors (AnomalyDINO)."""
    return distances.square().mean(dim=2) / 2


def soft_projection(patches: Tensor, distances: Tensor, neighbours: Tensor, fade: float | None = None) -> Tensor:
    """Length of what a mean of the neighbours leaves of a patch, weighted by their distances (ProCon).

    The scale of the weights is the lower median of all squared distances of the image.

    Args:
        patches: (B, P, D).
        distances: (B, P, k) to the neighbours; with `fade` also that to the next one, (B, P, k + 1), if there is one.
        neighbours: (B, P, k, D).
        fade: how much nearer than the first left out, in squared distance and units of the scale, a neighbour must be
            to count in full; one that is as far counts nothing. None is the released code's: of two that are equally
            far, rounding decides which is the last neighbour, and a score jumps by a percent.
    """
    k, tiny = neighbours.shape[2], torch.finfo(distances.dtype).tiny
    squared, beyond = distances.square().split([k, distances.shape[2] - k], dim=2)
    scale = lower_median(squared.flatten(1), dim=1).clamp(min=tiny)[:, None, None]  # (B, 1, 1)
    logits = -squared / scale
    if fade is not None and beyond.shape[2]:
        # Never all of it: of neighbours that are all equally far, each counts as much.
        logits = logits + ((beyond - squared) / (fade * scale)).clamp(min=tiny, max=1.0).log()
    weights = torch.softmax(logits, dim=2)  # (B, P, k)
    return (patches - (weights[..., None] * neighbours).sum(dim=2)).norm(dim=2)


RULES: dict[str, Rule] = {"distance": distance, "cosine": cosine, "soft_projection": soft_projection}


class MemoryBanks(PatchDetector):
    """Banks of good patches for every layer by itself; the score is how badly its neighbours explain a patch.

    AnomalyDINO (arXiv 2405.14529), ProCon and SuperADD (arXiv 2605.14808) are settings of it, see `configs/model`.

    Args:
        channels: channels of each feature map the backbone gives.
        strides: strides of each; coarser maps are brought to the finest grid bilinearly.
        unit: patches are divided by their length (AnomalyDINO, ProCon).
        reduced_dim: dimensions of a fixed random projection of each layer's patches (ProCon: 512); None for none.
        coreset_ratio: share of all patches that each bank holds; at least `k` of them.
        coreset_size: their number, instead of a share; of fewer patches all are kept.
        selector: see `PatchCore`.
        projection_dim: patches are selected in a random projection to so many dimensions (ProCon: 196); None for none.
        num_banks: banks of each layer, each selected with a generator of its own; a patch takes the median of their
            scores.
        k: neighbours of a patch.
        rule: how they score it, one of `RULES`.
        fade: see `soft_projection`.
        per_channel: scores are divided by the number of channels of their layer (SuperADD).
        mask_background: patches in the background, told from the features alone, score 0: see `foreground`.
        top, top_of, smoothing, smoothing_radius: see `PatchDetector`.
        seed: of the generators that draw projections and starting points.
        finest_stride: feature maps of smaller stride are left out.

    Examples:
        >>> import torch
        >>> from oddpatch.models.banks import MemoryBanks
        >>> good = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))  # a feature map of 8 images
        >>> detector = MemoryBanks(channels=[4], strides=[8])
        >>> detector.update([good], torch.arange(8))
        >>> detector.fit()
        >>> odd = good[:1].clone()
        >>> odd[..., 3, 2] += 9
        >>> score, anomaly_map = detector([odd], (48, 48))
        >>> [position // 8 for position in divmod(int(anomaly_map.argmax()), 48)]  # the patch with the highest pixel
        [3, 2]
    """

    parts: ClassVar = {"selector": ("selector", "object")}
    fitted_buffers = ("banks", "source")
    leaves_out_views = True
    banks: Tensor  # (banks, M, sum D_l): of each layer, in its columns, M patches of its own
    source: Tensor  # (banks, M, L) index of the training image that each was taken from

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        unit: bool = True,
        reduced_dim: int | None = None,
        coreset_ratio: float | None = None,
        coreset_size: int | None = None,
        selector: str | Selector = "none",
        projection_dim: int | None = None,
        num_banks: int = 1,
        k: int = 1,
        rule: str = "distance",
        fade: float | None = None,
        per_channel: bool = False,
        mask_background: bool = False,
        top: float | None = None,
        top_of: str = "pixels",
        smoothing: float = 4.0,
        smoothing_radius: int | None = None,
        seed: int = 0,
        finest_stride: int = 8,
    ) -> None:
        super().__init__(channels, strides, finest_stride, smoothing, smoothing_radius, top, top_of)
        require_one_of(RULES, rule=rule)
        if fade is not None and (fade <= 0 or RULES[rule] is not soft_projection):
            raise ConfigError(f"fade={fade}: choose above 0 with rule=soft_projection, or null")
        require_at_least(1, k=k, num_banks=num_banks, reduced_dim=reduced_dim)
        require_at_least(1, coreset_size=coreset_size, projection_dim=projection_dim)
        if num_banks % 2 == 0:
            raise ConfigError(f"num_banks={num_banks}: choose an odd number, whose median is the score of one of them")
        self.selector = make_selector(selector)
        if not self.selector.keeps_all and (coreset_ratio is None) == (coreset_size is None):
            raise ConfigError("set one of coreset_ratio and coreset_size, the other one to null, or selector=none")
        if coreset_ratio is not None and not 0 < coreset_ratio <= 1:
            raise ConfigError(f"coreset_ratio={coreset_ratio} is a share: choose above 0 and up to 1")
        self.unit, self.k, self.per_channel, self.mask_background = unit, k, per_channel, mask_background
        self.rule, self.fade = RULES[rule], fade
        if fade is not None:
            self.rule = functools.partial(soft_projection, fade=fade)
        elif self.rule is soft_projection:
            self.parity_remedy = "train again with model.fade=0.03"
        # Rows of other lengths than 1 have no cosine in `rule`, and a projection to neighbours is no distance to them.
        self.distance = {"distance": "euclidean", "cosine": "cosine"}.get(rule) if reduced_dim is None else None
        self.coreset_ratio, self.coreset_size, self.projection_dim = coreset_ratio, coreset_size, projection_dim
        self.num_banks, self.seed = num_banks, seed
        self.dims = [min(c, reduced_dim or c) for c in self.channels]
        for i, (c, dim) in enumerate(zip(self.channels, self.dims, strict=True)):
            drawn = torch.Generator().manual_seed(seed)  # layers of as many channels share a matrix, as in ProCon
            matrix = torch.randn(c, dim, generator=drawn) / c**0.5 if dim < c else None
            self.register_buffer(f"reduction_{i}", matrix)  # (C_l, D_l)
        for name in self.fitted_buffers:
            self.register_buffer(name, torch.empty(0))
        self.held = Rows()
        self._indices: tuple[Tensor, list[list[NearestIndex]]] | None = None

    def embed(self, features: list[Tensor]) -> Tensor:
        """Patches (B, h, w, sum D_l) of all layers, and where the background is masked one more column: 1 or 0."""
        maps, layers = self.aligned(features), []
        for i, aligned in enumerate(maps):
            patches = aligned.permute(0, 2, 3, 1)  # (B, h, w, C_l)
            patches = F.normalize(patches, dim=3) if self.unit else patches
            matrix = getattr(self, f"reduction_{i}")
            layers.append(patches if matrix is None else patches @ matrix)
        if self.mask_background:
            layers.append(foreground(maps[-1])[..., None].to(layers[0]))
        return torch.cat(layers, dim=3)

    def accumulate(self, patches: Tensor, index: Tensor, positions: Tensor) -> None:
        """Keep all patches (B, P, D)."""
        self.held.add(index.repeat_interleave(patches.shape[1]), patches[..., : sum(self.dims)].flatten(0, 1))

    @torch.no_grad()
    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Select the banks.

        Raises:
            DataError: there is no image.
            ConfigError: there are to be more neighbours than a bank has patches.
        """
        if not len(self.held):
            raise DataError(f"{type(self).__name__} needs at least one good image, it was given none: add images")
        index, patches = self.held.take()
        count = self._count(len(patches))
        if self.k > count:
            raise ConfigError(f"k={self.k} neighbours of {count} patches: choose model.k up to {count}")
        if count == len(patches):  # every bank would be the same
            self.banks = patches[None]
            self.source = index[None, :, None].expand(1, -1, len(self.dims)).contiguous()
        else:
            self.banks = patches.new_empty(self.num_banks, count, sum(self.dims))
            self.source = index.new_empty(self.num_banks, count, len(self.dims))
            for bank in range(self.num_banks):
                room = self.banks[bank].split(self.dims, dim=1)
                for layer, points in enumerate(patches.split(self.dims, dim=1)):
                    picks = self._select(points, count, bank, progress)
                    room[layer].copy_(points[picks])
                    self.source[bank, :, layer] = index[picks]
        self.finish()

    @classmethod
    def draws(cls, settings: Mapping[str, Any]) -> bool:
        """Projections, and the choice of patches where not all are kept."""
        return settings["reduced_dim"] is not None or settings["selector"] != "none"

    def _select(self, points: Tensor, count: int, bank: int, progress: ProgressFn) -> Tensor:
        drawn = torch.Generator().manual_seed(self.seed + bank)
        if self.projection_dim is not None and self.selector.measures:
            points = random_projection(points, self.projection_dim, drawn)
        return self.selector(points, count, generator=drawn, progress=progress)

    def _count(self, total: int) -> int:
        """How many of so many patches a bank holds."""
        if self.selector.keeps_all:
            return total
        wanted = int(self.coreset_ratio * total) if self.coreset_ratio else self.coreset_size or total
        return min(total, max(self.k, wanted))

    def _change_distance(self, distance: str) -> None:
        self.rule = RULES["cosine" if distance == "cosine" else "distance"]
        if not self.unit:
            layers = [F.normalize(part, dim=2) for part in self.banks.split(self.dims, dim=2)]
            self.banks, self.unit = torch.cat(layers, dim=2), True

    @property
    def indices(self) -> list[list[NearestIndex]]:
        """The banks (bank, layer) made ready to be searched; made once for what was fitted or loaded."""
        if self._indices is None or self._indices[0] is not self.banks:
            made = [[NearestIndex(part) for part in bank.split(self.dims, dim=1)] for bank in self.banks]
            self._indices = (self.banks, made)
        return self._indices[1]

    def score_layer(self, patches: Tensor, bank: int, layer: int, own: Tensor | None = None) -> Tensor:
        """Scores (B, P) of patches (B, P, D_l) by one bank, without its entries from the image `own` (1,)."""
        held = self.banks[bank].split(self.dims, dim=1)[layer]  # (M, D_l)
        left_out = torch.nonzero(self.source[bank, :, layer] == own)[:, 0] if own is not None else None
        most = len(held) - (0 if left_out is None else len(left_out))
        k = min(self.k + (self.fade is not None), most)
        if torch.compiler.is_exporting():
            distances, found = plain_nearest(patches.flatten(0, 1), held, k)  # (B*P, k) both
        else:
            distances, found = self.indices[bank][layer].search(patches.flatten(0, 1), k, without=left_out)
        distances, found = (t.unflatten(0, patches.shape[:2]) for t in (distances, found[:, : self.k]))
        # Image by image: the neighbours take k times the room of the patches.
        one = None if torch.compiler.is_exporting() else 1
        parts = zip(*(t.split(one) if one else (t,) for t in (patches, distances, found)), strict=True)
        scores = torch.cat([self.rule(p, d, held[f]) for p, d, f in parts])
        return scores / self.channels[layer] if self.per_channel else scores

    def score_patches(self, patches: Tensor, own: Tensor | None = None) -> Tensor:
        """Scores (B, P): the mean over layers of the median over banks."""
        layers = patches[..., : sum(self.dims)].split(self.dims, dim=2)
        by_layer = (
            torch.stack([self.score_layer(part, bank, i, own) for bank in range(len(self.banks))])
            for i, part in enumerate(layers)
        )
        scores = torch.stack([lower_median(by_bank, dim=0) for by_bank in by_layer]).mean(dim=0)
        return scores * patches[..., -1] if self.mask_background else scores

    def score_left_out(self, features: list[Tensor], index: Tensor, image_size: tuple[int, int]) -> Prediction:
        """As `forward` with the banks without the images' own entries, no others being selected in their place.

        Raises:
            ConfigError: all entries of a bank come from one of the images.
        """
        self.require_fitted()
        patches, grid = self.patches(features)
        for image in index:
            if (self.source == image).all(dim=1).any():
                raise ConfigError(
                    "all entries of a bank come from one good image, which therefore cannot be left out: add images, "
                    "raise model.coreset_size or model.coreset_ratio, or set calibration=none"
                )
        own = index.to(self.source.device)
        scores = torch.cat([self.score_patches(one[None], own[i]) for i, one in enumerate(patches)])
        return self.to_prediction(scores, patches, grid, image_size)

    def required_memory(self, shapes: Sequence[FeatureShape], num_images: int) -> tuple[int, str]:
        """All patches, once more while they are joined, and the banks."""
        held = self.probe(shapes).held
        total = num_images * len(held)
        count = self._count(total)
        banks = 0 if count == total else self.num_banks * count * 4 * sum(self.dims)
        return held.required(num_images) + banks, "lower data.resize and data.crop, or use fewer layers or images"
