"""Every method of configs/model, made for small feature maps: what the tests of the contract have in common."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from oddpatch.hydra_entry import building
from oddpatch.models.base import Detector

CONFIGS = Path(__file__).parents[1] / "configs"
METHODS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))
CHANNELS, STRIDES, SIZE = [6, 8, 10], [4, 8, 16], (64, 64)
#: What a method needs to work on so few channels and images; a new one should need nothing.
SETTINGS: dict[str, dict[str, Any]] = {
    "dfm": {"pooling": 1},
    "padim": {"num_features": 12, "smoothing": 1.0},
    "patchcore": {"coreset_ratio": 0.5, "smoothing": 1.0, "finest_stride": 4},
    "patchcore_ensemble": {
        "maps": [2, 1], "member": {"coreset_ratio": 0.5, "smoothing": 1.0, "finest_stride": 4},
    },
    "procon": {"coreset_ratio": 0.5},
    "spade": {"k": 5, "smoothing": 1.0},
    "lunar": {"coreset_size": 600, "steps": 40, "smoothing": 1.0, "finest_stride": 4},
    "pyod": {"coreset_size": 600, "smoothing": 1.0, "finest_stride": 4},
}  # fmt: skip


@cache
def config(name: str) -> Any:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=[f"model={name}"]).model


def make(name: str, channels: Any = CHANNELS, strides: Any = STRIDES, **settings: Any) -> Detector:
    changed = OmegaConf.merge(config(name), {**SETTINGS.get(name, {}), **settings})
    return building.make(changed, channels=list(channels), strides=list(strides))


def features(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> list[torch.Tensor]:
    """Structured maps: every position has its own mean, good images vary a little around it."""
    fixed = torch.Generator().manual_seed(99)
    drawn = torch.Generator().manual_seed(seed)
    maps = []
    for channels, stride in zip(CHANNELS, STRIDES, strict=True):
        shape = (channels, size[0] // stride, size[1] // stride)
        maps.append(torch.randn(shape, generator=fixed) + 0.1 * torch.randn(count, *shape, generator=drawn))
    return maps


def fit(detector: Detector, count: int = 24, batch: int = 8, order: torch.Tensor | None = None) -> Detector:
    maps = features(count)
    for index in (torch.arange(count) if order is None else order).split(batch):
        detector.update([f[index] for f in maps], index)
    detector.fit()
    return detector
