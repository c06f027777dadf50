"""What files say before they are decoded, against what is decoded."""

import numpy as np
import pytest
import tifffile
from encoding import H, W, colour, encoded
from PIL import Image

from oddpatch.data.decoding import read_image
from oddpatch.data.headers import find_full_scale, read_header


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_full_scale_of_a_set_is_the_next_power_of_two_less_one(tmp_path, rng):
    def write(name, values):
        tifffile.imwrite(tmp_path / name, np.asarray(values)) if name.endswith("tif") else Image.fromarray(
            np.asarray(values)
        ).save(tmp_path / name)
        return tmp_path / name

    eight = write("eight.png", np.full((H, W), 250, np.uint8))
    assert find_full_scale([eight]) is None
    (tmp_path / "broken.tif").write_bytes(b"II*")
    floats = write("float.tif", np.full((H, W), 0.5, np.float32))
    assert find_full_scale([tmp_path / "broken.tif", floats, tmp_path / "absent.tif"]) is None
    for highest, expected in ((0, 255), (200, 255), (256, 511), (1000, 1023), (1023, 1023), (1024, 2047), (4000, 4095)):
        dark = write("dark.tif", np.zeros((H, W), np.uint16))
        deep = write("deep.tif", np.full((H, W), highest, np.int32))
        assert find_full_scale([eight, dark, deep, floats]) == expected
    assert find_full_scale([write("deep.png", np.full((H, W), 700, np.uint16))]) == 1023
    tifffile.imwrite(tmp_path / "colour.tif", np.full((H, W, 3), 3000, np.uint16), photometric="rgb")
    assert find_full_scale([tmp_path / "colour.tif"]) == 4095


@pytest.mark.parametrize("kind", ["png", "jpeg", "png16", "tiff", "tiff-float", "ppm16"])
def test_header_tells_the_size_of_the_decoded_image(tmp_path, rng, kind):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(kind, rng))
    header, image = read_header(path), read_image(path)
    assert header is not None
    assert header.size == tuple(image.shape[1:])
    assert header.deep == (kind in ("png16", "ppm16")) or kind == "tiff-float"


def test_header_is_that_of_the_upright_image(tmp_path, rng):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(colour(rng)).save(tmp_path / "a.jpg", exif=exif)
    header = read_header(tmp_path / "a.jpg")
    assert header is not None
    assert header.size == (W, H) == tuple(read_image(tmp_path / "a.jpg").shape[1:])
    assert read_header(tmp_path / "absent.jpg") is None
