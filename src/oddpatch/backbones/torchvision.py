"""Feature maps at named nodes of any torchvision network."""

import difflib
import operator
from collections.abc import Mapping, Sequence

import torch
import torchvision
from torch import Tensor, fx
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from oddpatch.backbones.base import Backbone
from oddpatch.backbones.engine import Runtime
from oddpatch.backbones.weights import WeightsSource, load_weights
from oddpatch.errors import ConfigError
from oddpatch.types import FeatureInfo

#: Side of the image that nodes are described with; every torchvision classifier takes it.
PROBE = 224
#: How many nodes an error lists.
LISTED = 12
#: Node -> channels and stride of its map.
Nodes = dict[str, tuple[int, int]]


class TorchvisionBackbone(Backbone):
    """A torchvision classifier cut after the last of the nodes asked for.

    Args:
        name: torchvision model name, such as "vgg16".
        layers: names of nodes that give maps, such as "layer2", "layer3.5.relu_2" or "features.29"
            (`oddpatch backbone nodes NAME` lists them); "stages" takes the last node of every stride.
        weights: "pretrained", "random", or the path of a state dict.
        tag: which of the pretrained weights torchvision has for the network.
        channels_last: run in that memory format.
        engine, precision, compile: how the network is run, see `Runtime`.

    Raises:
        ConfigError: unknown model or tag, or nodes it does not have (the message lists the nearest it has).
        WeightsError: weights not found, or they do not fit.
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
    ) -> None:
        super().__init__()
        nodes = map_nodes(name)
        chosen = list(_stages(nodes)) if layers == "stages" else [layers] if isinstance(layers, str) else list(layers)
        _check_nodes(chosen, nodes, name)
        order = list(nodes)
        # Finest first; nodes of one stride in the order in which the network makes them.
        ordered = sorted(chosen, key=lambda node: (nodes[node][1], order.index(node)))
        self.name = name
        network = torchvision.models.get_model(name, weights=None)
        known = torchvision.models.get_model_weights(name)
        if tag not in known.__members__:
            raise ConfigError(f"backbone.tag={tag!r}: {name} has {', '.join(known.__members__)}")
        normalisation = known[tag].transforms()
        self.info = FeatureInfo(
            channels=[nodes[node][0] for node in ordered],
            strides=[nodes[node][1] for node in ordered],
            layers=ordered,
            mean=tuple(normalisation.mean),
            std=tuple(normalisation.std),
        )
        self.weights_origin = load_weights(network, weights, WeightsSource(name, url=known[tag].url))
        # The extractor keeps what its nodes need: the rest would cost time, memory and room in the checkpoint.
        self.network = _without_inplace(create_feature_extractor(network.eval(), {node: node for node in ordered}))
        self.freeze(channels_last, Runtime(engine, precision, compile))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps [(B, C_l, h_l, w_l)] of the chosen nodes."""
        maps = self.network(self.prepare(images))
        return [maps[node] for node in self.info.layers]


def map_nodes(name: str) -> Nodes:
    """Every node of network `name` that gives maps, with their channels and stride, in the order they are made.

    Nothing is computed for it: shapes are followed through the network on torch's meta device.

    Raises:
        ConfigError: torchvision has no such classifier.
    """
    classifiers = torchvision.models.list_models(module=torchvision.models)
    if name not in classifiers:
        near = difflib.get_close_matches(name, classifiers, n=5, cutoff=0.3)
        raise ConfigError(f"backbone name={name!r}: torchvision has no such network: the nearest are {', '.join(near)}")
    with torch.device("meta"), torch.no_grad():
        network = torchvision.models.get_model(name, weights=None).eval()
        names = get_graph_node_names(network)[1]
        outputs = create_feature_extractor(network, {node: node for node in names})(torch.zeros(2, 3, PROBE, PROBE))
    shapes = {node: tuple(output.shape) for node, output in outputs.items() if isinstance(output, Tensor)}
    return {
        node: (shape[1], round(PROBE / shape[2]))
        for node, shape in _with_modules(shapes).items()
        if _is_map(shape) and not node.endswith("avgpool")  # adaptive pooling: its map does not grow with the image
    }


def _is_map(shape: tuple[int, ...]) -> bool:
    """Two square images give two square maps; tokens, channels-last maps, attention biases and the images do not."""
    return len(shape) == 4 and shape[0] == 2 and shape[2] == shape[3] > 1 and shape[1:] != (3, PROBE, PROBE)


def _with_modules(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """`shapes` of nodes, and of the modules that hold them: "layer2" is the last node within it."""
    nodes = list(shapes)
    named: dict[str, tuple[int, ...]] = {}
    for i, node in enumerate(nodes):
        named[node] = shapes[node]
        following = nodes[i + 1] if i + 1 < len(nodes) else ""
        parents = node.split(".")[:-1]
        for depth in range(len(parents), 0, -1):
            module = ".".join(parents[:depth])
            if not following.startswith(f"{module}."):
                named[module] = shapes[node]
    return named


def _stages(nodes: Nodes) -> list[str]:
    """The last map of every stride above 1, of those at the outermost modules: a stage ends where its module does."""
    last: dict[int, str] = {}
    for node, (_, stride) in nodes.items():
        if stride > 1 and (stride not in last or node.count(".") <= last[stride].count(".")):
            last[stride] = node
    return [last[stride] for stride in sorted(last)]


def _without_inplace(network: fx.GraphModule) -> fx.GraphModule:
    """Have no node write over the output of another, which may be one that was asked for."""
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    for graph in (network.train_graph, network.eval_graph):
        for node in graph.nodes:  # type: ignore[union-attr]
            if node.target is operator.iadd:
                node.target = operator.add
    network.recompile()
    return network


def _check_nodes(layers: Sequence[str], nodes: Nodes, name: str) -> None:
    if not layers:
        raise ConfigError(f"layers=[] leaves {name} without features: choose from {_nearest('', nodes, name)}")
    for layer in layers:
        if layer not in nodes:
            raise ConfigError(
                f"layers={list(layers)}: {name} has no map at node {layer!r}: "
                f"choose from {_nearest(str(layer), nodes, name)}"
            )
    if len(set(layers)) < len(layers):
        raise ConfigError(f"layers={list(layers)} names a node twice: give each once")


def _nearest(layer: str, nodes: Mapping[str, tuple[int, int]], name: str) -> str:
    """The nodes with names like `layer` first, a few of them, and how to see the rest."""
    near = difflib.get_close_matches(layer, nodes, n=LISTED, cutoff=0.3)
    listed = list(dict.fromkeys([*near, *_stages(dict(nodes)), *nodes]))[:LISTED]
    text = "; ".join(f"{node}: {nodes[node][0]} channels, stride {nodes[node][1]}" for node in listed)
    more = len(nodes) - len(listed)
    return f"{text}; and {more} more: `oddpatch backbone nodes {name}` lists all" if more > 0 else text
