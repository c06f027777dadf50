"""What a backbone costs and gives: layers, shapes, parameters, operations, speed."""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from oddpatch.backbones.base import Backbone
from oddpatch.backbones.nodes import Nodes
from oddpatch.errors import ConfigError, WeightsError
from oddpatch.files import read_yaml
from oddpatch.known import known_class, read_spec
from oddpatch.types import FeatureInfo


class Description(NamedTuple):
    """A backbone as it is built, at one image size."""

    info: FeatureInfo
    shapes: list[tuple[int, int, int]]  # (C_l, h_l, w_l)
    parameters: int
    flops: int  # of one image; a multiplication and an addition are two


def describe(backbone: Backbone, image_size: tuple[int, int]) -> Description:
    """Shapes and cost of `backbone` for one image (H, W), also of one on the meta device."""
    counter = FlopCounterMode(display=False)
    with counter:
        shapes = backbone.feature_shapes(image_size)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    return Description(backbone.info, shapes, parameters, counter.get_total_flops())


@torch.no_grad()
def images_per_second(backbone: nn.Module, image_size: tuple[int, int], batch: int = 1, seconds: float = 3.0) -> float:
    """Median speed of `backbone` on random images (batch, 3, H, W), after one batch to warm up."""
    images = torch.rand(batch, 3, *image_size, generator=torch.Generator().manual_seed(0))
    backbone(images)
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        backbone(images)
        times.append(time.perf_counter() - start)
    return batch / statistics.median(times)


def config_folder() -> Path | None:
    """configs/backbone of the working folder, or of the checkout that this package lies in; None without either."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[3]):
        if (root / "configs/backbone").is_dir():
            return root / "configs/backbone"
    return None


def settings_of(name: str) -> dict[str, Any]:
    """The settings of backbone `name`: a YAML of configs/backbone, else a model of timm with every layer.

    Raises:
        ConfigError: it is neither.
    """
    import timm

    folder = config_folder()
    path = folder / f"{name}.yaml" if folder else None
    if path is not None and path.is_file():
        settings = read_yaml(path)
        if not known_class(settings.get("_target_"), "backbone") or "name" not in settings:
            raise ConfigError(f"{path} describes no single backbone of oddpatch: show its members one by one")
        return settings
    if timm.is_model(name):
        return {"_target_": "oddpatch.backbones.timm.TimmBackbone", "name": name, "layers": "all"}
    known = (
        f"one of {', '.join(sorted(p.stem for p in folder.glob('*.yaml')))}" if folder else "configs/backbone/NAME.yaml"
    )
    where = "" if folder else " (there is no configs/backbone here: run it in the checkout)"
    raise ConfigError(f"backbone {name!r} is unknown: give {known}, or the name of a timm model{where}")


def nodes_of(name: str) -> Nodes:
    """Channels and stride of every node that gives maps, of a torchvision network, or a timm model of this name.

    Raises:
        ConfigError: it is neither, or its graph cannot be traced.
    """
    import timm
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models) and timm.is_model(name):
        from oddpatch.backbones.timm import map_nodes as of_timm

        return of_timm(name)
    from oddpatch.backbones.torchvision import map_nodes as of_torchvision

    return of_torchvision(name)


def on_meta(settings: Mapping[str, Any]) -> Backbone:
    """The backbone that `settings` describe, without any numbers in it: shapes and costs at no cost."""
    with torch.device("meta"):
        return _make(settings, weights="random", channels_last=False)


def with_weights(settings: Mapping[str, Any]) -> tuple[Backbone, str]:
    """The backbone that `settings` describe, and where its weights were found, or why they were not."""
    try:
        backbone = _make(settings)
    except WeightsError as error:
        return _make(settings, weights="random"), f"not found: {error}"
    return backbone, str(backbone.weights_origin)


def _make(settings: Mapping[str, Any], **changed: Any) -> Backbone:
    return read_spec(dict(settings), "backbone", "backbone").make(**changed)
