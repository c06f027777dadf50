"""RAD against the released code."""

import numpy as np
import pytest
import torch
from vectors import class_tokens, fitted, vector, vector_maps

from oddpatch.models.rad import RAD

SIZE = (40, 48)


def maps(kind):
    return [*vector_maps(kind), class_tokens(kind)]


def rad(**settings):
    return fitted(RAD([24] * 5, [4] * 4 + [0], **{"k": 3, "finest_stride": 1, **settings}), maps("train"))


@pytest.mark.vector
@pytest.mark.parametrize(
    ("name", "settings"),
    [("k3_r1", {}), ("k3_r0", {"window": 0}), ("k8_r2", {"k": 99, "window": 2}), ("k3_global", {"window": None}),
     ("weights", {"weights": [1, 2, 3, 4], "top": None})],
)  # fmt: skip
def test_equals_the_released_code(name, settings):
    expected, detector, test = vector("rad"), rad(**settings), maps("test")
    patches, grid = detector.patches(test)
    scores = detector.score_patches(patches, detector.retrieve(test), grid).view(4, *grid)
    np.testing.assert_allclose(scores, expected[f"{name}_patch"], 1e-5, 1e-5)
    score, heat = detector(test, SIZE)
    if name == "weights":
        np.testing.assert_allclose(heat.amax((1, 2, 3)), expected["weights_max_score"], 1e-5, 1e-5)
    else:
        np.testing.assert_allclose(score, expected[f"{name}_score"], 1e-5, 1e-5)
    if name == "k3_r1":
        np.testing.assert_array_equal(detector.retrieve(test), expected["k3_nearest"])
        np.testing.assert_allclose(heat[:, 0], expected["k3_r1_map"], 1e-5, 1e-5)


def test_a_patch_outside_of_the_window_is_no_match():
    good = torch.eye(6)[torch.arange(16) % 6].T.reshape(1, 6, 4, 4)
    moved = good.roll(2, dims=3)
    near, anywhere = (fitted(RAD([6], [4], window=w, finest_stride=1, smoothing=0), [good]) for w in (1, None))
    assert anywhere([moved], (16, 16)).score.item() < 1e-6
    assert near([moved], (16, 16)).score.item() > 0.5


def test_an_image_is_left_out_by_itself():
    train = maps("train")
    found = rad().score_left_out([m[2:4] for m in train], torch.tensor([2, 3]), SIZE)
    for i in (2, 3):
        rest = torch.tensor([j for j in range(8) if j != i])
        without = fitted(RAD([24] * 5, [4] * 4 + [0], k=3, finest_stride=1), [m[rest] for m in train])
        torch.testing.assert_close(found.score[i - 2 : i - 1], without([m[i : i + 1] for m in train], SIZE).score)


def test_windows_end_where_the_image_and_the_region_end():
    drawn = torch.Generator().manual_seed(0)
    good, new = (torch.randn(n, 6, 5, 7, generator=drawn) for n in (3, 2))
    detector = RAD([6], [4], k=3, window=1, finest_stride=1)
    inspected = torch.rand(5, 7, generator=drawn) > 0.3
    detector.restrict(inspected.repeat_interleave(4, 0).repeat_interleave(4, 1))
    fitted(detector, [good])
    patches, grid = detector.patches([new])
    scores = detector.score_patches(patches, detector.retrieve([new]), grid)
    unit = [m / m.norm(dim=1, keepdim=True) for m in (new, good)]
    expected = torch.tensor(
        [
            [
                1 - max(
                    float(unit[0][i, :, row, column] @ unit[1][n, :, r, c])
                    for n in range(3)
                    for r, c in inspected.nonzero().tolist()
                    if abs(r - row) <= 1 and abs(c - column) <= 1
                )
                for row, column in inspected.nonzero().tolist()
            ]
            for i in range(2)
        ]
    )  # fmt: skip
    torch.testing.assert_close(scores, expected)
