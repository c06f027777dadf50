"""Files, folders and patterns: which images they stand for, and what is said of the rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from videos import number_of, numbered, write_video

from oddpatch.errors import DataError
from oddpatch.inference.sources import Files, output_names


@pytest.fixture
def parts(tmp_path, monkeypatch):
    for name in ("a.png", "b.png", "note.txt", "deep/c.png", "deep/d", "deep/er/e.png"):
        (tmp_path / "parts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "parts" / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "parts"


def found(*sources, **options):
    files = Files(list(sources), **options)
    return (
        [path.as_posix() for path in files.paths],
        [path.as_posix() for path, _ in files.left_out],
        list(files.errors),
    )


EVERYTHING = ["parts/a.png", "parts/b.png", "parts/deep/c.png", "parts/deep/er/e.png"]


@pytest.mark.parametrize(
    ("source", "images", "left_out"),
    [
        ("parts", EVERYTHING, ["parts/deep/d", "parts/note.txt"]),
        ("parts/note.txt", ["parts/note.txt"], []),  # named by the user
        ("parts/*.png", ["parts/a.png", "parts/b.png"], []),
        ("parts/*", EVERYTHING, ["parts/deep/d", "parts/note.txt"]),
        ("parts/[ab]*", ["parts/a.png", "parts/b.png"], []),
        ("parts/**/*.png", EVERYTHING, []),
        ("**/*.png", EVERYTHING, []),
        ("**/c.*", ["parts/deep/c.png"], []),
        ("**/deep/**", ["parts/deep/c.png", "parts/deep/er/e.png"], ["parts/deep/d"]),
        ("parts/**/er", ["parts/deep/er/e.png"], []),
        ("p*/deep", ["parts/deep/c.png", "parts/deep/er/e.png"], ["parts/deep/d"]),
    ],
)
def test_what_a_source_stands_for(parts, source, images, left_out):
    assert found(source) == (images, left_out, [])
    absolute = [str(parts.parent / name) for name in images]
    assert found(str(parts.parent / source))[0] == absolute


def test_each_image_once_in_the_order_of_the_sources(parts):
    assert found("parts/b.png", "parts/*.png", "parts/deep/er") == (
        ["parts/b.png", "parts/a.png", "parts/deep/er/e.png"], [], [],
    )  # fmt: skip


def test_all_files(parts):
    assert found("parts/deep", all_files=True) == (["parts/deep/c.png", "parts/deep/d", "parts/deep/er/e.png"], [], [])
    assert found("parts/n*", all_files=True) == (["parts/note.txt"], [], [])


def test_sources_without_images_are_errors_of_their_own(parts):
    (parts / "empty").mkdir()
    (parts / "text").mkdir()
    (parts / "text/x.txt").touch()
    (parts / "gone").symlink_to("nowhere")
    sources = ["parts/empty", "parts/nowhere", "parts/*.tif", "parts/gone", "parts/text", "parts/note.*", "parts/a.png"]
    files = Files(sources)
    assert files.paths == [Path("parts/a.png")]
    assert files.errors == {
        "parts/empty": "parts/empty: no image in this folder",
        "parts/nowhere": "parts/nowhere: no such file or folder",
        "parts/*.tif": "parts/*.tif: no such file or folder",
        "parts/gone": "parts/gone: broken link",
        "parts/text": "parts/text: no image in this folder (1 left out, unknown suffix: parts/text/x.txt)",
        "parts/note.*": "parts/note.*: no image matches (1 left out, unknown suffix: parts/note.txt)",
    }
    assert len(files.left_out) == 3
    frames = list(files)
    assert len(frames) == files.total() == 7
    assert [frame.name for frame in frames] == [*files.errors, "parts/a.png"]
    assert [str(frame.image) for frame in frames] == [*files.errors.values(), "parts/a.png"]
    assert all(isinstance(frame.image, DataError) for frame in frames[:-1])


def test_links_in_a_circle_end_in_patterns_too(parts):
    for k in range(3):
        (parts / f"deep/up{k}").symlink_to(parts)
    images, left_out, _ = found("parts/**/*.png")
    assert images == EVERYTHING
    assert left_out == [f"parts/deep/up{k}" for k in range(3)]


def test_a_folder_that_cannot_be_read_is_no_empty_one(parts, monkeypatch):
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "er":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert found("parts/**/*.png") == (EVERYTHING[:3], ["parts/deep/er"], [])
    assert (
        Files(["parts/deep/er"])
        .errors["parts/deep/er"]
        .endswith("(1 left out, cannot be read (Permission denied): parts/deep/er)")
    )


def test_all_frames_of_a_video_that_is_named(parts):
    write_video(parts / "line.mp4", map(numbered, range(3)))
    (parts / "torn.avi").write_bytes(b"no video")
    assert found("parts") == (EVERYTHING, ["parts/deep/d", "parts/line.mp4", "parts/note.txt", "parts/torn.avi"], [])
    files = Files(["parts/a.png", "parts/line.mp4"])
    frames = list(files)
    assert files.total() == len(frames) == 4
    assert [frame.name for frame in frames[1:]] == [f"parts/line.mp4#00000{number}" for number in range(3)]
    assert [number_of(frame.image) for frame in frames[1:]] == [0, 1, 2]
    assert [frame.output.as_posix() for frame in frames] == ["a", *(f"line.mp4/00000{number}" for number in range(3))]
    (broken,) = Files(["parts/torn.avi"])
    assert str(broken.image).startswith("parts/torn.avi: cannot be read as a video")
    assert Files(["parts/torn.avi"]).total() is None


def test_the_rest_of_a_video_that_is_cut_is_an_error(parts):
    write_video(parts / "line.mkv", map(numbered, range(30)))
    (parts / "line.mkv").write_bytes((parts / "line.mkv").read_bytes()[:-900])
    frames = list(Files(["parts/line.mkv"]))
    assert len(frames) < 31
    assert frames[-1].name == "parts/line.mkv"
    assert "ends after" in str(frames[-1].image)


def test_images_need_no_library_for_videos():
    code = (
        "import sys; from oddpatch.inference.sources import Files; list(Files(['x.png'])); print('av' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_outputs_never_share_a_name(tmp_path):
    paths = [tmp_path / name for name in ("a/x.png", "a/x.jpg", "b/x.png", "b/y.z.png", "a/x_png.tif")]
    names = output_names(paths)
    assert [name.as_posix() for name in names.values()] == ["a/x_png_2", "a/x_jpg", "b/x", "b/y.z", "a/x_png"]
