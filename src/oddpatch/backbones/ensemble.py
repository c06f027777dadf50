"""Several backbones as one: each gives its feature maps of the same images."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from oddpatch.backbones.base import Backbone
from oddpatch.backbones.engine import Runtime
from oddpatch.errors import ConfigError


class EnsembleBackbone(Backbone):
    """The feature maps of several backbones, one backbone after the other, each finest first.

    Images come normalised for the first one; where another was trained with a different mean or standard deviation,
    they are renormalised for it. `oddpatch.models.ensemble.EnsembleDetector` gives each backbone a detector.

    Args:
        members: by name, what makes each backbone when called with `weights` (in a config: `_partial_: true`).
        weights: "pretrained" or "random", for all of them.
        engine, precision, compile: how each of them is run, see `Runtime`.

    Raises:
        ConfigError: fewer than two members.
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
    ) -> None:
        super().__init__()
        if len(members) < 2:
            raise ConfigError(f"members={list(members)}: an ensemble needs at least two backbones")
        if weights not in ("pretrained", "random"):
            raise ConfigError(f"weights={weights!r}: choose pretrained or random for an ensemble")
        backbones = [member(weights=weights) for member in members.values()]
        self.members = nn.ModuleList(backbones)
        self.channels = [c for backbone in backbones for c in backbone.channels]
        self.strides = [s for backbone in backbones for s in backbone.strides]
        self.mean, self.std = backbones[0].mean, backbones[0].std
        self.weights_origin = "random"
        if weights == "pretrained":
            self.weights_origin = " + ".join(backbone.weights_origin for backbone in backbones)
        self.requires_grad_(False)
        self.run_with(Runtime(engine, precision, compile))
        self.eval()

    def run_with(self, runtime: Runtime) -> None:
        """Choose how every member is run from now on; the ensemble itself has nothing to run."""
        self.runtime = runtime
        for member in self.members:
            member.run_with(runtime)  # type: ignore[operator]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps [(B, C_l, h_l, w_l), ...] of the first backbone, then of the second, and so on."""
        return [feature for member in self.members for feature in member(self._normalised(images, member))]

    def _normalised(self, images: Tensor, member: Any) -> Tensor:
        if (member.mean, member.std) == (self.mean, self.std):
            return images

        def column(values: tuple[float, float, float]) -> Tensor:
            return torch.tensor(values, device=images.device, dtype=images.dtype)[:, None, None]  # (3, 1, 1)

        in_unit_range = images * column(self.std) + column(self.mean)
        return (in_unit_range - column(member.mean)) / column(member.std)
