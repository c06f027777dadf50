"""DFM against the released code, its two errors corrected."""

import numpy as np
import pytest
import torch
from vectors import fitted, vector, vector_maps

from oddpatch.errors import DataError
from oddpatch.models.dfm import DFM


def dfm(**settings):
    return fitted(DFM([24], [4], **settings), vector_maps("train", [3]))


@pytest.mark.vector
def test_reconstruction_equals_the_released_code():
    expected, detector, test = vector("dfm"), dfm(), vector_maps("test", [3])
    assert detector.basis.shape[1] == expected["fre_0p97_components"]
    _, grid = detector.pool(test)
    np.testing.assert_array_equal((4, 24, *grid), expected["pooled_shape"])
    score, heat = detector(test, grid)  # a map of the grid's own size is not resized
    np.testing.assert_allclose(score, expected["fre_0p97_score"], 1e-5)
    np.testing.assert_allclose(heat[:, 0], expected["fre_0p97_map"], 1e-5)


@pytest.mark.vector
def test_likelihood_equals_the_released_code():
    score, heat = dfm(score="likelihood")(vector_maps("test", [3]), (40, 48))
    np.testing.assert_allclose(score, vector("dfm")["nll_0p97_score"], 1e-5)
    assert heat is None


def test_one_image_has_no_components():
    with pytest.raises(DataError, match="DFM needs at least two good images, it was given 1: add images"):
        fitted(DFM([3], [4]), [torch.rand(1, 3, 8, 8)])
