"""Images of a category as a torch dataset: decoded, preprocessed, with their ground truth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from oddpatch.data.alignment import Registration
from oddpatch.data.geometry import Size
from oddpatch.data.layout import Sample
from oddpatch.data.light import STATISTICS, Light
from oddpatch.data.masks import marks_background, read_mask
from oddpatch.data.transforms import Placement, Preprocess
from oddpatch.errors import ConfigError, DataError
from oddpatch.types import IGNORE, Batch
from oddpatch.wording import some

OnError = Literal["raise", "skip"]
T = TypeVar("T")

# What became of an item, as bits kept in shared memory because workers are other processes.
_SKIPPED, _EMPTY_MASK, _CROPPED_DEFECT, _MARKED_BACKGROUND = 1, 2, 4, 8


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
        # A DataLoader raises a worker's error again with the worker's traceback as its text; the last line says it all.
        name = f"{type(self).__module__}.{type(self).__name__}: "
        super().__init__(message.strip().splitlines()[-1].removeprefix(name))


class MVTecDataset(Dataset[Item | None]):
    """Samples of one split.

    The mask of an item is 1 on the defect and 0 elsewhere; 0 everywhere if the image is good; IGNORE everywhere if it
    is anomalous and has no mask, and outside the region of interest of `preprocess`.

    Args:
        samples: as `oddpatch.data.layout.scan` gives them; the position is the item's index.
        preprocess: applied to every image and mask.
        on_error: "raise" stops at an unusable file; "skip" gives None for it, and `skipped` says which.
        mask_threshold: see `oddpatch.data.masks.read_mask`.

    Raises:
        ConfigError: a setting has an unknown value.
        DataError: on access, an image or mask is unusable or they differ in size (not with "skip").
    """

    decodes = True

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
        #: What became of each item so far, in this process or its workers.
        self.outcome = torch.zeros(len(self.samples), dtype=torch.uint8).share_memory_()
        #: (N, 2) or, where images are aligned, (N, 3): `oddpatch.data.light.STATISTICS` of the items so far, likewise;
        #: -1 of any other.
        count = len(STATISTICS) if preprocess.alignment else len(Light._fields)
        self.statistics = torch.full((len(self.samples), count), -1.0, dtype=torch.float64).share_memory_()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item | None:
        """Item at `index`; None if it is unusable and `on_error` is "skip"."""
        return self.attempt(index, lambda index: self.decode(index)[0])

    def __getitems__(self, indices: Sequence[int]) -> list[Item | None]:
        """The items of a batch."""
        return [self[index] for index in indices]

    def attempt(self, index: int, load: Callable[[int], T]) -> T | None:
        """What `load` gives for `index`; None if the file is unusable and `on_error` is "skip".

        Raises:
            ItemError: the file is unusable, and `on_error` is "raise".
        """
        try:
            return load(index)
        except DataError as error:
            if self.on_error == "raise":
                raise ItemError(str(error)) from None
            self.outcome[index] |= _SKIPPED
            return None

    def decode(self, index: int) -> tuple[Item, Placement]:
        """The item at `index`, and where its mask lies.

        Raises:
            DataError: the image or its mask is unusable.
        """
        image, placement = self.preprocess.prepare(self.samples[index].path)  # (3, h, w)
        return self._placed(index, image, placement), placement

    def without_pixels(self, index: int, placement: Placement | None) -> Item:
        """The item at `index` with an image of (3, 0, 0), which is not decoded: for whoever knows its features.

        Args:
            placement: as `decode` gave it; None for an empty mask, where nothing is measured on it.
        """
        image = torch.empty(3, 0, 0)
        if placement is None:
            return self._item(index, image, torch.zeros(1, *self.preprocess.image_size, dtype=torch.uint8))
        return self._placed(index, image, placement)

    def _placed(self, index: int, image: Tensor, placement: Placement) -> Item:
        self.statistics[index] = torch.tensor(placement.statistics, dtype=torch.float64)
        return self._item(index, image, self._mask(index, placement.size, placement.registration))

    def _item(self, index: int, image: Tensor, mask: Tensor) -> Item:
        sample = self.samples[index]
        return Item(image, mask, sample.label, index, str(sample.path))

    def image(self, index: int) -> Tensor:
        """The prepared image (3, h, w) of an item that came without pixels."""
        return self.preprocess.load(self.samples[index].path)

    def collate(self, items: Sequence[Item | None]) -> Batch:
        """Stack items, all with pixels or none, without those that were skipped; with none left, B = 0."""
        kept = [item for item in items if item is not None]
        size = self.preprocess.image_size
        image, mask = torch.empty(0, 3, *size), torch.empty(0, 1, *size, dtype=torch.uint8)
        if len(kept) == 1:  # not copied: it may be large
            image, mask = kept[0].image[None], kept[0].mask[None]
        elif kept:
            image, mask = torch.stack([item.image for item in kept]), torch.stack([item.mask for item in kept])
        return Batch(
            image=image,
            mask=mask,
            label=torch.tensor([item.label for item in kept], dtype=torch.int64),
            index=torch.tensor([item.index for item in kept], dtype=torch.int64),
            path=[item.path for item in kept],
        )

    def _mask(self, index: int, original_size: Size, registration: Registration | None) -> Tensor:
        sample, region = self.samples[index], self.preprocess.roi_mask
        stored = read_mask_of(sample, original_size, self.mask_threshold)  # (H, W)
        if stored is None:
            mask = self.preprocess.uniform_mask(IGNORE if sample.label else 0, original_size, registration)
        else:
            mask = self.preprocess.mask(stored, registration)
        if region is not None:
            mask = mask.masked_fill(~region, IGNORE)
        if stored is not None:
            if marks_background(stored):
                self.outcome[index] |= _MARKED_BACKGROUND
            if not stored.any():
                self.outcome[index] |= _EMPTY_MASK
            elif not (mask == 1).any():
                self.outcome[index] |= _CROPPED_DEFECT
        return mask

    def is_skipped(self) -> Tensor:
        """(N,) bool: the items left out so far, in this process or its workers."""
        return self.outcome & _SKIPPED != 0

    def skipped(self) -> list[str]:
        """One line for each item left out so far, in this process or its workers: the file and why."""
        return [self._reason(index) for index in self._with(_SKIPPED)]

    def warnings(self) -> list[str]:
        """A line for each kind of mask that shows no defect, or a background too, of the items used so far."""
        lost = "no defect pixel is left in the part that is inspected"
        if self.preprocess.frame.fit == "crop":
            lost += "; data.crop=null inspects all of each image"
        background = (
            "more than half of the image, or of its border, counts as defect; if that is the background, rewrite the "
            "masks by `oddpatch data masks ground_truth NEW --rgb R,G,B`, the colour of the defect (0,0,0 if they are "
            "inverted), and put NEW in place of ground_truth"
        )
        found = {
            "empty mask of an anomalous image": self._with(_EMPTY_MASK),
            lost: self._with(_CROPPED_DEFECT),
            background: self._with(_MARKED_BACKGROUND),
        }
        masks = sum(sample.mask_path is not None for sample in self.samples)
        return [
            f"{len(indices)} of {masks} masks: {what} ({some(self.samples[i].mask_path for i in indices)})"
            for what, indices in found.items()
            if indices
        ]

    def _with(self, outcome: int) -> list[int]:
        return (self.outcome & outcome).nonzero().flatten().tolist()

    def _reason(self, index: int) -> str:
        # Workers leave only a flag behind; reading the few bad files again tells what was wrong.
        try:
            self.decode(index)
        except DataError as error:
            return str(error)
        return f"{self.samples[index].path}: could not be read at the time, but can be now"


class DatasetWrapper(Dataset[Any]):
    """Put around a dataset to give other items in place of its own."""

    #: Whether reading it is work for other processes.
    decodes = True

    def __init__(self, dataset: MVTecDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def collate(self, items: Sequence[Any]) -> Any:
        """As the dataset does."""
        return self.dataset.collate(items)


def read_mask_of(sample: Sample, size: Size, threshold: float = 0.0) -> Tensor | None:
    """The mask (H, W) of an image of this size, see `oddpatch.data.masks.read_mask`; None if it has none.

    Raises:
        DataError: it cannot be read, or is of another size.
    """
    if sample.mask_path is None:
        return None
    mask = read_mask(sample.mask_path, threshold)
    if tuple(mask.shape) != size:
        raise DataError(
            f"{sample.mask_path}: the mask is {mask.shape[0]}x{mask.shape[1]} pixels but its image {sample.path} is "
            f"{size[0]}x{size[1]}: save both in one size"
        )
    return mask
