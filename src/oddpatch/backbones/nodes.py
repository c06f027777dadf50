"""Feature maps at the nodes of a network's graph, by the names that torch FX gives them."""

import difflib
import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from oddpatch.errors import ConfigError

#: Side of the image that nodes are described with, unless a network takes one size only.
PROBE = 224
#: How many nodes an error lists.
LISTED = 12
#: Node -> channels and stride of its map.
Nodes = dict[str, tuple[int, int]]


def map_nodes(network: nn.Module, tracing: Any, side: int = PROBE) -> Nodes:
    """Every node of a network that gives maps, with their channels and stride, in the order they are made.

    Args:
        network: in eval mode, on torch's meta device: shapes are followed through it and nothing is computed.
        tracing: module with `get_graph_node_names` and `create_feature_extractor`, torchvision's or timm's.
        side: of square images that it takes.
    """
    with torch.device("meta"), torch.no_grad(), _quietly():
        names = tracing.get_graph_node_names(network)[1]
        extractor = tracing.create_feature_extractor(network, {node: node for node in names})
        outputs = extractor(torch.zeros(2, 3, side, side))
    shapes = {node: tuple(output.shape) for node, output in outputs.items() if isinstance(output, Tensor)}
    return {
        node: (shape[1], round(side / shape[2]))
        for node, shape in _with_modules(shapes).items()
        if _is_map(shape, side) and not node.endswith("avgpool")  # adaptive pooling: its map does not grow
    }


def _quietly() -> "warnings.catch_warnings[None]":
    """Without the advice on nodes that differ in training: a backbone stays in eval mode."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _is_map(shape: tuple[int, ...], side: int) -> bool:
    """Two square images give two square maps; tokens, channels-last maps, attention biases and the images do not."""
    return len(shape) == 4 and shape[0] == 2 and shape[2] == shape[3] > 1 and shape[1:] != (3, side, side)


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


def stages(nodes: Nodes) -> list[str]:
    """The last map of every stride above 1, of those at the outermost modules: a stage ends where its module does."""
    last: dict[int, str] = {}
    for node, (_, stride) in nodes.items():
        if stride > 1 and (stride not in last or node.count(".") <= last[stride].count(".")):
            last[stride] = node
    return [last[stride] for stride in sorted(last)]


def choose(layers: Sequence[str], nodes: Nodes, name: str) -> list[str]:
    """The nodes asked for, finest first; those of one stride in the order in which the network makes them.

    Raises:
        ConfigError: network `name` has no such node, or one is named twice.
    """
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
    order = list(nodes)
    return sorted(layers, key=lambda node: (nodes[node][1], order.index(node)))


def _nearest(layer: str, nodes: Nodes, name: str) -> str:
    """The nodes with names like `layer` first, a few of them, and how to see the rest."""
    near = difflib.get_close_matches(layer, nodes, n=LISTED, cutoff=0.3)
    listed = list(dict.fromkeys([*near, *stages(nodes), *nodes]))[:LISTED]
    text = "; ".join(f"{node}: {nodes[node][0]} channels, stride {nodes[node][1]}" for node in listed)
    more = len(nodes) - len(listed)
    return f"{text}; and {more} more: `oddpatch backbone nodes {name}` lists all" if more > 0 else text


def cut_at(network: nn.Module, layers: Sequence[str], tracing: Any) -> fx.GraphModule:
    """A network that gives the maps of some nodes by name, without what they do not need.

    Args:
        network: in eval mode.
        layers: the nodes.
        tracing: see `map_nodes`.
    """
    with _quietly():
        extractor: fx.GraphModule = tracing.create_feature_extractor(network, {node: node for node in layers})
    # No node may write over the output of another, which may be one that was asked for.
    for module in extractor.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    for graph in (extractor.train_graph, extractor.eval_graph):
        for node in graph.nodes:  # type: ignore[union-attr]
            if node.target is operator.iadd:
                node.target = operator.add
    extractor.recompile()
    return extractor
