"""What is found in folders, and what is said of the rest."""

import os
from pathlib import Path

import pytest

from oddpatch.data import walk as walking
from oddpatch.data.walk import BROKEN_LINK, HIDDEN, LOOP, NO_SUFFIX, SPECIAL, UNKNOWN_SUFFIX, LeftOut, summary, walk


def make(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


def names(found, root):
    return [path.relative_to(root).as_posix() for path in found.files]


def reasons(found, root):
    return {item.path.relative_to(root).as_posix(): item.reason for item in found.left_out}


def test_images_at_any_depth_in_the_order_of_their_paths(tmp_path):
    make(tmp_path, "b.png", "a/z.JPG", "a/b/c.tif", "a.png", "B.bmp")
    found = walk(tmp_path)
    assert found.files == sorted(found.files)
    assert names(found, tmp_path) == ["B.bmp", "a/b/c.tif", "a/z.JPG", "a.png", "b.png"]
    assert found.left_out == []


def test_one_folder_alone(tmp_path):
    make(tmp_path, "b.png", "a/z.png", "a/note.txt")
    assert walk(tmp_path, recursive=False) == ([tmp_path / "b.png"], [])


@pytest.mark.parametrize("folder", ["absent", "file.png"])
def test_no_such_folder_is_empty(tmp_path, folder):
    make(tmp_path, "file.png")
    assert walk(tmp_path / folder) == ([], [])


def test_files_left_out_have_a_reason(tmp_path):
    make(tmp_path, "a.png", "b.xyz", "c", "sub/.d.png", ".hidden/e.png", "f.tar.gz")
    found = walk(tmp_path)
    assert names(found, tmp_path) == ["a.png"]
    assert reasons(found, tmp_path) == {
        "b.xyz": UNKNOWN_SUFFIX, "c": NO_SUFFIX, "sub/.d.png": HIDDEN, ".hidden": HIDDEN, "f.tar.gz": UNKNOWN_SUFFIX,
    }  # fmt: skip


def test_a_format_without_its_plugin_says_how_to_get_it(tmp_path, monkeypatch):
    make(tmp_path, "a.png", "b.HEIC", "c.heic")
    monkeypatch.setattr("oddpatch.data.decoding.image_suffixes", lambda: frozenset({".png"}))
    assert summary(walk(tmp_path).left_out) == [
        f"2 left out, .heic needs `pip install pillow-heif`: {tmp_path}/b.HEIC, {tmp_path}/c.heic"
    ]


def test_all_files_leaves_litter_alone_out(tmp_path):
    make(tmp_path, "a.png", "b.xyz", "c", ".d.png", ".h/e", "Thumbs.db", ".DS_Store", "__MACOSX/a.png", "._a.png")
    found = walk(tmp_path, all_files=True)
    assert names(found, tmp_path) == [".d.png", ".h/e", "a.png", "b.xyz", "c"]
    assert found.left_out == []
    assert reasons(walk(tmp_path), tmp_path).keys() == {"b.xyz", "c", ".d.png", ".h"}


def test_links_to_folders_and_files_are_followed(tmp_path):
    make(tmp_path, "parts/a.png", "elsewhere/b.png", "elsewhere/deep/c.png", "one.png")
    (tmp_path / "parts/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "parts/d.png").symlink_to("../one.png")
    found = walk(tmp_path / "parts")
    assert names(found, tmp_path / "parts") == ["a.png", "d.png", "linked/b.png", "linked/deep/c.png"]
    assert found.left_out == []


def test_the_folder_itself_may_be_a_link(tmp_path):
    make(tmp_path, "real/sub/a.png")
    (tmp_path / "link").symlink_to("real")
    assert walk(tmp_path / "link").files == [tmp_path / "link/sub/a.png"]


def test_loops_end_and_are_listed(tmp_path):
    make(tmp_path, "a/x.png", "a/b/y.png")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/self").symlink_to(".")
    found = walk(tmp_path)
    assert names(found, tmp_path) == ["a/b/y.png", "a/x.png"]
    assert reasons(found, tmp_path) == {"a/b/up": LOOP, "a/self": LOOP}


def test_a_loop_through_two_links(tmp_path):
    make(tmp_path, "a/x.png", "b/y.png")
    (tmp_path / "a/to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b/to_a").symlink_to(tmp_path / "a")
    found = walk(tmp_path / "a")
    assert names(found, tmp_path / "a") == ["to_b/y.png", "x.png"]
    assert reasons(found, tmp_path / "a") == {"to_b/to_a": LOOP}


def test_a_folder_of_two_names_is_found_under_both(tmp_path):
    make(tmp_path, "a/x.png")
    (tmp_path / "b").symlink_to("a")
    assert names(walk(tmp_path), tmp_path) == ["a/x.png", "b/x.png"]


def test_broken_links_and_special_files(tmp_path):
    make(tmp_path, "a.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "folder").symlink_to("nowhere")
    (tmp_path / "one.png").symlink_to("two.png")
    (tmp_path / "two.png").symlink_to("one.png")
    os.mkfifo(tmp_path / "pipe.png")
    found = walk(tmp_path)
    assert names(found, tmp_path) == ["a.png"]
    assert reasons(found, tmp_path) == {
        "folder": BROKEN_LINK, "gone.png": BROKEN_LINK, "one.png": BROKEN_LINK, "pipe.png": SPECIAL,
        "two.png": BROKEN_LINK,
    }  # fmt: skip


def test_a_folder_that_cannot_be_read_is_listed(tmp_path, monkeypatch):
    make(tmp_path, "a.png", "closed/b.png", "open/c.png")
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(walking.os, "scandir", refuse)
    found = walk(tmp_path)
    assert names(found, tmp_path) == ["a.png", "open/c.png"]
    assert found.left_out == [LeftOut(tmp_path / "closed", "cannot be read (Permission denied)")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_listed(tmp_path):
    make(tmp_path, "closed/b.png")
    (tmp_path / "closed").chmod(0)
    found = walk(tmp_path)
    (tmp_path / "closed").chmod(0o700)
    assert reasons(found, tmp_path) == {"closed": "cannot be read (Permission denied)"}


def test_summary_has_a_line_for_each_reason():
    left_out = [LeftOut(Path(name), UNKNOWN_SUFFIX) for name in ("d.x", "a.x", "c.x", "b.x")]
    left_out.append(LeftOut(Path("l.png"), BROKEN_LINK))
    assert summary(left_out) == ["1 left out, broken link: l.png", "4 left out, unknown suffix: a.x, b.x, c.x, ..."]


def test_any_name_can_be_printed(tmp_path):
    name = os.fsdecode(b"\xb2\xbf\n.xyz")
    (tmp_path / name).touch()
    (line,) = summary(walk(tmp_path).left_out)
    assert line.endswith("\\udcb2\\udcbf\\n.xyz")
    line.encode()
