"""Training images for learning by gradients: in a new order and altered in every epoch, both from a seed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from oddpatch.data.dataset import DatasetWrapper, Item, MVTecDataset
from oddpatch.errors import ConfigError
from oddpatch.ops.ranks import Ranks


def derive(*numbers: int) -> int:
    """A seed from several numbers: other numbers, another seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class Shuffle(Sampler[int]):
    """The order of an epoch, which depends on the seed and the epoch only: so a run that is resumed goes on the same.

    Lightning calls `set_epoch`.
    """

    def __init__(self, positions: Sequence[int], seed: int) -> None:
        self.positions, self.seed, self.epoch = positions, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Have the order be that of `epoch`."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.positions))
        return iter([self.positions[place] for place in order.tolist()])

    def __len__(self) -> int:
        return len(self.positions)


class ShuffledBatches(Sampler[list[int]]):
    """Every position once an epoch, in batches that differ by one image at most.

    Together, the batches of all ranks are what one device would see in batches as many times as large.

    Raises:
        ConfigError: on iteration, fewer images than devices.
    """

    def __init__(self, sampler: Shuffle, batch_size: int) -> None:
        self.sampler, self.batch_size = sampler, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        ranks = Ranks()
        for together in np.array_split(np.array(list(self.sampler)), len(self)):
            yield together[ranks.rank :: ranks.size].tolist()

    def __len__(self) -> int:
        count, size = len(self.sampler), Ranks().size
        if count < size:
            raise ConfigError(f"{count} training images are too few for {size} devices: lower trainer.devices")
        # Never so many that a rank has nothing to do in one of them.
        return min(-(-count // (self.batch_size * size)), count // size)


class AugmentedImages(DatasetWrapper):
    """Images and their masks altered together; what is drawn depends on seed, epoch and index only.

    Args:
        dataset: of the training images.
        transforms: of `torchvision.transforms.v2`, applied to RGB images (3, h, w) in [0, 1]; none may change the size.
        shuffle: knows seed and epoch.
    """

    def __init__(self, dataset: MVTecDataset, transforms: Sequence[Any], shuffle: Shuffle) -> None:
        super().__init__(dataset)
        self.shuffle = shuffle
        self.transform = v2.Compose(list(transforms))
        preprocess = dataset.preprocess
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (preprocess.mean, preprocess.std))

    def __getitems__(self, indices: Sequence[int]) -> list[Item | None]:
        """The items of a batch."""
        return [item and self._alter(item) for item in self.dataset.__getitems__(indices)]

    def _alter(self, item: Item) -> Item:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.shuffle.seed, self.shuffle.epoch, item.index))
            rgb: Tensor = tv_tensors.Image(item.image * self.std + self.mean)
            rgb, mask = self.transform(rgb, tv_tensors.Mask(item.mask))
        if rgb.shape != item.image.shape:
            raise ConfigError(
                f"learning.augment makes images of {tuple(item.image.shape[1:])} pixels into {tuple(rgb.shape[1:])}: "
                "set size in it to that of the images"
            )
        return replace(
            item, image=(torch.Tensor(rgb) - self.mean) / self.std, mask=torch.as_tensor(mask).as_subclass(Tensor)
        )
