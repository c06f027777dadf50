"""A category in MVTec layout as a LightningDataModule."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from oddpatch.data.alignment import load_alignment
from oddpatch.data.dataset import DatasetWrapper, MVTecDataset, OnError
from oddpatch.data.inspected import Inspected
from oddpatch.data.layout import (
    GOOD,
    Layout,
    Sample,
    categories,
    fingerprint,
    refuse_category,
    scan,
    scan_together,
    scan_types,
)
from oddpatch.data.loading import check_workers, fork_hazard, make_loader, workers_that_fit
from oddpatch.data.reference import Reference
from oddpatch.data.roi import load_roi
from oddpatch.data.settling import settle
from oddpatch.data.sharding import ShardedBatches
from oddpatch.data.shots import check_shots, choose
from oddpatch.data.splits import follow, take_share
from oddpatch.data.transforms import Preprocess
from oddpatch.data.views import ViewedImages, make_views
from oddpatch.data.walk import LeftOut, Walk, summary
from oddpatch.errors import ConfigError, DataError, ResourceError
from oddpatch.ops.ranks import Ranks
from oddpatch.types import Batch
from oddpatch.wording import counted, some

log = logging.getLogger(__name__)

Part = Literal["train", "calibration", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "calibration", "validation", "test")
#: `align`: the reference is chosen among the training images.
AUTO = "auto"
#: `category`: every one that `root` holds.
ALL = "all"


#: Puts something around a dataset, such as a cache of what would be computed from it.
Wrap = Callable[[MVTecDataset], DatasetWrapper]


class MVTecDataModule(LightningDataModule):
    """Good images to train on and labelled images to test on.

    Order is fixed and no image is dropped or repeated, so a fitted model does not depend on the loading.
    After `setup`: `train_samples`, `test_samples`, `validation_samples`, `left_out` and `warnings`.

    Args:
        root: folder of the categories.
        category: folder in `root`, in the layout of `oddpatch.data.layout`; for one model of several products a list of
            them, or "all" for all that are there.
        mean: per channel, what the backbone was trained with.
        std: per channel.
        resize: see `Preprocess`.
        crop: see `Preprocess`.
        fit: see `Preprocess`.
        adapted: see `Preprocess`; None finds it for the training images.
        multiple: both sides of the images become multiples of it, where they are found for the training images.
        full_scale: highest value of the sensor, of files of more than 8 bits; "auto" finds it in the training images:
            their highest value, up to 255, 1023, 4095 and so on; 255 where all are of 8 bits.
        max_pixels: see `Preprocess`.
        tiles: see `Preprocess`.
        interpolation: see `Preprocess`.
        align: reference image onto which every image is moved, or a mapping of `reference`, `method` and `min_quality`,
            see `oddpatch.data.alignment`; "auto" chooses one of the good training images, see
            `oddpatch.data.reference`, and moves no image where they do not register to each other.
        roi: mask image that is not zero where to inspect, of the size of the images (of the reference, with `align`).
        split: manifest by `oddpatch data split`, which says what is for training and what for testing.
        fold: the fold to test on, of a manifest of folds.
        shots: fit to so many good images only, chosen before anything is found in them; None for all.
        shots_seed: which of them.
        shots_rule: "block" takes the block of this number from the sorted list; "shuffle" draws them.
        transform: of the pixels of all images, see `oddpatch.data.pixels.PixelTransform`.
        views: further views of each training image to fit to, as a mapping, see `oddpatch.data.views.Views`.
        batch_size: images a batch, on each device.
        num_workers: decoding processes; "auto" for one a core, at most 8, and none on a single core.
        mask_threshold: see `oddpatch.data.masks.read_mask`.
        on_error: what to do with an unusable file, see `MVTecDataset`.
        validation: labelled images, good and defective, to set the F1-max threshold on: a folder of FOLDER/good and
            FOLDER/DEFECT_TYPE, or a share in (0, 1) of each type of the test images, which then are not tested on.
        render: scene to render if the category's folder is absent; true for the one named like the category; false or
            None to refuse.
        render_seed: seed of the rendering.
        obtain: what to say where the category's folder is absent: who offers the images, and how they are laid out.

    Raises:
        ConfigError: a setting cannot work.
        DataError: the reference or the region cannot be read; from `setup`, what `oddpatch.data.layout.scan` raises.

    Examples:
        >>> from oddpatch.data.datamodule import MVTecDataModule
        >>> data = MVTecDataModule("data", "tile", mean=[0.5] * 3, std=[0.2] * 3, resize=48, num_workers=0)
        >>> data.setup()
        >>> len(data.train_samples), len(data.test_samples)
        (6, 13)
        >>> next(iter(data.train_dataloader())).image.shape
        torch.Size([6, 3, 48, 48])
    """

    def __init__(
        self,
        root: str | Path | None,
        category: str | Sequence[str] | None,
        mean: Sequence[float],
        std: Sequence[float],
        resize: int | Sequence[int] | None = 256,
        crop: int | Sequence[int] | None = None,
        fit: str | None = None,
        adapted: Mapping[str, Sequence[int]] | None = None,
        multiple: int = 1,
        full_scale: int | str | None = "auto",
        max_pixels: int | None = None,
        tiles: Mapping[str, Any] | None = None,
        interpolation: str = "bilinear",
        align: str | Path | Mapping[str, Any] | None = None,
        roi: str | Path | None = None,
        split: str | Path | None = None,
        fold: int | None = None,
        shots: int | None = None,
        shots_seed: int = 0,
        shots_rule: str = "block",
        views: Mapping[str, Any] | None = None,
        transform: Mapping[str, Any] | None = None,
        batch_size: int = 32,
        num_workers: int | str = "auto",
        mask_threshold: float = 0.0,
        on_error: OnError = "raise",
        validation: float | str | Path | None = None,
        render: str | bool | None = None,
        render_seed: int = 0,
        obtain: str | None = None,
    ) -> None:
        super().__init__()
        if not root or not category:
            raise ConfigError(
                f"data.root={root} and data.category={category}: set the folder of the categories, and the one to use"
            )
        names = [category] if isinstance(category, str) else category
        if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
            raise ConfigError(
                f"data.category={category} is read as a number, not as a name: write it in quotes, category: 'NAME'"
            )
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"data.category={','.join(names)}: {twice[0]} is named twice: leave one out")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size={batch_size!r} must be a whole number of at least 1")
        if fold is not None and not split:
            raise ConfigError(
                f"fold={fold} is one of a manifest of folds: set data.split to the manifest, or leave fold"
            )
        check_shots(shots, shots_seed, shots_rule)
        self.shots, self.shots_seed, self.shots_rule = shots, shots_seed, shots_rule
        self.views = make_views(views)
        if roi and self.views is not None and self.views.moves:
            raise ConfigError(
                "data.views turns or flips images, which moves other parts into data.roi: leave rotations, "
                "random_rotations and flips out of data.views, or set data.roi=null"
            )
        self.root = Path(root)
        #: A list where one model is for several; `setup` spells `ALL` out.
        self.category = category if isinstance(category, str) else list(category)
        if isinstance(full_scale, str) and full_scale != "auto":
            raise ConfigError(
                f"full_scale={full_scale!r} must be auto or the highest value of the sensor, such as 4095"
            )
        self.finds_full_scale = full_scale == "auto"
        self.finds_reference = align == AUTO
        self.multiple = multiple
        self.preprocess = Preprocess(
            resize,
            crop,
            mean,
            std,
            interpolation,
            align=None if align == AUTO else load_alignment(align),
            roi=load_roi(roi),
            fit=fit,
            adapted=adapted,
            full_scale=None if isinstance(full_scale, str) else full_scale,
            max_pixels=max_pixels,
            tiles=tiles,
            transform=transform,
        )
        if self.preprocess.transform is not None and (warning := self.preprocess.transform.warning):
            log.warning("%s", warning)
        self.of_one_part = {"data.align": align, "data.roi": roi}
        #: Names of images of use that may lie beside those of the category.
        self.used = files_named(align, roi)
        self.split = Path(split) if split else None
        self.fold = fold
        self.obtain = obtain
        self.batch_size = batch_size
        self.num_workers = check_workers(num_workers)
        self.mask_threshold = mask_threshold
        self.on_error: OnError = on_error
        self.render = render
        self.render_seed = render_seed
        if isinstance(validation, float | int) and not 0 < validation < 1:
            raise ConfigError(
                f"validation={validation} must be a folder, or a share between 0 and 1 of the test images"
            )
        self.validation = validation
        self.train_samples: list[Sample] = []
        self.test_samples: list[Sample] = []
        self.validation_samples: list[Sample] = []
        self.warnings: list[str] = []
        #: What tells the category's test images from any others, wherever they lie; set by `setup`.
        self.test_set = ""
        #: The same of each of several.
        self.test_sets: dict[str, str] = {}
        #: Files and folders of the category that are not used, and why.
        self.left_out: list[LeftOut] = []
        #: Positions of the training images that are fitted to, and of those scored afterwards for the threshold.
        self.fitted: Sequence[int] = []
        self.held_out: Sequence[int] = []
        #: What to put around the dataset of a part before it is loaded.
        self.wrap: dict[Part, Wrap] = {}
        #: Makes batches of the positions to train on, of so many images on each device.
        self.train_batches: Callable[[Sequence[int], int], Sampler[list[int]]] = ShardedBatches
        #: Whether the defective images of a manifest's training part are trained on, too.
        self.learns_from_defects = False
        #: Of good parts, to train on in place of the category's; there is then nothing to test on.
        self.images: Walk | None = None
        #: How much of the area of the images is inspected; set by `setup`.
        self.inspected: Inspected | None = None
        #: What `align="auto"` found; None with another setting; set by `setup`.
        self.reference: Reference | None = None
        self._said_workers = False
        # Made now, so that a wrong setting fails before anything is read.
        self._train, self._test, self._validation = (self._dataset([]) for _ in range(3))

    def _dataset(self, samples: list[Sample]) -> MVTecDataset:
        return MVTecDataset(samples, self.preprocess, self.on_error, self.mask_threshold)

    def prepare_data(self) -> None:
        """Render the category if it is absent and `render` allows it."""
        for folder in self.folders():
            # Of several categories a scene is that of its name.
            scene = folder.name if self.render is True else self.render
            if not scene or folder.exists() or (isinstance(self.category, list) and scene != folder.name):
                continue
            log.warning(
                "%s does not exist: rendering images of the scene %s there; to use your own, put them there in MVTec "
                "layout, or set data.root and data.category",
                folder,
                scene,
            )
            render(folder, scene, self.render_seed)

    def folders(self) -> list[Path]:
        """Of the category, or of each of several; `ALL` is spelt out now.

        Raises:
            DataError: there are none.
        """
        if self.category == ALL and not (self.root / ALL).is_dir() and self.images is None:
            self.category = categories(self.root)
            if not self.category:
                raise DataError(
                    f"data.category={ALL}: {self.root} holds no folder with train/{GOOD} in it: point data.root at the "
                    "categories"
                )
        return [self.root / name for name in ([self.category] if isinstance(self.category, str) else self.category)]

    @property
    def several(self) -> list[str]:
        """The categories where one model is for several of them; else none. After `setup`."""
        return self.category if isinstance(self.category, list) else []

    @property
    def base(self) -> Path:
        """The folder that holds all images: that of the category, or of the categories."""
        return self.root if isinstance(self.category, list) else self.root / self.category

    def setup(self, stage: str | None = None) -> None:
        """Find the images and pair them with their masks, once."""
        if self.train_samples:
            return
        found = self._scan()
        self.train_samples, self.test_samples, self.warnings = found.train, found.test, found.warnings
        self.left_out = [*found.left_out]
        if self.shots is not None:
            self._choose_shots(self.shots)
        if (views := self.views) is not None:
            if self.learns_from_defects:
                raise ConfigError(
                    "data.views is for methods that learn without gradients: set learning.augment instead"
                )
            self.wrap["train"] = lambda dataset: ViewedImages(dataset, views)
        self.validation_samples = [*found.validation]
        if self.validation and self.validation_samples:
            raise ConfigError(f"{self.split} names the validation images: set data.validation=null")
        if isinstance(self.validation, float | int):
            self.validation_samples, self.test_samples = take_share(self.test_samples, self.validation)
        elif self.validation:
            validation = scan_types(self.validation)
            self.validation_samples = validation.test
            self.warnings += validation.warnings
            self.left_out += validation.left_out
        self._settle()
        self._train, self._test = self._dataset(self.train_samples), self._dataset(self.test_samples)
        self._validation = self._dataset(self.validation_samples)
        self.fitted = range(len(self.train_samples))
        for line in self.warnings:
            self._say(logging.WARNING, "%s", line)

    def _choose_shots(self, shots: int) -> None:
        if self.learns_from_defects:
            raise ConfigError(f"data.shots={shots} is for methods that learn from good images alone: set it to null")
        everything = self.train_samples
        apart = [[sample for sample in everything if sample.category == name] for name in self.several or [""]]
        self.train_samples = [
            sample for part in apart for sample in choose(part, shots, self.shots_seed, self.shots_rule)
        ]
        names = some([sample.path.name for sample in self.train_samples], 8)
        self._say(logging.INFO, "data.shots=%d: fitted to %s of %d good images", shots, names, len(everything))

    def _settle(self) -> None:
        """Settle what the settings leave to the training images, and say what was found."""
        settled = settle(
            self.preprocess, self.train_samples, (*self.test_samples, *self.validation_samples),
            full_scale=self.finds_full_scale, reference=self.finds_reference, multiple=self.multiple,
        )  # fmt: skip
        self.inspected, self.reference = settled.inspected, settled.reference
        self.warnings += settled.warnings
        for line in settled.said:
            self._say(logging.INFO, "%s", line)

    def _scan(self) -> Layout:
        if self.images is not None:
            samples = [Sample(path, 0, GOOD, None) for path in self.images.files]
            return Layout(samples, [], summary(self.images.left_out), self.images.left_out)
        for folder in self.folders():
            if self.obtain and not folder.is_dir() and not (self.root.is_dir() and categories(self.root)):
                refuse_category(self.root)
                raise DataError(
                    f"{folder}: no such folder: put images of good parts of your own into its train/{GOOD}, or "
                    f"{self.obtain}"
                )
        if isinstance(self.category, str):
            found = scan(self.root, self.category, self.used)
        else:
            for setting in (name for name, value in self.of_one_part.items() if value):
                raise ConfigError(
                    f"{setting} is of one part, and data.category has {len(self.category)}: set {setting}=null"
                )
            found = scan_together(self.root, self.category, self.used)
            for folder in self.folders():
                own = (sample for sample in found.test if sample.path.is_relative_to(folder))
                self.test_sets[folder.name] = fingerprint(own, folder)
            self._say(logging.INFO, "one model of %d categories: %s", len(self.category), some(self.category, 20))
        self.test_set = fingerprint(found.test, self.base)
        return follow(found, self.base, self.split, self.fold, self.learns_from_defects) if self.split else found

    def hold_out(self, folds: Sequence[int], fit_too: bool) -> None:
        """Score the good images that have a fold (0 or more) after the fit; fit to them, too, if `fit_too`."""
        self.held_out = [position for position, fold in enumerate(folds) if fold >= 0]
        self.fitted = [position for position, fold in enumerate(folds) if fold < 0 or fit_too]

    def fit_to_test_images(self) -> None:
        """Fit to the test images in place of the good ones, as images of which nothing is known.

        Raises:
            ConfigError: a number of good images was set.
        """
        if self.shots is not None:
            raise ConfigError(f"data.shots={self.shots} good images, where it is fitted to test images: set it to null")
        self.train_samples = [Sample(sample.path, 0, "", None, sample.category) for sample in self.test_samples]
        self._train = self._dataset(self.train_samples)
        self.hold_out([-1] * len(self.train_samples), fit_too=True)

    @property
    def num_views(self) -> int:
        """Views of each image that is fitted to."""
        return 1 if self.views is None else len(self.views)

    @property
    def validation_parts(self) -> list[Part]:
        """What each of the validation loaders gives: "calibration" (good images) or "validation" (labelled ones).

        While training goes on, only labelled images: it must not be chosen by those that the threshold is set on.
        """
        parts: dict[Part, Sequence[Any]] = {"calibration": self.held_out, "validation": self.validation_samples}
        state = self.trainer.state if self.trainer is not None else None
        if state and (state.status, state.fn) == (TrainerStatus.RUNNING, TrainerFn.FITTING):
            del parts["calibration"]
        return [name for name, samples in parts.items() if samples]

    def train_dataloader(self) -> DataLoader[Any]:
        """Images to fit to: good ones in order, unless the learning has other `train_batches`."""
        # All views of an image are in one batch, in their order, so that its rows come alike from any number of ranks.
        return self._loader("train", self.train_batches(self.fitted, max(1, self.batch_size // self.num_views)))

    def good_dataloader(self) -> DataLoader[Any]:
        """The good ones among the images to fit to, in order."""
        good = [position for position in self.fitted if not self.train_samples[position].label]
        return self._loader("train", ShardedBatches(good, self.batch_size))

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Refuse defective images to train on while the labels are on the CPU, which then waits for no GPU.

        Raises:
            DataError: a method that learns from good images was given another.
        """
        if self.trainer is not None and self.trainer.training and not self.learns_from_defects and batch.label.any():
            anomalous = batch.path[int(batch.label.nonzero()[0])]
            raise DataError(f"{anomalous} is among the training images but is not good: move it to test/")
        return batch

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """A loader for each of `validation_parts`."""
        return [self._loader(part) for part in self.validation_parts]

    def test_dataloader(self) -> DataLoader[Any]:
        """Test images, in order."""
        return self._loader("test")

    def _loader(self, part: Part, batches: Sampler[list[int]] | None = None) -> DataLoader[Any]:
        """A loader of a part, in order unless `batches` say otherwise."""
        dataset = {"validation": self._validation, "test": self._test}.get(part, self._train)
        if batches is None:
            batches = ShardedBatches(self.held_out if part == "calibration" else range(len(dataset)), self.batch_size)
        images = self.wrap[part](dataset) if part in self.wrap else dataset
        most = max(self.batch_size, self.num_views)
        num_workers, too_many = workers_that_fit(self.num_workers, most, self.preprocess.image_size)
        told = [line for line in (too_many, fork_hazard(num_workers)) if line]
        if told and not self._said_workers:
            self._said_workers = True
            for line in told:
                self._say(logging.WARNING, "%s", line)
        return make_loader(images, batches, num_workers)

    def skipped(self) -> list[str]:
        """One line for each file that was left out so far (with `on_error="skip"`), see `gather`."""
        return self._train.skipped() + self._validation.skipped() + self._test.skipped()

    def num_fitted(self) -> int:
        """How many images were fitted to, without those left out as unusable; after `gather`."""
        return len(self.fitted) - int(self._train.is_skipped()[list(self.fitted)].sum())

    def test_image(self, index: int) -> Tensor:
        """A prepared test image (3, h, w), for whoever was given a batch without pixels."""
        return self._test.image(index)

    def train_image(self, index: int) -> Tensor:
        """A prepared training image (3, h, w), likewise."""
        return self._train.image(index)

    def gather(self) -> None:
        """Learn of the files that other ranks left out, and of what they read; called on all of them."""
        for dataset in (self._train, self._validation, self._test):
            Ranks().maximum_(dataset.outcome)
            Ranks().maximum_(dataset.statistics)

    def train_statistics(self, index: Tensor) -> Tensor:
        """`oddpatch.data.light.STATISTICS` of training images that were read, (n, 2) or (n, 3); after `gather`."""
        return self._train.statistics[index.cpu()]

    def teardown(self, stage: str) -> None:
        """Say which files were left out, and which masks show no defect."""
        dataset = {"fit": self._train, "validate": self._validation}.get(stage, self._test)
        skipped = dataset.skipped()
        if skipped:
            log.warning("skipped %d of %s:", len(skipped), counted(len(dataset), "image"))
        for line in skipped + dataset.warnings():
            log.warning(line)

    def _say(self, level: int, message: str, *values: Any) -> None:
        if self.trainer is None or self.trainer.is_global_zero:
            log.log(level, message, *values)


def files_named(align: str | Path | Mapping[str, Any] | None, roi: str | Path | None) -> set[str]:
    """Names, without their folders, of the files that these settings of `MVTecDataModule` give."""
    reference = align.get("reference") if isinstance(align, Mapping) else align
    return {Path(f).name for f in (reference, roi) if f and f != AUTO and not str(f).startswith("data:")}


def render(folder: Path, scene: str, seed: int) -> None:
    """Render a category into `folder`, which appears only when it is complete.

    Jobs that find the folder absent at the same time each render, with the same result, and the first to finish wins.
    """
    from rich.progress import Progress

    from oddpatch.scenes import render_dataset

    with Progress() as bar:
        task = bar.add_task(f"rendering {scene}", total=None)
        try:
            render_dataset(
                folder, scene, seed=seed, progress=lambda done, total: bar.update(task, completed=done, total=total)
            )
        except (DataError, ResourceError):
            if not folder.exists():  # else another job was faster
                raise
