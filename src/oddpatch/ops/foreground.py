"""Which patches show the object, told from their features alone."""

import torch
from torch import Tensor
from torch.nn import functional as F


def foreground(feature: Tensor, threshold: float = 10.0, border: float = 0.2, least_share: float = 0.35) -> Tensor:
    """Foreground of each image: patches far along the first principal component of the image's own patches.

    As AnomalyDINO (arXiv 2405.14529) does it for DINOv2 features, whose scale the threshold is for. Which end of the
    component is the object is told by the middle of the image, which is expected to be foreground. The mask is dilated
    and closed by 3 x 3; what lies outside of the image counts for neither.

    Args:
        feature: (B, C, h, w), as the network gave it, not normalised.
        threshold: least coordinate of a foreground patch along the component.
        border: share of the height and width at each side that is not its middle.
        least_share: the other end is taken where no more than this share of the middle is foreground.

    Returns:
        (B, h, w) bool.
    """
    height, width = feature.shape[-2:]
    patches = feature.flatten(2).mT.double()  # (B, P, C)
    patches = patches - patches.mean(dim=1, keepdim=True)
    component = torch.linalg.eigh(patches.mT @ patches).eigenvectors[..., -1]  # (B, C)
    largest = component.abs().argmax(dim=1, keepdim=True)
    component = component * component.gather(1, largest).sign()  # its sign is arbitrary else
    along = (patches @ component[..., None]).view(-1, height, width)
    middle = along[
        :, int(height * border) : int(height * (1 - border)), int(width * border) : int(width * (1 - border))
    ]
    inverted = (middle > threshold).double().mean(dim=(1, 2)) <= least_share
    mask = torch.where(inverted[:, None, None], -along, along) > threshold
    dilated = F.max_pool2d(mask.float(), 3, stride=1, padding=1)
    closed = -F.max_pool2d(-F.max_pool2d(dilated, 3, stride=1, padding=1), 3, stride=1, padding=1)
    return closed > 0.5
