"""Several backbones as one: each gives its feature maps of the same images."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from oddpatch.backbones.base import Backbone
from oddpatch.backbones.engine import Runtime
from oddpatch.errors import ConfigError
from oddpatch.types import FeatureInfo


class EnsembleBackbone(Backbone):
    """The feature maps of several backbones, one backbone after the other, each finest first.

    Images come normalised for the first one; where another was trained with a different mean or standard deviation,
    they are renormalised for it. `oddpatch.models.ensemble.EnsembleDetector` gives each backbone a detector.

    Args:
        members: by name, what makes each backbone when called with `weights` (in a config: `_partial_: true`).
        weights: "pretrained" or "random", for all of them.
        engine, precision, compile, fold: how each of them is run, see `Runtime`.

    Raises:
        ConfigError: fewer than two members.

    Examples:
        >>> from functools import partial
        >>> from oddpatch.backbones.ensemble import EnsembleBackbone
        >>> from oddpatch.backbones.timm import TimmBackbone
        >>> members = {name: partial(TimmBackbone, name, layers=[2]) for name in ("resnet18", "mobilenetv3_large_100")}
        >>> EnsembleBackbone(members, weights="random").info.channels
        [128, 40]
    """

    #: See `oddpatch.models.base.Detector.parts`.
    parts: ClassVar = {"members": ("backbone", "makers")}

    def __init__(
        self,
        members: Mapping[str, Callable[..., Backbone]],
        weights: str = "pretrained",
        engine: str = "torch",
        precision: str = "fp32",
        compile: bool = False,
        fold: bool = True,
    ) -> None:
        super().__init__()
        if len(members) < 2:
            raise ConfigError(f"members={list(members)}: an ensemble needs at least two backbones")
        if weights not in ("pretrained", "random"):
            raise ConfigError(f"weights={weights!r}: choose pretrained or random for an ensemble")
        backbones = [member(weights=weights) for member in members.values()]
        self.members = nn.ModuleList(backbones)
        self.infos = infos = [backbone.info for backbone in backbones]
        self.info = FeatureInfo(
            channels=[c for info in infos for c in info.channels],
            strides=[s for info in infos for s in info.strides],
            layers=[layer for info in infos for layer in info.layers],
            mean=infos[0].mean,
            std=infos[0].std,
        )
        self.weights_origin = "random"
        if weights == "pretrained":
            self.weights_origin = " + ".join(backbone.weights_origin for backbone in backbones)
        self.requires_grad_(False)
        self.run_with(Runtime(engine, precision, compile, fold))
        self.eval()

    def run_with(self, runtime: Runtime) -> None:
        """Choose how every member is run from now on; the ensemble itself has nothing to run."""
        self.runtime = runtime
        for member in self.members:
            member.run_with(runtime)  # type: ignore[operator]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps [(B, C_l, h_l, w_l), ...] of the first backbone, then of the second, and so on."""
        members = zip(self.members, self.infos, strict=True)
        return [feature for member, info in members for feature in member(self._normalised(images, info))]

    def _normalised(self, images: Tensor, wanted: FeatureInfo) -> Tensor:
        if (wanted.mean, wanted.std) == (self.info.mean, self.info.std):
            return images

        def column(values: tuple[float, float, float]) -> Tensor:
            return torch.tensor(values, device=images.device, dtype=images.dtype)[:, None, None]  # (3, 1, 1)

        in_unit_range = images * column(self.info.std) + column(self.info.mean)
        return (in_unit_range - column(wanted.mean)) / column(wanted.std)
