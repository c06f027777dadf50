"""What visitors upload: images are kept under numbers, all else is refused by name, and no name becomes a path."""

import io
import stat
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from oddpatch.demo import uploads


@dataclass
class Sent:
    name: str
    content: bytes
    size: int = -1

    def __post_init__(self):
        self.size = len(self.content) if self.size < 0 else self.size

    def getvalue(self):
        return self.content


def png(side=16):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def bomb(side=100_000):
    """A few kilobytes that say they are an image of ten gigapixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(10_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def everything(folder):
    return {str(path.relative_to(folder)): path.lstat().st_size for path in sorted(folder.rglob("*"))}


def test_images_are_kept_as_they_were_sent_under_numbers(tmp_path):
    kept, refused = uploads.take([Sent("b.PNG", png()), Sent("a.png", png(8))], tmp_path / "good", count=3)
    assert [(one.name, one.path.name) for one in kept] == [("b.PNG", "00003.png"), ("a.png", "00004.png")]
    assert [one.path.read_bytes() for one in kept] == [png(), png(8)]
    assert not refused
    assert stat.S_IMODE((tmp_path / "good").stat().st_mode) == 0o700


def mask(side=16):
    file = io.BytesIO()
    Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), (side - 4) // 2)).save(file, "PNG")
    return file.getvalue()


def test_masks_are_no_good_parts_whenever_they_come(tmp_path):
    long = "part " * 20
    first, _ = uploads.take([Sent("a_mask.png", mask()), Sent("plain.png", mask())], tmp_path)
    left, refused = uploads.leave_out_masks(first)
    assert (left, refused) == (first, [])  # beside no image it may be a part
    files = [Sent("a.jpg", png()), Sent(f"{long}.png", png()), Sent(f"folder/{long}-mask.png", mask())]
    second, _ = uploads.take(files, tmp_path, count=2)
    left, refused = uploads.leave_out_masks([*first, *second])
    assert left == [first[1], *second[:2]]
    assert [line.split(" looks like the mask of ")[1] for line in refused] == [
        f"{name}: it is not taken for a good part" for name in ("a.jpg", second[1].name)
    ]
    assert sorted(tmp_path.iterdir()) == sorted(one.path for one in left)


@pytest.mark.parametrize(
    "name",
    [
        "../../outside.png", "/etc/cron.d/job.png", "..\\..\\outside.png", "C:\\windows\\x.png", "a\0b.png",
        "x" * 5000 + ".png", "\u202egnp.png", "<img src=x onerror=alert(1)>.png", "00000.png/../../x.png", "~root/.png",
        "con.png\n\r\x1b[31m.png",
    ],
)  # fmt: skip
def test_a_name_never_becomes_a_path(name, tmp_path):
    session = tmp_path / "session"
    session.mkdir()
    kept, refused = uploads.take([Sent(name, png())], session / "good")
    assert set(everything(tmp_path)) <= {"session", "session/good", "session/good/00000.png"}
    assert len(kept) + len(refused) == 1
    for line in [*refused, *(one.name for one in kept)]:
        assert line.isprintable()
        assert len(line) < 200
        assert "/" not in line.partition(":")[0]


def test_a_link_in_the_way_is_not_followed(tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / "good").mkdir()
    (tmp_path / "good/00000.png").symlink_to(target)
    kept, _ = uploads.take([Sent("a.png", png())], tmp_path / "good")
    assert target.read_text() == "mine"
    assert not kept[0].path.is_symlink()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (Sent("note.txt", b"hello"), "note.txt: no image by its name: save it as PNG, TIFF or JPEG"),
        (Sent("note.png", b"hello"), "note.png: not an image, or damaged beyond recognition"),
        (Sent("empty.png", b""), "empty.png: the file is empty (0 bytes)"),
        (Sent("cut.png", png()[:-200]), "cut.png: truncated"),
        (Sent("bomb.png", bomb()), "bomb.png: "),
        (Sent("huge.png", b"", uploads.FILE_BYTES + 2**20), "huge.png: 33 MiB, more than 32: make it smaller"),
        (Sent("script.svg", b"<svg onload='alert(1)'/>"), "script.svg: no image by its name"),
        (Sent("print.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n"), "print.eps: no image by its name"),
        (Sent("archive.zip", b"PK\x05\x06" + bytes(18)), "archive.zip: no image by its name"),
        (Sent("", png()), "unnamed: no image by its name"),
    ],
    ids=lambda value: value.name if isinstance(value, Sent) else "",
)  # fmt: skip
def test_what_is_no_image_is_refused_by_name_and_leaves_nothing(sent, reason, tmp_path):
    kept, refused = uploads.take([sent, Sent("good.png", png())], tmp_path / "good")
    assert [one.name for one in kept] == ["good.png"]
    assert len(refused) == 1
    assert refused[0].startswith(reason)
    assert "\n" not in refused[0]
    assert set(everything(tmp_path)) == {"good", "good/00000.png"}


def test_a_decompression_bomb_is_refused_for_its_size_before_it_is_decoded(tmp_path):
    _, refused = uploads.take([Sent("bomb.png", bomb())], tmp_path)
    assert "25000000" in refused[0] or "25,000,000" in refused[0]


def test_ten_thousand_files_are_as_many_as_a_session_holds_and_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "FILES", 5)
    kept, refused = uploads.take([Sent(f"{i}.png", png()) for i in range(10_000)], tmp_path, count=2)
    assert len(kept) == len(list(tmp_path.iterdir())) == 3
    assert refused == ["9997 files not taken: a session holds 5 images, fit to fewer"]


def test_a_session_holds_so_many_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "BYTES", 2 * len(png()))
    kept, refused = uploads.take([Sent(f"{i}.png", png()) for i in range(3)], tmp_path, size=10)
    assert [one.name for one in kept] == ["0.png"]
    assert [line.partition(":")[0] for line in refused] == ["1.png", "2.png"]


def test_a_full_disk_is_told_and_not_a_half_written_image(small_disk):
    sent = [Sent(f"{i}.png", png(128)) for i in range(20)]
    kept, refused = uploads.take(sent, small_disk / "good")
    assert kept
    assert refused
    assert "disk space" in refused[-1]
    assert {path.name: path.read_bytes() for path in (small_disk / "good").iterdir()} == {
        one.path.name: png(128) for one in kept
    }
    assert [path.name for path in small_disk.iterdir()] == ["good"]
