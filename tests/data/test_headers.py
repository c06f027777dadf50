"""What files say before they are decoded, against what is decoded."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from encoding import H, W, colour, encoded
from PIL import Image, PngImagePlugin

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


@pytest.mark.parametrize("kind", ["RGB", "L", "RGBA", "P", "1", "I;16"])
def test_header_of_a_png_needs_no_pixels(tmp_path, rng, kind, monkeypatch):
    image = Image.fromarray(colour(rng))
    image = Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16)) if kind == "I;16" else image.convert(kind)
    known = PngImagePlugin.PngInfo()
    known.add_text("Comment", "a bottle")
    known.add_itxt("XML:com.adobe.xmp", "<x tiff:Make='a camera'/>")
    image.save(tmp_path / "a.png", pnginfo=known)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert read_header(tmp_path / "a.png") == ((H, W), kind == "I;16")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("kind", ["eXIf", "XMP", "raw profile"])
def test_header_of_a_png_that_is_turned(tmp_path, rng, kind, where):
    exif = Image.Exif()
    exif[274] = 6
    raw = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n      26\n" + exif.tobytes().hex().encode())
    turning = {
        "eXIf": chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")),
        "XMP": chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
        "raw profile": chunk(b"zTXt", raw),
    }[kind]
    Image.fromarray(colour(rng)).save(path := tmp_path / "a.png")
    whole = path.read_bytes()
    cut = 33 if where == "before" else len(whole) - 12  # behind the header; before the end
    path.write_bytes(whole[:cut] + turning + whole[cut:])
    header = read_header(path)
    assert header is not None
    assert header.size == (W, H) == tuple(read_image(path).shape[1:])


def test_header_of_a_damaged_png_is_none(tmp_path, rng):
    Image.fromarray(colour(rng)).save(path := tmp_path / "a.png")
    whole = path.read_bytes()
    for damaged in (whole[:-30], whole[:20], whole[:19] + b"\1" + whole[20:]):
        path.write_bytes(damaged)
        assert read_header(path) is None


@pytest.mark.parametrize("at", [0, 4])
def test_a_png_without_pixels_has_no_header(tmp_path, rng, at):
    Image.fromarray(colour(rng)).save(path := tmp_path / "a.png")
    whole = path.read_bytes()
    says = bytearray(whole[16:29])
    says[at : at + 4] = bytes(4)
    path.write_bytes(whole[:8] + chunk(b"IHDR", bytes(says)) + whole[33:])
    assert read_header(path) is None
