"""Plain PNG files, held to Pillow; what is not plain is left to it."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import kornia_rs.io
import numpy as np
import pytest
from narrowing import pixels
from PIL import Image, PngImagePlugin

from oddpatch.data.decoding import read_planes
from oddpatch.data.png import decode_beside_others, read_plain_png
from oddpatch.errors import DataError
from oddpatch.inference.throughput import Overlap

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 17, 3), np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (11, 17, 3), np.uint16)
XMP = '<rdf:Description tiff:Orientation="6"/>'


def png(image, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, "PNG", **options)
    return file.getvalue()


def text(**entries):
    info = PngImagePlugin.PngInfo()
    for key, (value, packed) in entries.items():
        info.add_itxt(key, value, zip=packed)
    info.add_text("Software", "a camera")
    return info


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("image", [PIXELS, PIXELS[..., 0]], ids=["colour", "grey"])
@pytest.mark.parametrize(
    "options",
    [{}, {"dpi": (72, 72)}, {"pnginfo": text(Comment=("bottle", False))}, {"compress_level": 0}],
    ids=["plain", "dpi", "comment", "stored"],
)
def test_plain_files_are_what_pillow_reads(image, options):
    check_plain(png(image, **options), image)


@pytest.mark.parametrize("image", [DEEP, DEEP[..., 0]], ids=["colour", "grey"])
@pytest.mark.parametrize("interlaced", [False, True], ids=["", "interlaced"])
def test_deep_files_keep_their_depth(image, interlaced):
    channels = np.atleast_3d(image)
    check_plain(raw(channels, 2 if image.ndim == 3 else 0, 16, interlaced=interlaced), image)


def check_plain(data, image):
    """A file is decoded to these pixels in either kind of thread."""
    with ThreadPoolExecutor(1, initializer=decode_beside_others) as beside_others:
        for found in (read_plain_png(data, 1000), beside_others.submit(read_plain_png, data, 1000).result()):
            assert pixels(found).flags.writeable
            assert pixels(found).dtype == image.dtype
            np.testing.assert_array_equal(pixels(found), image)


def test_a_wrong_checksum_of_what_is_packed_matters_in_no_thread():
    """Each chunk has a checksum of its own, which covers every byte of the file."""
    good = raw(PIXELS, 2, 8)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in PIXELS))
    wrong = packed[:-1] + bytes([packed[-1] ^ 1])
    assert chunk(b"IDAT", packed) in good
    check_plain(good.replace(chunk(b"IDAT", packed), chunk(b"IDAT", wrong)), PIXELS)


def test_threads_that_work_side_by_side_do_not_hold_the_lock_of_python(monkeypatch):
    """Of kornia_rs 0.2: `decode_image_png_u8` holds it, `cv2.imdecode` does not."""
    used = []

    def spy(module, name):
        plain = getattr(module, name)

        def decode(*given):
            used.append(name)
            return plain(*given)

        monkeypatch.setattr(module, name, decode)

    spy(kornia_rs.io, "decode_image_png_u8")
    spy(cv2, "imdecode")
    read_plain_png(png(PIXELS), 1000)
    for overlap in (Overlap(2), Overlap(2, holding=True), Overlap(3, holding=True)):
        with overlap:
            list(overlap.map(lambda data: read_plain_png(data, 1000), [png(PIXELS)], 1))
    read_plain_png(png(PIXELS), 1000)
    alone, beside_others = "decode_image_png_u8", "imdecode"
    assert used == [alone, beside_others, alone, beside_others, alone]


def exif():
    tags = Image.Exif()
    tags[274] = 6
    return tags


OTHERS = {
    "alpha": png(np.concatenate([PIXELS, PIXELS[..., :1]], axis=2)),
    "palette": png(Image.fromarray(PIXELS).quantize(16)),
    "one bit": png(Image.fromarray(PIXELS).convert("1")),
    "16 bits, turned": png(DEEP[..., 0], exif=exif()),
    "transparent colour": png(PIXELS, transparency=tuple(PIXELS[0, 0].tolist())),
    "turned by EXIF": png(PIXELS, exif=exif()),
    "turned by XMP": png(PIXELS, pnginfo=text(**{"XML:com.adobe.xmp": (XMP, False)})),
    "turned by packed XMP": png(PIXELS, pnginfo=text(**{"XML:com.adobe.xmp": (XMP, True)})),
    "animated": png(PIXELS, save_all=True, append_images=[Image.fromarray(255 - PIXELS)]),
    "JPEG": b"\xff\xd8\xff\xe0" + bytes(100),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_left_to_pillow(name, tmp_path):
    assert read_plain_png(OTHERS[name], 1000) is None
    if name.startswith("turned"):
        (tmp_path / "image.png").write_bytes(OTHERS[name])
        assert read_planes(tmp_path / "image.png").shape == (3, 17, 11)


def raw(pixels, colour, depth, height=None, interlaced=False):
    """A PNG written by hand: samples (H, W, C) of a type of colour, and a header that may say another height."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b""
    for top, left, down, right in passes if interlaced else [(0, 0, 1, 1)]:
        for row in pixels[top::down, left::right]:
            packed = np.packbits(row) if depth == 1 else row.astype(">u2" if depth == 16 else "u1")
            rows += b"\0" + packed.tobytes() if row.size else b""
    header = struct.pack(">IIBBBBB", pixels.shape[1], height or len(pixels), depth, colour, 0, 0, interlaced)
    palette = chunk(b"PLTE", bytes(range(48))) if colour == 3 else b""
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            palette,
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


@pytest.mark.parametrize(
    ("channels", "colour", "depth", "interlaced"),
    [
        pytest.param(1, 0, 8, False, id="grey"),
        pytest.param(3, 2, 8, False, id="colour"),
        pytest.param(1, 3, 8, False, id="palette"),
        pytest.param(2, 4, 8, False, id="grey and alpha"),
        pytest.param(4, 6, 8, False, id="colour and alpha"),
        pytest.param(1, 0, 1, False, id="one bit"),
        pytest.param(1, 0, 16, False, id="deep grey"),
        pytest.param(3, 2, 16, False, id="deep colour"),
        pytest.param(3, 2, 8, True, id="interlaced"),
        pytest.param(1, 0, 1, True, id="one bit, interlaced"),
    ],
)
@pytest.mark.parametrize("last", ["as it comes", "zeros"])
def test_a_file_of_fewer_rows_than_its_header_says_is_damaged(tmp_path, channels, colour, depth, interlaced, last):
    path = tmp_path / "image.png"
    pixels = np.random.default_rng(1).integers(0, 2 if depth == 1 else 16, (11, 17, channels))
    pixels[-1] = 0 if last == "zeros" else pixels[-1]
    path.write_bytes(raw(pixels, colour, depth, interlaced=interlaced))
    assert read_planes(path).shape == (3, 11, 17)
    for height in (12, 19):
        path.write_bytes(raw(pixels, colour, depth, height, interlaced))
        with pytest.raises(DataError, match=r"image\.png: .*replace or remove it"):
            read_planes(path)


@pytest.mark.parametrize(
    "kind", ["plain", "palette", "alpha", "16 bits", "16 bits, turned", "turned by EXIF", "animated"]
)
def test_a_file_cut_anywhere_or_with_any_bit_turned_is_damaged(tmp_path, kind):
    whole = {"plain": png(PIXELS), "16 bits": png(DEEP[..., 0])}.get(kind) or OTHERS[kind]
    path = tmp_path / "image.png"
    for place in range(8, len(whole), 7):
        turned = bytearray(whole)
        turned[place] ^= 1 << place % 8
        for data in (whole[:place], whole[:place] + bytes(len(whole) - place), bytes(turned)):
            path.write_bytes(data)
            with pytest.raises(DataError, match=r"image\.png: .*replace or remove it|over the limit"):
                read_planes(path)
    cut_stream = whole[:33] + chunk(b"IDAT", zlib.compress(bytes(90))) + chunk(b"IEND", b"")
    for data in (cut_stream, whole[:33] + chunk(b"IEND", b""), whole[:8] + whole[33:]):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"image\.png: "):
            read_planes(path)


def test_a_large_file_is_refused_before_it_is_decoded():
    with pytest.raises(DataError, match="11x17 is 187 pixels, over the limit of 186"):
        read_plain_png(png(PIXELS), 186)
