"""PatchCore: distance to the nearest of a coreset of good patches (Roth et al., arXiv 2106.08265)."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from oddpatch.errors import ConfigError, DataError
from oddpatch.models.base import FeatureShape, PatchDetector, ProgressFn, no_progress
from oddpatch.models.embeddings import Embedding
from oddpatch.models.selectors import GREEDY, Selector, make_selector
from oddpatch.models.state import Rows, Stream
from oddpatch.ops.coreset import OtherGroups, StreamingCoreset
from oddpatch.ops.neighbours import Metric, NearestIndex, plain_nearest
from oddpatch.ops.patches import join_patches, pool_patches
from oddpatch.ops.projection import random_projection
from oddpatch.settings import require_at_least, require_one_of
from oddpatch.types import Prediction

log = logging.getLogger(__name__)


class PatchCore(PatchDetector):
    """A memory bank of patch embeddings of good images, thinned to a coreset; the score is the nearest distance.

    Args:
        channels: channels of each feature map the backbone gives.
        strides: strides of each.
        coreset_ratio: share of all patches that are kept in the memory bank.
        coreset_size: their number, instead of a share.
        selector: "greedy" (k-center, the paper), "approximate_greedy" (the authors' code: distances begin as the mean
            to ten random patches), "random", or "none" to keep every patch; or a `Selector` of your own.
        projection_dim: patches are selected in a random projection to so many dimensions, where that reduces them (the
            authors' code: 128); None selects in the embedding itself.
        embedding: "pooled" is the authors' code, which adaptively pools each layer's neighbourhoods to `embedding_dim`
            values and those of all layers to `embedding_dim` again; "joined" averages each layer over `patch_size` and
            joins the channels, as other published code does; or an `Embedding` of your own.
        embedding_dim: of a "pooled" embedding (paper: 1024); None takes 1024, or the number of joined channels where
            that is less: pooling to more values than there are channels only repeats them.
        layer_dim: values to which each layer is pooled before that; None for `embedding_dim` (the authors' ensembles
            pool to 1024, then to 384).
        patch_size: side of the neighbourhood, in positions of each layer, that makes a patch locally aware.
        stride: only every stride-th position, in both directions, becomes a patch.
        alignment: how coarser maps are brought to the finest grid.
        distance: "euclidean" or "cosine".
        k: patch score is the mean distance to so many nearest entries of the bank (paper: 1).
        num_neighbors: b of the paper's re-weighting of the image score (equation 7); 0 leaves it at the maximum of
            the patch scores, as the authors' code does.
        max_bank_memory: bytes that patches may take as they are accumulated; more are reduced by k-center as they
            stream in (merge and reduce), which makes the coreset an approximation. None holds them all. Needs
            selector="greedy" without a projection.
        reduce_to: share of `max_bank_memory` that is kept whenever it is full, between 0 and 1; None for half. The
            coreset can be no larger then. A smaller one takes less time.
        smoothing: sigma of the Gaussian filter on the map, in pixels; 0 for none.
        seed: of the generator that draws the starting points.
        finest_stride: feature maps of smaller stride are left out (paper: 8).

    Examples:
        >>> import torch
        >>> from oddpatch.models.patchcore import PatchCore
        >>> good = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))  # a feature map of 8 images
        >>> detector = PatchCore(channels=[4], strides=[8], coreset_ratio=0.5)
        >>> detector.update([good], torch.arange(8))
        >>> detector.fit()
        >>> odd = good[:1].clone()
        >>> odd[..., 3, 2] += 9
        >>> score, anomaly_map = detector([odd], (48, 48))
        >>> [position // 8 for position in divmod(int(anomaly_map.argmax()), 48)]  # the patch with the highest pixel
        [3, 2]
    """

    parts: ClassVar = {"selector": ("selector", "object"), "embedding": ("embedding", "object")}
    fitted_buffers = ("memory_bank", "source")
    memory_bank: Tensor  # (M, D)
    source: Tensor  # (M, 2) index of the training image, and position in its grid, that each entry was taken from

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        coreset_ratio: float | None = 0.1,
        coreset_size: int | None = None,
        selector: str | Selector = "greedy",
        projection_dim: int | None = None,
        embedding: str | Embedding = "pooled",
        embedding_dim: int | None = None,
        layer_dim: int | None = None,
        patch_size: int = 3,
        stride: int = 1,
        alignment: str = "bilinear",
        distance: str = "euclidean",
        k: int = 1,
        num_neighbors: int = 0,
        max_bank_memory: int | None = None,
        reduce_to: float | None = None,
        smoothing: float = 4.0,
        seed: int = 0,
        finest_stride: int = 8,
    ) -> None:
        super().__init__(channels, strides, finest_stride, smoothing)
        dim = embedding_dim or min(1024, sum(self.channels))
        embeddings = {
            "pooled": partial(
                pool_patches, patch_size=patch_size, stride=stride, dim=dim, mode=alignment, layer_dim=layer_dim
            ),
            "joined": partial(join_patches, patch_size=patch_size, stride=stride, mode=alignment),
        }
        if not isinstance(embedding, Embedding):
            require_one_of(list(embeddings), embedding=embedding)
        require_one_of(get_args(Metric), distance=distance)
        if coreset_size is None and (coreset_ratio is None or not 0 < coreset_ratio <= 1):
            raise ConfigError(f"coreset_ratio={coreset_ratio}: choose above 0 and up to 1, or give coreset_size")
        if patch_size < 1 or patch_size % 2 == 0:
            raise ConfigError(f"patch_size={patch_size}: choose an odd number, so that a patch has a centre")
        require_at_least(1, coreset_size=coreset_size, projection_dim=projection_dim, stride=stride, k=k)
        require_at_least(1, embedding_dim=embedding_dim, layer_dim=layer_dim)
        require_at_least(0, num_neighbors=num_neighbors)
        self.selector = make_selector(selector)
        self.embedding: Callable[[list[Tensor]], Tensor]
        self.embedding = embeddings[embedding] if isinstance(embedding, str) else embedding
        if max_bank_memory is not None and (self.selector != GREEDY or projection_dim is not None):
            raise ConfigError(
                f"max_bank_memory={max_bank_memory} reduces patches by k-center in the embedding itself, not with "
                f"selector={selector} and projection_dim={projection_dim}: set selector=greedy and projection_dim=null"
            )
        if reduce_to is not None and max_bank_memory is None:
            raise ConfigError(f"reduce_to={reduce_to} is a share of max_bank_memory: set that, or reduce_to=null")
        if reduce_to is not None and not 0 < reduce_to < 1:
            raise ConfigError(f"reduce_to={reduce_to}: choose above 0 and below 1, or null for half")
        self.coreset_ratio = coreset_ratio
        self.coreset_size = coreset_size
        self.projection_dim = projection_dim
        self.patch_size = patch_size
        self.distance = distance
        self.k = k
        self.num_neighbors = num_neighbors
        self.max_bank_memory = max_bank_memory
        self.generator = torch.Generator().manual_seed(seed)
        self.register_buffer("memory_bank", torch.empty(0))
        self.register_buffer("source", torch.empty(0))
        #: Patches (D,), and their positions.
        self.held = Rows() if max_bank_memory is None else Stream(max_bank_memory, self.generator, reduce_to or 0.5)
        self._index: tuple[Tensor, NearestIndex] | None = None

    def embed(self, features: list[Tensor]) -> Tensor:
        """Embeddings (B, h, w, D) of every patch, of feature maps [(B, C_l, h_l, w_l)]."""
        return self.embedding(self.select(features))

    def accumulate(self, patches: Tensor, index: Tensor, positions: Tensor) -> None:
        """Keep all patches (B, P, D), or within `max_bank_memory` some that stand for them."""
        batch, count, _ = patches.shape
        self._hold(index.repeat_interleave(count), patches.flatten(0, 1), positions.repeat(batch))

    def _hold(self, index: Tensor, patches: Tensor, positions: Tensor) -> None:
        if isinstance(self.held, Stream) and self.distance == "cosine":
            patches = F.normalize(patches)  # these have the same cosines, and k-center then selects by them
        self.held.add(index, patches, positions)

    @torch.no_grad()
    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Select the coreset.

        Raises:
            DataError: there is no image.
            ConfigError: the coreset is to hold more patches than there are.
        """
        if not len(self.held):
            raise DataError("PatchCore needs at least one good image, it was given none: add images")
        self._fit(None, self.selector, progress)

    @torch.no_grad()
    def extend(self, count: int | None = None, progress: ProgressFn = no_progress) -> None:
        """Select a new coreset among the memory bank and what was accumulated since it was fitted.

        A bank entry counts as one patch, though it may stand for many: with `selector="random"` too the new coreset is
        therefore a k-center selection, as a random one would hold too many of the new patches.

        Args:
            count: patches to keep; None keeps as many as the bank holds now, with `selector="none"` all.
            progress: see `fit`.

        Raises:
            NotFittedError: there is no bank yet.
            DataError: there is no new image.
            ConfigError: `count` is more than there are.
        """
        self.require_fitted()
        if not len(self.held):
            raise DataError("PatchCore was given no new good image to extend its memory bank by: add images")
        if count is None and not self.selector.keeps_all:
            count = len(self.memory_bank)
        self._hold(self.source[:, 0], self.memory_bank, self.source[:, 1])
        self._fit(count, self.selector if self.selector.measures else GREEDY, progress)

    def _fit(self, count: int | None, selector: Selector, progress: ProgressFn) -> None:
        """Make a bank of `count` of the patches held, or of as many as the settings ask for."""
        self.left_out = torch.empty(0, device=self.fitted.device)
        if isinstance(self.held, Stream):
            assert self.held.coreset is not None
            self.memory_bank, self.source = self._select_from_stream(self.held.coreset, count, progress)
        else:
            index, patches, positions = self.held.take()
            others = OtherGroups(index) if self._measures_others(patches, count, selector) else None
            picks = self._select(patches, self._count(len(patches), count), selector, progress, others)
            if others is not None:
                self._measure_left_out(others)
            self.memory_bank, self.source = patches[picks], torch.stack([index[picks], positions[picks]], dim=1)
        self.finish()

    def _measures_others(self, patches: Tensor, count: int | None, selector: Selector) -> bool:
        """Whether the selection measures what `score_left_out` needs: distances in the embedding itself."""
        in_embedding = self.projection_dim is None or self.projection_dim >= patches.shape[1]
        selects = selector.tracks_others and self._count(len(patches), count) < len(patches)
        return self.left_out_expected and selects and in_embedding and self.k == 1 and not self.is_fitted

    def _measure_left_out(self, others: OtherGroups) -> None:
        """Keep the distance of every patch to the nearest bank entry from another image, (images, P)."""
        images = others.groups.unique()
        squared = others.squared.view(len(images), -1)
        distances = squared / 2 if self.distance == "cosine" else squared.sqrt()
        self.keep_left_out(images, distances.float())

    def _select_from_stream(
        self, stream: StreamingCoreset, count: int | None, progress: ProgressFn
    ) -> tuple[Tensor, Tensor]:
        wanted = self._count(stream.num_seen, count)
        held = stream.num_held if stream.num_held == stream.num_seen else stream.num_kept
        if wanted > held:
            log.warning(
                "max_bank_memory=%d leaves room for %d patches, not %d: raise it, or model.reduce_to",
                self.max_bank_memory, held, wanted,
            )  # fmt: skip
        return stream.select(min(wanted, held), progress)

    def _count(self, total: int, count: int | None) -> int:
        """How many of `total` patches to keep: `count`, or what the settings say."""
        if count is None and self.selector.keeps_all:
            return total
        count = count or self.coreset_size
        if count is not None:
            if not 1 <= count <= total:
                raise ConfigError(f"coreset_size={count} but there are {total} patches: choose 1..{total}")
            return count
        assert self.coreset_ratio is not None
        return max(1, int(self.coreset_ratio * total))

    @classmethod
    def draws(cls, settings: Mapping[str, Any]) -> bool:
        """The choice of patches, unless all are kept."""
        return settings["selector"] != "none"

    def _require_neighbours(self, bank: int) -> None:
        for name, number in (("k", self.k), ("num_neighbors", self.num_neighbors)):
            if number > bank:
                raise ConfigError(
                    f"{name}={number} nearest patches, but the memory bank will hold {bank}: choose model.{name} up to "
                    f"{bank}, or a larger coreset"
                )

    def _select(
        self, patches: Tensor, count: int, selector: Selector, progress: ProgressFn, others: OtherGroups | None
    ) -> Tensor:
        """Indices (count,) of the patches (N, D) that make the coreset."""
        if count == len(patches):
            return torch.arange(len(patches), device=patches.device)
        points = F.normalize(patches) if self.distance == "cosine" and selector.measures else patches
        if self.projection_dim is not None and selector.measures:
            points = random_projection(points, self.projection_dim, self.generator)
        return selector(points, count, generator=self.generator, progress=progress, others=others)

    @property
    def index(self) -> NearestIndex:
        """The memory bank made ready to be searched; made once, and again when another bank was fitted or loaded."""
        if self._index is None or self._index[0] is not self.memory_bank:
            self._index = (self.memory_bank, NearestIndex(self.memory_bank, self.distance))  # type: ignore[arg-type]
        return self._index[1]

    def _change_distance(self, distance: str) -> None:
        self._index = None
        self.left_out = torch.empty(0, device=self.fitted.device)  # distances of the fit

    def _search(self, queries: Tensor, k: int = 1, without: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `NearestIndex.search`."""
        if torch.compiler.is_exporting():
            return plain_nearest(queries, self.memory_bank, k, metric=self.distance)  # type: ignore[arg-type]
        return self.index.search(queries, k, without=without)

    def score_patches(self, patches: Tensor) -> Tensor:
        """Distances (B, P) to the memory bank."""
        distances, _ = self._search(patches.flatten(0, 1), min(self.k, len(self.memory_bank)))  # (B*P, k)
        return distances.mean(dim=1).view(patches.shape[:2])

    def score_images(
        self, scores: Tensor, patches: Tensor, anomaly_map: Tensor, without: list[Tensor] | None = None
    ) -> Tensor:
        """The largest of the patch scores (B, P), re-weighted if so set.

        Args:
            scores, patches, anomaly_map: see `PatchDetector.score_images`.
            without: bank entries that each image must not use.
        """
        image_score, hottest = scores.max(dim=1)  # (B,) both
        if not self.num_neighbors:
            return image_score
        queries = patches[torch.arange(hottest.shape[0], device=hottest.device), hottest]  # (B, D)
        if without is None:
            return image_score * self._weight(queries, None)
        pairs = zip(queries, without, strict=True)
        return image_score * torch.cat([self._weight(query[None], entries) for query, entries in pairs])

    def score_left_out(self, features: list[Tensor], index: Tensor, image_size: tuple[int, int]) -> Prediction:
        """As `forward` with the memory bank without the images' own entries, no others being selected in their place.

        Greedy selection in the embedding, with k=1, has measured these distances already; otherwise each image is
        searched for, as a new one would be.

        Raises:
            ConfigError: all entries of the bank come from one of the images.
        """
        self.require_fitted()
        own = [torch.nonzero(self.source[:, 0] == image)[:, 0] for image in index.tolist()]
        if any(len(entries) == len(self.memory_bank) for entries in own):
            raise ConfigError(
                f"all {len(self.memory_bank)} entries of the memory bank come from one good image, which therefore "
                "cannot be left out: raise model.coreset_ratio or model.coreset_size, or set calibration=holdout"
            )
        patches, grid = self.patches(features)  # (B, P, D)
        if len(self.left_out):
            scores = self.left_out[index.to(self.left_out.device)]  # (B, P)
        else:
            found = [
                self._search(queries, min(self.k, len(self.memory_bank) - len(entries)), entries)[0]
                for queries, entries in zip(patches, own, strict=True)
            ]
            scores = torch.stack([distances.mean(dim=1) for distances in found])  # (B, P)
        heat = self.to_map(scores, grid, image_size)
        return Prediction(self.score_images(scores, patches, heat, own), heat)

    def _weight(self, hottest: Tensor, without: Tensor | None) -> Tensor:
        """Weights (B,) of the image scores by local density, from the hottest patches (B, D).

        PatchCore eq. 7: a match in a sparse region of the bank is weaker evidence of an anomaly. The neighbourhood is
        that of the nearest *bank entry* m*, which is one of its b members.
        """
        count = min(self.num_neighbors, len(self.memory_bank) - (0 if without is None else len(without)))
        distance, neighbour = self._search(hottest, without=without)  # (B, 1) both
        _, around = self._search(self.memory_bank[neighbour[:, 0]], count, without)  # (B, b)
        members = self.memory_bank[around]  # (B, b, D)
        if self.distance == "cosine":
            to_members = 1 - F.cosine_similarity(hottest[:, None], members, dim=2)
        else:
            to_members = (hottest[:, None] - members).norm(dim=2)  # (B, b)
        # exp(d*) / sum exp(d), computed so that large distances do not overflow
        return 1 - torch.exp(distance[:, 0] - torch.logsumexp(to_members, dim=1))

    def nearest_normal(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """For each patch of a batch, its distance and where its nearest normal patch was seen.

        Returns:
            distances (B, h, w), 0 outside the region that is inspected, and source (B, h, w, 2): training image and
            position in its grid.
        """
        self.require_fitted()
        embeddings = self.embed(features)  # (B, h, w, D)
        shape = embeddings.shape[:3]
        distances, neighbours = self.index.search(embeddings.flatten(0, 2))  # (B*P, 1)
        return self.region.cut(distances.view(shape)[:, None])[:, 0], self.source[neighbours[:, 0]].view(*shape, 2)

    def required_memory(self, shapes: Sequence[FeatureShape], num_images: int) -> tuple[int, str]:
        """All patches, and once more the coreset and what selecting it takes; or what `max_bank_memory` allows."""
        held = self.probe(shapes).held
        rows = num_images * len(held)
        bank = self._count(rows, None)
        if isinstance(held, Stream):
            rows = min(rows, held.room)
            remedy = "lower model.max_bank_memory"
        elif self.selector == GREEDY and self.projection_dim is None:
            remedy = "set model.max_bank_memory, which reduces patches as they stream in"
        else:
            remedy = "set model.max_bank_memory with model.selector=greedy model.projection_dim=null"
        self._require_neighbours(min(bank, rows))
        return held.required(num_images) + rows * 64, remedy
