"""What methods share that keep patches of good images, all or some of them, and score others by these."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from oddpatch.errors import ConfigError, DataError
from oddpatch.models.base import FeatureShape, PatchDetector, ProgressFn
from oddpatch.models.selectors import Selector, make_selector
from oddpatch.models.state import Rows
from oddpatch.ops.patches import join_patches


class MemoryBankDetector(PatchDetector):
    """Joins the layers into one embedding per patch, and thins the patches of all good images before the fit.

    A method writes `fit`, which begins with `take_bank`, and `score_patches`.

    Args:
        channels: channels of each feature map the backbone gives.
        strides: strides of each.
        coreset_size: most patches that are kept; None keeps all.
        selector: which of them: "random", "greedy" or "approximate_greedy" (k-center, see `PatchCore`), or a `Selector`
            of your own.
        patch_size: odd side of the neighbourhood, in positions of each layer, over which features are averaged.
        top, smoothing: see `PatchDetector`.
        seed: of everything that is drawn.
        finest_stride: feature maps of smaller stride are left out.
    """

    parts: ClassVar = {"selector": ("selector", "object")}
    fitted_buffers: tuple[str, ...] = ("memory_bank",)
    memory_bank: Tensor  # (M, D)

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        coreset_size: int | None = 2000,
        selector: str | Selector = "random",
        patch_size: int = 3,
        top: float | None = None,
        smoothing: float = 4.0,
        seed: int = 0,
        finest_stride: int = 8,
    ) -> None:
        super().__init__(channels, strides, finest_stride, smoothing, top=top)
        if coreset_size is not None and coreset_size < 1:
            raise ConfigError(f"coreset_size={coreset_size}: choose at least 1, or null for all patches")
        if patch_size < 1 or patch_size % 2 == 0:
            raise ConfigError(f"patch_size={patch_size}: choose an odd number, so that a patch has a centre")
        self.coreset_size = coreset_size
        self.selector = make_selector(selector)
        self.patch_size, self.seed = patch_size, seed
        self.dim = sum(self.channels)
        self.rows = Rows()
        self.register_buffer("memory_bank", torch.empty(0))

    def embed(self, features: list[Tensor]) -> Tensor:
        """Embeddings (B, h, w, D): the maps averaged over neighbourhoods, aligned bilinearly and joined."""
        return join_patches(self.select(features), self.patch_size, 1, "bilinear")

    def accumulate(self, patches: Tensor, index: Tensor, positions: Tensor) -> None:
        """Keep all patches."""
        self.rows.add(index.repeat_interleave(patches.shape[1]), patches.flatten(0, 1))

    def take_bank(self, generator: torch.Generator, progress: ProgressFn) -> Tensor:
        """The patches (M, D) that are kept of all that were accumulated.

        Raises:
            DataError: there is no image.
        """
        if not len(self.rows):
            raise DataError(f"{type(self).__name__} needs at least one good image, it was given none: add images")
        _, patches = self.rows.take()
        count = self.bank_size(len(patches))
        if count == len(patches):
            return patches
        return patches[self.selector(patches, count, generator=generator, progress=progress)]

    def bank_size(self, total: int) -> int:
        """How many of `total` patches are kept."""
        return total if self.coreset_size is None else min(self.coreset_size, total)

    def required_memory(self, shapes: Sequence[FeatureShape], num_images: int) -> tuple[int, str]:
        """All patches twice, while they are joined, or what is done with those that are kept."""
        rows = self.probe(shapes).rows
        total = num_images * len(rows)
        held, bank = rows.required(num_images), self.bank_size(total)
        selecting = 0 if bank == total else total * (64 if self.selector.measures else 8)
        remedy = "lower model.coreset_size or data.resize, or drop one of the backbone's layers"
        return max(held, held // 2 + selecting + 4 * bank * self.dim, self.fit_memory(bank)), remedy

    def fit_memory(self, bank: int) -> int:
        """Bytes that the fit needs with a bank of so many patches, in which those are counted."""
        return 4 * bank * self.dim
