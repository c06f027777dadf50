"""What people call a run."""

from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


def names(cfg: DictConfig) -> dict[str, Any]:
    """What people call a run: the config files that were chosen, or the classes where Hydra did not choose."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    called = {
        key: str(choices.get(key) or cfg[key]._target_.rpartition(".")[2]) for key in ("model", "backbone", "data")
    }
    if cfg.learning._target_ == "oddpatch.learning.zero_shot.ZeroShot":
        called["model"] += " (zero-shot)"  # its numbers are not to be compared with those of others
    return {**called, "category": category_name(cfg.data.category), "experiment": choices.get("experiment")}


def category_name(category: Any) -> Any:
    """A category, or several of one model: "bottle+screw"."""
    return category if isinstance(category, str) or category is None else "+".join(map(str, category))
