"""An ensemble: one detector for each of several backbones, their standardised scores averaged."""

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from oddpatch.errors import ConfigError, DataError
from oddpatch.models.base import Detector, FeatureShape, ProgressFn, no_progress
from oddpatch.models.state import Rows
from oddpatch.types import Prediction

log = logging.getLogger(__name__)


class EnsembleDetector(Detector):
    """Detectors of one kind, each on the maps of its own backbone.

    Distances of different backbones have different units. Each member's scores and maps are therefore standardised by
    the mean and the standard deviation they have on held-out good training images, which the member was not fitted to:
    on its own training images a memory bank gives distances near zero. The PatchCore authors' code scales by the
    smallest and largest value over the test set instead; nothing of the test set is looked at here.

    Args:
        channels: channels of each map of an `oddpatch.backbones.ensemble.EnsembleBackbone`.
        strides: their strides.
        maps: how many of these maps each backbone gives, in their order; None where the strides of each backbone's maps
            rise, so that they tell where the next begins.
        member: makes a detector when called with `channels` and `strides` (in a config: `_partial_: true`).
        holdout: share of the good training images that are held out: every (1 / holdout)-th of them.

    Raises:
        ConfigError: `maps` do not add up, or another setting cannot work.

    Examples:
        >>> import torch
        >>> from functools import partial
        >>> from oddpatch.models.ensemble import EnsembleDetector
        >>> from oddpatch.models.patchcore import PatchCore
        >>> generator = torch.Generator().manual_seed(0)
        >>> good = [torch.randn(10, channels, 6, 6, generator=generator) for channels in (4, 8)]  # of two backbones
        >>> detector = EnsembleDetector([4, 8], [8, 8], maps=[1, 1], member=partial(PatchCore, coreset_ratio=0.5))
        >>> detector.update(good, torch.arange(10))
        >>> detector.fit()
        >>> detector(good, (48, 48)).score.shape
        torch.Size([10])
    """

    parts: ClassVar = {"member": ("model", "maker")}
    fitted_buffers = ("center", "scale")
    center: Tensor  # (members, 2) mean of the scores, and of the maps, of held-out good images
    scale: Tensor  # (members, 2) their standard deviation

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        maps: Sequence[int] | None,
        member: Callable[..., Detector],
        holdout: float = 0.2,
    ) -> None:
        super().__init__(channels, strides)
        maps = _group(strides) if maps is None else maps
        if sum(maps) != len(channels) or min(maps, default=0) < 1:
            raise ConfigError(
                f"maps={list(maps)} but the backbones give {len(channels)} maps of strides {list(strides)}: "
                "set how many of them each backbone gives"
            )
        if not 0 < holdout <= 0.5:
            raise ConfigError(f"holdout={holdout}: choose above 0 and up to 0.5")
        self.maps = list(maps)
        self.holdout = holdout
        self.period = round(1 / holdout)
        starts = [sum(self.maps[:i]) for i in range(len(self.maps))]
        self.members = nn.ModuleList(
            member(channels=channels[start : start + count], strides=strides[start : start + count])
            for start, count in zip(starts, self.maps, strict=True)
        )
        self.localizes = all(detector.localizes for detector in self.detectors)
        self.register_buffer("center", torch.empty(0))
        self.register_buffer("scale", torch.empty(0))
        self.inspects_regions = all(detector.inspects_regions for detector in self.detectors)
        self.held_out = Rows()  # maps [(C_l, h_l, w_l)] of each image

    def restrict(self, mask: Tensor) -> None:
        """See `Detector.restrict`: for every member."""
        super().restrict(mask)
        for detector in self.detectors:
            detector.restrict(mask)

    @property
    def detectors(self) -> list[Detector]:
        """The members."""
        return list(self.members)  # type: ignore[arg-type]

    def split(self, features: list[Tensor]) -> list[list[Tensor]]:
        """The maps of each member."""
        parts = iter(features)
        return [[next(parts) for _ in range(count)] for count in self.maps]

    @torch.no_grad()
    def update(self, features: list[Tensor], index: Tensor) -> None:
        """Give every member its maps of the images that are not held out."""
        held_out = self._is_held_out(index).to(features[0].device)  # (B,)
        if held_out.any():
            self.held_out.add(index[held_out.to(index.device)], *[feature[held_out] for feature in features])
        if held_out.all():
            return
        kept = index[~held_out.to(index.device)]
        for detector, maps in zip(self.detectors, self.split(features), strict=True):
            detector.update([feature[~held_out] for feature in maps], kept)

    @torch.no_grad()
    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Fit every member, then standardise on the images held out.

        Raises:
            DataError: fewer than two images are held out.
        """
        self._require_held_out(len(self.held_out))
        _, *maps = self.held_out.take()
        center, scale = [], []
        for number, detector in enumerate(self.detectors):
            detector.fit(progress)
            scored = [self._score(number, list(image)) for image in zip(*(m.split(1) for m in maps), strict=True)]
            values = [torch.cat(part).double() for part in zip(*scored, strict=True)]  # (n,), (n * H * W,)
            center.append(torch.stack([value.mean() for value in values]))
            scale.append(torch.stack([value.std() for value in values]))
        self.center, self.scale = torch.stack(center).float(), torch.stack(scale).float()  # (members, 2) both
        if not (self.scale > 0).all():
            log.warning("all held-out good images score the same: where they do, distances are not scaled")
            self.scale = self.scale.where(self.scale > 0, 1.0)
        self.finish()

    def _require_held_out(self, count: int) -> None:
        if count < 2:
            more = ", or set model.holdout=0.5" if self.holdout < 0.5 else ""
            raise DataError(
                f"an ensemble standardises on held-out good images, and holdout={self.holdout} leaves "
                f"{count} of them: add good images{more}"
            )

    def _score(self, number: int, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Score (1,) and map values (H*W,) that a member gives one held-out image; without a map, the score twice."""
        maps = self.split(features)[number]
        stride = self.detectors[number].strides[0]
        finest = self.detectors[number].select(maps)[0]
        # The size of the image itself is not known here; for sizes that the stride divides it is this.
        size = (finest.shape[2] * stride, finest.shape[3] * stride)
        score, anomaly_map = self.detectors[number](maps, size)
        return score, score if anomaly_map is None else self.region.values(anomaly_map)

    def forward(self, features: list[Tensor], image_size: tuple[int, int]) -> Prediction:
        """Mean of the members' standardised scores, and of their standardised maps."""
        self.require_fitted()
        parts = zip(self.detectors, self.split(features), strict=True)
        return self._combine([detector(part, image_size) for detector, part in parts])

    def score_left_out(self, features: list[Tensor], index: Tensor, image_size: tuple[int, int]) -> Prediction:
        """As `forward`, an image that the members were fitted to being left out of each.

        Those that the members' scores are standardised on were not fitted to; the standardisation itself stays.
        """
        self.require_fitted()
        new = self._is_held_out(index).to(features[0].device)  # (B,)
        known = index[~new.to(index.device)]
        predictions = []
        for detector, part in zip(self.detectors, self.split(features), strict=True):
            of_new = detector([maps[new] for maps in part], image_size) if new.any() else None
            of_known = detector.score_left_out([m[~new] for m in part], known, image_size) if len(known) else None
            predictions.append(_interleave(of_new, of_known, new))
        return self._combine(predictions)

    def _is_held_out(self, index: Tensor) -> Tensor:
        return index % self.period == self.period - 1

    def _combine(self, predictions: Sequence[Prediction]) -> Prediction:
        scores, maps = [], []
        for i, (score, anomaly_map) in enumerate(predictions):
            scores.append((score - self.center[i, 0]) / self.scale[i, 0])
            if anomaly_map is not None:
                maps.append((anomaly_map - self.center[i, 1]) / self.scale[i, 1])
        mean_map = self.region.cut(torch.stack(maps).mean(0)) if self.localizes else None  # (B, 1, H, W)
        return Prediction(torch.stack(scores).mean(0), mean_map)

    def required_memory(self, shapes: Sequence[FeatureShape], num_images: int) -> tuple[int, str]:
        """What the members need for the images they are fitted to, and the maps of those held out.

        Raises:
            DataError: fewer than two images will be held out.
        """
        held_out = num_images // self.period
        self._require_held_out(held_out)
        starts = [sum(self.maps[:i]) for i in range(len(self.maps))]
        parts = [
            detector.required_memory(shapes[start : start + count], num_images - held_out)
            for detector, start, count in zip(self.detectors, starts, self.maps, strict=True)
        ]
        # Twice: they are joined before the members are fitted.
        maps = 2 * held_out * sum(4 * channels * height * width for channels, height, width in shapes)
        remedy = parts[0][1].replace("model.", "model.member.") + ", or lower model.holdout"
        return maps + sum(needed for needed, _ in parts), remedy


def _interleave(chosen: Prediction | None, others: Prediction | None, where: Tensor) -> Prediction:
    """The predictions of a batch, of which `where` (B,) says which are `chosen`; None stands for none."""
    parts = [(mask, part) for mask, part in ((where, chosen), (~where, others)) if part is not None]
    first = parts[0][1]
    score = first.score.new_empty(len(where))
    maps = None if first.anomaly_map is None else first.anomaly_map.new_empty(len(where), *first.anomaly_map.shape[1:])
    for mask, part in parts:
        score[mask] = part.score
        if maps is not None and part.anomaly_map is not None:
            maps[mask] = part.anomaly_map
    return Prediction(score, maps)


def _group(strides: Sequence[int]) -> list[int]:
    """How many maps each backbone gives, if the strides of its maps rise."""
    # A class token, of stride 0, belongs to the backbone of the maps before it.
    starts = [i for i, s in enumerate(strides) if i == 0 or (s and (not strides[i - 1] or s <= strides[i - 1]))]
    return [stop - start for start, stop in pairwise([*starts, len(strides)])]
