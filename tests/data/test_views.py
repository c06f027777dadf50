"""Views of training images: what they show, and that the image they are of stays known."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_datamodule import make, write_category

from oddpatch.data.views import Views, rotate
from oddpatch.errors import ConfigError


@pytest.fixture
def root(tmp_path):
    write_category(tmp_path / "part")
    return tmp_path


def test_quarter_turns_flips_and_factors_are_exact():
    image = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(0))
    views = Views(rotations=[90, 180], flips=["horizontal", "vertical"], brightness=2, brightness_range=[0.5, 2])
    original, quarter, half, horizontal, vertical, *bright = [view(image) for view in views.of(3)]
    assert len(views) == 7
    assert torch.equal(original, image)
    np.testing.assert_allclose(quarter, np.rot90(image, 1, (1, 2)), atol=1e-6)
    np.testing.assert_allclose(half, np.rot90(image, 2, (1, 2)), atol=1e-6)
    assert torch.equal(horizontal, image.flip(2))
    assert torch.equal(vertical, image.flip(1))
    for one in bright:
        factor = (one[one < 1] / image[one < 1]).unique()
        assert 0.5 <= factor.mean() <= 2
        torch.testing.assert_close(factor, factor.mean().expand_as(factor))
    as_uint8 = Views(brightness=1).of(0)[1]((image * 255).byte())
    assert as_uint8.dtype == torch.float32
    assert as_uint8.max() <= 1


@pytest.mark.parametrize(("border", "mode"), [("mirror", "mirror"), ("black", "grid-constant")])
def test_a_turn_is_that_of_scipy(border, mode):
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random((3, 40, 40)), (0, 3, 3)).astype(np.float32)
    turned = rotate(torch.from_numpy(smooth), 30, border).numpy()
    expected = ndimage.rotate(smooth, 30, (2, 1), reshape=False, order=1, mode=mode)
    difference = np.abs(turned - expected)
    assert np.percentile(difference, 99) < 0.01  # OpenCV samples at multiples of 1/32 pixel


def test_draws_depend_on_seed_and_image_alone():
    image = torch.rand(3, 16, 16)
    first, again, other_image = (Views(random_rotations=2).of(index)[1](image) for index in (0, 0, 1))
    other_seed = Views(random_rotations=2, seed=1).of(0)[1](image)
    assert torch.equal(first, again)
    assert not torch.equal(first, other_image)
    assert not torch.equal(first, other_seed)


def test_all_views_of_an_image_come_together_with_its_index(root):
    data = make(root, batch_size=6, views={"rotations": [180], "flips": ["vertical"]})
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [batch.index.tolist() for batch in batches] == [[0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3], [4, 4, 4]]
    plain = make(root)
    plain.setup("fit")
    torch.testing.assert_close(batches[0].image[0], plain.train_image(0))
    torch.testing.assert_close(batches[0].image[1], plain.train_image(0).flip(1, 2), atol=1e-2, rtol=0)
    assert [len(batch.index) for batch in data.test_dataloader()] == [5]


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"rotations": []}, r"adds no view: set rotations"),
        ({"rotations": 5}, r"data\.views\.rotations=5 must be a list of numbers, as \[5\]"),
        ({"turns": [90]}, r"data\.views=\{'turns': \[90\]\}: .*unexpected keyword argument 'turns'"),
        ({"flips": ["diagonal"]}, r"flips=\['diagonal'\] of horizontal and vertical"),
        ({"brightness": -1}, r"data\.views\.brightness=-1 must be"),
        ({"brightness": 1, "brightness_range": [1.2, 0.8]}, r"give two rising factors above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(root, views, message):
    with pytest.raises(ConfigError, match=message):
        make(root, views=views)
