"""Which of several products an image is of, for one model of all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from oddpatch.errors import DataError
from oddpatch.models.base import Detector, ProgressFn, no_progress
from oddpatch.models.state import Rows
from oddpatch.types import Prediction


class Products(Detector):
    """The product of an image is that of the good image with the most similar class token.

    How sure that is, the ratio tells: the distance to the nearest good image of that product over the distance to the
    nearest of any other product, 0 for a copy and 1 halfway between two. A defect hardly moves it; an image that is of
    none of the products is about as far from all. Above the ratio of nearly all good images, each left out, and above
    `oddpatch.metrics.good_scores.CLEAR`, an image belongs to no product.

    Args:
        channels: channels of each feature map the backbone gives.
        strides: strides of each; the deepest class token describes an image, or the mean of the deepest map.
        names: of the products, at least two.

    Attributes:
        labels: place among the names of each training image, by index; to be set before `fit`.

    Examples:
        >>> import torch
        >>> from oddpatch.models.products import Products
        >>> good = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))
        >>> good[:4, 0] += 9
        >>> good[4:, 1] += 9
        >>> products = Products(channels=[4], strides=[8], names=["bolt", "nut"])
        >>> products.labels = [0] * 4 + [1] * 4
        >>> products.update([good], torch.arange(8))
        >>> products.fit()
        >>> ratio, product = products.match([good[4:5]])
        >>> products.names[int(product)]
        'nut'
    """

    fitted_buffers = ("tokens", "source", "product", "good")
    localizes = False
    inspects_regions = True
    leaves_out_views = True
    tokens: Tensor  # (N, C) unit vectors of the good images that were fitted to
    source: Tensor  # (N,) int64, which training images they are
    product: Tensor  # (N,) int64, of which product
    good: Tensor  # (n,) float64 ascending, ratios of good images, each left out; none without calibration

    def __init__(self, channels: Sequence[int], strides: Sequence[int], names: Sequence[str]) -> None:
        super().__init__(channels, strides)
        self.names = list(names)
        self.labels: Sequence[int] = ()
        for name in self.fitted_buffers:
            self.register_buffer(name, torch.empty(0))
        self.held = Rows()

    @torch.no_grad()
    def update(self, features: list[Tensor], index: Tensor) -> None:
        """Accumulate the class tokens of one batch."""
        self.held.add(index, self.class_token(features))

    @torch.no_grad()
    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Keep all class tokens, in the order of the images.

        Raises:
            DataError: there is no image.
        """
        if not len(self.held):
            raise DataError("there is no good image of any product: add images")
        self.source, self.tokens = self.held.take()
        self.product = self.source.new_tensor([self.labels[i] for i in self.source.tolist()])
        self.good = torch.empty(0, dtype=torch.float64, device=self.tokens.device)
        self.finish()

    def match(self, features: list[Tensor], index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Ratio (B,) float32 and product (B,) int64 of images.

        Args:
            features: as the backbone gave them.
            index: (B,) training images that they are of, to be left out of the good ones.
        """
        self.require_fitted()
        cosines = F.normalize(self.class_token(features).double()) @ F.normalize(self.tokens.double()).mT
        distances = (2 - 2 * cosines).clamp(min=0).sqrt()  # (B, N), between unit vectors
        if index is not None:
            distances = distances.masked_fill(index.to(self.source.device)[:, None] == self.source, torch.inf)
        # (B, products), infinite for one whose only image is left out.
        nearest = torch.stack(
            [distances.masked_fill(self.product != i, torch.inf).amin(dim=1) for i in range(len(self.names))], dim=1
        )
        least, products = nearest.topk(2, dim=1, largest=False)  # (B, 2) both
        ratio = least[:, 0] / least[:, 1].clamp(min=torch.finfo(torch.float32).tiny)
        return ratio.float(), products[:, 0]

    def forward(self, features: list[Tensor], image_size: tuple[int, int]) -> Prediction:
        """The ratio of each image, without a map."""
        return Prediction(self.match(features)[0], None)

    def calibrate(self, ratios: Tensor) -> None:
        """Keep the ratios (n,) of good images that were left out."""
        self.good = ratios.double().to(self.tokens.device).sort().values
