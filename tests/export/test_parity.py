"""By how much an artifact is off."""

import numpy as np

from oddpatch.export.parity import TOLERANCE, relative


def test_differences_are_shares_of_the_images_own_values_or_of_the_highest_for_a_copy():
    scale = np.array([[8.0, 0.5], [2.0, 0.0], [0.0, 0.2], [0.004, 0.1]])  # scores and maps of four images
    off = np.full((4, 2), 4e-5)
    expected = 4e-5 / np.array([[8, 0.5], [2, 0.5], [8, 0.2], [8, 0.1]])
    np.testing.assert_allclose(relative(off, scale), expected, rtol=1e-12)
    assert (relative(off, scale) > TOLERANCE).tolist() == [[False, False], [False, False], [False, True], [False, True]]
    assert not relative(np.zeros((3, 2)), np.zeros((3, 2))).any()  # nothing but copies
