"""From a config to objects and back: the one file that knows Hydra."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig, OmegaConf

from oddpatch.checkpoint import AtomicCheckpointIO, read_checkpoint
from oddpatch.data.transforms import Preprocess
from oddpatch.errors import CheckpointError, ConfigError, OddpatchError
from oddpatch.models.base import AnomalyModel
from oddpatch.module import AnomalyModule
from oddpatch.parallel import ranks
from oddpatch.quiet import hush_lightning
from oddpatch.report.summary import print_summary

log = logging.getLogger(__name__)

#: Parts of a config that say what the model is; they go into the checkpoint.
MODEL_KEYS = ("model", "backbone", "data", "calibration")
CHECKPOINT = Path("checkpoints/fitted.ckpt")


class Run(NamedTuple):
    """Everything one run needs."""

    data: Any  # MVTecDataModule
    module: AnomalyModule
    trainer: L.Trainer
    folder: Path

    def save(self) -> Path:
        """Write the fitted model's checkpoint, whole or not at all."""
        path = self.folder / CHECKPOINT
        with self.module.timed("save"):
            self.trainer.save_checkpoint(path)
        return path

    def fit(self) -> None:
        """Take in the good images and fit the detector."""
        self.trainer.fit(self.module, self.data)

    def calibrate(self) -> None:
        """Score the good images held out of the fit, and labelled validation images: thresholds come from them."""
        if self.data.validation_parts:
            self.trainer.validate(self.module, self.data, verbose=False)

    def test(self) -> None:
        """Score the test images, measure, and write the results."""
        self.trainer.test(self.module, self.data, verbose=False)

    def summary(self) -> None:
        """Print what was measured and where the files are."""
        if self.trainer.is_global_zero:
            print_summary(self.module, self.folder)


def make(part: Any, **kwargs: Any) -> Any:
    """The object that a part of a config describes; an error the user can mend comes as it was raised."""
    try:
        return instantiate(part, **kwargs)
    except InstantiationException as error:
        if isinstance(error.__cause__, OddpatchError):
            raise error.__cause__ from None
        raise


def build(cfg: DictConfig) -> Run:
    """Everything that `cfg` describes, ready to fit.

    Raises:
        ConfigError, DataError, WeightsError: before anything expensive has begun.
    """
    ranks.join(cfg.trainer, cfg.paths.output_dir)
    folder = _writable(Path(cfg.paths.output_dir))
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    backbone = make(cfg.backbone)
    data = make(cfg.data, mean=backbone.mean, std=backbone.std)
    with ranks.first_of_machine_first():
        data.prepare_data()
    data.setup("fit")
    calibration = make(cfg.calibration)
    folds = calibration.folds(len(data.train_samples))
    data.hold_out(folds, fit_too=calibration.method == "cross")
    detector = make(cfg.model, channels=backbone.channels, strides=backbone.strides)
    model = AnomalyModel(data.preprocess, backbone, detector, calibration)
    if backbone.weights_origin == "random":
        log.warning("backbone.weights=random: the network has learned nothing, take no number of this run as a result")
    config: Any = {key: OmegaConf.to_container(cfg[key], resolve=True) for key in MODEL_KEYS}
    for key in ("root", "split"):  # a run can be tested from anywhere
        if config["data"].get(key):
            config["data"][key] = str(Path(config["data"][key]).resolve())
    config["run"] = {**names(cfg), "image_size": list(data.preprocess.image_size)}
    module = AnomalyModule(model, fpr_limits=list(cfg.fpr_limits), config=config, folds=folds)
    trainer = build_trainer(cfg)
    use_cache(cfg, data, model, config["backbone"], trainer)
    return Run(data, module, trainer, folder)


def names(cfg: DictConfig) -> dict[str, Any]:
    """What people call this run: the config files that were chosen, or the classes where Hydra did not choose."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    called = {
        key: str(choices.get(key) or cfg[key]._target_.rpartition(".")[2]) for key in ("model", "backbone", "data")
    }
    return {**called, "category": cfg.data.category, "experiment": choices.get("experiment")}


def rebuild(cfg: DictConfig) -> Run:
    """A finished run, ready to be tested again on the images it names or on those `cfg.data` names.

    Raises:
        CheckpointError, ConfigError, DataError: before anything expensive has begun.
    """
    if OmegaConf.is_missing(cfg, "run"):
        raise ConfigError("which run? give its folder: python eval.py run=outputs/FOLDER")
    ranks.join(cfg.trainer, cfg.paths.output_dir)
    folder = _writable(Path(cfg.paths.output_dir))
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    model, about = restore(Path(cfg.run))
    _refuse_foreign_targets(about["config"]["data"], Path(cfg.run))
    changes: Any = OmegaConf.to_container(cfg.data, resolve=True)
    # What the run aligned to and inspected is in its checkpoint: the files may be gone.
    kept = {key: value for key, value in model.preprocess.settings().items() if key in ("align", "roi") and value}
    settings = {**about["config"]["data"], **kept, **changes}
    data = make(settings, mean=model.preprocess.mean, std=model.preprocess.std)
    if data.preprocess.settings() != model.preprocess.settings():
        raise ConfigError(
            f"data gives {data.preprocess}, the run was fitted with {model.preprocess}: "
            "leave resize, crop, interpolation, align and roi as they were"
        )
    module = AnomalyModule(model, fpr_limits=list(cfg.fpr_limits), config=about["config"])
    module.train_images = [str(data.root / name) for name in about.get("train_images", [])]
    trainer = build_trainer(cfg)
    use_cache(cfg, data, model, about["config"]["backbone"], trainer)
    return Run(data, module, trainer, folder)


def use_cache(cfg: DictConfig, data: Any, model: AnomalyModel, backbone: Any, trainer: L.Trainer) -> None:
    """Have features looked for in the cache that `cfg.cache` describes, if it does, and kept there."""
    if not cfg.get("cache"):
        return
    from oddpatch.cache.fingerprint import fingerprint

    data.cache = make(cfg.cache)
    data.cache.fingerprint = fingerprint(model, backbone, trainer.strategy.root_device)


def build_trainer(cfg: DictConfig) -> L.Trainer:
    """The Trainer with the callbacks and loggers that `cfg` lists."""
    hush_lightning()
    callbacks = [make(part) for part in (cfg.get("callbacks") or {}).values() if part]
    loggers = [make(part) for part in (cfg.get("logger") or {}).values() if part]
    shows_progress = any(isinstance(callback, ProgressBar) for callback in callbacks)
    return make(
        cfg.trainer,
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO(), *ranks.environment()],
        enable_progress_bar=shows_progress,  # Lightning would add its own
    )


def restore(folder: Path, **runtime: Any) -> tuple[AnomalyModel, dict[str, Any]]:
    """The fitted model of a finished run, and its checkpoint's description (config, versions, ...).

    Args:
        folder: of the run, or its checkpoint file.
        runtime: how to run the backbone, where that differs from the run: `engine`, `precision` or `compile`.

    Raises:
        CheckpointError: the run has no readable checkpoint, or one that asks for code outside oddpatch.
    """
    path = folder / CHECKPOINT if folder.is_dir() else folder
    content = read_checkpoint(path)
    about = content["oddpatch"]
    config = about["config"]
    for key in ("model", "backbone", "calibration"):
        _refuse_foreign_targets(config.get(key), path)
    # The weights come from the checkpoint: none are looked for, and none need to be on this machine.
    backbone = make({**config["backbone"], "weights": "random", **runtime})
    backbone.weights_origin = about["weights"]
    detector = make(config["model"], channels=backbone.channels, strides=backbone.strides)
    calibration = make(config["calibration"]) if "calibration" in config else None
    model = AnomalyModel(Preprocess(**about["preprocess"]), backbone, detector, calibration)
    state = {key.removeprefix("model."): v for key, v in content["state_dict"].items() if key.startswith("model.")}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"{path} does not fit this version of oddpatch: {reason}: train again") from error
    return model.eval(), about


def _refuse_foreign_targets(config: Any, path: Path) -> None:
    """A config read from a file may name oddpatch's own classes and nothing else: loading must not run others' code."""
    if isinstance(config, Mapping):
        target = str(config.get("_target_", "oddpatch."))
        if not target.startswith("oddpatch."):
            raise CheckpointError(f"{path} asks to call {target}: only oddpatch's own classes are built from a file")
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            _refuse_foreign_targets(part, path)


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}): set paths.output_dir to another folder"
        ) from error
    return folder
