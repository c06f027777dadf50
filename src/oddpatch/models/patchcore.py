"""PatchCore: distance to the nearest of a coreset of good patches (Roth et al., arXiv 2106.08265)."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from oddpatch.errors import ConfigError, DataError
from oddpatch.models.base import Detector, FeatureShape, ProgressFn, no_progress
from oddpatch.ops.coreset import OtherGroups, StreamingCoreset, approximate_greedy, k_center_greedy, random_subset
from oddpatch.ops.maps import anomaly_map
from oddpatch.ops.merging import merge_streams
from oddpatch.ops.neighbours import NearestIndex
from oddpatch.ops.patches import join_patches, pool_patches
from oddpatch.ops.projection import random_projection
from oddpatch.types import Prediction

if TYPE_CHECKING:
    from oddpatch.ops.ranks import Ranks

log = logging.getLogger(__name__)

SELECTORS = ("greedy", "approximate_greedy", "random", "none")


class PatchCore(Detector):
    """A memory bank of patch embeddings of good images, thinned to a coreset; the score is the nearest distance.

    Args:
        channels: channels of each feature map the backbone gives.
        strides: strides of each.
        coreset_ratio: share of all patches that are kept in the memory bank.
        coreset_size: their number, instead of a share.
        selector: "greedy" (k-center, the paper), "approximate_greedy" (the authors' code: distances begin as the mean
            to ten random patches), "random", or "none" to keep every patch.
        projection_dim: patches are selected in a random projection to so many dimensions, where that reduces them (the
            authors' code: 128); None selects in the embedding itself.
        embedding: "pooled" is the authors' code, which adaptively pools each layer's neighbourhoods to `embedding_dim`
            values and those of all layers to `embedding_dim` again; "joined" averages each layer over `patch_size` and
            joins the channels, as other published code does.
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
        max_bank_memory: bytes that patches may take while they are taken in; more are reduced by k-center as they
            stream in (merge and reduce), which makes the coreset an approximation. None holds them all. Needs
            selector="greedy" without a projection.
        smoothing: sigma of the Gaussian filter on the map, in pixels; 0 for none.
        seed: of the generator that draws the starting points.
        finest_stride: feature maps of smaller stride are left out (paper: 8).
    """

    fitted_buffers = ("memory_bank", "source")
    memory_bank: Tensor  # (M, D)
    source: Tensor  # (M, 2) index of the training image, and position in its grid, that each entry was taken from

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        coreset_ratio: float | None = 0.1,
        coreset_size: int | None = None,
        selector: str = "greedy",
        projection_dim: int | None = None,
        embedding: str = "pooled",
        embedding_dim: int | None = None,
        layer_dim: int | None = None,
        patch_size: int = 3,
        stride: int = 1,
        alignment: str = "bilinear",
        distance: str = "euclidean",
        k: int = 1,
        num_neighbors: int = 0,
        max_bank_memory: int | None = None,
        smoothing: float = 4.0,
        seed: int = 0,
        finest_stride: int = 8,
    ) -> None:
        super().__init__(channels, strides, finest_stride)
        for name, value, choices in (
            ("selector", selector, SELECTORS),
            ("embedding", embedding, ("joined", "pooled")),
            ("distance", distance, ("euclidean", "cosine")),
        ):
            if value not in choices:
                raise ConfigError(f"{name}={value!r}: choose one of {', '.join(choices)}")
        if coreset_size is None and (coreset_ratio is None or not 0 < coreset_ratio <= 1):
            raise ConfigError(f"coreset_ratio={coreset_ratio}: choose above 0 and up to 1, or give coreset_size")
        if patch_size < 1 or patch_size % 2 == 0:
            raise ConfigError(f"patch_size={patch_size}: choose an odd number, so that a patch has a centre")
        for name, least, number in (
            ("coreset_size", 1, coreset_size), ("projection_dim", 1, projection_dim), ("stride", 1, stride),
            ("embedding_dim", 1, embedding_dim), ("layer_dim", 1, layer_dim), ("k", 1, k),
            ("num_neighbors", 0, num_neighbors),
        ):  # fmt: skip
            if number is not None and number < least:
                raise ConfigError(f"{name}={number}: choose at least {least}")
        if max_bank_memory is not None and (selector != "greedy" or projection_dim is not None):
            raise ConfigError(
                f"max_bank_memory={max_bank_memory} reduces patches by k-center in the embedding itself, not with "
                f"selector={selector} and projection_dim={projection_dim}: set selector=greedy and projection_dim=null"
            )
        self.coreset_ratio = coreset_ratio
        self.coreset_size = coreset_size
        self.selector = selector
        self.projection_dim = projection_dim
        self.embedding = embedding
        self.embedding_dim = embedding_dim or min(1024, sum(self.channels))
        self.layer_dim = layer_dim
        self.patch_size = patch_size
        self.stride = stride
        self.alignment = alignment
        self.distance = distance
        self.k = k
        self.num_neighbors = num_neighbors
        self.max_bank_memory = max_bank_memory
        self.smoothing = smoothing
        self.generator = torch.Generator().manual_seed(seed)
        self.register_buffer("memory_bank", torch.empty(0))
        self.register_buffer("source", torch.empty(0))
        self._held: list[tuple[Tensor, Tensor]] = []  # embeddings (n, D) and sources (n, 2) of each batch
        self._stream: StreamingCoreset | None = None
        self._index: tuple[Tensor, NearestIndex] | None = None

    @property
    def dim(self) -> int:
        """Dimensions D of an embedding."""
        return self.embedding_dim if self.embedding == "pooled" else sum(self.channels)

    def embed(self, features: list[Tensor]) -> Tensor:
        """Embeddings (B, h, w, D) of every patch, of feature maps [(B, C_l, h_l, w_l)]."""
        features = self.select(features)
        if self.embedding == "pooled":
            return pool_patches(
                features, self.patch_size, self.stride, self.embedding_dim, self.alignment, self.layer_dim
            )
        return join_patches(features, self.patch_size, self.stride, self.alignment)

    @torch.no_grad()
    def update(self, features: list[Tensor], index: Tensor) -> None:
        """Take in the patches of one batch."""
        embeddings = self.embed(features)  # (B, h, w, D)
        grid = embeddings.shape[1:3]
        embeddings = self.region.take(embeddings.flatten(1, 2), grid, dim=1)  # (B, P, D)
        batch, positions, _ = embeddings.shape
        images = index.to(embeddings.device).view(batch, 1).expand(batch, positions)
        places = self.region.positions(grid).to(embeddings.device).expand(batch, positions)
        source = torch.stack([images, places], dim=2)  # (B, P, 2)
        self._take_in(embeddings.flatten(0, 1), source.flatten(0, 1))

    def _take_in(self, embeddings: Tensor, source: Tensor) -> None:
        """Hold patches (n, D) and where they come from (n, 2), within `max_bank_memory`."""
        if self.max_bank_memory is None:
            self._held.append((embeddings, source))
            return
        if self.distance == "cosine":  # a bank of unit vectors has the same cosines, and k-center then selects by them
            embeddings = F.normalize(embeddings)
        if self._stream is None:
            row_bytes = embeddings.shape[1] * embeddings.element_size() + 16
            self._stream = StreamingCoreset(max(2, self.max_bank_memory // row_bytes), self.generator)
        self._stream.add(embeddings, source)

    @torch.no_grad()
    def merge(self, ranks: "Ranks") -> None:
        """Bring all patches together; with `max_bank_memory` those that each rank still holds, reduced further.

        Exact unless `max_bank_memory` made a rank drop patches; see `oddpatch.ops.merging.merge_streams`.
        """
        if self.max_bank_memory is not None:
            self._stream = merge_streams(self._stream, ranks, self.generator, self.fitted.device)
            return
        received = ranks.collect([part for pair in self._held for part in pair], self.fitted.device)
        held = self._held + list(zip(received, received, strict=True))
        self._held = held if ranks.first else []

    @torch.no_grad()
    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Select the coreset.

        Raises:
            DataError: nothing was taken in.
            ConfigError: the coreset is to hold more patches than there are.
        """
        self._fit(None, self.selector, progress)

    @torch.no_grad()
    def extend(self, count: int | None = None, progress: ProgressFn = no_progress) -> None:
        """Select a new coreset among the memory bank and what `update` took in since it was fitted.

        A bank entry counts as one patch, though it may stand for many: with `selector="random"` too the new coreset is
        therefore a k-center selection, as a random one would hold too many of the new patches.

        Args:
            count: patches to keep; None keeps as many as the bank holds now, with `selector="none"` all.
            progress: see `fit`.

        Raises:
            NotFittedError: there is no bank yet.
            DataError: nothing was taken in.
            ConfigError: `count` is more than there are.
        """
        self.require_fitted()
        if not self._held and self._stream is None:
            raise DataError("PatchCore was given no new good image to extend its memory bank by: add images")
        if count is None and self.selector != "none":
            count = len(self.memory_bank)
        self._take_in(self.memory_bank, self.source)
        self._fit(count, "greedy" if self.selector == "random" else self.selector, progress)

    def _fit(self, count: int | None, selector: str, progress: ProgressFn) -> None:
        """Make a bank of `count` of the patches held, or of as many as the settings ask for."""
        self.left_out = torch.empty(0, device=self.fitted.device)
        if self._stream is not None:
            self.memory_bank, self.source = self._select_from_stream(self._stream, count, progress)
            self._stream = None
        else:
            if not self._held:
                raise DataError("PatchCore needs at least one good image, it was given none: add images")
            embeddings, source = (torch.cat(part) for part in zip(*self._held, strict=True))
            self._held = []
            # The order in which images came must not matter; a stable sort keeps the positions of each in order.
            order = source[:, 0].argsort(stable=True)
            if not torch.equal(order, torch.arange(len(order), device=order.device)):
                embeddings, source = embeddings[order], source[order]
            others = OtherGroups(source[:, 0]) if self._measures_others(len(embeddings), count, selector) else None
            picks = self._select(embeddings, self._count(len(embeddings), count), selector, progress, others)
            if others is not None:
                self._keep_left_out(others)
            self.memory_bank, self.source = embeddings[picks], source[picks]
        self.fitted.fill_(True)

    def _measures_others(self, total: int, count: int | None, selector: str) -> bool:
        """Whether the selection measures what `score_left_out` needs: distances in the embedding itself."""
        in_embedding = self.projection_dim is None or self.projection_dim >= self.dim
        greedy = selector in ("greedy", "approximate_greedy") and self._count(total, count) < total
        return self.left_out_expected and greedy and in_embedding and self.k == 1 and not self.fitted

    def _keep_left_out(self, others: OtherGroups) -> None:
        """Keep the distance of every patch to the nearest bank entry from another image, (images, P)."""
        images, patches = others.groups.unique(return_counts=True)
        squared = others.squared.view(len(images), int(patches[0]))
        distances = squared / 2 if self.distance == "cosine" else squared.sqrt()
        self.left_out = torch.full((int(images[-1]) + 1, distances.shape[1]), torch.nan, device=squared.device)
        self.left_out[images] = distances.float()

    def _select_from_stream(
        self, stream: StreamingCoreset, count: int | None, progress: ProgressFn
    ) -> tuple[Tensor, Tensor]:
        wanted = self._count(stream.num_seen, count)
        held = stream.num_held if stream.num_held == stream.num_seen else stream.max_rows // 2
        if wanted > held:
            log.warning("max_bank_memory=%d leaves room for %d patches, not %d", self.max_bank_memory, held, wanted)
        return stream.select(min(wanted, held), progress)

    def _count(self, total: int, count: int | None) -> int:
        """How many of `total` patches to keep: `count`, or what the settings say."""
        if count is None and self.selector == "none":
            return total
        count = count or self.coreset_size
        if count is not None:
            if not 1 <= count <= total:
                raise ConfigError(f"coreset_size={count} but there are {total} patches: choose 1..{total}")
            return count
        assert self.coreset_ratio is not None
        return max(1, int(self.coreset_ratio * total))

    def _require_neighbours(self, bank: int) -> None:
        for name, number in (("k", self.k), ("num_neighbors", self.num_neighbors)):
            if number > bank:
                raise ConfigError(
                    f"{name}={number} nearest patches, but the memory bank will hold {bank}: choose model.{name} up to "
                    f"{bank}, or a larger coreset"
                )

    def _select(
        self, embeddings: Tensor, count: int, selector: str, progress: ProgressFn, others: OtherGroups | None
    ) -> Tensor:
        """Indices (count,) of the rows of embeddings (N, D) that make the coreset."""
        if count == len(embeddings):
            return torch.arange(len(embeddings), device=embeddings.device)
        if selector == "random":
            return random_subset(len(embeddings), count, self.generator).to(embeddings.device)
        points = F.normalize(embeddings) if self.distance == "cosine" else embeddings
        if self.projection_dim is not None:
            points = random_projection(points, self.projection_dim, self.generator)
        if selector == "approximate_greedy":
            return approximate_greedy(points, count, self.generator, progress=progress, others=others)
        return k_center_greedy(points, count, generator=self.generator, progress=progress, others=others)

    @property
    def index(self) -> NearestIndex:
        """The memory bank made ready to be searched; made once, and again when another bank was fitted or loaded."""
        if self._index is None or self._index[0] is not self.memory_bank:
            self._index = (self.memory_bank, NearestIndex(self.memory_bank, self.distance))  # type: ignore[arg-type]
        return self._index[1]

    def forward(self, features: list[Tensor], image_size: tuple[int, int]) -> Prediction:
        """Distance of every patch to the memory bank; the image score is the largest, re-weighted if so set."""
        self.require_fitted()
        grid, queries = self._queries(features)  # (B, P, D)
        distances, _ = self.index.search(queries.flatten(0, 1), min(self.k, len(self.memory_bank)))  # (B*P, k)
        return self._predict(distances.mean(dim=1).view(queries.shape[:2]), queries, grid, image_size)

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
        grid, queries = self._queries(features)  # (B, P, D)
        if len(self.left_out):
            scores = self.left_out[index.to(self.left_out.device)]  # (B, P)
        else:
            found = [
                self.index.search(patches, min(self.k, len(self.memory_bank) - len(entries)), without=entries)[0]
                for patches, entries in zip(queries, own, strict=True)
            ]
            scores = torch.stack([distances.mean(dim=1) for distances in found])  # (B, P)
        return self._predict(scores, queries, grid, image_size, own)

    def _queries(self, features: list[Tensor]) -> tuple[tuple[int, int], Tensor]:
        """The grid (h, w) of patches, and the embeddings (B, P, D) of those inside the region."""
        embeddings = self.embed(features)  # (B, h, w, D)
        grid = (embeddings.shape[1], embeddings.shape[2])
        return grid, self.region.take(embeddings.flatten(1, 2), grid, dim=1)

    def _predict(
        self,
        scores: Tensor,
        queries: Tensor,
        grid: tuple[int, int],
        image_size: tuple[int, int],
        without: list[Tensor] | None = None,
    ) -> Prediction:
        """Map and score from the patch scores (B, P); `without` are the bank entries that each image must not use."""
        image_score, hottest = scores.max(dim=1)  # (B,) both
        if self.num_neighbors:
            patches = queries[torch.arange(len(hottest), device=hottest.device), hottest]  # (B, D)
            if without is None:
                weights = self._weight(patches, None)
            else:
                pairs = zip(patches, without, strict=True)
                weights = torch.cat([self._weight(patch[None], entries) for patch, entries in pairs])
            image_score = image_score * weights
        patch_map = self.region.spread(scores, grid)  # (B, h, w)
        return Prediction(image_score, self.region.cut(anomaly_map(patch_map, image_size, self.smoothing)))

    def _weight(self, hottest: Tensor, without: Tensor | None) -> Tensor:
        """Weights (B,) of the image scores by local density, from the hottest patches (B, D).

        PatchCore eq. 7: a match in a sparse region of the bank is weaker evidence of an anomaly. The neighbourhood is
        that of the nearest *bank entry* m*, which is one of its b members.
        """
        count = min(self.num_neighbors, len(self.memory_bank) - (0 if without is None else len(without)))
        distance, neighbour = self.index.search(hottest, without=without)  # (B, 1) both
        _, around = self.index.search(self.memory_bank[neighbour[:, 0]], count, without=without)  # (B, b)
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
        _, height, width = shapes[self.layers[0]]
        rows = num_images * len(self.region.positions((-(-height // self.stride), -(-width // self.stride))))
        held = rows * (4 * self.dim + 16)
        bank = self._count(rows, None)
        if self.max_bank_memory is not None:
            held = min(held, self.max_bank_memory)
            rows = held // (4 * self.dim + 16)
        self._require_neighbours(min(bank, rows))
        # torch.cat holds the patches twice for a moment; selection adds a sketch of at most half their dimensions.
        if self.max_bank_memory is not None:
            remedy = "lower model.max_bank_memory"
        elif self.selector == "greedy" and self.projection_dim is None:
            remedy = "set model.max_bank_memory, which reduces patches as they stream in"
        else:
            remedy = "set model.max_bank_memory with model.selector=greedy model.projection_dim=null"
        return 2 * held + rows * 64, remedy
