"""MuSc: images judged by each other, without any that is known to be good (arXiv 2401.16753)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from oddpatch.errors import ConfigError, DataError
from oddpatch.models.base import Detector, FeatureShape, ProgressFn, no_progress
from oddpatch.models.state import Rows
from oddpatch.ops.maps import anomaly_map
from oddpatch.types import Prediction

#: Two images are the same where no patch of one is farther than this from the other; patches are unit vectors.
SAME = 1e-3


class MuSc(Detector):
    """Mutual scoring: a patch is anomalous if it has no match in most of the other images.

    It is fitted to images of which nothing is known, most of them good, such as a test set. An image among them is
    scored by the others only.

    Args:
        channels: channels of each feature map the backbone gives.
        strides: strides of each; coarser maps are brought to the finest grid bilinearly.
        windows: sides of the neighbourhoods that patches are averaged over; the scores of all are averaged.
        share: share of the other images, the best matching, whose mean is a patch's score.
        neighbours: numbers k of images, the image itself among them, over whose scores an image's own is averaged,
            weighted by the similarity of class tokens (RsCIN); the results of all k are averaged. Empty for none.
        finest_stride: feature maps of smaller stride are left out.

    Examples:
        >>> import torch
        >>> from oddpatch.models.musc import MuSc
        >>> generator = torch.Generator().manual_seed(0)
        >>> part = torch.randn(4, 6, 6, generator=generator)  # a feature map
        >>> images = part + 0.1 * torch.randn(8, 4, 6, 6, generator=generator)
        >>> images[5, :, 3, 2] *= -3
        >>> detector = MuSc(channels=[4], strides=[8])
        >>> detector.update([images], torch.arange(8))
        >>> detector.fit()
        >>> int(detector([images], (48, 48)).score.argmax())
        5
    """

    fitted_buffers = ("gallery", "tokens", "patch_scores", "scores")
    gallery: Tensor  # (N, sum C_l, h, w)
    tokens: Tensor  # (N, C) unit vectors
    patch_scores: Tensor  # (N, h, w) of the images fitted to
    scores: Tensor  # (N,) of the images fitted to, before they are averaged over similar images

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        windows: Sequence[int] = (1, 3, 5),
        share: float = 0.3,
        neighbours: Sequence[int] = (1, 2, 3),
        finest_stride: int = 8,
    ) -> None:
        super().__init__(channels, strides, finest_stride)
        if not windows or any(side < 1 or side % 2 == 0 for side in windows):
            raise ConfigError(f"windows={list(windows)}: give odd numbers of at least 1")
        if not 0 < share <= 1 or any(k < 1 for k in neighbours):
            raise ConfigError(f"share={share} must be above 0 and up to 1, neighbours={list(neighbours)} at least 1")
        self.windows, self.best_share, self.neighbours = list(windows), share, list(neighbours)
        for name in self.fitted_buffers:
            self.register_buffer(name, torch.empty(0))
        self.held = Rows(unique=True)

    def embed(self, features: list[Tensor]) -> Tensor:
        """All layers (B, sum C_l, h, w), each image's standardised as a whole."""
        return torch.cat([F.layer_norm(m, m.shape[1:]) for m in self.aligned(features)], dim=1)

    @torch.no_grad()
    def update(self, features: list[Tensor], index: Tensor) -> None:
        """Keep the features and the class tokens of one batch."""
        self.held.add(index, self.embed(features), self.class_token(features))

    @torch.no_grad()
    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Score all images by each other.

        Raises:
            DataError: there are too few images for the share.
        """
        if int(self.best_share * (len(self.held) - 1)) < 1:
            raise DataError(f"MuSc judges images by each other, and {len(self.held)} are too few: add images")
        _, self.gallery, self.tokens = self.held.take()
        self.patch_scores = self._patch_scores(self.gallery, progress)
        self.scores = torch.cat([self._highest(part) for part in self.patch_scores.split(16)])
        self.finish()

    def neighbourhoods(self, maps: Tensor) -> Iterator[Tensor]:
        """Unit vectors (B, P, C_l) of each window and layer of maps (B, sum C_l, h, w)."""
        for side in self.windows:
            pooled = F.avg_pool2d(maps, side, stride=1, padding=side // 2) if side > 1 else maps  # zeros outside count
            for layer in pooled.split(self.channels, dim=1):
                yield F.normalize(layer.flatten(2).mT, dim=2)

    def _patch_scores(self, maps: Tensor, progress: ProgressFn = no_progress) -> Tensor:
        """Scores (B, h, w) of maps (B, sum C_l, h, w) by the images of the gallery other than they."""
        total: Tensor | float = 0.0
        same: list[Tensor] = []
        kinds = len(self.windows) * len(self.channels)
        pairs = zip(self.neighbourhoods(maps), self.neighbourhoods(self.gallery), strict=True)
        for kind, (own, others) in enumerate(pairs):
            found = []
            # Image by image: the distances take N times the room of the scores.
            parts = (own,) if torch.compiler.is_exporting() else own.split(1)
            for i, one in enumerate(parts):
                distances = torch.stack([_to_nearest(one, other) for other in others], dim=2)  # (B, P, N)
                if kind == 0:
                    same.append(distances.amax(dim=1, keepdim=True) < SAME)  # (B, 1, N)
                ranked = distances.masked_fill(same[i], torch.inf).sort(dim=2).values
                # Of the others: one fewer than the gallery holds where the image is one of it.
                # In float32: OpenVINO 2026.4 counts int64 wrongly for all but the first image of a batch.
                others_there = (~same[i]).float().sum(dim=2)
                count = (self.best_share * others_there + 1e-9).long().clamp(min=1)  # (B, 1)
                counted = torch.arange(len(self.gallery), device=maps.device) < count[..., None]  # (B, 1, N)
                found.append(ranked.masked_fill(~counted, 0).sum(dim=2) / count)
                progress(kind * len(parts) + i + 1, kinds * len(parts), "mutual scoring")
            total = total + torch.cat(found)
        assert isinstance(total, Tensor)
        return (total / kinds).unflatten(1, maps.shape[2:])

    def _scores_of(self, maps: Tensor) -> Tensor:
        """As `_patch_scores`; those of images that were fitted to, told by their features, are known."""
        if torch.compiler.is_exporting():
            return self._patch_scores(maps)
        same = torch.stack([(self.gallery - one).abs().amax(dim=(1, 2, 3)) < SAME for one in maps])  # (B, N)
        known = same.any(dim=1)
        scores = self.patch_scores[same.int().argmax(dim=1)]  # (B, h, w)
        if not known.all():
            scores[~known] = self._patch_scores(maps[~known])
        return scores

    def _highest(self, scores: Tensor) -> Tensor:
        """The largest value (B,) of the map of patch scores (B, h, w), at the size of an image of so many patches."""
        stride = self.strides[0]
        size = (scores.shape[1] * stride, scores.shape[2] * stride)
        return anomaly_map(scores, size, 0, "bilinear_corners").amax(dim=(1, 2, 3))

    def forward(self, features: list[Tensor], image_size: tuple[int, int]) -> Prediction:
        """Score a batch; the map is resized bilinearly, corner on corner, and not smoothed."""
        self.require_fitted()
        maps = self.embed(features)
        scores = self._scores_of(maps)
        heat = anomaly_map(scores, image_size, 0, "bilinear_corners")
        return Prediction(self._averaged(self._highest(scores), self.class_token(features)), heat)

    def _averaged(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """Image scores (B,), scaled to the range of the gallery's, averaged over images of similar class tokens."""
        low, high = self.scores.amin(dim=0), self.scores.amax(dim=0)
        own, others = ((s - low) / (high - low).clamp(min=1e-12) for s in (scores, self.scores))
        if not self.neighbours:
            return own
        similar = tokens @ self.tokens.mT  # (B, N)
        # An image of the gallery comes once, as itself.
        similar = similar.masked_fill((tokens[:, None] - self.tokens).norm(dim=2) < SAME, -torch.inf)
        similar = torch.cat([torch.ones_like(own)[:, None], similar], dim=1)
        known = torch.cat([own[:, None], others.expand(own.shape[0], -1)], dim=1)
        weights, found = similar.topk(min(max(self.neighbours), len(self.scores)), dim=1)
        near = known.gather(1, found)
        means = [(weights[:, :k] * near[:, :k]).sum(dim=1) / weights[:, :k].sum(dim=1) for k in self.neighbours]
        return torch.stack(means).mean(dim=0)

    def required_memory(self, shapes: Sequence[FeatureShape], num_images: int) -> tuple[int, str]:
        """The features twice while they are joined, or with the neighbourhoods made of them."""
        held, _ = super().required_memory(shapes, num_images)
        return held // 2 * (1 + 2 * len(self.windows)), "lower data.resize and data.crop, or use fewer layers"


def _to_nearest(own: Tensor, other: Tensor) -> Tensor:
    """Distance (B, P) of unit vectors (B, P, C) to the nearest of others (Q, C)."""
    nearest = (own @ other.mT).argmax(dim=2)
    return (own - other[nearest]).norm(dim=2)  # the difference, as 2 - 2 cos cancels for near ones
