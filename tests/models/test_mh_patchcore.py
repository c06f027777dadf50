"""MH-PatchCore against the released code."""

from typing import Any

import numpy as np
import pytest
import torch
from vectors import fitted, vector, vector_maps

from oddpatch.models.mh_patchcore import MHPatchCore

SIZE = (40, 48)


def mh(images=8, **settings):
    """The vectors' embedding is the layers joined, without pooling."""
    detector: Any = MHPatchCore([24, 24], [4, 4], finest_stride=1, block_images=2, block_size=40, **settings)
    detector.embed = lambda maps: torch.cat(maps, dim=1).permute(0, 2, 3, 1)
    return detector, [m[:images] for m in vector_maps("train", [2, 3])], vector_maps("test", [2, 3])


def index_of(detector):
    """Which training patches are in the bank."""
    _, train, _ = mh()
    whitened = detector.whiten(detector.embed(train).flatten(0, 2))
    return torch.cdist(detector.memory_bank.double(), whitened.double()).argmin(1)


@pytest.mark.vector
@pytest.mark.parametrize(("name", "asked"), [("merge", 60), ("full", 960)])
def test_equals_the_released_code(name, asked):
    expected = vector("mh_patchcore")
    detector, train, test = mh(coreset_size=asked)
    if name == "full":
        detector.block_size = 960
    fitted(detector, train)
    assert detector.whitening.shape[1] == expected["num_components"]
    patches, grid = detector.patches(test)
    np.testing.assert_allclose(
        detector.whiten(patches).square().sum(2).view(4, *grid), expected["whitened_sqnorm_test"], 1e-5, 1e-5
    )
    np.testing.assert_allclose(detector.score_patches(patches).view(4, *grid), expected[f"{name}_patch"], 1e-5, 1e-5)
    score, heat = detector(test, SIZE)
    np.testing.assert_allclose(score, expected[f"{name}_score_nn9"], 1e-5, 1e-5)
    if name == "merge":
        np.testing.assert_array_equal(index_of(detector), expected["merge_bank_index"])
        np.testing.assert_allclose(heat[:, 0], expected["merge_map"], 1e-5, 1e-5)
    detector.num_neighbors = 1
    np.testing.assert_allclose(detector(test, SIZE).score, expected[f"{name}_score_nn1"], 1e-5, 1e-5)


@pytest.mark.vector
def test_three_blocks_are_merged_as_in_the_released_code():
    expected = vector("mh_patchcore")
    whole, train, test = mh(coreset_size=60)
    fitted(whole, train)
    blocks = [whole.whiten(b) for b in whole.embed(train)[:6].flatten(1, 2).reshape(3, 240, 48)]
    whole.memory_bank = whole.merge_and_reduce(blocks, lambda *_: None)
    np.testing.assert_array_equal(index_of(whole), expected["merge3_bank_index"])
    patches, grid = whole.patches(test)
    np.testing.assert_allclose(whole.score_patches(patches).view(4, *grid), expected["merge3_patch"], 1e-5, 1e-5)
    np.testing.assert_allclose(whole(test, SIZE).score, expected["merge3_score_nn9"], 1e-5, 1e-5)
