"""SPADE: nearest good images, then nearest patches within them (Cohen & Hoshen, arXiv 2005.02357)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from oddpatch.errors import ConfigError, DataError
from oddpatch.models.base import Detector, FeatureShape, ProgressFn, no_progress
from oddpatch.models.state import Rows, Spooled
from oddpatch.ops.correspondence import BLOCK, correspondence_distances
from oddpatch.ops.gallery import Spool
from oddpatch.ops.maps import anomaly_map
from oddpatch.ops.neighbours import Metric, NearestIndex, nearest, nominated
from oddpatch.ops.patches import join
from oddpatch.settings import require_at_least, require_one_of
from oddpatch.types import Prediction

PYRAMIDS = ("sum", "join")
GALLERY_DTYPES = ("float32", "float16")


class SPADE(Detector):
    """A gallery of good images; an image is scored against the `k` that are most like it as a whole.

    The image score is the mean distance to these, between global averages of the deepest map. The anomaly map is the
    distance of every patch to the nearest of all patches of these images. Nothing is averaged over the gallery: it is
    kept whole, in a file that is mapped into memory on a CPU, in its memory on a GPU.

    Args:
        channels: channels of each feature map the backbone gives.
        strides: strides of each.
        k: images that are retrieved (paper: 50).
        kappa: nearest patches whose distance is averaged (paper: 1).
        pool_layers: positions, among the maps used, of those whose global averages retrieve and score images.
        map_layers: positions of those whose patches make the anomaly map; None takes all.
        pyramid: "sum" finds correspondences in each map and sums the distances, each resized to the image; "join" finds
            them once for the maps joined on the finest grid.
        interpolation: how distances are resized to the image: "bilinear" or "bicubic".
        smoothing: sigma of the Gaussian filter on the map, in pixels (paper: 4); 0 for none.
        gallery_dtype: "float32", or "float16": half the size, rounded to three digits.
        finest_stride: feature maps of smaller stride are left out.

    Examples:
        >>> import torch
        >>> from oddpatch.models.spade import SPADE
        >>> good = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))  # a feature map of 8 images
        >>> detector = SPADE(channels=[4], strides=[8], k=3)
        >>> detector.update([good], torch.arange(8))
        >>> detector.fit()
        >>> odd = good[:1].clone()
        >>> odd[..., 3, 2] += 9
        >>> score, anomaly_map = detector([odd], (48, 48))
        >>> [position // 8 for position in divmod(int(anomaly_map.argmax()), 48)]  # the patch with the highest pixel
        [3, 2]
    """

    inspects_regions = True
    distance: Metric = "euclidean"
    memory_remedy = (
        "drop the finest of model.map_layers, lower data.resize and data.crop, or model.gallery_dtype=float16"
    )
    pooled: Tensor  # (N, sum of the pooled C_l)
    images: Tensor

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        k: int = 50,
        kappa: int = 1,
        pool_layers: Sequence[int] = (-1,),
        map_layers: Sequence[int] | None = None,
        pyramid: str = "sum",
        interpolation: str = "bilinear",
        smoothing: float = 4.0,
        gallery_dtype: str = "float32",
        finest_stride: int = 1,
    ) -> None:
        super().__init__(channels, strides, finest_stride)
        require_one_of(PYRAMIDS, pyramid=pyramid)
        require_one_of(GALLERY_DTYPES, gallery_dtype=gallery_dtype)
        require_at_least(1, k=k, kappa=kappa)
        self.k = k
        self.kappa = kappa
        self.pool_layers = self._positions("pool_layers", pool_layers)
        self.map_layers = self._positions("map_layers", range(len(self.layers)) if map_layers is None else map_layers)
        self.pyramid = pyramid
        self.interpolation = interpolation
        self.smoothing = smoothing
        self.gallery_dtype: torch.dtype = getattr(torch, gallery_dtype)
        self.fitted_buffers = ("pooled",)
        self.register_buffer("pooled", torch.empty(0))
        #: Patches (N, P_l, C_l) of each map layer, row by row of each image.
        self.gallery_names = [f"gallery_{layer}" for layer in self.map_layers]
        for name in self.gallery_names:
            self.register_buffer(name, torch.empty(0))
        self.register_buffer("images", torch.empty(0), persistent=False)  # (N,) index of each image of the gallery
        self.averages = Rows("cpu", unique=True)  # (sum of the pooled C_l,) of each image
        self.galleries = Spooled(self.gallery_dtype)  # (P_l, C_l) of each image, for each map layer

    def _positions(self, name: str, layers: Sequence[int]) -> list[int]:
        number = len(self.layers)
        if not layers or any(not -number <= layer < number for layer in layers):
            raise ConfigError(f"{name}={list(layers)} but there are {number} feature maps: choose from 0..{number - 1}")
        return sorted({layer % number for layer in layers})

    def pool(self, features: list[Tensor]) -> Tensor:
        """Global averages (B, sum C_l) of the maps (B, C_l, h_l, w_l) that retrieve."""
        maps = self.select(features)
        return torch.cat([self.region.average(maps[i]) for i in self.pool_layers], dim=1).float()

    def maps(self, features: list[Tensor]) -> list[Tensor]:
        """The maps (B, C_l, h_l, w_l) that localise."""
        selected = self.select(features)
        return [selected[i] for i in self.map_layers]

    @torch.no_grad()
    def update(self, features: list[Tensor], index: Tensor) -> None:
        """Write one batch to the gallery."""
        patches = [feature.flatten(2).mT.to(self.gallery_dtype) for feature in self.maps(features)]  # (B, P_l, C_l)
        if self.gallery_dtype == torch.float16 and not all(p.isfinite().all() for p in patches):
            raise DataError("features exceed the range of float16: set model.gallery_dtype=float32")
        self.galleries.add(index, *patches)
        self.averages.add(index, self.pool(features))

    def allocate(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A gallery lies in a file on every rank that computes on a CPU."""
        if name in self.gallery_names and self.fitted.device.type == "cpu":
            return Spool(shape[1:], dtype).allocate(shape[0])
        return super().allocate(name, shape, dtype)

    @torch.no_grad()
    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Put the gallery in the order of the dataset.

        Raises:
            DataError: there is no image.
            ConfigError: the gallery has fewer than `k` images.
        """
        if not len(self.averages):
            raise DataError("SPADE needs at least 1 good image, it was given 0: add images")
        images, pooled = self.averages.take()
        self._require_images(len(images))
        self._require_patches([spool.shape[0] for spool in self.galleries.spools])
        device = self.fitted.device
        self.pooled, self.images = pooled.to(device), images.to(device)
        _, *galleries = self.galleries.take()
        for number, (name, gallery) in enumerate(zip(self.gallery_names, galleries, strict=True), start=1):
            setattr(self, name, gallery.to(device))
            progress(number, len(galleries), "mapping the gallery")
        self.finish()

    def _require_images(self, count: int) -> None:
        if self.k > count:
            raise ConfigError(
                f"k={self.k} images to retrieve but the gallery has {count}: choose model.k from 1..{count}"
            )

    def _require_patches(self, patches: Sequence[int]) -> None:
        most = self.k * (min(patches) if self.pyramid == "sum" else max(patches))
        if self.kappa > most:
            raise ConfigError(
                f"kappa={self.kappa} nearest patches but k={self.k} images give only {most} patches of a map: "
                f"choose model.kappa from 1..{most}"
            )

    def forward(self, features: list[Tensor], image_size: tuple[int, int]) -> Prediction:
        """Mean distance to the retrieved images; summed distances of every patch to the nearest of theirs."""
        self.require_fitted()
        return self._predict(
            features, image_size, *nearest(self.pool(features), self.pooled, self.k, metric=self.distance)
        )

    def score_left_out(self, features: list[Tensor], index: Tensor, image_size: tuple[int, int]) -> Prediction:
        """As `forward` with the gallery without the image itself."""
        self.require_fitted()
        gallery = NearestIndex(self.pooled, self.distance, num_queries=len(index))
        rows = torch.searchsorted(self.images, index.to(self.images.device))
        found = [
            gallery.search(query[None], self.k, without=row[None])
            for query, row in zip(self.pool(features), rows, strict=True)
        ]
        distances, retrieved = (torch.cat(parts) for parts in zip(*found, strict=True))  # (B, k) both
        return self._predict(features, image_size, distances, retrieved)

    def _predict(
        self, features: list[Tensor], image_size: tuple[int, int], distances: Tensor, retrieved: Tensor
    ) -> Prediction:
        """Score and map from the distances (B, k) to the images retrieved (B, k)."""
        maps = self.maps(features)
        levels = [[i] for i in range(len(maps))] if self.pyramid == "sum" else [list(range(len(maps)))]
        total = torch.zeros((), device=distances.device)
        for level in levels:
            if torch.compiler.is_exporting():
                scores = self._plain_scores([maps[i] for i in level], level, retrieved)
                total = total + anomaly_map(scores, image_size, self.smoothing, self.interpolation)
                continue
            scores = torch.stack(
                [
                    self._patch_scores([maps[i][b : b + 1] for i in level], level, rows)
                    for b, rows in enumerate(retrieved.tolist())
                ]
            )  # (B, h, w)
            total = total + anomaly_map(scores, image_size, self.smoothing, self.interpolation)  # (B, 1, H, W)
        return Prediction(distances.mean(1), self.region.cut(total))

    def image_score(self, features: list[Tensor], image_size: tuple[int, int]) -> Tensor:
        """Mean distance (B,) to the retrieved images; the maps are what takes long."""
        self.require_fitted()
        return nearest(self.pool(features), self.pooled, self.k, metric=self.distance)[0].mean(1)

    def _patch_scores(self, maps: list[Tensor], level: list[int], rows: list[int]) -> Tensor:
        """Distances (h, w) of one image's patches in `maps` [(1, C_l, h_l, w_l)] to those of the images `rows`."""
        joined = join(maps)  # (1, C, h, w); the one map itself where the pyramid is not joined
        grid = joined.shape[-2:]
        galleries = [getattr(self, self.gallery_names[i]) for i in level]
        if len(level) > 1 and any(g.shape[1] != m.shape[2] * m.shape[3] for g, m in zip(galleries, maps, strict=True)):
            raise DataError(
                f"pyramid='join' but the image gives {joined.shape[2] * joined.shape[3]} patches, "
                f"the gallery {galleries[0].shape[1]}: use images of the size it was fitted with"
            )

        def unit(patches: Tensor) -> Tensor:
            return F.normalize(patches.float()) if self.distance == "cosine" else patches

        def load(image: int) -> Tensor:
            if len(level) == 1:
                return unit(self.region.take(galleries[0][rows[image]], grid))
            parts = [
                gallery[rows[image]].to(m.dtype).mT.unflatten(1, m.shape[-2:])[None]
                for gallery, m in zip(galleries, maps, strict=True)
            ]
            return unit(self.region.take(join(parts)[0].flatten(1).mT, grid))  # (P, C)

        queries = unit(self.region.take(joined[0].flatten(1).mT, grid).float().contiguous())  # (P, C)
        distances = correspondence_distances(queries, load, len(rows), self.kappa, metric=self.distance)
        return self.region.spread(distances, grid)

    def _plain_scores(self, maps: list[Tensor], level: list[int], retrieved: Tensor) -> Tensor:
        """As `_patch_scores`, (B, h, w) for a batch, whatever its values are: what can be exported."""
        joined = join(maps)  # (B, C, h, w)
        grid = joined.shape[-2:]
        queries = self.region.take(joined.flatten(2).mT, grid, dim=1)  # (B, P, C)
        least: list[Tensor] = []
        for image in retrieved.T:  # (B,)
            parts = [
                getattr(self, self.gallery_names[i])[image].float().mT.unflatten(2, m.shape[-2:])
                for i, m in zip(level, maps, strict=True)
            ]
            patches = self.region.take(join(parts).flatten(2).mT, grid, dim=1)  # (B, P, C)
            centre = patches.mean(dim=1, keepdim=True)
            # Measured on differences: see `plain_nearest`.
            near = nominated(queries - centre, patches - centre, self.kappa)  # (B, P, kappa')
            found = patches.gather(1, near.flatten(1)[:, :, None].expand(-1, -1, patches.shape[2]))
            squared = (queries[:, :, None] - found.unflatten(1, near.shape[1:])).double().square().sum(dim=3)
            squared = torch.cat([*least, squared], dim=2)
            least = [squared.topk(min(self.kappa, squared.shape[2]), dim=2, largest=False).values]
        return self.region.spread(least[0].sqrt().mean(2).float(), grid)

    def required_memory(self, shapes: Sequence[FeatureShape], num_images: int) -> tuple[int, str]:
        """The pooled vectors and the work on one image; on a GPU the gallery too, which a CPU leaves on disk.

        Raises:
            ConfigError: there are fewer than `k` images.
            ResourceError: the folder of temporary files lacks the room for the gallery.
        """
        self._require_images(num_images)
        probe = self.probe(shapes)
        gallery = probe.galleries.disk(num_images)
        Spool.require_disk(gallery, self.memory_remedy)
        levels = [spool.shape for spool in probe.galleries.spools]  # patches, channels
        if self.pyramid == "join":
            levels = [(levels[0][0], sum(channels for _, channels in levels))]
        work = max(4 * p * (2 * self.k * math.ceil(p / BLOCK) + BLOCK + 9 * channels) for p, channels in levels)
        on_gpu = self.fitted.device.type == "cuda"
        return probe.averages.required(num_images) + work + (gallery if on_gpu else 0), self.memory_remedy

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The gallery is taken as it is, not copied: a checkpoint read with mmap=True stays a mapped file.
        for name in self.gallery_names:
            stored = state_dict.get(prefix + name)
            if stored is not None:
                setattr(self, name, stored.to(self.fitted.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
