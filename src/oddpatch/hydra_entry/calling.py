"""Composing from Python what `train.py` and `eval.py` compose from the command line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from numbers import Real
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from oddpatch.errors import ConfigError
from oddpatch.hydra_entry.composition import CONFIGS, explain, is_of_composition
from oddpatch.hydra_entry.overrides import quoted


@contextmanager
def composed(name: str, settings: Mapping[str, Any], folder: Path) -> Iterator[DictConfig]:
    """A composed config, with Hydra's own settings in force while the block runs; what was in force before comes back.

    The config and its settings are written to `.hydra` in `folder`, as Hydra does for a program.

    Args:
        name: of the primary config: "train" or "eval".
        settings: by their names in the config, groups too; None is null.
        folder: of the run.

    Raises:
        ConfigError: there is no such setting or choice.
    """
    overrides = [f"{key}={_written(value)}" for key, value in settings.items()]
    before = {kind: Singleton._instances.pop(kind, None) for kind in (GlobalHydra, HydraConfig)}
    try:
        try:
            with initialize_config_dir(str(CONFIGS), version_base="1.3", job_name=name):
                whole = compose(name, overrides, return_hydra_config=True)
        except Exception as error:
            if not is_of_composition(error):
                raise
            raise ConfigError(explain(error, overrides, CONFIGS, name)) from error
        with read_write(whole.hydra.runtime):
            whole.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(whole)
        cfg = deepcopy(whole)
        with open_dict(cfg):
            del cfg["hydra"]
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, folder / ".hydra/config.yaml")
        OmegaConf.save(OmegaConf.masked_copy(whole, "hydra"), folder / ".hydra/hydra.yaml")
        OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra/overrides.yaml")
        yield cfg
    finally:
        for kind, instance in before.items():
            Singleton._instances.pop(kind, None)
            if instance is not None:
                Singleton._instances[kind] = instance


def _written(value: Any) -> str:
    """A value in Hydra's grammar, which is read as what it is."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_written, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, Real) else quoted(str(value))
