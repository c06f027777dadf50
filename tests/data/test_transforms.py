"""Preprocessing against torchvision, and its geometry against itself."""

import numpy as np
import pytest
import torch
from narrowing import present
from PIL import Image
from torchvision.transforms import v2

from oddpatch.data.decoding import read_image, to_rgb_float
from oddpatch.data.transforms import Geometry, Preprocess
from oddpatch.errors import ConfigError, DataError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZES = [(90, 90), (61, 97), (97, 61), (30, 45), (64, 64)]


def noise(height, width, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 200 // height, x * 200 // width, 20 + (y + x) // 2], axis=-1).astype(np.uint8)


def reference(resize, crop, interpolation):
    mode = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}[interpolation]
    steps = [v2.Resize(resize, mode, antialias=True)] if resize else []
    return v2.Compose([*steps, *([v2.CenterCrop(crop)] if crop else [])])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("resize", "crop"),
    [(64, 56), (32, 31), ([40, 50], None), ([40, 50], [33, 41]), (64, [20, 64]), (None, 29), (45, 45)],
)
def test_equal_to_torchvision(size, resize, crop, interpolation):
    preprocess = Preprocess(resize, crop, MEAN, STD, interpolation)
    image = noise(*size)
    expected = v2.functional.normalize(reference(resize, crop, interpolation)(image).clamp(0, 1), MEAN, STD)
    result = preprocess(image)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert tuple(result.shape) == (3, *preprocess.image_size)
    np.testing.assert_allclose(result, expected, atol=2e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "resize", "crop"), [((701, 900), 256, 224), ((1, 300), [3, 8], None)])
def test_equal_to_torchvision_where_the_size_changes_much(size, resize, crop, interpolation):
    image = noise(*size)
    expected = reference(resize, crop, interpolation)(image.double()).clamp(0, 1)  # in float32 its weights are coarser
    result = Preprocess(resize, crop, [0, 0, 0], [1, 1, 1], interpolation)(image)
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_close_to_torchvision_on_pil_images(interpolation):
    image = Image.fromarray(smooth(150, 200))
    preprocess = Preprocess(64, 56, [0, 0, 0], [1, 1, 1], interpolation)
    expected = np.asarray(reference(64, 56, interpolation)(image)) / 255
    # Pillow rounds to 8 bits after each axis.
    np.testing.assert_allclose(preprocess(to_rgb_float(image)).permute(1, 2, 0), expected, atol=1.01 / 255)


def test_file_uint8_and_float_give_one_tensor(tmp_path):
    pixels = smooth(100, 130)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    preprocess = Preprocess(64, 56, MEAN, STD)
    from_file = preprocess(read_image(tmp_path / "a.png"))
    for same in (pixels, pixels / 255, (pixels / 255).astype(np.float32), pixels.astype(np.uint16) * 257):
        np.testing.assert_allclose(preprocess(to_rgb_float(same)), from_file, atol=1e-6)


def test_batch_equals_single_images():
    batch = torch.stack([noise(70, 90, seed) for seed in range(3)])
    preprocess = Preprocess(64, 56, MEAN, STD)
    expected = torch.stack([preprocess(image) for image in batch])
    np.testing.assert_allclose(preprocess(batch), expected, atol=1e-6)
    assert preprocess(batch).is_contiguous()


def test_input_is_left_alone():
    image = noise(56, 56)
    before = image.clone()
    Preprocess(None, 56, MEAN, STD)(image)
    assert torch.equal(image, before)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("resize", "crop"), [(64, 56), ([40, 50], [33, 41]), (None, 29)])
def test_mask_is_pillows_nearest_and_keeps_its_values(size, resize, crop):
    values = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), size)
    preprocess = Preprocess(resize, crop, MEAN, STD)
    steps = [v2.Resize(resize, v2.InterpolationMode.NEAREST)] if resize else []
    expected = np.asarray(v2.Compose([*steps, v2.CenterCrop(crop)])(Image.fromarray(values)))
    mask = preprocess.mask(torch.from_numpy(values))
    assert mask.dtype == torch.uint8
    # A centre that falls between two pixels may take either.
    geometry = preprocess.geometry(size)
    clear = [
        ((np.arange(start, start + length) + 0.5) * original / scaled) % 1 != 0
        for original, scaled, start, length in zip(size, *geometry, strict=True)
    ]
    chosen = np.ix_(*clear)
    assert mask[0].numpy()[chosen].size > 0.7 * expected.size
    np.testing.assert_array_equal(mask[0].numpy()[chosen], expected[chosen])


def test_mask_lies_on_its_image():
    truth = torch.zeros(200, 300, dtype=torch.uint8)
    truth[40:120, 90:200] = 1
    preprocess = Preprocess(100, 80, [0, 0, 0], [1, 1, 1])
    image = preprocess(truth.float().expand(3, -1, -1))
    np.testing.assert_array_equal(preprocess.mask(truth)[0], image[0] > 0.5)


def test_to_image_undoes_normalisation():
    image = noise(56, 56)
    preprocess = Preprocess(None, 56, MEAN, STD)
    np.testing.assert_allclose(preprocess.to_image(preprocess(image)[None])[0], image, atol=1e-6)


def test_settings_build_the_same():
    for preprocess in (Preprocess(64, 56, MEAN, STD, "bicubic"), Preprocess((40, 50), None, MEAN, STD)):
        again = Preprocess(**preprocess.settings())
        assert again.settings() == preprocess.settings()
        assert torch.equal(again(noise(80, 90)), preprocess(noise(80, 90)))
    assert Preprocess(64, 56, MEAN, STD).state_dict() == {}
    assert "resize=64" in repr(Preprocess(64, 56, MEAN, STD))


def test_geometry():
    assert Preprocess(256, 224, MEAN, STD).geometry((900, 1200)) == Geometry((256, 341), (16, 58), (224, 224))
    assert Preprocess([40, 50], None, MEAN, STD).geometry((900, 1200)) == Geometry((40, 50), (0, 0), (40, 50))


@pytest.mark.parametrize(("resize", "crop"), [(64, 48), ([64, 80], [64, 80])])
def test_map_returns_to_where_it_came_from(resize, crop):
    preprocess = Preprocess(resize, crop, [0, 0, 0], [1, 1, 1])
    y, x = torch.meshgrid(torch.linspace(0, 1, 120), torch.linspace(0, 1, 200), indexing="ij")
    image = torch.stack([y, x, 0.5 * (x + y)])  # smooth, so that resizing loses nothing
    laid = torch.stack(
        [torch.from_numpy(preprocess.to_original(plane.numpy(), (120, 200))) for plane in preprocess(image)]
    )
    inside = ~laid[0].isnan()
    (resized, (top, left), (height, width)) = preprocess.geometry((120, 200))
    assert inside.float().mean() == pytest.approx(height * width / (resized[0] * resized[1]), rel=0.05)
    rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
    assert rows[0] == pytest.approx(top * 120 / resized[0], abs=1)
    assert columns[0] == pytest.approx(left * 200 / resized[1], abs=1)
    core = inside.clone()
    core[rows[[0, 1, 2, -3, -2, -1]]] = False
    core[:, columns[[0, 1, 2, -3, -2, -1]]] = False
    np.testing.assert_allclose(laid[:, core], image[:, core], atol=2e-3)


def test_map_of_uncropped_image_covers_all_of_it():
    anomaly_map = np.random.default_rng(0).random((64, 64), np.float32)
    laid = Preprocess([64, 64], None, MEAN, STD).to_original(anomaly_map, (123, 77))
    assert laid.shape == (123, 77)
    assert not np.isnan(laid).any()
    same = Preprocess([64, 64], None, MEAN, STD).to_original(anomaly_map, (64, 64))
    np.testing.assert_array_equal(same, anomaly_map)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit": "squeeze"}, "choose crop, stretch, letterbox"),
        ({"fit": "crop", "crop": None}, "fit=letterbox"),
        ({"full_scale": 0}, "full_scale=0"),
        ({"max_pixels": -1}, "max_pixels=-1"),
        ({"crop": 300}, "larger than resize"),
        ({"resize": [100, 100], "crop": 224}, "larger than resize"),
        ({"resize": 0}, "at least 1"),
        ({"crop": [1, 2, 3]}, "not a size"),
        ({"crop": -1}, "not a size"),
        ({"interpolation": "lanczos"}, "choose bilinear or bicubic"),
        ({"mean": [0.5]}, "3 values"),
        ({"std": [0.1, 0.0, 0.1]}, "above 0"),
    ],
)
def test_settings_that_cannot_work(change, message):
    with pytest.raises(ConfigError, match=message) as error:
        Preprocess(**({"resize": 256, "crop": 224, "mean": MEAN, "std": STD} | change))
    assert "\n" not in str(error.value)


def test_image_smaller_than_crop():
    with pytest.raises(DataError, match=r"20x90 pixels .* smaller than crop=\[56, 56\]"):
        Preprocess(None, 56, MEAN, STD)(noise(20, 90))


def test_a_file_that_cannot_be_prepared_is_named(tmp_path):
    path = tmp_path / "small.png"
    Image.fromarray(smooth(20, 90)).save(path)
    with pytest.raises(DataError, match=r"small.png: image of 20x90 pixels"):
        Preprocess(None, 56, MEAN, STD).load(path)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("scale", [1.0, 0.7, 1.4])
def test_an_image_prepared_in_bands_is_the_same_to_the_last_bit(scale, interpolation):
    preprocess = Preprocess(None, None, MEAN, STD, interpolation, fit="tiles", tiles={"scale": scale})
    preprocess.adapt([(150, 210)], 16)
    for image in (noise(150, 210), (noise(150, 210) * 255).byte()):
        whole = preprocess(image)
        bands = present(preprocess.in_bands(image, torch.device("cpu")))
        assert bands.size == whole.shape[1:]
        for first, last in ((0, 32), (16, 80), (32, whole.shape[1])):
            assert torch.equal(bands.rows(first, last)[0], whole[:, first:last])


def test_an_image_of_another_shape_is_prepared_as_a_whole():
    preprocess = Preprocess(None, None, MEAN, STD, fit="tiles")
    preprocess.adapt([(64, 96)], 16)
    assert preprocess.in_bands(torch.rand(3, 64, 64), torch.device("cpu")) is None  # its padding is mirrored


@pytest.mark.parametrize(
    "image", [torch.zeros(1, 60, 60), torch.zeros(3, 60, 60, dtype=torch.int32), torch.zeros(60, 60)]
)
def test_other_tensors_are_refused(image):
    with pytest.raises(DataError, match="expected"):
        Preprocess(64, 56, MEAN, STD)(image)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mean": [0.5]}, r"mean=\[0\.5\] must have 3 values, one per colour channel"),
        ({"std": [0.5, 0.0, 0.5]}, r"std=\[0\.5, 0\.0, 0\.5\] must be above 0 in every channel"),
        ({"fit": "tiles", "tiles": {"side": "large"}}, "tiles=.*: side and overlap are whole numbers of pixels"),
        ({"fit": "tiles", "tiles": {"scale": 0}}, r"tiles\.scale=0\.0 must be above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        Preprocess(**{"resize": None, "crop": None, "mean": [0.5] * 3, "std": [0.5] * 3, **settings})
