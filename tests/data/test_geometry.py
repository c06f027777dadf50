"""How images come to one size: every pixel accounted for, there and back."""

from typing import Any

import numpy as np
import pytest
import torch
from narrowing import present
from torch.nn import functional as F

from oddpatch.data.geometry import Frame, Geometry, make_frame
from oddpatch.data.inspected import Inspected, describe_share, inspected_share
from oddpatch.data.resampling import Axis, resample
from oddpatch.data.transforms import Preprocess
from oddpatch.errors import ConfigError
from oddpatch.types import IGNORE

PLAIN: dict[str, Any] = {"mean": [0.0] * 3, "std": [1.0] * 3}


def noise(height, width, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("resize", "crop", "fit", "expected"),
    [
        (256, 224, None, "crop"),
        (None, 224, None, "crop"),
        (256, None, None, "letterbox"),
        (None, None, None, "letterbox"),
        ([224, 224], None, None, "stretch"),
        (256, 224, "letterbox", "letterbox"),
        (256, 224, "stretch", "stretch"),
        ([96, 128], None, "letterbox", "letterbox"),
    ],
)
def test_the_way_follows_from_the_sizes_unless_it_is_given(resize, crop, fit, expected):
    assert make_frame(resize, crop, fit).fit == expected


def test_the_frame_takes_the_shape_of_the_middle_image():
    frame = make_frame(256, None)
    assert frame.size is None
    assert frame.adapted([(900, 900)] * 3).size == (256, 256)
    assert frame.adapted([(500, 1240)]).size == (256, 635)
    assert frame.adapted([(500, 1240)], multiple=16).size == (256, 640)
    assert frame.adapted([(500, 1240)], multiple=14).size == (252, 630)
    assert frame.adapted([(4096, 256)], multiple=32).size == (4096, 256)
    assert frame.adapted([(100, 200), (100, 100), (100, 110)]).size == (256, 282)  # 100 x 110 lies in the middle
    assert frame.adapted([(100, 110), (100, 200), (100, 100)]) == frame.adapted([(100, 100), (100, 110), (100, 200)])
    assert make_frame(None, None).adapted([(300, 500)], multiple=32).size == (288, 512)
    assert make_frame(256, 224).adapted([(500, 1240)]).size == (224, 224)  # nothing to settle
    assert make_frame([64, 96], None).adapted([(500, 1240)]).size == (64, 96)


def test_images_of_the_shape_of_the_frame_fill_it_though_its_sides_were_rounded():
    frame = make_frame(256, None).adapted([(500, 1240)], multiple=16)
    for size in ((500, 1240), (250, 620), (1000, 2478)):
        assert frame.place(size) == Geometry((256, 640), (0, 0), (256, 640))
    upright = frame.place((1240, 500))
    assert upright.resized == (256, 103)
    assert upright.offset == (0, -268)
    assert upright.padded
    assert upright.share == 1


def test_a_frame_of_unknown_size_says_so():
    with pytest.raises(ConfigError, match="setup"):
        Frame("letterbox", 256).place((10, 10))
    with pytest.raises(ConfigError, match="setup"):
        _ = Preprocess(256, None, **PLAIN).image_size


@pytest.mark.parametrize("size", [(60, 120), (120, 60), (90, 91), (1, 50)])
def test_letterbox_shows_all_of_the_image_and_mirrors_it_in_the_padding(size):
    preprocess = Preprocess([64, 64], None, fit="letterbox", **PLAIN)
    image = noise(*size)
    place = preprocess.geometry(size)
    rows, columns = place.inside
    result = preprocess(image)
    shown = F.interpolate(image[None].double(), place.resized, mode="bilinear", antialias=True)[0]
    np.testing.assert_allclose(result[:, rows, columns], shown, atol=1e-6)
    assert max(place.resized) == 64
    before, after = (rows.start, 64 - rows.stop), (columns.start, 64 - columns.stop)
    assert abs(before[0] - before[1]) <= 1  # in the middle
    assert abs(after[0] - after[1]) <= 1
    expected = np.pad(shown.numpy(), ((0, 0), before, after), mode="symmetric")
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_padding_is_ignored_in_masks_and_never_comes_back():
    preprocess = Preprocess([64, 64], None, fit="letterbox", **PLAIN)
    mask = preprocess.mask(torch.ones(60, 120, dtype=torch.uint8))
    assert mask[0, 16:48].eq(1).all()
    assert mask[0, :16].eq(IGNORE).all()
    assert mask[0, 48:].eq(IGNORE).all()
    assert torch.equal(preprocess.uniform_mask(1, (60, 120)), mask)
    anomaly_map = np.full((64, 64), 7, np.float32)
    anomaly_map[16:48] = np.arange(64)  # the map is the column
    laid = preprocess.to_original(anomaly_map, (60, 120))
    assert laid.shape == (60, 120)
    assert not np.isnan(laid).any()
    columns = (np.arange(120) + 0.5) * 64 / 120 - 0.5
    np.testing.assert_allclose(laid[20], columns.clip(0, 63), atol=1e-4)


@pytest.mark.parametrize("size", [(48, 200), (200, 48), (100, 100)])
@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_every_pixel_of_the_original_reaches_the_frame(size, fit):
    preprocess = Preprocess([64, 64], None, fit=fit, **PLAIN)
    black = preprocess(torch.zeros(3, *size))
    for row in (0, size[0] // 2, size[0] - 1):
        for column in (0, size[1] // 2, size[1] - 1):
            image = torch.zeros(3, *size)
            image[:, row, column] = 1
            assert (preprocess(image) - black).abs().max() > 1e-3
    assert preprocess.share(size) == 1


def test_share_of_a_crop_is_its_area():
    crop = Preprocess(256, 224, **PLAIN)
    assert crop.share((900, 900)) == pytest.approx((224 / 256) ** 2)
    assert crop.share((4096, 256)) == pytest.approx(224 * 224 / (4096 * 256))
    assert crop.share((500, 1240)) == pytest.approx(224 * 224 / (256 * 634))
    assert Preprocess(224, 224, **PLAIN).share((900, 900)) == 1


def test_share_is_that_of_all_images_and_names_the_remedy():
    crop = Preprocess(256, 224, **PLAIN)
    found = inspected_share(crop, [(900, 900)] * 3 + [(512, 256)])
    square, strip = (224 / 256) ** 2, (224 / 256) ** 2 / 2
    assert found == pytest.approx(Inspected((3 * square + strip) / 4, strip, strip))
    assert found is not None
    assert found.to_dict() == {"mean": pytest.approx(0.6699, abs=1e-4), "min": pytest.approx(0.3828, abs=1e-4)}
    line = describe_share(crop, found)
    assert line.startswith("67.0% (of one image 38.3%) of the area of the images is inspected, at 224x224 pixels")
    assert "data.crop=null inspects all of it" in line
    whole = Preprocess(256, None, **PLAIN)
    whole.adapt([(512, 256)])
    line = describe_share(whole, present(inspected_share(whole, [(512, 256)] * 2)))
    assert line == "100.0% of the area of the images is inspected, at 512x256 pixels"
    assert inspected_share(crop, []) is None
    assert inspected_share(Preprocess(None, 56, **PLAIN), [(40, 40)]) is None  # cannot be prepared: loading says so


@pytest.mark.parametrize("size", [(301, 500), (500, 301), (64, 1000), (20, 30)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("first", [0, 3, 37, 58])
def test_a_part_is_resized_as_the_whole_to_the_last_bit(size, interpolation, first):
    image = (noise(*size) * 255).byte().permute(1, 2, 0).contiguous().permute(2, 0, 1).numpy()
    whole = resample(image, Axis(size[0], 64, 0, 64), Axis(size[1], 80, 0, 80), interpolation)
    part = resample(image, Axis(size[0], 64, first, 60), Axis(size[1], 80, first + 1, 80), interpolation)
    np.testing.assert_array_equal(part, whole[:, first:60, first + 1 :])


@pytest.mark.parametrize("size", [(1, 1), (301, 50), (9, 4000)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("to", [(64, 80), (301, 80), None])
def test_resizing_is_torchs_in_double_precision(size, interpolation, to):
    image, (height, width) = noise(*size), to or size
    expected = F.interpolate(image[None].double(), (height, width), mode=interpolation, antialias=True)[0]
    for layout in (image.numpy(), np.ascontiguousarray(image.permute(1, 2, 0)).transpose(2, 0, 1)):
        found = resample(layout, Axis(size[0], height, 0, height), Axis(size[1], width, 0, width), interpolation)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("resize", [64, None])
def test_grey_and_8_bit_images_are_prepared_as_their_colours_and_floats(resize):
    pixels = (noise(90, 70) * 255).byte()
    preprocess = Preprocess(resize, 56, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(preprocess(pixels), preprocess(pixels.float().div(255)), rtol=0, atol=2e-6)
    grey = pixels[:1].expand(3, -1, -1)
    assert torch.equal(preprocess(grey), preprocess(grey.contiguous()))
