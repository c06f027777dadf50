"""Alignment of feature maps against literal references."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from oddpatch.errors import ConfigError
from oddpatch.ops import patches
from oddpatch.ops.patches import align, by_position, join, join_patches, pool_patches


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


def test_another_alignment_is_refused():
    with pytest.raises(ConfigError, match=r"alignment='cubic': choose one of .*nearest"):
        align(torch.zeros(1, 1, 4, 4), (8, 8), "cubic")


@pytest.mark.parametrize(
    ("mode", "grid"),
    [*((mode, grid) for mode in ("nearest", "bilinear", "unfold") for grid in ((6, 9), (2, 3), (1, 1))),
     ("nearest", (4, 5)), ("bilinear", (4, 5))],
)  # fmt: skip
def test_patches_by_position_are_the_aligned_map(mode, grid):
    (feature,) = features((2, 4, *grid))
    patches = by_position(feature, (6, 9), mode)
    aligned = align(feature, (6, 9), mode).permute(2, 3, 0, 1).flatten(0, 1)
    assert torch.equal(patches.at(slice(0, 54)), aligned)
    assert torch.equal(patches.at(slice(7, 20)), aligned[7:20])
    assert mode == "bilinear" or len(patches.values) == grid[0] * grid[1]


def authors_pooling(features, patch_size, stride, dim):
    """Patchify, bring to the finest grid, pool each patch, pool over layers: the authors' order of doing it."""
    layers: list[Any] = []
    for feature in features:
        unfolded = F.unfold(feature, patch_size, stride=stride, padding=patch_size // 2)
        height, width = ((side - 1) // stride + 1 for side in feature.shape[-2:])
        grid = unfolded.unflatten(2, (height, width))  # (B, C*p*p, h, w)
        if layers:
            grid = F.interpolate(grid, layers[0].shape[1:3], mode="bilinear", align_corners=False)
        pooled = F.adaptive_avg_pool1d(grid.permute(0, 2, 3, 1).flatten(0, 2)[:, None], dim)
        layers.append(pooled.view(len(feature), *grid.shape[-2:], dim))
    stacked = torch.stack(layers, dim=3)
    return F.adaptive_avg_pool1d(stacked.flatten(3).flatten(0, 2)[:, None], dim).view(*stacked.shape[:3], dim)


@pytest.mark.parametrize(("dim", "stride", "patch_size"), [(8, 1, 3), (11, 2, 3), (70, 1, 5)])
def test_pooling_equals_the_authors_order_of_operations(dim, stride, patch_size):
    maps = features((2, 5, 9, 8), (2, 7, 5, 4), (2, 3, 3, 2))
    expected = authors_pooling(maps, patch_size, stride, dim)
    torch.testing.assert_close(pool_patches(maps, patch_size, stride, dim, "bilinear"), expected, rtol=1e-5, atol=1e-6)


def test_joining_equals_average_pooling_written_out():
    fine, coarse = features((2, 3, 6, 6), (2, 4, 3, 3))
    joined = join_patches([fine, coarse], 3, 1, "nearest")
    padded = F.pad(fine, (1, 1, 1, 1))
    expected: Any = sum(padded[..., dy : dy + 6, dx : dx + 6] for dy in range(3) for dx in range(3)) / 9
    torch.testing.assert_close(joined[..., :3], expected.permute(0, 2, 3, 1))
    assert joined.shape == (2, 6, 6, 7)
    assert join_patches([fine, coarse], 3, 2, "nearest").shape == (2, 3, 3, 7)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channels_a_few_at_a_time_give_the_same_to_the_last_bit(monkeypatch, mode, layout):
    maps = [x.contiguous(memory_format=layout) for x in features((1, 40, 36, 30), (1, 50, 18, 15))]

    def embeddings():
        return [join_patches(maps, 3, stride, mode) for stride in (1, 2)] + [pool_patches(maps, 3, 1, 70, mode)]

    whole = embeddings()
    monkeypatch.setattr(patches, "MANY_PATCHES", 1)
    for found, expected in zip(embeddings(), whole, strict=True):
        assert torch.equal(found, expected)
        assert found.is_contiguous()
