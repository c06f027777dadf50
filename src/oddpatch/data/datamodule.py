"""A category in MVTec layout as a LightningDataModule."""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from lightning import LightningDataModule
from torch import distributed
from torch.utils.data import DataLoader, Sampler

from oddpatch.data.dataset import Item, MVTecDataset, OnError, collate
from oddpatch.data.layout import Sample, scan
from oddpatch.data.transforms import Preprocess
from oddpatch.errors import ConfigError

log = logging.getLogger(__name__)


class ShardedSampler(Sampler[int]):
    """Positions rank, rank + world, ... of a dataset: every item once over all devices, none repeated to fill up.

    Ranks may therefore differ by one item, and hold none if there are fewer items than devices.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def _positions(self) -> range:
        # Asked for when iterated, as the process group may not be there yet when the loader is made.
        if distributed.is_available() and distributed.is_initialized():
            return range(distributed.get_rank(), self.length, distributed.get_world_size())
        return range(self.length)

    def __iter__(self) -> Iterator[int]:
        return iter(self._positions())

    def __len__(self) -> int:
        return len(self._positions())


class MVTecDataModule(LightningDataModule):
    """Good images to train on and labelled images to test on.

    Order is fixed and no image is dropped or repeated, so a fitted model does not depend on the loading.
    After `setup`: `train_samples`, `test_samples` and `warnings`.

    Args:
        root: folder of the categories.
        category: folder in `root`, in the layout of `oddpatch.data.layout`.
        mean: per channel, what the backbone was trained with.
        std: per channel.
        resize: see `Preprocess`.
        crop: see `Preprocess`.
        interpolation: see `Preprocess`.
        batch_size: images a batch, on each device.
        num_workers: decoding processes; "auto" for one a core, at most 8, and none on a single core.
        mask_threshold: see `oddpatch.data.decoding.read_mask`.
        on_error: what to do with an unusable file, see `MVTecDataset`.
        render: scene to render if the category's folder is absent; true for the one named like the category; false or
            None to refuse.
        render_seed: seed of the rendering.

    Raises:
        ConfigError: a setting cannot work.
        DataError: from `setup`, what `oddpatch.data.layout.scan` raises.
    """

    def __init__(
        self,
        root: str | Path,
        category: str,
        mean: Sequence[float],
        std: Sequence[float],
        resize: int | Sequence[int] | None = 256,
        crop: int | Sequence[int] | None = 224,
        interpolation: str = "bilinear",
        batch_size: int = 32,
        num_workers: int | str = "auto",
        mask_threshold: float = 0.0,
        on_error: OnError = "raise",
        render: str | bool | None = None,
        render_seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be at least 1")
        self.root = Path(root)
        self.category = category
        self.preprocess = Preprocess(resize, crop, mean, std, interpolation)
        self.batch_size = batch_size
        self.num_workers = _workers(num_workers)
        self.mask_threshold = mask_threshold
        self.on_error: OnError = on_error
        self.scene = category if render is True else render or None
        self.render_seed = render_seed
        self.train_samples: list[Sample] = []
        self.test_samples: list[Sample] = []
        self.warnings: list[str] = []
        # Made now, so that a wrong setting fails before anything is read.
        self._train, self._test = self._dataset([]), self._dataset([])

    def _dataset(self, samples: list[Sample]) -> MVTecDataset:
        return MVTecDataset(samples, self.preprocess, self.on_error, self.mask_threshold)

    def prepare_data(self) -> None:
        """Render the category if it is absent and `render` allows it."""
        folder = self.root / self.category
        if self.scene is None or folder.exists():
            return
        log.warning(
            "%s does not exist: rendering images of the scene %s there; to use your own, put them there in MVTec "
            "layout, or set data.root and data.category",
            folder,
            self.scene,
        )
        render(folder, self.scene, self.render_seed)

    def setup(self, stage: str | None = None) -> None:
        """Find the images and pair them with their masks, once."""
        if self.train_samples:
            return
        self.train_samples, self.test_samples, self.warnings = scan(self.root, self.category)
        self._train, self._test = self._dataset(self.train_samples), self._dataset(self.test_samples)
        self._log(self.warnings)

    def train_dataloader(self) -> DataLoader[Item | None]:
        """Good images, in order."""
        return self._loader(self._train)

    def test_dataloader(self) -> DataLoader[Item | None]:
        """Test images, in order."""
        return self._loader(self._test)

    def _loader(self, dataset: MVTecDataset) -> DataLoader[Item | None]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=ShardedSampler(len(dataset)),
            num_workers=self.num_workers,
            collate_fn=partial(collate, image_size=self.preprocess.image_size),
            pin_memory=torch.cuda.is_available(),
        )

    def skipped(self) -> list[str]:
        """One line for each file that was left out so far on this device (with `on_error="skip"`)."""
        return self._train.skipped() + self._test.skipped()

    def teardown(self, stage: str) -> None:
        """Say which files were left out, and which masks show no defect."""
        dataset = self._train if stage == "fit" else self._test
        skipped = dataset.skipped()
        if skipped:
            log.warning("%d of %d images were skipped:", len(skipped), len(dataset))
        for line in skipped + dataset.warnings():
            log.warning(line)

    def _log(self, lines: list[str]) -> None:
        if self.trainer is None or self.trainer.is_global_zero:
            for line in lines:
                log.warning(line)


def render(folder: Path, scene: str, seed: int) -> None:
    """Render a category into `folder`, which appears only when it is complete.

    Jobs that find the folder absent at the same time each render, with the same result, and the first to finish wins.
    """
    from rich.progress import Progress

    from oddpatch.data.rendering import render_dataset

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch, Progress() as bar:
        task = bar.add_task(f"rendering {scene}", total=None)
        rendered = Path(scratch) / folder.name

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        render_dataset(rendered, scene, seed=seed, progress=show)
        try:
            rendered.rename(folder)
        except OSError:
            if not folder.exists():
                raise


def _workers(num_workers: int | str) -> int:
    if num_workers == "auto":
        affinity = getattr(os, "sched_getaffinity", None)  # Linux only; knows of cores this process may not use
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        # A worker prepares images on one thread, which costs fewer CPU seconds than several threads on one image.
        return min(cores, 8) if cores > 1 else 0
    if not isinstance(num_workers, int) or num_workers < 0:
        raise ConfigError(f"num_workers={num_workers!r} must be auto, 0 or more")
    return num_workers
