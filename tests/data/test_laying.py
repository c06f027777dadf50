"""Maps laid on the original, held to SciPy's interpolation of the positions that the geometry gives."""

import numpy as np
import pytest
from scipy import ndimage

from oddpatch.data.alignment import Alignment, Registration, encode
from oddpatch.data.geometry import make_frame
from oddpatch.data.laying import to_original

MAP = np.random.default_rng(0).random((24, 32), np.float32) * 90
FRAMES = {
    "crop": ((30, 40), (24, 32), "crop"),
    "stretch": ((24, 32), None, "stretch"),
    "letterbox": ((24, 32), None, "letterbox"),
}


@pytest.mark.parametrize("size", [(47, 90), (24, 32), (9, 7)])
@pytest.mark.parametrize("layout", FRAMES)
def test_pixels_are_interpolated_where_the_geometry_puts_them(layout, size):
    frame = make_frame(*FRAMES[layout])
    place = frame.place(size)
    centres = np.mgrid[: size[0], : size[1]] + 0.5
    expected, inside = _expected(place, [centre / side for centre, side in zip(centres, size, strict=True)])
    laid = to_original(MAP, frame, size, np.nan, None, None)
    assert laid.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(laid), ~inside)
    np.testing.assert_allclose(laid[inside], expected[inside], rtol=1e-6, atol=1e-5)


def test_a_frame_between_two_pixels_shows_none():
    laid = to_original(MAP[:1, :1], make_frame((100, 100), 1, "crop"), (2, 2), 7.0, None, None)
    np.testing.assert_array_equal(laid, np.full((2, 2), 7, np.float32))


def test_an_aligned_image_is_looked_at_where_it_lies_on_the_reference():
    picture = np.random.default_rng(1).integers(0, 255, (40, 56), np.uint8)
    alignment = Alignment(encode(picture), picture.shape)
    matrix = np.array([[0.9, 0.1, 3], [-0.05, 1.1, -2], [1e-3, -5e-4, 1]])
    frame, size = make_frame(*FRAMES["crop"]), (50, 45)
    y, x = np.mgrid[: size[0], : size[1]]
    across, down, depth = np.tensordot(matrix, np.stack([x, y, np.ones_like(x)]), 1)
    shares = [(down / depth + 0.5) / 40, (across / depth + 0.5) / 56]
    expected, inside = _expected(frame.place((40, 56)), shares)
    laid = to_original(MAP, frame, size, -1.0, alignment, Registration(matrix, 1.0))
    assert 0.2 < inside.mean() < 0.9
    np.testing.assert_array_equal(laid == -1, ~inside)
    np.testing.assert_allclose(laid[inside], expected[inside], rtol=1e-6, atol=1e-5)


def _expected(place, shares):
    """What is interpolated at shares of the whole image, and whether it is shown there."""
    positions = [share * side - offset for share, side, offset in zip(shares, place.resized, place.offset, strict=True)]
    inside = np.all(
        [(at >= part.start) & (at <= part.stop) for at, part in zip(positions, place.inside, strict=True)], axis=0
    )
    laid = ndimage.map_coordinates(MAP.astype(np.float64), np.array(positions) - 0.5, order=1, mode="nearest")
    return laid, inside
