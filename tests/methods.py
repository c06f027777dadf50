"""Every method of configs/model, made for small feature maps: what the tests of the contract have in common.

A new one is found by its YAML; where that chooses `learning=supervised`, it is trained on planted defects.
"""

from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class
from omegaconf import OmegaConf

from oddpatch.hydra_entry import building
from oddpatch.models.base import Detector
from oddpatch.models.trainable import TrainableDetector
from oddpatch.types import Batch

D = TypeVar("D", bound=Detector)
T = TypeVar("T", bound=TrainableDetector)
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
        return compose("train", overrides=[f"model={name}"])


def detector_class(name: str) -> Any:
    """The class of a method, of an ensemble that of its members."""
    written: Any = OmegaConf.load(CONFIGS / f"model/{name}.yaml")  # composing them all takes each process two seconds
    written = written.get("model", written)
    return get_class((config(name).model.member if "member" in written else written)._target_)


#: Those that are fitted to good images in one epoch: what is promised of `update` and `fit` is promised by them.
FITTED = [name for name in METHODS if not issubclass(detector_class(name), TrainableDetector)]


#: Those that inspect a region of interest alone, ensembles where their members do; the others refuse one.
INSPECTING_REGIONS = [name for name in FITTED if detector_class(name).inspects_regions]

#: Those that can leave an image out of what they were fitted to, ensembles where their members can.
LEAVING_OUT = [name for name in METHODS if detector_class(name).score_left_out is not Detector.score_left_out]


def make(name: str, channels: Any = CHANNELS, strides: Any = STRIDES, **settings: Any) -> Detector:
    changed = OmegaConf.merge(config(name).model, OmegaConf.create({**SETTINGS.get(name, {}), **settings}))
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


def fit(detector: D, count: int = 24, batch: int = 8, order: torch.Tensor | None = None) -> D:
    if isinstance(detector, TrainableDetector):
        return learn(detector, count)
    maps = features(count)
    for index in (torch.arange(count) if order is None else order).split(batch):
        detector.update([f[index] for f in maps], index)
    detector.fit()
    return detector


def plant(maps: list[torch.Tensor], row: int, column: int) -> None:
    """Shift the features of all images in one cell of the coarsest map, and of what the finer ones have there."""
    for feature, stride in zip(maps, STRIDES, strict=True):
        side = STRIDES[-1] // stride
        feature[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side] += 2.0


def learn(detector: T, count: int) -> T:
    """Train on as many good images as ones with a defect, a quarter of them in each of four cells."""
    given = [features(count)]
    for k in range(4):
        given.append(features(count // 4, seed=10 + k))
        plant(given[-1], k, (3 * k + 1) % 4)
    maps = [torch.cat(parts) for parts in zip(*given, strict=True)]
    label = (torch.arange(len(maps[0])) >= count).long()
    mask = torch.zeros(len(label), 1, *SIZE, dtype=torch.uint8)
    batch = Batch(torch.empty(len(label), 3, *SIZE), mask, label, torch.arange(len(label)), [""] * len(label))
    name = next(n for n in METHODS if config(n).model._target_.endswith(f".{type(detector).__name__}"))
    criterion = building.make(config(name).learning.loss)
    optimizer = torch.optim.Adam(detector.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        detector.loss(maps, batch, criterion).backward()
        optimizer.step()
    detector.fit()
    return detector.requires_grad_(False)
