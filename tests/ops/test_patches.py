"""Alignment of feature maps against literal references."""

import pytest
import torch
from oddpatch.errors import ConfigError
from oddpatch.ops.patches import align, join
from torch.nn import functional as F


def features(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def embedding_concat(x, y):
    """Unfold x, put y beside every part, fold back: the concatenation of the published PaDiM ports, word by word."""
    (batch, c1, h1, w1), (_, c2, h2, w2) = x.shape, y.shape
    s = h1 // h2
    unfolded = F.unfold(x, kernel_size=s, stride=s).view(batch, c1, -1, h2, w2)
    z = torch.zeros(batch, c1 + c2, unfolded.shape[2], h2, w2)
    for i in range(unfolded.shape[2]):
        z[:, :, i] = torch.cat((unfolded[:, :, i], y), dim=1)
    return F.fold(z.view(batch, -1, h2 * w2), kernel_size=s, output_size=(h1, w1), stride=s)


def test_unfold_equals_the_seed_concatenation_of_three_layers():
    fine, middle, coarse = features((2, 3, 8, 8), (2, 5, 4, 4), (2, 4, 2, 2))
    expected = embedding_concat(embedding_concat(fine, middle), coarse)
    assert torch.equal(join([fine, middle, coarse], "unfold"), expected)


def test_unfold_refuses_grids_that_do_not_divide():
    with pytest.raises(ConfigError, match=r"alignment='unfold'.*7x7 is no multiple of 4x4"):
        align(torch.zeros(1, 1, 4, 4), (7, 7), "unfold")

