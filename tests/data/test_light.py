"""Brightness and sharpness of an image, against SciPy."""

import numpy as np
import pytest
from conftest import make_dataset
from PIL import Image, ImageFilter
from scipy.ndimage import laplace

from oddpatch.data.light import measure
from oddpatch.data.transforms import Preprocess


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


def test_a_small_image_is_looked_at_completely():
    pixels = image(40, 256)
    grey = pixels.mean(axis=0) / 255
    found = measure(pixels)
    assert found.brightness == pytest.approx(grey.mean(), rel=1e-5)
    assert found.sharpness == pytest.approx(laplace(grey)[1:-1, 1:-1].var(), rel=1e-5)


def test_of_a_large_image_blocks_are_looked_at_at_full_resolution():
    pixels = image(400, 300)
    grey = pixels.mean(axis=0) / 255
    rows, columns = (np.linspace(0, side - 32, 8).round().astype(int) for side in (400, 300))
    blocks = [grey[y : y + 32, x : x + 32] for y in rows for x in columns]
    found = measure(pixels)
    assert found.brightness == pytest.approx(np.mean(blocks), rel=1e-5)
    inner = [laplace(block)[1:-1, 1:-1] for block in blocks]
    assert found.sharpness == pytest.approx(np.var(inner), rel=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 700), (48, 48), (700, 900)])
def test_values_are_those_of_the_same_image_in_floats_and_in_another_layout(size):
    pixels = image(*size)
    channels_last = np.ascontiguousarray(pixels.transpose(1, 2, 0)).transpose(2, 0, 1)
    assert measure(pixels) == measure(channels_last) == measure(pixels.astype(np.float32) / np.float32(255))


def test_a_slight_blur_of_a_large_image_is_seen():
    sharp = Image.fromarray(image(1200, 1600).transpose(1, 2, 0))
    blurred = sharp.filter(ImageFilter.GaussianBlur(0.6))
    before, after = (measure(np.asarray(picture).transpose(2, 0, 1)) for picture in (sharp, blurred))
    assert after.sharpness < before.sharpness / 3
    assert after.brightness == pytest.approx(before.brightness, rel=0.02)


def test_a_file_is_measured_as_it_is_prepared(tmp_path):
    tiles = make_dataset(tmp_path)
    path = tiles / "train/good/000.png"
    _, placement = Preprocess([32, 32], None, [0.5] * 3, [0.2] * 3).prepare(path)
    assert placement.light == measure(np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1))
    assert placement.statistics == list(placement.light)
