"""Every kind of file against what was written into it."""

import io
import os
from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from encoding import H, W, colour, encoded, one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from oddpatch.data import decoding
from oddpatch.data.decoding import (
    image_suffixes,
    is_image_name,
    missing_plugin,
    read_image,
    to_array,
    to_rgb_float,
    to_rgb_planes,
    to_uint8,
)
from oddpatch.data.headers import read_header
from oddpatch.data.masks import read_mask
from oddpatch.errors import DataError


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def expect(array, scale):
    """(3, H, W) float64 from (H, W) or (H, W, 3), in plain numpy."""
    array = np.asarray(array, np.float64) / scale
    return np.stack([array] * 3) if array.ndim == 2 else np.moveaxis(array, -1, 0)


def assert_image(path, expected):
    image = read_image(path)
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image.numpy(), expected, atol=1e-7)


WRITTEN: dict[str, Any] = {".webp": {"lossless": True}}


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif", ".TIFF", ".ppm", ".webp", ".tga"])
def test_colour_in_lossless_formats_and_any_letter_case(tmp_path, rng, suffix):
    path = tmp_path / f"a{suffix}"
    pixels = colour(rng)
    Image.fromarray(pixels).save(path, **WRITTEN.get(suffix, {}))
    assert_image(path, expect(pixels, 255))


def test_jpeg_is_what_opencv_decodes(tmp_path):
    path = tmp_path / "a.JPG"
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (64, 64, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(path, quality=95)
    reference = np.asarray(cv2.imread(str(path)))[..., ::-1]
    np.testing.assert_allclose(read_image(path).numpy(), expect(reference, 255), atol=3 / 255)


def test_grey_is_repeated(tmp_path, rng):
    pixels = colour(rng)[..., 0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert_image(tmp_path / "a.png", expect(pixels, 255))


def test_one_bit(tmp_path, rng):
    pixels = rng.random((H, W)) > 0.5
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "1"
    assert_image(tmp_path / "a.png", expect(pixels, 1))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_and_colours_kept(tmp_path, rng, mode):
    pixels = colour(rng, channels=len(mode))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == mode
    assert_image(tmp_path / "a.png", expect(pixels[..., :3] if mode == "RGBA" else pixels[..., 0], 255))


@pytest.mark.parametrize("transparency", [None, 1])
def test_palette_becomes_its_colours(tmp_path, rng, transparency):
    palette = rng.integers(0, 256, (5, 3)).astype(np.uint8)
    index = rng.integers(0, 5, (H, W)).astype(np.uint8)
    image = Image.frombytes("P", (W, H), index.tobytes())
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    assert_image(tmp_path / "a.png", expect(palette[index], 255))


def test_cmyk(tmp_path):
    pixels = np.zeros((H, W, 4), np.uint8)
    pixels[..., 0] = 255  # cyan ink only: no red
    pixels[:, 5:, 3] = 255  # black
    Image.frombytes("CMYK", (W, H), pixels.tobytes()).save(tmp_path / "a.tif")
    expected = np.full((H, W, 3), (0, 255, 255))
    expected[:, 5:] = 0
    assert_image(tmp_path / "a.tif", expect(expected, 255))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("depth", [8, 16])
def test_exif_orientation_is_applied_at_any_depth(tmp_path, rng, orientation, depth):
    pixels = colour(rng, f"uint{depth}")
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "a.png"
    if depth == 8:
        Image.fromarray(pixels).save(path, exif=exif)
    else:
        encoded = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
        chunk = exif.tobytes().removeprefix(b"Exif\0\0")
        path.write_bytes(_with_png_chunk(encoded, b"eXIf", chunk))
    upright = {
        1: pixels,
        2: np.fliplr(pixels),
        3: np.rot90(pixels, 2),
        4: np.flipud(pixels),
        5: np.swapaxes(pixels, 0, 1),
        6: np.rot90(pixels, -1),
        7: np.rot90(np.swapaxes(pixels, 0, 1), 2),
        8: np.rot90(pixels, 1),
    }[orientation]
    assert_image(path, expect(upright, 2**depth - 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_tiff_orientation_agrees_with_png(tmp_path, rng, orientation, dtype):
    pixels = colour(rng, dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray((pixels >> 8 if dtype == "uint16" else pixels).astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(read_image(tmp_path / "a.tif"), read_image(tmp_path / "a.png"), atol=1 / 255)


def _with_png_chunk(png, kind, data):
    import struct
    import zlib

    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:33] + chunk + png[33:]  # after the signature and IHDR


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_png_keeps_all_its_bits(tmp_path, rng, channels):
    pixels = colour(rng, "uint16", channels)
    order = [2, 1, 0, 3][:channels] if channels > 1 else [0]
    cv2.imwrite(str(tmp_path / "a.png"), pixels[..., order])
    assert_image(tmp_path / "a.png", expect(pixels[..., 0] if channels == 1 else pixels[..., :3], 65535))


def test_dark_16_bit_image_is_not_stretched(tmp_path):
    Image.fromarray(np.full((H, W), 300, np.uint16)).save(tmp_path / "a.png")
    assert_image(tmp_path / "a.png", np.full((3, H, W), 300 / 65535))


@pytest.mark.parametrize("maxval", [4095, 65535])
@pytest.mark.parametrize("magic", [b"P5", b"P6"])
def test_deep_pnm_is_scaled_by_its_maximum(tmp_path, rng, maxval, magic):
    pixels = rng.integers(0, maxval + 1, (H, W, 3) if magic == b"P6" else (H, W))
    (tmp_path / "a.ppm").write_bytes(magic + b"\n%d %d\n%d\n" % (W, H, maxval) + pixels.astype(">u2").tobytes())
    np.testing.assert_allclose(read_image(tmp_path / "a.ppm").numpy(), expect(pixels, maxval), atol=1 / 65535)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_of_any_depth_and_compression(tmp_path, rng, dtype, channels, compression):
    floating = dtype.startswith("float")
    pixels = rng.random((H, W, channels)).astype(dtype) if floating else colour(rng, dtype, channels)
    path = tmp_path / "a.tiff"
    if compression == "lzw":
        bgr = pixels[..., ::-1] if channels == 3 else pixels
        cv2.imwrite(str(path), bgr, [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    else:
        stored, kind = (pixels, "rgb") if channels == 3 else (pixels[..., 0], "minisblack")
        tifffile.imwrite(path, stored, photometric=kind, compression=compression)
    scale = 1 if floating else np.iinfo(dtype).max
    assert_image(path, expect(pixels if channels == 3 else pixels[..., 0], scale))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_planar_and_big_endian_tiff(tmp_path, rng, dtype):
    pixels = colour(rng, dtype)
    tifffile.imwrite(
        tmp_path / "a.tif", np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate", byteorder=">"
    )
    assert_image(tmp_path / "a.tif", expect(pixels, np.iinfo(dtype).max))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_white_is_zero_tiff(tmp_path, rng, dtype):
    pixels = colour(rng, dtype)[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    full = np.iinfo(dtype).max
    assert_image(tmp_path / "a.tif", expect(full - pixels.astype(int), full))


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint32"])
def test_wider_integers_are_16_bit_values(tmp_path, rng, dtype):
    pixels = rng.integers(0, 30000, (H, W)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    assert_image(tmp_path / "a.tif", expect(pixels, 65535))


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("int16", -1, "not all 0 or more"),
        ("int32", 65536, "full_scale=131071"),
        ("uint32", 2**31, "full_scale=4294967295"),
    ],
)
def test_integers_beyond_16_bits_are_refused_not_clipped(tmp_path, dtype, value, message):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.full((H, W), value, dtype))
    with pytest.raises(DataError, match=message) as error:
        read_image(path)
    one_line(error, path)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32"])
@pytest.mark.parametrize(("full_scale", "suffix"), [(255, "tif"), (1023, "tif"), (4095, "tif"), (4095, "png")])
def test_values_are_divided_by_the_full_scale_of_the_sensor(tmp_path, rng, dtype, full_scale, suffix):
    pixels = rng.integers(0, full_scale + 1, (H, W)).astype("uint16" if suffix == "png" else dtype)
    pixels[0, 0] = full_scale
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        Image.fromarray(pixels).save(path)
    else:
        tifffile.imwrite(path, pixels)
    np.testing.assert_allclose(read_image(path, full_scale)[1], pixels / full_scale, atol=1e-7)
    with pytest.raises(DataError, match=f"full_scale={full_scale}") as error:
        read_image(path, full_scale // 2)
    one_line(error, path)


def test_full_scale_changes_no_8_bit_image(tmp_path, rng):
    path = tmp_path / "a.png"
    Image.fromarray(colour(rng)).save(path)
    assert torch.equal(read_image(path, 1023), read_image(path))


@pytest.mark.parametrize("value", [1.5, -0.1, 200.0, np.nan, np.inf])
def test_float_outside_unit_range_is_refused(tmp_path, value):
    path = tmp_path / "a.tif"
    pixels = np.full((H, W), 0.5, np.float32)
    pixels[3, 4] = value
    tifffile.imwrite(path, pixels)
    with pytest.raises(DataError, match=r"not all in \[0, 1\]") as error:
        read_image(path)
    one_line(error, path)
    with pytest.raises(DataError, match=r"not all in \[0, 1\]"):
        to_rgb_float(pixels)


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".webp", ".png", ".avif"])
def test_a_file_of_several_frames_or_pages_is_refused_not_read_in_part(tmp_path, rng, suffix):
    pages = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(2)]
    pages[0].save(tmp_path / f"two{suffix}", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / f"one{suffix}", save_all=True)
    with pytest.raises(DataError, match=f"two{suffix}: holds several images, and only the first would be looked at"):
        read_image(tmp_path / f"two{suffix}")
    assert read_image(tmp_path / f"one{suffix}").shape == (3, 8, 8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_smaller_copies_and_masks_in_a_tiff_are_no_other_images(tmp_path, rng, dtype):
    image = rng.integers(0, 200, (8, 8), dtype=dtype)
    for name, kinds in {"pyramid": (1, 1), "mask": (4,), "stack": (1, 0), "pages": (2, 2)}.items():
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as file:
            file.write(image, photometric="minisblack", metadata=None)
            for kind in kinds:
                other, shows = (image > 99, "mask") if kind == 4 else (image[::2, ::2], "minisblack")
                file.write(other, photometric=shows, subfiletype=kind, metadata=None)
    for name in ("pyramid", "mask"):
        np.testing.assert_array_equal(decoding.read_pixels(tmp_path / f"{name}.tif"), image)
    for name in ("stack", "pages"):
        with pytest.raises(DataError, match="several images"):
            decoding.read_pixels(tmp_path / f"{name}.tif")


def test_the_preview_of_a_phone_is_no_other_image(tmp_path, rng):
    image, preview = (Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for side in (16, 8))
    image.save(tmp_path / "phone.mpo", save_all=True, append_images=[preview])
    assert read_image(tmp_path / "phone.mpo").shape == (3, 16, 16)


def test_radiance_file_that_only_opencv_reads(tmp_path, rng):
    pixels = rng.random((H, W, 3)).astype(np.float32) * 0.9
    cv2.imwrite(str(tmp_path / "a.hdr"), pixels[..., ::-1])
    np.testing.assert_allclose(read_image(tmp_path / "a.hdr"), expect(pixels, 1), atol=0.01)


def test_file_and_arrays_of_one_image_agree(tmp_path, rng):
    pixels = colour(rng)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    from_file = read_image(path)
    unit = pixels / 255.0
    reversed_view = np.ascontiguousarray(pixels[..., ::-1])[..., ::-1]
    with_alpha = np.dstack([pixels, pixels[..., 0]])
    for same in (Image.open(path), pixels, reversed_view, unit, unit.astype(np.float32), with_alpha):
        np.testing.assert_allclose(to_rgb_float(same), from_file, atol=1e-7)
    wide = pixels.astype(np.uint16) * 257
    for same in (wide, wide.astype(">u2")):
        np.testing.assert_allclose(to_rgb_float(same), from_file, atol=1e-7)


def test_array_in_memory_is_not_changed(rng):
    pixels = rng.random((H, W, 3)).astype(np.float32)
    before = pixels.copy()
    to_rgb_float(pixels).add_(0)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("convert", [to_rgb_planes, partial(to_rgb_float, keep_uint8=True)])
def test_8_bits_of_an_array_are_kept_and_are_ours(rng, convert):
    pixels = rng.integers(0, 256, (H, W, 3), dtype=np.uint8)
    found, before = convert(pixels), pixels.transpose(2, 0, 1).copy()
    pixels[:] = 0  # as a camera writes its next image
    np.testing.assert_array_equal(found, before)
    assert np.asarray(found).dtype == np.uint8


def test_pil_image_with_orientation_is_not_changed(tmp_path, rng):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(colour(rng)).save(tmp_path / "a.png", exif=exif)
    image = Image.open(tmp_path / "a.png")
    assert tuple(to_rgb_float(image).shape) == (3, W, H)
    assert image.size == (W, H)


@pytest.mark.parametrize("bad", [np.zeros((3, H, W), np.uint8), np.zeros((H, W, 5)), np.zeros(4), np.zeros((0, 4))])
def test_arrays_of_other_shapes(bad):
    with pytest.raises(DataError, match=r"camera 1: .*shape"):
        to_rgb_float(bad, name="camera 1")


@pytest.mark.parametrize("shape", [(2, H, W), (H, W), (1, 3, H, W)])
def test_tensors_of_other_shapes(shape):
    with pytest.raises(DataError, match=r"tensor \(.*\): give \(3, H, W\), or an array \(H, W, 3\)"):
        to_array(torch.zeros(shape))


def test_pixels_of_other_kinds():
    with pytest.raises(DataError, match=r"grey with premultiplied alpha .* is not supported: save it as grey"):
        to_rgb_float(Image.new("LA", (W, H)).convert("La"))
    with pytest.raises(DataError, match="complex128 has no known full scale: convert to uint8"):
        to_rgb_float(np.zeros((H, W), complex))


@pytest.mark.parametrize("dtype", ["int64", "int32", "int8", "uint32"])
def test_arrays_without_known_full_scale(dtype):
    with pytest.raises(DataError, match="no known full scale"):
        to_rgb_float(np.ones((H, W), dtype))


# Bad files


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "tiff", "webp", "png16", "tiff-float", "tiff-zlib", "ppm16"])
def test_truncated_files_never_give_a_partial_image(tmp_path, rng, kind, keep):
    data = encoded(kind, rng)
    path = tmp_path / f"a.{kind.rstrip('16').split('-')[0]}"
    path.write_bytes(data)
    read_image(path)
    path.write_bytes(data[: int(len(data) * keep)])
    for read in (read_image, read_mask):
        with pytest.raises(DataError) as error:
            read(path)
        one_line(error, path)


JPEGS: dict[str, dict[str, Any]] = {
    "colour": {},
    "grey": {},
    "cmyk": {},
    "restarts": {"restart_marker_blocks": 3},
    "progressive": {"progressive": True},
    "optimised": {"optimize": True},
}


def jpeg(kind, pixels):
    mode = {"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB")
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", **JPEGS[kind])
    return stream.getvalue()


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_whose_pixels_end_early_is_damaged(tmp_path, rng, kind):
    path = tmp_path / "a.jpg"
    whole = jpeg(kind, rng.integers(0, 256, (90, 75, 3)).astype(np.uint8))
    start = whole.rindex(b"\xff\xda") if kind == "progressive" else whole.index(b"\xff\xda")
    for share in (0.1, 0.5, 0.9):
        part = whole[: start + 20 + int(share * (len(whole) - start - 20))]
        for data in (part, part + bytes(10_000), part + b"\xff\xd9"):
            path.write_bytes(data)
            for read in (read_image, read_mask):
                with pytest.raises(DataError) as error:
                    read(path)
                one_line(error, path)


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("value", [127, 128])
def test_a_whole_jpeg_that_is_grey_at_its_end_is_read(tmp_path, rng, kind, value):
    pixels = rng.integers(0, 256, (90, 75, 3)).astype(np.uint8)
    pixels[40:] = value
    (tmp_path / "a.jpg").write_bytes(jpeg(kind, pixels) + b"and more, as of a phone")
    assert read_image(tmp_path / "a.jpg").shape == (3, 90, 75)


def test_a_jpeg_that_lacks_a_part_between_restarts_is_damaged(tmp_path, rng):
    whole = jpeg("restarts", rng.integers(0, 256, (90, 75, 3)).astype(np.uint8))
    (tmp_path / "a.jpg").write_bytes(whole[: whole.index(b"\xff\xd1")] + whole[whole.index(b"\xff\xd3") :])
    with pytest.raises(DataError, match="parts of its image are missing") as error:
        read_image(tmp_path / "a.jpg")
    one_line(error, tmp_path / "a.jpg")


def test_a_jpeg_with_a_second_picture_behind_it_is_read(tmp_path, rng):
    first, second = (Image.fromarray(rng.integers(0, 256, (90, 75, 3)).astype(np.uint8)) for _ in range(2))
    first.save(tmp_path / "a.mpo", save_all=True, append_images=[second])
    assert read_image(tmp_path / "a.mpo").shape == (3, 90, 75)
    data = (tmp_path / "a.mpo").read_bytes()
    end = data.index(b"\xff\xd9\xff\xd8")
    (tmp_path / "a.mpo").write_bytes(data[: end - 3000] + data[end:])
    with pytest.raises(DataError, match="ends before its last row"):
        read_image(tmp_path / "a.mpo")


@pytest.mark.parametrize("settings", [{}, {"tile_size": (32, 32)}], ids=["whole", "tiles"])
@pytest.mark.parametrize("boxed", [True, False])
def test_a_jpeg_2000_cut_anywhere_is_damaged(tmp_path, rng, settings, boxed):
    path, stream = tmp_path / "a.jp2", io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (48, 40, 3)).astype(np.uint8)).save(
        stream, "JPEG2000", no_jp2=not boxed, **settings
    )
    whole = stream.getvalue()
    path.write_bytes(whole)
    assert read_image(path).shape == (3, 48, 40)
    starts = [place for place in range(len(whole)) if whole[place : place + 2] == b"\xff\x90"]
    assert len(starts) == (4 if settings else 1)
    for place in [*(start + more for start in starts for more in range(4)), *range(9, len(whole), 997)]:
        path.write_bytes(whole[:place])
        with pytest.raises(DataError) as error:
            read_image(path)
        one_line(error, path)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("layout", [{"rowsperstrip": 4}, {"tile": (16, 16)}], ids=["strips", "tiles"])
@pytest.mark.parametrize("tag", ["offsets", "counts"])
def test_a_tiff_that_lacks_a_part_is_damaged(tmp_path, rng, dtype, layout, tag):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rng.integers(1, 200, (20, 40)).astype(dtype), compression="zlib", **layout)
    read_image(path)
    with tifffile.TiffFile(path) as file:
        name = {"offsets": 324, "counts": 325} if "tile" in layout else {"offsets": 273, "counts": 279}
        found = file.pages.first.tags[name[tag]]
        place, size = found.valueoffset + found.valuebytecount // found.count, found.valuebytecount // found.count
    data = path.read_bytes()
    path.write_bytes(data[:place] + bytes(size) + data[place + size :])  # of the second part: none
    with pytest.raises(DataError, match=r"damaged, it holds \d of \d parts of its image") as error:
        read_image(path)
    one_line(error, path)


def test_a_tiff_of_more_rows_than_it_holds_is_damaged(tmp_path, rng):
    path = tmp_path / "a.tif"
    Image.fromarray(colour(rng)).save(path)
    with tifffile.TiffFile(path) as file:
        place = file.pages.first.tags["ImageLength"].valueoffset
    data = path.read_bytes()
    path.write_bytes(data[:place] + bytes([H + 3]) + data[place + 1 :])
    with pytest.raises(DataError, match=r"damaged, it holds \d of \d parts of its image"):
        read_image(path)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_deflated_tiff_whose_checksum_differs_is_damaged(tmp_path, rng, dtype):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, colour(rng, dtype), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path) as file:
        end = file.pages.first.dataoffsets[0] + file.pages.first.databytecounts[0]
    data = bytearray(path.read_bytes())
    data[end - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="incorrect data check") as error:
        read_image(path)
    one_line(error, path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"II*\0", b"P6\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_files_that_are_not_images(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_image(path)
    message = one_line(error, path)
    assert "0x" not in message
    assert ("empty" in message) == (content == b"")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match="is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_named_like_an_image_is_refused_not_waited_for(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match="pipe or a device") as error:
            read(path)
        one_line(error, path)
    assert read_header(path) is None


def test_one_bit_images_stay_small(tmp_path, rng):
    pixels = rng.random((H, W)) > 0.5
    Image.fromarray(pixels).save(tmp_path / "a.png")
    kept = read_image(tmp_path / "a.png", keep_uint8=True)
    assert kept.dtype == torch.uint8
    assert kept.stride(0) == 0  # one channel in memory
    assert torch.equal(kept.float() / 255, read_image(tmp_path / "a.png"))


@pytest.mark.parametrize("kind", ["png", "png16", "tiff-float"])
def test_decompression_bomb(tmp_path, rng, monkeypatch, kind):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(kind, rng))
    with pytest.raises(DataError, match="set max_pixels=4800 ") as error:
        read_image(path, max_pixels=1000)
    one_line(error, path)
    assert read_image(path, max_pixels=4800).shape == (3, 60, 80)
    monkeypatch.setattr(decoding, "pixels_that_fit", lambda: 1000)  # what fits into memory
    with pytest.raises(DataError, match="max_pixels"):
        read_image(path)
    monkeypatch.setattr(decoding, "pixels_that_fit", lambda: 4800)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit is not asked, and not changed
    assert read_image(path).shape == (3, 60, 80)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("tag", [256, 257])
def test_an_image_without_pixels_is_none(tmp_path, tag):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((6, 7), np.uint16))
    with tifffile.TiffFile(path) as file:
        place = file.pages.first.tags[tag].valueoffset
    data = path.read_bytes()
    path.write_bytes(data[:place] + bytes(2) + data[place + 2 :])
    assert read_header(path) is None
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match="no image") as error:
            read(path)
        one_line(error, path)


def test_a_tiff_of_24_bits_a_sample_is_refused(tmp_path, rng):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rng.integers(0, 2**16, (6, 7), np.uint16))
    data, bits = path.read_bytes(), b"\x02\x01\x03\x00\x01\x00\x00\x00"  # the tag of the bits, one SHORT
    assert data.count(bits + b"\x10\x00") == 1
    path.write_bytes(data.replace(bits + b"\x10\x00", bits + b"\x18\x00"))
    with pytest.raises(DataError, match="24 bits a sample are not supported: save it with 8, 16 or 32") as error:
        read_image(path)
    one_line(error, path)


def test_a_tiff_whose_tags_contradict_each_other_is_damaged(tmp_path, rng):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rng.integers(0, 2**16, (6, 7, 3), np.uint16), photometric="rgb")
    data = path.read_bytes()
    planar = b"\x1c\x01\x03\x00"  # the tag that says whether colours lie together, of type SHORT
    assert data.count(planar) == 1
    path.write_bytes(data.replace(planar, b"\x1c\x01\x02\x00"))
    with pytest.raises(DataError, match="damaged") as error:
        read_image(path)
    one_line(error, path)


def test_a_tiff_that_claims_more_strips_than_it_holds_is_damaged(tmp_path, rng):
    path = tmp_path / "a.tif"
    pixels = rng.integers(0, 2**16, (6, 7), np.uint16)
    tifffile.imwrite(path, pixels, rowsperstrip=2, metadata=None)
    np.testing.assert_array_equal(to_uint8(read_image(path, full_scale=65535))[..., 0], np.round(pixels / 257))
    with tifffile.TiffFile(path) as file:
        place = file.pages.first.tags["ImageLength"].valueoffset
    data = path.read_bytes()
    path.write_bytes(data[:place] + (6_000_000).to_bytes(4, "little") + data[place + 4 :])
    with pytest.raises(DataError, match="damaged, it holds 3 of 3000000 parts") as error:
        read_image(path)
    one_line(error, path)


def test_8_bit_images_may_stay_as_they_are(tmp_path, rng):
    path = tmp_path / "a.png"
    for pixels in (colour(rng), colour(rng)[..., 0]):
        Image.fromarray(pixels).save(path)
        kept = read_image(path, keep_uint8=True)
        assert kept.dtype == torch.uint8
        assert torch.equal(kept.float().div(255), read_image(path))
        np.testing.assert_array_equal(to_uint8(kept), to_uint8(read_image(path)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["png", "jpeg", "tiff", "png16", "tiff-zlib", "bmp"]))
def test_damaged_bytes_give_an_image_or_a_data_error(tmp_path, data, kind):
    content = bytearray(encoded(kind, np.random.default_rng(1)))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.png"
    path.write_bytes(content)
    problems = []
    try:
        image = read_image(path)
    except DataError as error:
        problems.append(str(error))
    else:
        assert image.shape[0] == 3
        assert 0 <= image.min() <= image.max() <= 1
    assert not any("\n" in problem for problem in problems)


@pytest.mark.parametrize("suffix", [".heic", ".HEIF", ".hif", ".avif", ".jxl"])
def test_formats_of_cameras_and_the_web(tmp_path, suffix):
    pytest.importorskip("pillow_jxl" if suffix == ".jxl" else "pillow_heif")
    assert is_image_name(f"a{suffix}")  # registers the plugins
    path = tmp_path / f"a{suffix}"
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (64, 48, 3))
    kind = {".avif": "AVIF", ".jxl": "JXL"}.get(suffix, "HEIF")
    Image.fromarray(np.ascontiguousarray(ramp)).save(path, kind, quality=95)
    np.testing.assert_allclose(read_image(path).numpy(), expect(ramp, 255), atol=3 / 255)


@pytest.mark.parametrize(
    ("name", "command"),
    [("a.HEIC", "pip install pillow-heif"), ("a.jxl", "pip install pillow-jxl-plugin"), ("a.xyz", ""), ("a.png", "")],
)
def test_a_missing_plugin_is_named(monkeypatch, name, command):
    monkeypatch.setattr("oddpatch.data.decoding.image_suffixes", lambda: frozenset({".png"}))
    assert missing_plugin(name) == command


def test_suffixes():
    assert {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".hdr"} <= image_suffixes()
    assert not {".eps", ".pdf", ".h5", ".txt", ".db"} & image_suffixes()
    assert is_image_name("step0.camera.PNG")
    assert not is_image_name("._a.png")
    assert not is_image_name("png")
