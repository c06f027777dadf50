"""Registration against homographies that are known, on rendered boards; what is misplaced must stay so."""

import pickle

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from oddpatch.data.alignment import Alignment, Registration, block_correlations, decode, encode, load_alignment
from oddpatch.data.transforms import Preprocess
from oddpatch.errors import ConfigError, DataError
from oddpatch.scenes import load_scene
from oddpatch.scenes.dataset import Job, render_one
from oddpatch.scenes.optics import Camera, Light
from oddpatch.types import IGNORE

SIZE = 256
MEAN, STD = [0.5] * 3, [0.25] * 3


def tensor(image):
    return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1).contiguous()


def align_to(image, **settings):
    grey = (image.mean(0) * 255).round().byte().numpy()
    return Alignment(encode(grey), image.shape[-2:], **settings)


@pytest.fixture(scope="module")
def scene():
    return load_scene("pcb")(SIZE, 0)


@pytest.fixture(scope="module")
def photographs(scene):
    """One good board in one light, by three cameras: images, and the homographies from board to pixels."""
    rng = np.random.default_rng(3)
    specimen, light = scene.specimen(rng), Light.draw(rng)
    cameras = [Camera.draw(rng) for _ in range(3)]
    images = [tensor(scene.render(specimen, light, camera)[0]) for camera in cameras]
    return images, [camera.matrix(SIZE, SIZE) for camera in cameras]


def corners(size=SIZE):
    return np.array([[[0, 0]], [[size - 1, 0]], [[0, size - 1]], [[size - 1, size - 1]]], np.float64)


def error(found, true, size=SIZE):
    """Largest distance in pixels between where two homographies put the corners."""
    a, b = (cv2.perspectiveTransform(corners(size), np.asarray(matrix)) for matrix in (found, true))
    return float(np.linalg.norm(a - b, axis=-1).max())


def test_encoding_is_lossless():
    grey = np.random.default_rng(0).integers(0, 256, (7, 9)).astype(np.uint8)
    np.testing.assert_array_equal(decode(encode(grey)), grey)
    np.testing.assert_array_equal(decode(encode(grey > 99)), grey > 99)


def test_the_reference_itself_stays(photographs):
    found = align_to(photographs[0][0]).register(photographs[0][0])
    assert error(found.matrix, np.eye(3)) < 1e-3
    assert found.quality == pytest.approx(1, abs=1e-3)


def test_camera_play_is_undone(photographs):
    images, matrices = photographs
    alignment = align_to(images[0])
    for image, matrix in zip(images[1:], matrices[1:], strict=True):
        true = matrices[0] @ np.linalg.inv(matrix)
        found = alignment.register(image)
        assert error(np.eye(3), true) > 2
        assert error(found.matrix, true) < 0.7
        assert found.quality > 0.8
        before, after = (
            (moved - images[0])[:, 16:-16, 16:-16].abs().mean()
            for moved in (image, torch.from_numpy(alignment.warp(image, found)))
        )
        assert after < 0.5 * before


def test_resolution_does_not_matter(photographs):
    images, matrices = photographs
    large = torch.nn.functional.interpolate(images[1][None], scale_factor=3, mode="bilinear", align_corners=False)[0]
    to_small = np.array([[1 / 3, 0, -1 / 3], [0, 1 / 3, -1 / 3], [0, 0, 1]])  # centre 1 of three becomes centre 0
    true = matrices[0] @ np.linalg.inv(matrices[1]) @ to_small
    assert error(align_to(images[0]).register(large).matrix, true, 3 * SIZE) < 0.7


def test_pixel_centres_are_kept_where_images_are_reduced(photographs):
    image = photographs[0][0]
    large = torch.nn.functional.interpolate(image[None], scale_factor=8, mode="bilinear", align_corners=False)[0]
    to_small = np.array([[1 / 8, 0, 1 / 16 - 0.5], [0, 1 / 8, 1 / 16 - 0.5], [0, 0, 1]])
    middle = np.full((1, 1, 2), 4 * SIZE - 0.5)  # an eighth of a pixel is lost there if corners are taken for centres
    found, true = (
        cv2.perspectiveTransform(middle, matrix) for matrix in (align_to(image).register(large).matrix, to_small)
    )
    np.testing.assert_allclose(found, true, atol=0.06)
    assert error(align_to(image, method="translation").register(image).matrix, np.eye(3)) < 0.01


def test_the_majority_decides(photographs):
    images, matrices = photographs
    alignment = align_to(images[0])
    half, most = images[1].clone(), images[1].clone()
    half[:, 160:] = torch.rand(3, SIZE - 160, SIZE)  # 3 of 8 rows of blocks
    most[:, 90:] = torch.rand(3, SIZE - 90, SIZE)
    found = alignment.register(half)
    assert error(found.matrix, matrices[0] @ np.linalg.inv(matrices[1])) < 1.5
    assert alignment.measure(most).quality < alignment.min_quality < found.quality


@pytest.mark.parametrize("index", range(4))
def test_misplaced_parts_do_not_draw_the_board_along(scene, photographs, index):
    job = Job("test", "misplaced_objects", index)
    good, anomalous = (render_one(scene, 0, job, spoil=spoil) for spoil in (False, True))
    alignment = align_to(photographs[0][0])
    on_good, on_odd = (alignment.register(tensor(rendered.image)) for rendered in (good, anomalous))
    # The same board from the same place: with and without the fault it has to be moved alike.
    assert error(on_odd.matrix, on_good.matrix) < 1.0
    straight, crooked = (torch.from_numpy(alignment.warp(tensor(r.image), on_good)) for r in (good, anomalous))
    wrong = torch.from_numpy(alignment.warp_mask(torch.from_numpy(anomalous.mask), on_odd)) > 0
    difference = (torch.from_numpy(alignment.warp(tensor(anomalous.image), on_odd)) - straight).abs().mean(0)
    assert difference[wrong].mean() > 0.8 * (crooked - straight).abs().mean(0)[wrong].mean()


def test_what_is_not_the_board_is_refused(photographs):
    images, _ = photographs
    alignment = align_to(images[0])
    toolbox = load_scene("toolbox")(SIZE, 0)
    rng = np.random.default_rng(0)
    other = tensor(toolbox.render(toolbox.specimen(rng), Light.draw(rng), Camera.draw(rng))[0])
    for image in (other, images[1].flip(-1), torch.rand(3, 90, 90), torch.full((3, 64, 64), 0.5)):
        with pytest.raises(DataError, match=r"quality 0\.[0-2]\d, below min_quality=0\.6: .* or lower it") as failure:
            alignment.register(image)
        assert "\n" not in str(failure.value)


@pytest.mark.parametrize("shift", [(5, -7), (0, 12), (-9, 0)])
def test_translation(photographs, shift):
    image = photographs[0][0]
    alignment = align_to(image, method="translation")
    found = alignment.register(torch.roll(image, shift, (1, 2)))
    np.testing.assert_allclose(found.matrix, [[1, 0, -shift[1]], [0, 1, -shift[0]], [0, 0, 1]], atol=0.1)
    assert alignment.register(torch.roll(image, shift, (1, 2))).quality == found.quality  # nothing is used up
    with pytest.raises(DataError, match=r"image of 100x90 pixels, .* 256x256"):
        alignment.register(image[:, :100, :90])


def test_warping_against_pillow(photographs):
    image = photographs[0][0]
    matrix = np.array([[1.02, 0.03, -4.0], [-0.02, 0.98, 6.0], [1e-4, -5e-5, 1.0]])
    alignment = align_to(image)
    moved = torch.from_numpy(alignment.warp(image, alignment.register(image)._replace(matrix=matrix)))
    inverse = np.linalg.inv(matrix)
    # Pillow counts from the corner of the first pixel, and asks where each pixel comes from.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    inverse = half @ inverse @ np.linalg.inv(half)
    data = (inverse / inverse[2, 2]).ravel()[:8]
    expected = np.stack(
        [
            np.asarray(Image.fromarray(channel.numpy()).transform(
                (SIZE, SIZE), Image.Transform.PERSPECTIVE, tuple(data), Image.Resampling.BILINEAR
            ))
            for channel in image
        ]
    )  # fmt: skip
    np.testing.assert_allclose(moved[:, 20:-20, 20:-20], expected[:, 20:-20, 20:-20], atol=0.04)


def test_masks_get_no_new_values(photographs):
    images, _ = photographs
    alignment = align_to(images[0])
    mask = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    mask[100:140, 60:110] = 1
    moved = torch.from_numpy(alignment.warp_mask(mask, alignment.register(images[1])))
    assert set(moved.unique().tolist()) == {0, 1}
    assert moved.sum() == pytest.approx(int(mask.sum()), rel=0.1)


def test_a_mask_is_zero_where_the_image_does_not_reach(photographs):
    alignment = align_to(photographs[0][0])
    shift = np.array([[1, 0, 30], [0, 1, -20], [0, 0, 1]], np.float64)  # right and up
    moved = torch.from_numpy(alignment.warp_mask(torch.ones(SIZE, SIZE, dtype=torch.uint8), Registration(shift, 1.0)))
    expected = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    expected[: SIZE - 20, 30:] = 1
    assert torch.equal(moved, expected)


def test_what_is_moved_in_from_outside_an_image_counts_in_no_pixel_metric(photographs):
    preprocess = Preprocess(None, SIZE, [0.5] * 3, [0.5] * 3, align=align_to(photographs[0][0]).settings())
    shift = np.array([[1, 0, 30], [0, 1, -20], [0, 0, 1]], np.float64)  # right and up
    expected = torch.full((1, SIZE, SIZE), IGNORE, dtype=torch.uint8)
    for value in (0, 1):
        expected[:, : SIZE - 20, 30:] = value
        stored = torch.full((SIZE, SIZE), value, dtype=torch.uint8)
        assert torch.equal(preprocess.mask(stored, Registration(shift, 1.0)), expected)
        assert torch.equal(preprocess.uniform_mask(value, (SIZE, SIZE), Registration(shift, 1.0)), expected)


def test_settings_and_pickles_give_the_same_registration(photographs):
    images, _ = photographs
    first = align_to(images[0], min_quality=0.3)
    for other in (Alignment(**first.settings()), pickle.loads(pickle.dumps(first))):
        assert other.settings() == first.settings()
        np.testing.assert_array_equal(other.register(images[1]).matrix, first.register(images[1]).matrix)


def test_what_users_give(tmp_path, photographs):
    path = tmp_path / "reference.png"
    Image.fromarray((photographs[0][0] * 255).byte().permute(1, 2, 0).numpy()).save(path)
    assert load_alignment(None) is None
    short, long = load_alignment(path), load_alignment({"reference": path, "method": "translation"})
    assert short is not None
    assert long is not None
    assert (short["size"], short["method"], long["method"]) == ([SIZE, SIZE], "homography", "translation")
    assert load_alignment(long) == long  # what was loaded can be loaded again, without the file
    for wrong in ({"method": "homography"}, {"reference": path, "quality": 1}, {"reference": path, "method": "ecc"}):
        with pytest.raises(ConfigError, match="align"):
            load_alignment(wrong)
    with pytest.raises(ConfigError, match=r"min_quality=2"):
        load_alignment({"reference": path, "min_quality": 2})
    with pytest.raises(DataError, match="no such file"):
        load_alignment(tmp_path / "nothing.png")
    Image.new("RGB", (50, 50)).save(tmp_path / "black.png")
    with pytest.raises(ConfigError, match="one colour"):
        load_alignment(tmp_path / "black.png")


# As part of the preprocessing


@pytest.fixture
def preprocess(photographs):
    return Preprocess([128, 128], [112, 112], MEAN, STD, align=align_to(photographs[0][0]).settings())


def test_preprocessing_aligns_and_can_be_built_anew(photographs, preprocess, tmp_path):
    images, _ = photographs
    plain = Preprocess([128, 128], [112, 112], MEAN, STD)
    assert (preprocess(images[1]) - plain(images[0])).abs().mean() < 0.5 * (
        plain(images[1]) - plain(images[0])
    ).abs().mean()
    torch.save(preprocess.settings(), tmp_path / "settings")
    again = Preprocess(**torch.load(tmp_path / "settings", weights_only=True))
    assert torch.equal(again(images[1]), preprocess(images[1]))
    assert torch.equal(preprocess(images[1], preprocess.register(images[1])), preprocess(images[1]))
    assert torch.equal(preprocess(torch.stack(images))[2], preprocess(images[2]))
    assert "base64" not in repr(preprocess)
    assert plain.register(images[0]) is None


def test_masks_and_maps_follow_their_image(photographs, preprocess):
    images, _ = photographs
    registration = preprocess.register(images[1])
    mask = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    mask[90:130, 140:190] = 1
    prepared = preprocess.mask(mask, registration)  # (1, 112, 112)
    back = preprocess.to_original(prepared[0].float().numpy(), (SIZE, SIZE), 0, registration) > 0.5
    inside = mask.numpy() > 0
    overlap = (back & inside).sum() / (back | inside).sum()
    assert overlap > 0.9
    for call in (
        lambda: preprocess.mask(mask),
        lambda: preprocess.to_original(np.ones((112, 112), np.float32), (SIZE, SIZE)),
    ):
        with pytest.raises(DataError, match="registration"):
            call()


def test_a_quality_that_no_image_can_have_is_refused():
    with pytest.raises(ConfigError, match=r"align\.min_quality=2: choose 0\.\.1"):
        Alignment("", (SIZE, SIZE), min_quality=2)


@pytest.mark.filterwarnings("ignore:Degrees of freedom")  # of a block of one pixel
@pytest.mark.parametrize("size", [(64, 80), (45, 61), (5, 9)])
def test_blocks_correlate_as_numpy_says(size):
    first, second = np.random.default_rng(0).random((2, *size), np.float32)
    second += first
    second[: size[0] // 2, : size[1] // 2] = 0.5  # correlates with nothing
    blocks = [
        (a, b)
        for rows in zip(*(np.array_split(image, 8) for image in (first, second)), strict=True)
        for a, b in zip(*(np.array_split(row, 8, axis=1) for row in rows), strict=True)
        if a.size
    ]
    with np.errstate(all="ignore"):
        expected = [np.nan_to_num(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in blocks]
    fits, contrasts = block_correlations(first, second)
    np.testing.assert_allclose(fits, expected, atol=1e-9)
    np.testing.assert_allclose(contrasts, [a.std() for a, _ in blocks], atol=1e-6)
