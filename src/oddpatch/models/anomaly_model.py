"""A whole model: from preprocessed images to predictions."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from oddpatch.models.base import Detector, FeatureShape, PatchDetector
from oddpatch.models.calibration import Calibration
from oddpatch.ops.tiles import Bands, Tiling
from oddpatch.types import Prediction

if TYPE_CHECKING:
    from oddpatch.backbones.base import Backbone
    from oddpatch.data.transforms import Preprocess
    from oddpatch.metrics.good_scores import GoodScores
    from oddpatch.models.products import Products


class AnomalyModel(nn.Module):
    """Preprocessing, backbone, detector and its calibration: what is saved, predicted with and exported."""

    preprocess: "Preprocess"
    backbone: "Backbone"
    detector: Detector
    calibration: Calibration
    products: "Products | None"

    def __init__(
        self,
        preprocess: "Preprocess",
        backbone: "Backbone",
        detector: Detector,
        calibration: Calibration | None = None,
        products: "Products | None" = None,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.detector = detector
        self.calibration = calibration or Calibration()
        self.products = products
        #: How images that are too large for the backbone are cut; None for those it sees whole.
        self.tiling = Tiling(*preprocess.tiles, backbone.info.strides) if preprocess.tiles else None
        if preprocess.roi_mask is not None:
            for part in (detector, *([products] if products is not None else [])):
                part.restrict(preprocess.roi_mask[0])

    @property
    def good_scores(self) -> "GoodScores":
        """What decisions are made by, apart from the model: those of the calibration, and of several products."""
        scores, products = self.calibration.good_scores, self.products
        if products is None:
            return scores
        ratios = products.good.cpu().numpy() if scores.calibrated else scores.product_ratios
        return replace(scores, products=tuple(products.names), product_ratios=ratios)

    def features(self, images: Tensor, network: Callable[[Tensor], list[Tensor]] | None = None) -> list[Tensor]:
        """Feature maps [(B, C_l, h_l, w_l)] of preprocessed images (B, 3, H, W), in tiles if the preprocessing says so.

        Args:
            images: (B, 3, H, W).
            network: in place of the backbone with its engine.
        """
        network = network or self.backbone
        return self.tiling.run(network, images) if self.tiling else network(images)

    def features_used(self, images: Tensor | Bands) -> list[Tensor]:
        """As `features`, of images in tiles, which may come in bands; maps that the detector leaves out are empty."""
        assert self.tiling is not None
        return self.tiling.run(self.backbone, images, self._maps_used())

    def _maps_used(self) -> Collection[int] | None:
        """Numbers of the maps that this model looks at; None for all."""
        if not isinstance(self.detector, PatchDetector):
            return None  # others may look at any
        parts: list[Detector] = [self.detector, *([self.products] if self.products is not None else [])]
        return {place for part in parts for place in (*part.layers, *part.token_layers)}

    def feature_shapes(self) -> list[FeatureShape]:
        """(C_l, h_l, w_l) of every map of an image, by running the backbone on one, or on one tile."""
        size = self.preprocess.image_size
        if self.tiling is None:
            return self.backbone.feature_shapes(size)
        tile = (min(size[0], self.tiling.side), min(size[1], self.tiling.side))
        shapes = zip(self.backbone.feature_shapes(tile), self.tiling.strides, strict=True)
        return [(c, h * size[0] // tile[0], w * size[1] // tile[1]) if s else (c, h, w) for (c, h, w), s in shapes]

    def forward(self, images: Tensor) -> Prediction:
        """Score preprocessed images (B, 3, H, W)."""
        return self.detector(self.features(images), tuple(images.shape[-2:]))

    @torch.no_grad()
    def update(self, images: Tensor, index: Tensor) -> None:
        """Show preprocessed good images (B, 3, H, W) to the detector."""
        self.detector.update(self.features(images), index)
