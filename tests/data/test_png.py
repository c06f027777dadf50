"""Plain PNG files, held to Pillow; what is not plain is left to it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from oddpatch.data.decoding import read_planes
from oddpatch.data.png import read_plain_png
from oddpatch.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 17, 3), np.uint8)
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
    found = read_plain_png(png(image, **options), 1000)
    assert found.flags.writeable
    np.testing.assert_array_equal(found, image)


def exif():
    tags = Image.Exif()
    tags[274] = 6
    return tags


OTHERS = {
    "alpha": png(np.concatenate([PIXELS, PIXELS[..., :1]], axis=2)),
    "palette": png(Image.fromarray(PIXELS).quantize(16)),
    "one bit": png(Image.fromarray(PIXELS).convert("1")),
    "16 bits": png(PIXELS[..., 0].astype(np.uint16) * 257),
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


def test_damaged_files_are_left_to_pillow_which_says_why(tmp_path):
    whole = png(PIXELS)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    head = whole[:33]  # up to the end of IHDR
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in PIXELS))
    cut_stream = head + chunk(b"IDAT", rows[: len(rows) // 2]) + chunk(b"IEND", b"")  # every chunk is whole
    no_end = whole[:-12]
    for data in (whole[: len(whole) // 2], bytes(flipped), cut_stream, no_end, whole[:20], head, whole[:8]):
        assert read_plain_png(data, 1000) is None
    for data in (whole[: len(whole) // 2], bytes(flipped), cut_stream):
        (tmp_path / "image.png").write_bytes(data)
        with pytest.raises(DataError, match=r"image\.png: .*replace or remove it"):
            read_planes(tmp_path / "image.png")


def test_a_large_file_is_refused_before_it_is_decoded():
    with pytest.raises(DataError, match="11x17 is 187 pixels, over the limit of 186"):
        read_plain_png(png(PIXELS), 186)
