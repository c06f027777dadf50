"""BatchNorm, padding and activations folded into convolutions: the same features in fewer passes over memory."""

import copy
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

if TYPE_CHECKING:
    from oddpatch.backbones.base import Backbone

log = logging.getLogger(__name__)

#: Largest change of a feature, relative to the largest of its map, that rounding may make.
TOLERANCE = 1e-5
#: Convolutions of timm and efficientnet_pytorch that pad as TensorFlow does, whatever the size of their input.
SAME_PADDING = frozenset({"Conv2dSame", "Conv2dDynamicSamePadding"})
#: Activations that oneDNN computes within a convolution: what it calls them, and their limits.
ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}


def fold(backbone: "Backbone", image_size: tuple[int, int]) -> "Backbone | None":
    """A copy of `backbone` without the passes of BatchNorms and activations that follow a convolution, and of padding.

    All other parameters are shared with it.

    Which convolution these follow is seen in passes over a random image (H, W) of `image_size`, and others check the
    result.

    Returns:
        None where there is no BatchNorm to fold, or the features would change by more than `TOLERANCE`.
    """
    first = next(backbone.parameters())
    image = torch.randn(1, 3, *image_size, generator=torch.Generator().manual_seed(0)).to(first)
    # Not in inference mode, where tensors do not count how often they are written to.
    with torch.inference_mode(False), torch.no_grad():
        folded = _copy(backbone)
        expected, norms = _followers(folded, image, nn.BatchNorm2d)
        norms = {norm: convolution for norm, convolution in norms.items() if norm.running_mean is not None}
        if not norms:
            return None
        names = {module: name for name, module in folded.named_modules()}
        for norm, convolution in norms.items():
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight, convolution.bias,
                norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias,
            )  # fmt: skip
            # timm's BatchNormAct2d ends with an activation.
            rest = nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()
            folded.set_submodule(names[norm], rest)
        for convolution, name in names.items():
            if _pads_unevenly(convolution):
                folded.set_submodule(name, _PaddingInKernel(convolution))
        folded.requires_grad_(False)
        features, activations = _followers(folded, image, *ACTIVATIONS)
        change = _change(features, expected)
        if not change <= TOLERANCE:
            log.info("BatchNorm is not folded into convolutions: that would change features by %.1e", change)
            return None
        activated = _with_activations(folded, activations)
        change = _change(activated.forward(image), expected)
        if not change <= TOLERANCE:
            log.info("activations are not folded into convolutions: that would change features by %.1e", change)
            return folded
        return activated


def _copy(network: "Backbone") -> "Backbone":
    """A copy that shares all tensors."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared).eval()  # the copy of a graph begins in training mode


def _change(features: list[Tensor], expected: list[Tensor]) -> float:
    """Largest change of a feature, relative to the largest of its map; NaN where one is not finite."""
    changes = [
        apart / b.abs().max() if (apart := (a - b).abs().max()) != 0 else apart  # maps of zeros may stay so
        for a, b in zip(features, expected, strict=True)
    ]
    return float(torch.stack(changes).max())  # where Python's `max` passes over NaN


def _with_activations(network: "Backbone", activations: dict[Any, Any]) -> "Backbone":
    """A copy in which convolutions put out what the activation after them would, where oneDNN can do that."""
    # Inductor's operator. It is private to torch, so that it may go: then activations stay where they are.
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return network
    activated = _copy(network)
    names = {module: name for name, module in network.named_modules()}
    for activation, convolution in activations.items():
        plain = (
            type(convolution) is nn.Conv2d
            and convolution.padding_mode == "zeros"
            and not isinstance(convolution.padding, str)
        )
        known = type(activation) in ACTIVATIONS and convolution.weight.dtype == torch.float32  # a subclass may differ
        if known and (plain or isinstance(convolution, _PaddingInKernel)):
            activated.set_submodule(names[convolution], ActivatedConv2d(convolution, activation))
            activated.set_submodule(names[activation], nn.Identity())
    return activated


def _followers(network: "Backbone", image: Tensor, *kinds: type[nn.Module]) -> tuple[list[Tensor], dict[Any, Any]]:
    """Features of an image, and by module of `kinds` the convolution whose output goes there and is no feature."""
    calls: dict[nn.Module, int] = {}
    found: dict[Any, Any] = {}

    def made(convolution: nn.Module, given: Any, output: Any) -> None:
        calls[convolution] = calls.get(convolution, 0) + 1
        output.made_by = (convolution, output._version)

    def taken(follower: nn.Module, given: Any) -> None:
        calls[follower] = calls.get(follower, 0) + 1
        if (convolution := _maker(given[0])) is not None:
            found[follower] = convolution

    handles = [
        *(m.register_forward_hook(made) for m in network.modules() if isinstance(m, nn.Conv2d | _PaddingInKernel)),
        *(m.register_forward_pre_hook(taken) for m in network.modules() if isinstance(m, kinds)),
    ]
    features = network.forward(image)
    for handle in handles:
        handle.remove()
    kept = {_maker(feature) for feature in features}
    return features, {
        follower: convolution
        for follower, convolution in found.items()
        if calls[follower] == calls[convolution] == 1 and convolution not in kept
    }


def _maker(tensor: Tensor) -> nn.Module | None:
    """The convolution that put out this very tensor, unless it was written to since."""
    convolution, version = getattr(tensor, "made_by", (None, None))
    return convolution if version == tensor._version else None


def _pads_unevenly(module: nn.Module) -> bool:
    """Whether a module is a convolution of each channel by itself that pads one more at the end of an even side."""
    return (
        isinstance(module, nn.Conv2d)
        and type(module).__name__ in SAME_PADDING
        and module.groups == module.in_channels
        and tuple(module.stride) == (2, 2)
        and tuple(module.dilation) == (1, 1)
        and all(size % 2 for size in module.kernel_size)
    )


class _PaddingInKernel(nn.Module):
    """A convolution of stride 2 with the padding "SAME" of TensorFlow, which is one more at the end of an even side.

    Convolutions know even padding only, so that the input is copied to be padded. A row and a column of zeros before
    the kernel do it as well: the sums are the same, and those of a channel by itself cost less than the copy.
    """

    stride = (2, 2)
    dilation = (1, 1)

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.plain = convolution
        self.bias, self.groups = convolution.bias, convolution.groups
        weight = F.pad(convolution.weight, (1, 0, 1, 0))
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.padding = tuple(size // 2 for size in convolution.kernel_size)

    def forward(self, maps: Tensor) -> Tensor:
        """As the convolution."""
        if not _is_even(maps):
            return self.plain(maps)
        return F.conv2d(maps, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ActivatedConv2d(nn.Module):
    """A convolution and the activation after it, whose pass over memory is saved."""

    def __init__(self, convolution: nn.Conv2d | _PaddingInKernel, activation: nn.Module) -> None:
        super().__init__()
        self.plain = nn.Sequential(convolution, activation)
        self.even_only = isinstance(convolution, _PaddingInKernel)
        self.kind, self.limits = ACTIVATIONS[type(activation)]

    def forward(self, maps: Tensor) -> Tensor:
        """As the two."""
        if (self.even_only and not _is_even(maps)) or torch.is_autocast_enabled("cpu"):
            return self.plain(maps)
        of = self.plain[0]
        return torch.ops.mkldnn._convolution_pointwise(
            maps, of.weight, of.bias, of.padding, of.stride, of.dilation, of.groups, self.kind, self.limits, ""
        )


def _is_even(maps: Tensor) -> bool:
    return maps.shape[-2] % 2 == 0 and maps.shape[-1] % 2 == 0
