"""From a config to a run that can be fitted and tested, and from a finished run to one that is tested again."""

import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from hydra.utils import get_class
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from torchmetrics import Metric

from oddpatch import factory
from oddpatch.checkpoint import write_checkpoint
from oddpatch.data.datamodule import MVTecDataModule, files_named
from oddpatch.data.layout import is_category
from oddpatch.data.walk import Walk
from oddpatch.datatools import splitting
from oddpatch.errors import CheckpointError, ConfigError, DataError
from oddpatch.hydra_entry import building
from oddpatch.hydra_entry.naming import category_name, names
from oddpatch.known import KINDS, read_spec
from oddpatch.learning import distributed
from oddpatch.learning.outcome import MODEL_KEYS
from oddpatch.learning.scoring import AnomalyModule
from oddpatch.locking import hold
from oddpatch.models.anomaly_model import AnomalyModel
from oddpatch.models.products import Products
from oddpatch.quiet import hush_lightning
from oddpatch.results.summary import print_summary
from oddpatch.settings import check_area, check_seed
from oddpatch.sweep.record import NAME as RECORD

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Has the Trainer write a checkpoint whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, or raise a `ResourceError` and leave nothing."""
        write_checkpoint(checkpoint, Path(path))


class Run(NamedTuple):
    """Everything one run needs."""

    data: MVTecDataModule
    module: AnomalyModule
    trainer: L.Trainer
    folder: Path
    #: Whether `fit` goes on from where an earlier run in the same folder was killed.
    resume: bool = False

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return (self.folder / factory.CHECKPOINT).parent.resolve()

    def save(self) -> Path:
        """Write the fitted model's checkpoint, whole or not at all."""
        path = self.folder / factory.CHECKPOINT
        with self.module.timed("save"):
            self.trainer.save_checkpoint(path)
        return path

    def fit(self) -> None:
        """Learn from the training images; what was killed goes on where it was."""
        begun = self.module.resumable(self.checkpoints, self.data) if self.resume else None
        self.trainer.fit(self.module, self.data, ckpt_path=begun, weights_only=True)

    def calibrate(self) -> None:
        """Score the good images held out of the fit, and labelled validation images: thresholds come from them."""
        if self.data.validation_parts:
            self.trainer.validate(self.module, self.data, verbose=False)

    def test(self) -> None:
        """Score the test images, measure, and write the results."""
        self.trainer.test(self.module, self.data, verbose=False)

    def summary(self, guide: bool = False) -> None:
        """Print what was measured and where the files are; with `guide` what to do next, except in a sweep's job."""
        if self.trainer.is_global_zero and self.module.is_tested:
            guide = guide and not (self.folder / RECORD).exists()
            print_summary(self.module.result, self.folder, self.module.timing, guide=guide)

    def measured(self, name: str) -> float | None:
        """The value of a metric; None if it has none."""
        return self.module.result.metrics.get(name) if self.module.is_tested else None


def build(cfg: DictConfig, images: Walk | None = None) -> Run:
    """Everything that `cfg` describes, ready to fit.

    Args:
        cfg: as `configs/train.yaml` composes it.
        images: of good parts, to train on in place of a category's; there is then nothing to test on.

    Raises:
        ConfigError, DataError, WeightsError: before anything expensive has begun.
    """
    folder = begin(cfg)
    backbone = building.make(cfg.backbone)
    multiple = math.lcm(*(math.ceil(stride) for stride in backbone.info.strides if stride))
    data = building.make(cfg.data, mean=backbone.info.mean, std=backbone.info.std, multiple=multiple)
    calibration = building.make(cfg.calibration)
    data.learns_from_defects = _class(cfg.learning._target_).learns_from_defects
    if images is not None:
        if data.learns_from_defects:
            raise ConfigError(
                "images of good parts alone cannot be learned from with gradients: give the folder of a category, with "
                "train and test in it, or set learning=one_epoch"
            )
        data.images = images
    with distributed.first_of_machine_first():
        data.prepare_data()
        if data.learns_from_defects and data.split is None:
            data.split = write_split(cfg, data, folder)
    data.setup("fit")
    check_area(calibration.min_area, data.preprocess.image_size, "calibration.min_area")
    detector = building.make(cfg.model, channels=backbone.info.channels, strides=backbone.info.strides)
    products = None
    if len(data.several) > 1 and _class(cfg.learning._target_).tells_products:
        products = Products(backbone.info.channels, backbone.info.strides, data.several)
    elif len(data.several) > 1:
        log.warning("an image that is of none of the categories is not told: that needs learning=one_epoch")
    model = AnomalyModel(data.preprocess, backbone, detector, calibration, products)
    if backbone.weights_origin == "random":
        log.warning("backbone.weights=random: the network has learned nothing, take no number of this run as a result")
    config: Any = {key: OmegaConf.to_container(cfg[key], resolve=True) for key in MODEL_KEYS}
    if data.split:
        config["data"]["split"] = str(data.split)
    for key in ("root", "split"):  # a run can be tested from anywhere, and be moved with what is in its folder
        if config["data"].get(key):
            path, home = Path(config["data"][key]).resolve(), folder.resolve()
            config["data"][key] = str(path.relative_to(home) if path.is_relative_to(home) else path)
    config["data"]["category"] = data.category
    if data.preprocess.transform is not None:
        config["data"]["transform"] = data.preprocess.transform.settings
    config["run"] = {
        **names(cfg), "category": category_name(data.category), "image_size": list(data.preprocess.image_size)
    }  # fmt: skip
    say_who_can_load(config)
    module = building.make(cfg.learning, model=model, metrics=make_metrics(cfg), config=config)
    module.divide(data)
    callbacks = module.trainer_callbacks((folder / factory.CHECKPOINT).parent.resolve())
    run = Run(data, module, build_trainer(cfg, callbacks), folder, bool(cfg.resume))
    use_cache(cfg, run)
    return run


def write_split(cfg: DictConfig, data: MVTecDataModule, folder: Path) -> Path:
    """Split both folders of each category by defect type, as the learning asks, into a manifest beside the results."""
    settings = {name: cfg.learning[name] for name in ("train_share", "validation_share", "seed")}
    base, path = data.base.resolve(), folder / "split.json"
    assigned = [
        splitting.below(one, part.relative_to(data.base))
        for part in data.folders()
        for one in splitting.split_by_share(part, **settings)
    ]
    splitting.write_split(path, assigned, base, settings, force=True)
    return path


def say_who_can_load(config: dict[str, Any]) -> None:
    """Warn of what a user composed that no checkpoint may ask for without the user's word."""
    for kind in (kind for kind in KINDS if kind in config):
        try:
            read_spec(config[kind], kind, factory.CHECKPOINT)
        except CheckpointError as error:
            log.warning("%s", error)


def rebuild(cfg: DictConfig) -> Run:
    """A finished run, ready to be tested again on the images it names or on those `cfg.data` names.

    Raises:
        CheckpointError, ConfigError, DataError: before anything expensive has begun.
    """
    if OmegaConf.is_missing(cfg, "run"):
        raise ConfigError("which run? give its folder: oddpatch eval run=outputs/FOLDER")
    folder = begin(cfg)
    trust = cfg.trust if isinstance(cfg.trust, str) else list(cfg.trust or ())
    model, about = factory.restore(Path(cfg.run), trust)
    changes: Any = OmegaConf.to_container(cfg.data, resolve=True)
    # What the run aligned to, inspected and found in its training images is in its checkpoint: they may be gone.
    found = ("align", "roi", "adapted", "full_scale")
    kept = {key: value for key, value in model.preprocess.settings().items() if key in found and value}
    kept.setdefault("full_scale", None)
    kept.setdefault("align", None)
    kept["shots"] = None  # nothing is fitted, and the folder may hold fewer images
    described = about["config"]["data"]
    if "render" in described:  # a folder that is absent is made where the user says so, not where a file does
        described = {**described, "render": None}
    settings = {**described, **kept, **changes}
    data = factory.make_known(
        read_spec(settings, "data", cfg.run, trust), mean=model.preprocess.mean, std=model.preprocess.std
    )
    data.used |= files_named(described.get("align"), described.get("roi"))
    if (images := data.base).is_dir() and not data.several and not is_category(images):
        raise DataError(
            f"{images} holds images of good parts alone, which nothing can be tested on: add +data.root=FOLDER "
            "+data.category=CATEGORY, for a category with train/good and test in it"
        )
    if data.preprocess.settings() != {**model.preprocess.settings(), "max_pixels": data.preprocess.max_pixels}:
        raise ConfigError(
            f"data gives {data.preprocess}, the run was fitted with {model.preprocess}: "
            "leave resize, crop, fit, interpolation, full_scale, align and roi as they were"
        )
    config = {**about["config"], "data": {**described, **changes}}
    config["run"] = {**config["run"], "category": category_name(data.category)}
    module = AnomalyModule(model, make_metrics(cfg), config=config)
    module.train_images = [str(data.root / name) for name in about.get("train_images", [])]
    module.num_fitted = about["num_fitted"]
    run = Run(data, module, build_trainer(cfg), folder)
    use_cache(cfg, run)
    return run


def use_cache(cfg: DictConfig, run: Run) -> None:
    """Have features looked for in the cache that `cfg.cache` describes, if it does, and kept there."""
    if not cfg.get("cache"):
        return
    from oddpatch.cache.wrapping import put_around

    put_around(building.make(cfg.cache), run.data, run.module, run.trainer)


def make_metrics(cfg: DictConfig) -> dict[str, Metric]:
    """The metrics that `cfg` lists, by name."""
    return {name: building.make(part) for name, part in (cfg.get("metrics") or {}).items() if part}


def build_trainer(cfg: DictConfig, callbacks: Sequence[L.Callback] = ()) -> L.Trainer:
    """The Trainer with the callbacks and loggers that `cfg` lists, and with further callbacks."""
    hush_lightning()
    callbacks = [*(building.make(part) for part in (cfg.get("callbacks") or {}).values() if part), *callbacks]
    loggers = [building.make(part) for part in (cfg.get("logger") or {}).values() if part]
    shows_progress = any(isinstance(callback, ProgressBar) for callback in callbacks)
    try:
        trainer = building.make(
            cfg.trainer,
            callbacks=callbacks,
            logger=loggers,
            plugins=[AtomicCheckpointIO(), *distributed.environment()],
            enable_progress_bar=shows_progress,  # Lightning would add its own
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    # Lightning's handlers only note SIGTERM and have the run end as if it had succeeded; with several devices they wait
    # for each other inside the handler; and under SLURM they save a model that is half fitted. See `oddpatch.ending`.
    trainer._signal_connector.register_signal_handlers = lambda: None
    return trainer


def _class(name: str) -> type[AnomalyModule]:
    try:
        return get_class(name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"learning: {str(error).splitlines()[0]}: is its name spelt right?") from None


def begin(cfg: DictConfig) -> Path:
    """The run's folder, held and known to be writable; the processes of a run joined and seeded."""
    seed = check_seed(cfg.seed)
    distributed.join(cfg.trainer, cfg.paths.output_dir)
    folder = Path(cfg.paths.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        hold(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}): set paths.output_dir to another folder"
        ) from error
    L.seed_everything(seed, workers=True, verbose=False)
    return folder
