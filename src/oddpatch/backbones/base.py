"""The one interface of every feature extractor: frozen, in eval mode, a list of feature maps out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oddpatch.backbones.engine import OpenVINOEngine, Runtime, TorchEngine, is_being_exported, make_engine
from oddpatch.errors import ConfigError
from oddpatch.ops.precision import float32_products
from oddpatch.types import FeatureInfo

#: Pixels that each thread of a CPU takes at once. Larger tensors leave the caches, and from 32 MiB on glibc asks the
#: kernel for each of them again: a batch of 32 then takes up to three times as long as in parts, and more memory. Of
#: fewer, laying out weights for oneDNN at each call takes its share.
PIXELS_PER_THREAD = 4 * 224 * 224


def images_at_once(pixels: int) -> int:
    """How many images of so many pixels torch is given at once on a CPU."""
    return max(1, torch.get_num_threads() * PIXELS_PER_THREAD // pixels)


class Backbone(nn.Module, ABC):
    """A frozen, pretrained network that turns images into feature maps.

    It stays in eval mode whatever Lightning calls, so that its BatchNorm statistics never drift, and its parameters
    take no gradient. A subclass writes `forward` in torch and ends its constructor with `freeze`; calling the backbone
    runs that forward with the engine that was chosen.

    Attributes:
        info: channels, strides and layers of the maps, finest first, and how images are normalised.
        weights_origin: where the weights came from: a file's name, or "random".
        runtime: how the network is run.
    """

    info: FeatureInfo
    weights_origin: str = "random"
    runtime: Runtime = Runtime()
    _engine: TorchEngine | OpenVINOEngine | None = None

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps [(B, C_l, h_l, w_l), ...], finest first, of normalised images (B, 3, H, W)."""

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Feature maps as `forward` gives them, made by the chosen engine."""
        if is_being_exported():
            return super().__call__(images)
        if images.device.type != "cpu" or (self._engine is not None and self._engine.takes_whole_batches):
            return self._run(images)
        step = images_at_once(images.shape[-2] * images.shape[-1])
        if len(images) <= step:
            return self._run(images)
        features: list[Tensor] = []
        for start in range(0, len(images), step):
            part = self._run(images[start : start + step])
            features = features or [_room_for(len(images), maps) for maps in part]
            for whole, maps in zip(features, part, strict=True):
                whole[start : start + step] = maps
        return features

    def _run(self, images: Tensor) -> list[Tensor]:
        with float32_products("tf32" if self.runtime.precision == "tf32" else "ieee"):
            return super().__call__(images) if self._engine is None else self._engine(self, images)

    def freeze(self, channels_last: bool, runtime: Runtime | None = None) -> None:
        """Fix the parameters for good; called once by a subclass when its network is complete."""
        self.channels_last = channels_last
        self.run_with(runtime or Runtime())
        self.requires_grad_(False)
        if channels_last:
            # On a CPU the convolutions run up to twice as fast on channels_last tensors at batch sizes above one.
            self.to(memory_format=torch.channels_last)
        self.eval()

    def run_with(self, runtime: Runtime) -> None:
        """Choose how the network is run from now on, of a restored model too; nothing that is saved changes."""
        self.runtime = runtime
        self._engine = make_engine(runtime)

    def for_size(self, image_size: tuple[int, int]) -> "Backbone":
        """This backbone, or a copy of it that takes images (H, W) of this size only: what an engine converts."""
        return self

    def prepare(self, images: Tensor) -> Tensor:
        """The images in the memory layout the network is fastest with."""
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in eval mode: statistics of a frozen network must not follow the data."""
        return super().train(False)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self._engine is not None:
            self._engine.reset()
        super()._load_from_state_dict(*args, **kwargs)

    @torch.no_grad()
    def feature_shapes(self, image_size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """(C_l, h_l, w_l) of every map for one image of `image_size` (H, W), by running one."""
        first = next(self.parameters())
        # Not through the engine: it would prepare itself for a batch that never comes again.
        features = self.forward(torch.zeros(1, 3, *image_size, device=first.device, dtype=first.dtype))
        return [(f.shape[1], f.shape[2], f.shape[3]) for f in features]


def _room_for(count: int, like: Tensor) -> Tensor:
    """An uninitialised tensor (count, C, h, w) in the memory layout of `like`."""
    channels_last = like.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((count, *like.shape[1:]), dtype=like.dtype, device=like.device, memory_format=layout)


def check_layers(layers: Sequence[int | str], valid: dict[int | str, str], name: str) -> None:
    """Raise a `ConfigError` that lists the valid layers unless `layers` are some of them, each once.

    Args:
        layers: what the user asked for.
        valid: layer -> its description, e.g. "24 channels, stride 4".
        name: the network's name.
    """
    listing = "; ".join(f"{layer}: {text}" for layer, text in valid.items())
    if not layers:
        raise ConfigError(f"layers=[] leaves {name} without features: choose from {listing}")
    for layer in layers:
        if layer not in valid:
            raise ConfigError(f"layers={list(layers)}: {name} has no layer {layer!r}: choose from {listing}")
    if len(set(layers)) < len(layers):
        raise ConfigError(f"layers={list(layers)} names a layer twice: give each once")
