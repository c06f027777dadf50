"""The preprocessing of an artifact's host gives the numbers of the model's own, for every way to lay out an image."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from oddpatch.data.alignment import encode, from_image
from oddpatch.data.decoding import read_image, read_planes
from oddpatch.data.host import HostPreprocess
from oddpatch.data.transforms import Preprocess
from oddpatch.errors import ConfigError, DataError

RANDOM = np.random.default_rng(0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYOUTS: dict[str, dict[str, Any]] = {
    "crop": {"resize": 40, "crop": 32},
    "crop_bicubic": {"resize": 64, "crop": [48, 32], "interpolation": "bicubic"},
    "stretch": {"resize": [32, 48], "crop": None},
    "letterbox": {"resize": 40, "crop": None, "fit": "letterbox", "adapted": {"size": [40, 40], "shape": [40, 40]}},
    "as_it_is": {"resize": None, "crop": 24},
}


def both(**settings):
    preprocess = Preprocess(mean=MEAN, std=STD, **settings)
    return preprocess, HostPreprocess(**preprocess.settings())


def normalised(image):
    return (image - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]


def board(size=(200, 260)):
    """Something to register to."""
    picture = Image.new("RGB", size[::-1], (40, 90, 50))
    draw = ImageDraw.Draw(picture)
    for _ in range(60):
        x, y = RANDOM.integers(0, size[1] - 20), RANDOM.integers(0, size[0] - 20)
        colour = tuple(int(c) for c in RANDOM.integers(0, 255, 3))
        draw.rectangle((x, y, x + RANDOM.integers(4, 40), y + RANDOM.integers(4, 30)), fill=colour)
    return np.asarray(picture)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(50, 70), (90, 60), (33, 200)])
@pytest.mark.parametrize("kind", ["uint8", "float", "grey"])
def test_every_layout_gives_the_same_pixels_shares_and_maps(layout, size, kind):
    torch_side, host = both(**LAYOUTS[layout])
    image: np.ndarray = RANDOM.integers(0, 256, (3, *size), dtype=np.uint8)
    if kind == "float":
        image = image.astype(np.float32) / 255
    elif kind == "grey":
        image = np.broadcast_to(image[:1], (3, *size))
    expected = torch_side(torch.from_numpy(image.copy())).numpy()
    np.testing.assert_allclose(normalised(host(image)), expected, atol=3e-6)
    assert host(image).dtype == np.float32
    assert host.share(size) == torch_side.share(size)
    anomaly_map = RANDOM.random(host.image_size, dtype=np.float32)
    np.testing.assert_array_equal(host.to_original(anomaly_map, size), torch_side.to_original(anomaly_map, size))


@pytest.mark.parametrize("layout", ["crop", "stretch", "letterbox"])
def test_a_region_of_interest_is_the_same(layout):
    roi = np.zeros((50, 70), bool)
    roi[10:33, 21:60] = True
    torch_side, host = both(**LAYOUTS[layout], roi=encode(roi))
    image = RANDOM.random((3, 50, 70), dtype=np.float32)
    assert host.share((50, 70)) == pytest.approx(torch_side.share((50, 70)), abs=1e-6)  # a float32 mean
    np.testing.assert_array_equal(host.seen > 0, torch_side.roi_mask[0].numpy())
    np.testing.assert_allclose(normalised(host(image)), torch_side(torch.from_numpy(image)).numpy(), atol=3e-6)
    with pytest.raises(DataError, match=r"image of 51x70 pixels, but roi was drawn on 50x70"):
        host(np.zeros((3, 51, 70), np.float32))


def test_aligned_images_are_the_same():
    picture = board()
    reference = torch.from_numpy(picture.copy()).permute(2, 0, 1)
    torch_side, host = both(resize=[96, 128], crop=None, align=from_image(reference.float() / 255).settings())
    moved = np.roll(picture, (5, -7), (0, 1)).transpose(2, 0, 1)
    found, expected = host.register(moved), torch_side.register(torch.from_numpy(moved.copy()))
    np.testing.assert_array_equal(found.matrix, expected.matrix)
    given = torch_side(torch.from_numpy(moved.copy()), expected).numpy()
    np.testing.assert_allclose(normalised(host(moved, found)), given, atol=3e-6)
    np.testing.assert_allclose(host(moved), host(moved, found))
    size = moved.shape[1:]
    assert host.share(size, found) == pytest.approx(torch_side.share(size, expected), abs=1e-4)
    smooth = np.add.outer(np.arange(96), np.arange(128)).astype(np.float32)
    laid = torch_side.to_original(smooth, size, registration=found)
    np.testing.assert_array_equal(host.to_original(smooth, size, registration=found), laid)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
def test_a_file_is_read_the_same(tmp_path, mode):
    path = tmp_path / "image.png"
    shape = {"L": (9, 7), "I;16": (9, 7), "RGB": (9, 7, 3), "RGBA": (9, 7, 4)}[mode]
    values = RANDOM.integers(0, 4096, shape, dtype=np.uint16)
    Image.fromarray(values if mode == "I;16" else values.astype(np.uint8)).save(path)
    expected = read_image(path, 4095, keep_uint8=True).numpy()
    found = read_planes(path, 4095)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"interpolation": "cubic"}, "interpolation='cubic' is not known: choose"), ({"tiles": {}}, "without torch")],
)
def test_what_only_torch_prepares_is_refused(changed, told):
    with pytest.raises(ConfigError, match=told):
        HostPreprocess(**{**Preprocess(mean=MEAN, std=STD, resize=40, crop=32).settings(), **changed})


def test_what_leaves_the_size_open_is_refused():
    settings = Preprocess(mean=MEAN, std=STD, resize=40, crop=None, fit="letterbox").settings()
    with pytest.raises(ConfigError, match="the image size is not settled"):
        HostPreprocess(**settings)
