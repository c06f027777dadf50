"""BatchNorm folded into the convolutions before it: the same features in fewer passes over memory."""

import copy
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

if TYPE_CHECKING:
    from oddpatch.backbones.base import Backbone

log = logging.getLogger(__name__)

#: Largest change of a feature, relative to the largest of its map, that rounding may make.
TOLERANCE = 1e-5


def fold(backbone: "Backbone", image_size: tuple[int, int]) -> "Backbone | None":
    """A copy of `backbone` without the BatchNorms that follow a convolution; all other parameters are shared with it.

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
