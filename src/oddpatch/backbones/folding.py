"""BatchNorm and padding folded into convolutions: the same features in fewer passes over memory."""

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


def fold(backbone: "Backbone", image_size: tuple[int, int]) -> "Backbone | None":
    """A copy of `backbone` without the BatchNorms that follow a convolution, and without passes that only pad.

    All other parameters are shared with it.

    Which convolution a BatchNorm follows is seen in a pass over a random image (H, W) of `image_size`, and a second
    pass checks the result.

    Returns:
        None where there is nothing to fold, or the features would change by more than `TOLERANCE`.
    """
    shared = {id(tensor): tensor for tensor in (*backbone.parameters(), *backbone.buffers())}
    first = next(backbone.parameters())
    image = torch.randn(1, 3, *image_size, generator=torch.Generator().manual_seed(0)).to(first)
    # Not in inference mode, where tensors do not count how often they are written to.
    with torch.inference_mode(False), torch.no_grad():
        folded = copy.deepcopy(backbone, shared).eval()  # the copy of a graph begins in training mode
        expected, pairs = _pairs(folded, image)
        if not pairs:
            return None
        names = {module: name for name, module in folded.named_modules()}
        for norm, convolution in pairs.items():
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
        features = folded.forward(image)
    change = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(features, expected, strict=True))
    if not change <= TOLERANCE:
        log.info("BatchNorm is not folded into convolutions: that would change features by %.1e", change)
        return None
    return folded


def _pairs(network: "Backbone", image: Tensor) -> tuple[list[Tensor], dict[Any, nn.Conv2d]]:
    """Features of an image, and by BatchNorm the convolution whose output goes there and is no feature itself."""
    calls: dict[nn.Module, int] = {}
    found: dict[Any, nn.Conv2d] = {}

    def made(convolution: nn.Module, given: Any, output: Any) -> None:
        calls[convolution] = calls.get(convolution, 0) + 1
        output.made_by = (convolution, output._version)

    def taken(norm: Any, given: Any) -> None:
        calls[norm] = calls.get(norm, 0) + 1
        if (convolution := _maker(given[0])) is not None and norm.running_mean is not None:
            found[norm] = convolution

    handles = [
        *(m.register_forward_hook(made) for m in network.modules() if isinstance(m, nn.Conv2d)),
        *(m.register_forward_pre_hook(taken) for m in network.modules() if isinstance(m, nn.BatchNorm2d)),
    ]
    features = network.forward(image)
    for handle in handles:
        handle.remove()
    kept = {_maker(feature) for feature in features}
    return features, {
        norm: convolution
        for norm, convolution in found.items()
        if calls[norm] == calls[convolution] == 1 and convolution not in kept
    }


def _maker(tensor: Tensor) -> nn.Conv2d | None:
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

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.plain = convolution
        weight = F.pad(convolution.weight, (1, 0, 1, 0))
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.padding = tuple(size // 2 for size in convolution.kernel_size)

    def forward(self, maps: Tensor) -> Tensor:
        """As the convolution."""
        if maps.shape[-2] % 2 or maps.shape[-1] % 2:
            return self.plain(maps)
        return F.conv2d(maps, self.weight, self.plain.bias, 2, self.padding, 1, self.plain.groups)
