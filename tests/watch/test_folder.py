"""Images that fall into a folder: each once, whole, however it is written."""

import logging
import os
import shutil
import threading
import time
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from narrowing import stand_in
from patience import wait_until
from PIL import Image

from oddpatch.data.decoding import read_pixels
from oddpatch.errors import DataError
from oddpatch.watch import capture, folder
from oddpatch.watch.capture import Capture, Crop
from oddpatch.watch.folder import Folder
from oddpatch.watch.sources import ConnectionLostError, make_source


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(folder, "PATIENCE", 1.5)
    monkeypatch.setattr(folder, "ROUND", 1.0)
    monkeypatch.setattr(capture, "FIRST_PAUSE", 0.01)


def write(path, value=0, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def data(value=0):
    rng = np.random.default_rng(value)
    return cv2_encode(rng.integers(0, 255, (64, 64, 3), np.uint8))


def cv2_encode(image):
    import cv2

    return cv2.imencode(".png", image)[1].tobytes()


@contextmanager
def watching(path, **settings):
    """A capture that has begun: what falls from now on is seen."""
    with Capture(str(path), **settings) as frames:
        folder: Any = frames.source
        wait_until(lambda: folder.ready)
        yield frames


def names(frames, count):
    return [os.path.basename(frames.take().frame.name) for _ in range(count)]  # noqa: PTH119


def value(frame):
    return int(read_pixels(frame.image)[0, 0, 0])


def test_each_once_in_their_order(tmp_path, caplog):
    write(tmp_path / "old.png")
    (tmp_path / "old.txt").touch()
    with caplog.at_level(logging.WARNING), watching(tmp_path) as frames:
        for number in range(5):
            write(tmp_path / f"{number}.png", number)
        taken = [frames.take().frame for _ in range(5)]
        assert [value(frame) for frame in taken] == list(range(5))
        assert [frame.name for frame in taken] == [str(tmp_path / f"{number}.png") for number in range(5)]
        assert all(0 <= time.time() - frame.time < 30 for frame in taken)
        (tmp_path / "note.txt").touch()
        time.sleep(0.5)
        write(tmp_path / "last.jpg")
        assert names(frames, 1) == ["last.jpg"]
        counts = frames.counts
    assert (counts.arrived, counts.taken, counts.dropped) == (6, 6, 0)
    assert caplog.messages == [
        f"{tmp_path}: left out, unknown suffix: {tmp_path}/old.txt; more such are counted",
        f"{tmp_path}: 1 image was there before, not inspected: `oddpatch predict` inspects them",
        f"{tmp_path}: 2 left out, unknown suffix: {tmp_path}/old.txt, {tmp_path}/note.txt",
    ]


def test_what_is_left_out_while_it_is_watched_is_named(tmp_path, caplog):
    line, outside = tmp_path / "line", tmp_path / "outside"
    write(outside / "linked.png", 7)
    line.mkdir()
    with caplog.at_level(logging.WARNING), watching(line) as frames:
        (line / "broken.png").symlink_to(tmp_path / "absent.png")
        (line / "gone").symlink_to(tmp_path / "absent")
        (line / "loop").symlink_to(line)
        (line / "link").symlink_to(outside)
        for number in range(5):
            (line / f"{number}.json").touch()
        assert names(frames, 1) == ["linked.png"]
        time.sleep(0.5)
    told = {message.split("left out, ")[1].split(":")[0] for message in caplog.messages if "more such" in message}
    assert told == {"broken link", "unknown suffix", "link back to a folder that holds it"}
    ended = [message for message in caplog.messages if "more such" not in message]
    assert f"{line}: 1 left out, link back to a folder that holds it: {line}/loop" in ended
    (broken,) = [message for message in ended if "broken" in message]
    assert broken.startswith(f"{line}: 2 left out, broken link: ")
    (unknown,) = [message for message in ended if "unknown" in message]
    assert unknown.startswith(f"{line}: 5 left out, unknown suffix: ")
    assert unknown.endswith(", 2 more")


def test_half_a_file_is_waited_for(tmp_path):
    with watching(tmp_path) as frames:
        whole = data()
        with (tmp_path / "slow.png").open("wb") as file:
            for part in range(4):  # each pause is longer than a file must be still for
                file.write(whole[part * len(whole) // 4 : (part + 1) * len(whole) // 4])
                file.flush()
                time.sleep(2 * folder.SETTLED)
                assert frames.counts.arrived == (0 if part < 3 else frames.counts.arrived)
        frame = frames.take().frame
        np.testing.assert_array_equal(read_pixels(frame.image), read_pixels(tmp_path / "slow.png"))
        assert frames.counts.arrived == 1


def test_what_stays_broken_is_an_error(tmp_path):
    with watching(tmp_path) as frames:
        (tmp_path / "half.png").write_bytes(data()[:2000])
        (tmp_path / "empty.png").touch()
        found = {frame.name: str(frame.image) for frame in (frames.take().frame for _ in range(2))}
        assert found[str(tmp_path / "half.png")].startswith(f"{tmp_path / 'half.png'}: ")
        assert "empty (0 bytes)" in found[str(tmp_path / "empty.png")]
        (tmp_path / "half.png").write_bytes(data())  # mended: a new image
        assert not isinstance(frames.take().frame.image, DataError)


def test_renamed_moved_and_rewritten_files(tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    (tmp_path / "in").mkdir()
    with watching(tmp_path / "in") as frames:
        write(tmp_path / "in/.part.png", 1)  # hidden while it is written
        (tmp_path / "in/.part.png").rename(tmp_path / "in/a.png")
        assert names(frames, 1) == ["a.png"]
        write(other / "b.png", 2)
        (other / "b.png").rename(tmp_path / "in/b.png")
        assert names(frames, 1) == ["b.png"]
        write(tmp_path / "in/temporary.png", 3)  # an image by its name, renamed at once
        (tmp_path / "in/temporary.png").rename(tmp_path / "in/c.png")
        assert names(frames, 1) == ["c.png"]
        write(tmp_path / "in/a.png", 4)  # one name for all, as many cameras have it
        again = frames.take().frame
        assert (os.path.basename(again.name), value(again)) == ("a.png", 4)  # noqa: PTH119
        time.sleep(0.5)
        assert frames.counts.arrived == 4


def test_a_file_that_is_gone_before_it_was_read_is_told(tmp_path):
    with watching(tmp_path) as frames:
        write(tmp_path / "gone.png")
        wait_until(lambda: frames.source.falling)
        (tmp_path / "gone.png").unlink()
        assert str(frames.take().frame.image) == f"{tmp_path / 'gone.png'}: was removed before it was read"


def test_folders_that_are_moved_in_and_a_folder_that_comes_back(tmp_path):
    line = tmp_path / "line"
    line.mkdir()
    for number in range(3):
        write(tmp_path / f"batch/deep/{number}.png", number)
    with watching(line) as frames:
        (tmp_path / "batch").rename(line / "batch")
        assert sorted(names(frames, 3)) == ["0.png", "1.png", "2.png"]
        line.rename(tmp_path / "away")
        wait_until(lambda: frames.connection.state == "connecting")
        assert frames.connection.error == "the folder is gone"
        line.mkdir()
        write(line / "new.png")
        assert names(frames, 1) == ["new.png"]


def test_what_the_system_does_not_tell_is_found_by_looking(tmp_path, monkeypatch):
    import watchfiles

    def deaf(*paths, stop_event, **settings):
        while not stop_event.wait(0.05):
            yield set()

    monkeypatch.setattr(watchfiles, "watch", deaf)
    with watching(tmp_path) as frames:
        write(tmp_path / "a.png")
        assert names(frames, 1) == ["a.png"]


def test_a_slow_model_loses_none(tmp_path):
    with watching(tmp_path) as frames:
        source = tmp_path.parent / "source.png"
        write(source)
        for number in range(60):
            shutil.copy(source, tmp_path / f"{number:02}.png")
        time.sleep(1)
        assert sorted(names(frames, 60)) == [f"{number:02}.png" for number in range(60)]
        assert frames.counts.dropped == 0


def test_crop(tmp_path):
    with watching(tmp_path, crop=Crop(10, 5, 4, 3)) as frames:
        write(tmp_path / "a.png", 7)
        assert frames.take().frame.image.shape == (3, 4, 3)


def test_its_name(tmp_path):
    assert make_source(str(tmp_path)).name == str(tmp_path)


def test_a_folder_that_goes_while_it_is_watched_is_a_connection_lost(monkeypatch, tmp_path):
    def gone(*args, **settings):
        raise FileNotFoundError(2, "No such file or directory")
        yield

    monkeypatch.setattr("watchfiles.watch", gone)
    source = stand_in(_path=tmp_path, _counts={}, _unread={}, name="parts")
    with pytest.raises(ConnectionLostError, match="the folder is gone"):
        list(Folder.pictures(source, threading.Event()))
