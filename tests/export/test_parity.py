"""By how much an artifact is off."""

from pathlib import Path

import numpy as np
import pytest
from narrowing import stand_in

from oddpatch.errors import ParityError
from oddpatch.export.parity import TOLERANCE, compare, relative


def test_differences_are_shares_of_the_images_own_values_or_of_the_highest_for_a_copy():
    scale = np.array([[8.0, 0.5], [2.0, 0.0], [0.0, 0.2], [0.004, 0.1]])  # scores and maps of four images
    off = np.full((4, 2), 4e-5)
    expected = 4e-5 / np.array([[8, 0.5], [2, 0.5], [8, 0.2], [8, 0.1]])
    np.testing.assert_allclose(relative(off, scale), expected, rtol=1e-12)
    assert (relative(off, scale) > TOLERANCE).tolist() == [[False, False], [False, False], [False, True], [False, True]]
    assert not relative(np.zeros((3, 2)), np.zeros((3, 2))).any()  # nothing but copies


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["score", "anomaly_map"])
def test_values_that_are_not_finite_agree_with_nothing(name, value):
    judged = stand_in(score=1.0, anomaly_map=np.ones((2, 2), np.float32), ratio=0.0)
    calibration = stand_in(target_fpr=0.01, product_at=lambda rate: None)
    reference = stand_in(calibration=calibration, prepare=lambda path: path, score=lambda images: [judged])
    outputs = {"score": np.ones(2, np.float32), "anomaly_map": np.ones((2, 1, 2, 2), np.float32)}
    metadata = {"precision": "float16"}
    artifact = stand_in(prepare=lambda path: path, run=lambda images: outputs, metadata=metadata)
    paths = [Path("a.png"), Path("b.png")]
    assert compare(reference, artifact, paths, None).agrees
    outputs[name].flat[-1] = value
    for precision, remedy in (("float16", "--precision float32"), ("float32", "another --format")):
        metadata["precision"] = precision
        with pytest.raises(
            ParityError, match=rf"^b\.png: nothing is written, .* NaN or infinite, .*: choose {remedy}$"
        ):
            compare(reference, artifact, paths, None)
