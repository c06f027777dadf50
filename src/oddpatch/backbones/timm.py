"""Feature maps of any timm model: stages of a CNN or Swin, blocks of a transformer, or nodes by name."""

import copy
import difflib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from oddpatch.backbones import nodes
from oddpatch.backbones.base import Backbone, check_layers
from oddpatch.backbones.engine import Runtime
from oddpatch.backbones.nodes import Nodes
from oddpatch.backbones.weights import WeightsSource, load_weights
from oddpatch.errors import ConfigError, WeightsError
from oddpatch.types import FeatureInfo

#: Arguments of `timm.create_model` that read or fetch a file, beside those that begin with "pretrained".
_LOADING = ("checkpoint_path", "cache_dir")


class TimmBackbone(Backbone):
    """A timm model cut after its last requested layer.

    Args:
        name: timm model name, with the tag of its weights where there are several ("resnet18.tv_in1k").
        layers: stage numbers (of a CNN: 0 is stride 2, 1 stride 4, 2 stride 8, ...; of a Swin: 0 is stride 4) or
            block numbers (of a vision transformer, from 0); "all" or "stages" takes every one. Or names of nodes that
            give maps, such as "layer2" or "layer3.5.act2" (`oddpatch backbone nodes NAME` lists them).
        weights: "pretrained", "random", or the path of a state dict.
        package: pip package that carries the weights, with the parameter order of this network.
        files: further names under which the same weights are cached in `$TORCH_HOME/hub/checkpoints`.
        channels_last: run in that memory format.
        engine, precision, compile, fold: how the network is run, see `Runtime`.
        options: further keyword arguments of `timm.create_model` (such as `img_size`), none that load weights.
        tap: module within each chosen block of a transformer whose output is taken instead of the block's ("norm2":
            the normalised tokens between attention and MLP, where PatchCoreViT takes them).
        norm: apply the final norm of a transformer to each chosen block (RAD, AnomalyDINO).
        class_token: give the class tokens (B, C, 1, 1) of the chosen blocks too, as maps of stride 0 after the others.

    Raises:
        ConfigError: unknown model, or layers it does not have (the message lists those it has).
        WeightsError: weights not found, or they do not fit.

    Examples:
        >>> import torch
        >>> from oddpatch.backbones.timm import TimmBackbone
        >>> backbone = TimmBackbone("resnet18", layers=[1, 2], weights="random")
        >>> backbone.info.channels, backbone.info.strides
        ([64, 128], [4, 8])
        >>> [tuple(features.shape) for features in backbone(torch.rand(1, 3, 64, 64))]
        [(1, 64, 16, 16), (1, 128, 8, 8)]
    """

    def __init__(
        self,
        name: str,
        layers: Sequence[int | str] | str,
        weights: str = "pretrained",
        package: str | None = None,
        files: Sequence[str] = (),
        channels_last: bool = True,
        engine: str = "torch",
        precision: str = "fp32",
        compile: bool = False,
        fold: bool = True,
        options: Mapping[str, Any] | None = None,
        tap: str | None = None,
        norm: bool = False,
        class_token: bool = False,
    ) -> None:
        super().__init__()
        _require_model(name)
        loading = [key for key in options or {} if key.startswith("pretrained") or key in _LOADING]
        if loading:
            raise ConfigError(f"options has {loading[0]}: weights come from backbone.weights alone: leave it out")
        self.name = name
        try:
            network: Any = timm.create_model(name, num_classes=0, **dict(options or {}))
        except TypeError as error:
            if not options:
                raise
            raise ConfigError(
                f"backbone.options={dict(options)}: {name} does not take them ({error}): leave them out"
            ) from error
        info = network.feature_info
        valid: dict[int | str, str] = {
            i: f"{stage['num_chs']} channels, stride {stage['reduction']}" for i, stage in enumerate(info)
        }
        chosen: list[Any] = list(valid) if layers in ("all", "stages") else list(layers)
        by_name = bool(chosen) and all(isinstance(layer, str) for layer in chosen) and not isinstance(layers, str)
        if by_name:
            described = map_nodes(name, options)
            taken: list[Any] = nodes.choose(chosen, described, name)
            channels, strides = ([described[node][i] for node in taken] for i in (0, 1))
        else:
            check_layers(chosen, valid, name)
            taken = sorted(chosen)
            channels, strides = ([info[i][key] for i in taken] for key in ("num_chs", "reduction"))
        pretrained = network.pretrained_cfg
        source = WeightsSource(name, package, tuple(files), pretrained.get("url"), pretrained.get("hf_hub_id"))
        self.weights_origin = load_weights(network, weights, source, partial(_adapt, network, source))
        self.norm, self.class_token = norm, class_token
        tokens = [f"class token {layer}" for layer in taken] if class_token else []
        self.info = FeatureInfo(
            channels=channels + channels[: len(tokens)],
            strides=strides + [0] * len(tokens),
            layers=[*taken, *tokens],
            mean=pretrained["mean"],
            std=pretrained["std"],
        )

        self.tap = tap
        if tap is not None:
            if by_name:
                raise ConfigError(
                    f"tap={tap!r} is within a block of a transformer: give layers by number, or leave it out"
                )
            _check_tap(network, tap, name)
        if (norm or class_token) and (by_name or tap is not None or not hasattr(network, "num_prefix_tokens")):
            raise ConfigError(
                f"norm and class_token belong to the ends of a transformer's blocks: choose layers of {name} by "
                "number, without tap, or leave them out"
            )
        if class_token and getattr(network, "cls_token", None) is None:
            raise ConfigError(f"{name} has no class token: leave class_token out")
        # What lies behind the last layer is dropped: it would cost time, memory and room in the checkpoint.
        self.network: Any
        if by_name:
            self.network = nodes.cut_at(network.eval(), taken, timm.models)
        else:
            network.prune_intermediate_layers(taken, prune_norm=not norm, prune_head=True)
            self.network = network
        self.by_name, self.chosen = by_name, taken
        self.freeze(channels_last, Runtime(engine, precision, compile, fold))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of the chosen layers; class and register tokens are dropped, NHWC maps become NCHW."""
        try:
            if self.by_name:
                maps = self.network(self.prepare(images))
                return [maps[node] for node in self.chosen]
            return self._maps(images) if self.tap is None else self._tapped(images)
        except AssertionError as error:  # how timm reports sizes that an architecture cannot take
            height, width = images.shape[-2:]
            raise ConfigError(
                f"{self.name} cannot take images of {height}x{width}: {error} Change data.resize or data.crop"
            ) from error

    def _maps(self, images: Tensor) -> list[Tensor]:
        options = {"norm": self.norm, "return_prefix_tokens": True} if self.norm or self.class_token else {}
        taken = self.network.forward_intermediates(
            self.prepare(images), indices=self.chosen, output_fmt="NCHW", intermediates_only=True, stop_early=True,
            **options,
        )  # fmt: skip
        if not options:
            return taken
        maps, prefixes = zip(*taken, strict=True)
        tokens = [prefix[:, 0, :, None, None] for prefix in prefixes] if self.class_token else []  # registers follow
        return [*maps, *tokens]

    def _tapped(self, images: Tensor) -> list[Tensor]:
        """Maps of the tokens that module `tap` of each chosen block puts out."""
        taken: list[Tensor] = []
        modules = [self.network.blocks[i].get_submodule(self.tap) for i in self.chosen]
        # Hooks live for this call only: a copy of the network must not write into this one's list.
        handles = [m.register_forward_hook(lambda module, given, tokens: taken.append(tokens)) for m in modules]
        try:
            maps = self._maps(images)
        finally:
            for handle in handles:
                handle.remove()
        prefix = self.network.num_prefix_tokens
        return [
            tokens[:, prefix:]
            .transpose(1, 2)
            .reshape(-1, tokens.shape[2], *like.shape[2:])  # (B, N, C) -> (B, C, h, w)
            for tokens, like in zip(taken, maps, strict=True)
        ]

    def for_size(self, image_size: tuple[int, int]) -> "TimmBackbone":
        """A transformer with its positions resampled once and for all, as it else does for each batch."""
        positions = getattr(self.network, "pos_embed", None)
        if positions is None or not getattr(self.network, "dynamic_img_size", False):
            return self
        fixed = copy.deepcopy(self)
        fixed.network.set_input_size(img_size=image_size)
        return fixed


def _require_model(name: str) -> None:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=5, cutoff=0.4)
        raise ConfigError(f"backbone name={name!r}: timm has no such model: the nearest are {', '.join(near)}")


def map_nodes(name: str, options: Mapping[str, Any] | None = None) -> Nodes:
    """Every node of model `name` that gives maps, see `oddpatch.backbones.nodes.map_nodes`.

    Raises:
        ConfigError: timm has no such model, or its graph cannot be traced.
    """
    _require_model(name)
    with torch.device("meta"):
        network: Any = timm.create_model(name, num_classes=0, **dict(options or {})).eval()
    pretrained = network.pretrained_cfg
    side = pretrained["input_size"][-1] if pretrained.get("fixed_input_size") else nodes.PROBE
    try:
        return nodes.map_nodes(network, timm.models, side)
    except Exception as error:  # what a network does that torch FX cannot follow fails in many ways
        raise ConfigError(
            f"{name} has no nodes by name, as torch FX cannot trace it ({type(error).__name__}): give layers by number"
        ) from error


def _check_tap(network: nn.Module, tap: str, name: str) -> None:
    blocks = getattr(network, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not hasattr(network, "num_prefix_tokens"):
        raise ConfigError(f"tap={tap!r}: {name} is no transformer with blocks: leave tap out")
    valid = [child for child, _ in blocks[0].named_children()]
    if tap not in valid:
        raise ConfigError(f"tap={tap!r}: a block of {name} has {', '.join(valid)}")


def _classifiers(network: Any) -> tuple[str, ...]:
    names = network.pretrained_cfg.get("classifier") or "classifier"
    return (names,) if isinstance(names, str) else tuple(names)


def _rename_by_order(given: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Give the tensors of a port with the same parameter order, but other names, timm's names."""
    with torch.device("meta"):
        expected = timm.create_model(name).state_dict()
    shapes = [tuple(tensor.shape) for tensor in expected.values()]
    if shapes != [tuple(tensor.shape) for tensor in given.values()]:
        raise WeightsError(f"the packaged weights are not those of {name}: their shapes differ")
    return dict(zip(expected, given.values(), strict=True))


def _adapt(network: Any, source: WeightsSource, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under the network's names, without those of its classifier."""
    expected = network.state_dict()
    if source.package is not None and not given.keys() & expected.keys():
        given = _rename_by_order(given, source.name)
    given = _filtered(given, network)
    head = _classifiers(network)
    return {key: value for key, value in given.items() if key in expected or not key.startswith(head)}


def _filtered(given: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """Keys of older or original checkpoints in timm's present form, by the architecture's own filter if it has one."""
    filter_fn = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    return filter_fn(given, network) if filter_fn is not None else given
