"""Images of a category as a torch dataset: decoded, preprocessed, with their ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from oddpatch.data.decoding import read_image, read_mask
from oddpatch.data.layout import Sample
from oddpatch.data.transforms import Preprocess
from oddpatch.errors import ConfigError, DataError
from oddpatch.types import IGNORE, Batch

OnError = Literal["raise", "skip"]

# What became of an item, kept in shared memory because workers are other processes.
_SKIPPED, _EMPTY_MASK, _CROPPED_DEFECT = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Item:
    """One image with its ground truth: a `Batch` before collation."""

    image: Tensor  # (3, h, w) float32, normalised
    mask: Tensor  # (1, h, w) uint8
    label: int
    index: int
    path: str


class ItemError(DataError):
    """An item of a dataset cannot be used; one line, also when it was raised in a worker."""

    def __init__(self, message: str) -> None:
        # A DataLoader raises a worker's error anew with the worker's traceback as its text; the last line says it all.
        name = f"{type(self).__module__}.{type(self).__name__}: "
        super().__init__(message.strip().splitlines()[-1].removeprefix(name))


class MVTecDataset(Dataset[Item | None]):
    """Samples of one split.

    The mask of an item is 1 on the defect and 0 elsewhere; 0 everywhere if the image is good; IGNORE everywhere if it
    is anomalous and has no mask.

    Args:
        samples: as `oddpatch.data.layout.scan` gives them; the position is the item's index.
        preprocess: applied to every image and mask.
        on_error: "raise" stops at an unusable file; "skip" gives None for it, and `skipped` says which.
        mask_threshold: see `oddpatch.data.decoding.read_mask`.

    Raises:
        ConfigError: a setting has an unknown value.
        DataError: on access, an image or mask is unusable or they differ in size (not with "skip").
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        preprocess: Preprocess,
        on_error: OnError = "raise",
        mask_threshold: float = 0.0,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error={on_error!r} is not known: choose raise or skip")
        if not 0 <= mask_threshold < 1:
            raise ConfigError(f"mask_threshold={mask_threshold} must be at least 0 and below 1")
        self.samples = list(samples)
        self.preprocess = preprocess
        self.on_error = on_error
        self.mask_threshold = mask_threshold
        self._outcome = torch.zeros(len(self.samples), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item | None:
        """Item at `index`; None if it is unusable and `on_error` is "skip"."""
        try:
            return self._load(index)
        except DataError as error:
            if self.on_error == "raise":
                raise ItemError(str(error)) from None
            self._outcome[index] = _SKIPPED
            return None

    def _load(self, index: int) -> Item:
        sample = self.samples[index]
        image = read_image(sample.path)  # (3, H, W)
        try:
            prepared = self.preprocess(image)  # (3, h, w)
        except DataError as error:
            raise DataError(f"{sample.path}: {error}") from None
        mask = self._mask(index, (image.shape[1], image.shape[2]))  # (1, h, w)
        return Item(prepared, mask, sample.label, index, str(sample.path))

    def _mask(self, index: int, original_size: tuple[int, int]) -> Tensor:
        sample = self.samples[index]
        if sample.mask_path is None:
            return torch.full((1, *self.preprocess.image_size), IGNORE if sample.label else 0, dtype=torch.uint8)
        mask = read_mask(sample.mask_path, self.mask_threshold)  # (H, W)
        if tuple(mask.shape) != original_size:
            (mask_h, mask_w), (h, w) = mask.shape, original_size
            raise DataError(
                f"{sample.mask_path}: the mask is {mask_h}x{mask_w} pixels but its image {sample.path} is {h}x{w}: "
                "save both in one size"
            )
        prepared = self.preprocess.mask(mask)  # (1, h, w)
        if not mask.any():
            self._outcome[index] = _EMPTY_MASK
        elif not prepared.any():
            self._outcome[index] = _CROPPED_DEFECT
        return prepared

    def skipped(self) -> list[str]:
        """One line for each item left out so far, in this process or its workers: the file and why."""
        return [self._reason(index) for index in self._with(_SKIPPED)]

    def warnings(self) -> list[str]:
        """One line for each item used so far whose mask shows no defect."""
        empty = [f"{self.samples[i].mask_path}: empty mask of an anomalous image" for i in self._with(_EMPTY_MASK)]
        height, width = self.preprocess.image_size
        return empty + [
            f"{self.samples[i].mask_path}: no defect pixel is left after resizing and cropping to {height}x{width}"
            for i in self._with(_CROPPED_DEFECT)
        ]

    def _with(self, outcome: int) -> list[int]:
        return (self._outcome == outcome).nonzero().flatten().tolist()

    def _reason(self, index: int) -> str:
        # Workers leave only a flag behind; reading the few bad files again tells what was wrong.
        try:
            self._load(index)
        except DataError as error:
            return str(error)
        return f"{self.samples[index].path}: could not be read at the time, but can be now"


def collate(items: Sequence[Item | None], image_size: tuple[int, int]) -> Batch:
    """Stack items, leaving out those that were skipped; with none left, the batch has B = 0.

    Args:
        items: as `MVTecDataset` gives them.
        image_size: (h, w) of the items, needed if all were skipped.
    """
    kept = [item for item in items if item is not None]
    image, mask = torch.empty(0, 3, *image_size), torch.empty(0, 1, *image_size, dtype=torch.uint8)
    if kept:
        image, mask = torch.stack([item.image for item in kept]), torch.stack([item.mask for item in kept])
    return Batch(
        image=image,
        mask=mask,
        label=torch.tensor([item.label for item in kept], dtype=torch.int64),
        index=torch.tensor([item.index for item in kept], dtype=torch.int64),
        path=[item.path for item in kept],
    )
