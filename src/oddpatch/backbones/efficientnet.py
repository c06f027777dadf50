"""Feature maps at numbered MBConv blocks of `efficientnet_pytorch`, as PaDiM-EfficientNet takes them."""

from collections.abc import Sequence
from typing import Any

from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.model import VALID_MODELS
from efficientnet_pytorch.utils import url_map
from torch import Tensor, nn

from oddpatch.backbones.base import Backbone, check_layers
from oddpatch.backbones.engine import Runtime
from oddpatch.backbones.weights import WeightsSource, load_weights
from oddpatch.errors import ConfigError
from oddpatch.types import FeatureInfo


class EfficientNetBackbone(Backbone):
    """EfficientNet B0..B7, cut after its last requested block.

    Padding is the library's own (fixed for each network's native image size), so that features equal those that the
    published numbers were made with.

    Args:
        name: "efficientnet-b0" .. "efficientnet-b7".
        layers: block numbers counted from 1; 0 is the stem and "head" the last convolution. "stages" takes the last
            block of every stage with stem and head (the nine levels of Gaussian-AD), "all" takes everything.
        weights: "pretrained", "random", or the path of a state dict.
        channels_last: run in that memory format.
        engine, precision, compile, fold: how the network is run, see `Runtime`.

    Raises:
        ConfigError: unknown name, or blocks it does not have (the message lists those it has).
        WeightsError: weights not found, or they do not fit.

    Examples:
        >>> import torch
        >>> from oddpatch.backbones.efficientnet import EfficientNetBackbone
        >>> backbone = EfficientNetBackbone("efficientnet-b0", layers=[3, 5], weights="random")
        >>> backbone.info.channels, backbone.info.strides
        ([24, 40], [4, 8])
        >>> [tuple(features.shape) for features in backbone(torch.rand(1, 3, 64, 64))]
        [(1, 24, 16, 16), (1, 40, 8, 8)]
    """

    def __init__(
        self,
        name: str,
        layers: Sequence[int | str] | str,
        weights: str = "pretrained",
        channels_last: bool = True,
        engine: str = "torch",
        precision: str = "fp32",
        compile: bool = False,
        fold: bool = True,
    ) -> None:
        super().__init__()
        if name not in VALID_MODELS:
            raise ConfigError(f"backbone name={name!r}: choose one of {', '.join(VALID_MODELS)}")
        network = EfficientNet.from_name(name)
        network.set_swish(memory_efficient=False)  # the memory-efficient one only pays with gradients
        order: list[int | str] = [*range(len(network._blocks) + 1), "head"]
        channels, strides = _describe(network)
        valid = {layer: f"{c} channels, stride {s}" for layer, c, s in zip(order, channels, strides, strict=True)}
        chosen = _expand(layers, network, order)
        check_layers(chosen, valid, name)
        positions = [i for i, layer in enumerate(order) if layer in chosen]
        self.info = FeatureInfo(
            [channels[i] for i in positions], [strides[i] for i in positions], [order[i] for i in positions]
        )
        self.name = name
        self.weights_origin = load_weights(network, weights, WeightsSource(name, url=url_map.get(name)))
        # What lies behind the last layer is dropped: it would cost time, memory and room in the checkpoint.
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = network._blocks[: min(positions[-1], len(network._blocks))]
        has_head = self.info.layers[-1] == "head"
        self.head = nn.Sequential(network._conv_head, network._bn1, network._swish) if has_head else None
        self.freeze(channels_last, Runtime(engine, precision, compile, fold))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps [(B, C_l, h_l, w_l)] of the chosen blocks."""
        wanted = set(self.info.layers)
        x = self.stem(self.prepare(images))
        features = [x] if 0 in wanted else []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number in wanted:
                features.append(x)
        if self.head is not None:
            features.append(self.head(x))
        return features


def _describe(network: Any) -> tuple[list[int], list[int]]:
    """Channels and strides of the stem, of every block, and of the head."""
    stride = 2
    channels, strides = [network._conv_stem.out_channels], [stride]
    for block in network._blocks:
        stride *= block._depthwise_conv.stride[0]
        channels.append(block._project_conv.out_channels)
        strides.append(stride)
    return [*channels, network._conv_head.out_channels], [*strides, stride]


def _expand(layers: Sequence[int | str] | str, network: Any, order: list[int | str]) -> list[int | str]:
    if layers == "all":
        return order
    if layers == "stages":
        # A stage begins where the number of output channels changes.
        out = [block._project_conv.out_channels for block in network._blocks]
        ends = [i + 1 for i in range(len(out)) if i + 1 == len(out) or out[i + 1] != out[i]]
        return [0, *ends, "head"]
    if isinstance(layers, str):
        raise ConfigError(f"layers={layers!r}: give a list of block numbers, 'stages' or 'all'")
    return list(layers)
