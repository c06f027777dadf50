"""Disks that are full or read only: one line with the file and the reason, and nothing half-written under its name."""

import errno
import os
import re
import resource
import time

import numpy as np
import pytest
import tifffile
import torch
from conftest import make_read_only
from narrowing import present
from PIL import Image

from oddpatch import temporary
from oddpatch.checkpoint import write_checkpoint
from oddpatch.datatools.writing import place
from oddpatch.errors import NameTooLongError, ResourceError, in_one_line
from oddpatch.files import replacing
from oddpatch.temporary import drafting, placing, remove_leftovers

NOISE = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)  # 480 kB that do not compress
NOBODY = 2**22 + 1  # no process has that number


def write(how, path):
    if how == "checkpoint":
        return write_checkpoint({"a": torch.zeros(200_000)}, path)
    if how == "copy":
        source = path.parent.parent / "source"
        source.write_bytes(bytes(NOISE))
        return place(source, path)
    with replacing(path, "w" if how == "text" else "wb") as file:
        if how == "text":
            file.write("x" * 500_000)
        elif how == "bytes":
            file.write(bytes(NOISE))
        elif how == "picture":
            Image.fromarray(NOISE).save(file, "PNG")
        elif how == "arrays":
            np.savez_compressed(file, noise=NOISE, more=NOISE)
        elif how == "map":
            tifffile.imwrite(file, NOISE[..., 0].astype(np.float32), compression=None)
    return None


WRITERS = ("text", "bytes", "picture", "arrays", "map", "checkpoint", "copy")


@pytest.mark.parametrize("how", WRITERS)
def test_a_full_disk_is_told_with_the_file_and_leaves_nothing(small_disk, how):
    with pytest.raises(ResourceError) as raised:
        write(how, small_disk / "result")
    told = f"{small_disk}/result cannot be written (No space left on device): free disk space, or choose another folder"
    assert str(raised.value) == told
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize("how", WRITERS[:-1])  # the source of a copy is as large
def test_a_limit_is_told_though_the_disk_is_not_full(tmp_path, how):
    """As of a quota, of which Pillow and archives tell no more than that something went wrong."""
    (tmp_path / "disk").mkdir()
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, allowed[1]))
    try:
        with pytest.raises(ResourceError) as raised:
            write(how, tmp_path / "disk/result")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    told = "cannot be written (File too large): raise the limit of file sizes (ulimit -f), or choose another folder"
    assert str(raised.value) == f"{tmp_path}/disk/result {told}"
    assert not list((tmp_path / "disk").iterdir())


@pytest.mark.parametrize("how", WRITERS)
def test_a_read_only_disk_is_told_with_the_file(small_disk, how):
    make_read_only(small_disk)
    with pytest.raises(ResourceError) as raised:
        write(how, small_disk / "result")
    assert str(raised.value) == f"{small_disk}/result cannot be written (Read-only file system): choose another folder"


def test_a_draft_on_a_full_or_read_only_disk(small_disk):
    with pytest.raises(ResourceError, match="No space left on device"), drafting(small_disk / "tile") as draft:
        (draft / "a.png").write_bytes(bytes(NOISE))
    assert not list(small_disk.iterdir())
    make_read_only(small_disk)
    with pytest.raises(ResourceError, match=re.escape(f"{small_disk}/tile cannot be written (Read-only file system)")):
        drafting(small_disk / "tile").__enter__()


def test_a_file_that_is_read_meanwhile_is_not_taken_for_the_one_that_is_written(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "result") as file:
        file.write((tmp_path / "absent").read_text())
    with pytest.raises(FileNotFoundError), drafting(tmp_path / "tile"):
        (tmp_path / "absent").read_text()
    assert not list(tmp_path.iterdir())


def test_names_as_long_as_the_file_system_takes_them(tmp_path):
    path = tmp_path / ("é" * 125 + ".json")  # 255 bytes
    with replacing(path) as file:
        file.write("{}")
    assert path.read_text() == "{}"
    with pytest.raises(NameTooLongError, match=r"é cannot be written \(File name too long\): choose a shorter name"):
        write("text", tmp_path / ("é" * 128))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_errors_of_the_system_are_one_line(code):
    assert present(in_one_line(OSError(code, os.strerror(code), "a.png"))).startswith(f"a.png: {os.strerror(code)}: ")
    assert present(in_one_line(OSError(code, os.strerror(code)))).startswith("the output: ")
    assert in_one_line(OSError("not of the system")) is None


def leave(folder, owner, kind):
    path = folder / f".result.{owner}.{kind}"
    path.mkdir() if kind == "draft" else path.touch()
    if kind == "draft":
        (path / "image.png").touch()
    return path


def test_leftovers_of_processes_that_are_gone_are_removed_and_no_others(tmp_path):
    here = temporary.host_code()
    gone = [leave(tmp_path, f"{here}-{NOBODY}", kind) for kind in ("partial", "draft")]
    recycled = leave(tmp_path, f"{here}-{os.getppid()}", "partial")  # written before that process began
    os.utime(recycled, (0, 0))
    old, elsewhere = leave(tmp_path, "0000abcd-1", "partial"), leave(tmp_path, "0000abcd-2", "partial")
    os.utime(old, (time.time() - temporary.ABANDONED - 60,) * 2)
    alive = leave(tmp_path, f"{here}-{os.getpid()}", "draft")
    others = [tmp_path / name for name in (".hidden", ".x.partial", "a.partial", f".y.{NOBODY}.partial")]
    for path in others:
        path.touch()
    remove_leftovers(tmp_path)
    assert not [path for path in (*gone, recycled, old) if path.exists()]
    assert sorted(tmp_path.iterdir()) == sorted([elsewhere, alive, *others])


def test_whoever_writes_next_removes_what_a_killed_process_left(tmp_path):
    file, draft = (leave(tmp_path, f"{temporary.host_code()}-{NOBODY}", kind) for kind in ("partial", "draft"))
    with placing(tmp_path / "another") as partial:
        partial.touch()
    assert not file.exists()
    draft = leave(tmp_path, f"{temporary.host_code()}-{NOBODY}", "draft")
    with drafting(tmp_path / "tile"):
        assert not draft.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["another"]
