"""Feature maps at named nodes of any torchvision network."""

import difflib
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor
from torchvision.models import feature_extraction

from oddpatch.backbones import nodes
from oddpatch.backbones.base import Backbone
from oddpatch.backbones.engine import Runtime
from oddpatch.backbones.nodes import Nodes
from oddpatch.backbones.weights import WeightsSource, load_weights
from oddpatch.errors import ConfigError
from oddpatch.types import FeatureInfo


class TorchvisionBackbone(Backbone):
    """A torchvision classifier cut after the last of the nodes asked for.

    Args:
        name: torchvision model name, such as "vgg16".
        layers: names of nodes that give maps, such as "layer2", "layer3.5.relu_2" or "features.29"
            (`oddpatch backbone nodes NAME` lists them); "stages" takes the last node of every stride.
        weights: "pretrained", "random", or the path of a state dict.
        tag: which of the pretrained weights torchvision has for the network.
        channels_last: run in that memory format.
        engine, precision, compile, fold: how the network is run, see `Runtime`.

    Raises:
        ConfigError: unknown model or tag, or nodes it does not have (the message lists the nearest it has).
        WeightsError: weights not found, or they do not fit.

    Examples:
        >>> import torch
        >>> from oddpatch.backbones.torchvision import TorchvisionBackbone
        >>> backbone = TorchvisionBackbone("resnet18", layers=["layer1", "layer2"], weights="random")
        >>> backbone.info.channels, backbone.info.strides
        ([64, 128], [4, 8])
        >>> [tuple(features.shape) for features in backbone(torch.rand(1, 3, 64, 64))]
        [(1, 64, 16, 16), (1, 128, 8, 8)]
    """

    def __init__(
        self,
        name: str,
        layers: Sequence[str] | str,
        weights: str = "pretrained",
        tag: str = "IMAGENET1K_V1",
        channels_last: bool = True,
        engine: str = "torch",
        precision: str = "fp32",
        compile: bool = False,
        fold: bool = True,
    ) -> None:
        super().__init__()
        known_nodes = map_nodes(name)
        wanted = nodes.stages(known_nodes) if layers == "stages" else [layers] if isinstance(layers, str) else layers
        ordered = nodes.choose(wanted, known_nodes, name)
        self.name = name
        network = torchvision.models.get_model(name, weights=None)
        known = torchvision.models.get_model_weights(name)
        if tag not in known.__members__:
            raise ConfigError(f"backbone.tag={tag!r}: {name} has {', '.join(known.__members__)}")
        normalisation = known[tag].transforms()
        self.info = FeatureInfo(
            channels=[known_nodes[node][0] for node in ordered],
            strides=[known_nodes[node][1] for node in ordered],
            layers=ordered,
            mean=tuple(normalisation.mean),
            std=tuple(normalisation.std),
        )
        self.weights_origin = load_weights(network, weights, WeightsSource(name, url=known[tag].url))
        self.network = nodes.cut_at(network.eval(), ordered, feature_extraction)
        self.freeze(channels_last, Runtime(engine, precision, compile, fold))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps [(B, C_l, h_l, w_l)] of the chosen nodes."""
        maps = self.network(self.prepare(images))
        return [maps[node] for node in self.info.layers]


def map_nodes(name: str) -> Nodes:
    """Every node of network `name` that gives maps, see `oddpatch.backbones.nodes.map_nodes`.

    Raises:
        ConfigError: torchvision has no such classifier.
    """
    classifiers = torchvision.models.list_models(module=torchvision.models)
    if name not in classifiers:
        near = difflib.get_close_matches(name, classifiers, n=5, cutoff=0.3)
        raise ConfigError(f"backbone name={name!r}: torchvision has no such network: the nearest are {', '.join(near)}")
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None).eval()
    return nodes.map_nodes(network, feature_extraction)
