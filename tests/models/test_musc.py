"""MuSc against the released code."""

import numpy as np
import pytest
import torch
from vectors import class_tokens, vector, vector_maps

from oddpatch.errors import DataError
from oddpatch.models.musc import MuSc


def twelve():
    """The vectors' set: 4 test images and 8 training images, their first ten columns."""
    test, train = ([*vector_maps(kind), class_tokens(kind)] for kind in ("test", "train"))
    return [torch.cat(pair)[..., :10] for pair in zip(test, train, strict=True)]


def musc(maps, batch=5, **settings):
    detector = MuSc([24] * 5, [4] * 4 + [0], finest_stride=1, **settings)
    for index in torch.arange(len(maps[0])).split(batch):
        detector.update([m[index] for m in maps], index)
    detector.fit()
    return detector


@pytest.mark.vector
@pytest.mark.parametrize(
    ("windows", "name"), [([1], "patch_r1"), ([3], "patch_r3"), ([5], "patch_r5"), ([1, 3, 5], "patch")]
)
def test_patches_are_scored_as_by_the_released_code(windows, name):
    maps, expected = twelve(), vector("musc")
    detector = musc(maps, windows=windows)
    np.testing.assert_allclose(detector.patch_scores, expected[name], 1e-5, 1e-5)


@pytest.mark.vector
def test_maps_and_image_scores_equal_the_released_code():
    maps, expected = twelve(), vector("musc")
    detector = musc(maps)
    score, heat = detector(maps, (40, 40))
    np.testing.assert_allclose(heat[:4, 0], expected["map_test0to3"], 1e-5, 1e-5)
    np.testing.assert_allclose(detector.scores, expected["score_before_rscin"], 1e-5, 1e-5)
    np.testing.assert_allclose(score, expected["score_rscin_123"], 1e-5, 1e-5)
    pooled = next(x for i, x in enumerate(detector.neighbourhoods(detector.embed(maps))) if i == 4)
    np.testing.assert_allclose(pooled[0], expected["aggregated_r3_image0_layer0"], 1e-5, 1e-5)


def test_an_image_does_not_judge_itself():
    maps = twelve()
    of_all, of_others = musc(maps), musc([m[1:] for m in maps])
    found, expected = (detector([m[:1] for m in maps], (40, 40)).anomaly_map for detector in (of_all, of_others))
    torch.testing.assert_close(found, expected)


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="MuSc judges images by each other, and 3 are too few: add images"):
        musc([m[:3] for m in twelve()])


def test_images_fitted_to_keep_their_scores_in_any_batch():
    maps = twelve()
    detector = musc(maps)
    new = [torch.cat([m[3:5], m[:1] + 1]) for m in maps]
    found, fitted, alone = (detector(m, (40, 40)).anomaly_map for m in (new, maps, [m[2:] for m in new]))
    assert torch.equal(found[:2], fitted[3:5])
    torch.testing.assert_close(found[2:], alone)
