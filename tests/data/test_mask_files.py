"""Masks of every kind against what was written into them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from encoding import H, W
from PIL import Image

from oddpatch.data.masks import read_mask
from oddpatch.errors import DataError


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def truth(rng):
    truth = rng.random((H, W)) > 0.7
    truth[0, 0], truth[0, 1] = False, True
    return truth


def save_mask(path, mode, truth):
    """The same mask in many ways of writing it."""
    stored = {
        "grey 255": truth * np.uint8(255),
        "grey 1": truth * np.uint8(1),
        "16 bit": truth * np.uint16(65535),
        "16 bit, 1": truth * np.uint16(1),
        "bool": truth,
        "red": np.dstack([truth * np.uint8(200), truth * np.uint8(0), truth * np.uint8(0)]),
        "opaque": np.dstack([truth * np.uint8(255)] * 3 + [np.full_like(truth, 255, np.uint8)]),
        "transparent": np.dstack([truth * np.uint8(255)] * 3 + [np.zeros_like(truth, np.uint8)]),
        "alpha only": np.dstack([np.zeros_like(truth, np.uint8)] * 3 + [truth * np.uint8(255)]),
        "alpha, white": np.dstack([np.full_like(truth, 255, np.uint8)] * 3 + [truth * np.uint8(255)]),
        "grey + alpha": np.dstack([truth * np.uint8(255), np.full_like(truth, 255, np.uint8)]),
    }[mode]
    Image.fromarray(stored).save(path)


MASK_MODES = [
    "grey 255",
    "grey 1",
    "16 bit",
    "16 bit, 1",
    "bool",
    "red",
    "opaque",
    "transparent",
    "alpha only",
    "alpha, white",
    "grey + alpha",
]


@pytest.mark.parametrize("mode", MASK_MODES)
def test_masks_of_every_mode(tmp_path, truth, mode):
    save_mask(tmp_path / "m.png", mode, truth)
    mask = read_mask(tmp_path / "m.png")
    assert mask.dtype == torch.uint8
    np.testing.assert_array_equal(mask.numpy(), truth)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("alpha", [255, 0])
def test_a_black_mask_with_the_same_alpha_everywhere_is_no_defect(tmp_path, mode, alpha):
    Image.new(mode, (W, H), (0,) * (len(mode) - 1) + (alpha,)).save(tmp_path / "m.png")
    assert not read_mask(tmp_path / "m.png").any()


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "palette"])
def test_a_value_equal_to_the_threshold_is_no_defect(tmp_path, kind):
    path = tmp_path / ("m.png" if kind == "palette" else "m.tif")
    if kind == "palette":
        image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 51, 51, 51, 52, 52, 52])
        image.save(path)
    else:
        scale = {"uint8": 1, "uint16": 257, "float32": 1 / 255}[kind]
        step = {"uint8": 1, "uint16": 1, "float32": 1e-6}[kind]
        tifffile.imwrite(path, np.array([[0, 51 * scale, 51 * scale + step]]).astype(kind))
    threshold = 51 / 255 if kind != "float32" else float(np.float32(51 / 255))
    assert read_mask(path, threshold).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    "palette",
    [
        pytest.param([(0, 0, 0), (255, 0, 0)], id="black and red"),
        pytest.param([(0, 0, 0), (0, 0, 0)], id="no colours"),
        pytest.param([(31, 119, 180), (255, 127, 14)], id="coloured background"),
    ],
)
def test_palette_masks_by_class_index(tmp_path, truth, palette):
    image = Image.frombytes("P", (W, H), truth.astype(np.uint8).tobytes())
    image.putpalette([value for entry in palette for value in entry])
    image.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").numpy(), truth)


def test_optimised_palette_whose_index_0_is_the_defect(tmp_path, truth):
    Image.fromarray(np.dstack([truth * np.uint8(255)] * 3)).quantize(2).save(tmp_path / "m.png")
    saved = Image.open(tmp_path / "m.png")
    assert np.asarray(saved)[0, 1] == 0, "this test needs Pillow to give the defect index 0"
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").numpy(), truth)


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, [0, 1, 1, 1]), (0.5, [0, 0, 1, 1]), (0.6, [0, 0, 0, 1])])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "palette"])
def test_threshold_is_a_fraction_of_full_scale(tmp_path, threshold, expected, kind):
    values = np.array([[0, 0.1, 0.55, 1.0]])
    path = tmp_path / "m.tif"
    if kind == "palette":
        path = tmp_path / "m.png"
        image = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8)).convert("P")
        image.putpalette(np.repeat(np.round(values[0] * 255).astype(int), 3).tolist())
        image.save(path)
    else:
        scaled = values if kind == "float32" else np.round(values * np.iinfo(kind).max)
        tifffile.imwrite(path, scaled.astype(kind))
    assert read_mask(path, threshold).tolist() == [expected]


def test_instance_ids_beyond_16_bits_are_defect(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", np.array([[0, 70000]], np.int32))
    assert read_mask(tmp_path / "m.tif").tolist() == [[0, 1]]


def test_float_masks_of_any_scale_need_no_threshold(tmp_path):
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, np.array([[0, 255]], np.float32))
    assert read_mask(path).tolist() == [[0, 1]]
    with pytest.raises(DataError, match="set it to 0"):
        read_mask(path, 0.5)
    tifffile.imwrite(path, np.array([[0, np.nan]], np.float32))
    with pytest.raises(DataError, match="not finite"):
        read_mask(path)


def test_mask_follows_the_same_orientation_as_its_image(tmp_path, truth):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(truth * np.uint8(255)).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").numpy(), np.rot90(truth, -1))


@pytest.mark.real
def test_real_unity_files():
    folder = Path(__file__).parents[2] / "../shared/data/unity_legacy/annotations"
    if not folder.is_dir():
        pytest.skip("the real images are not here")
    path = next(folder.glob("sementic*.png"))
    np.testing.assert_array_equal(read_mask(path).numpy(), np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)) > 0)
    for path in folder.glob("instance*.png"):
        with pytest.raises(DataError, match="0 bytes"):
            read_mask(path)
