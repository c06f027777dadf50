"""Files that never answer: an error after some seconds, and few waits for a folder that is gone."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from oddpatch.data import reading
from oddpatch.data.decoding import read_file, read_image
from oddpatch.data.headers import pixels_in_header
from oddpatch.errors import DataError


@pytest.fixture
def stuck(monkeypatch):
    """Reading files whose names have `stuck` in them lasts until the event is set."""
    answered, read = threading.Event(), reading.read_bytes
    calls: list[Any] = []

    def wait(path):
        if "stuck" in str(path):
            calls.append(path)
            answered.wait(60)
        return read(path)

    monkeypatch.setattr(reading, "read_bytes", wait)
    yield SimpleNamespace(calls=calls, set=answered.set)
    answered.set()


def test_what_was_read_is_decoded_without_the_file(tmp_path, tiles):
    source = tiles / "tile/test/good/000.png"
    path = tmp_path / "copy.png"
    path.write_bytes(source.read_bytes())
    content = read_file(path, 10)
    path.unlink()
    assert content == path
    assert str(content) == str(path)
    assert pixels_in_header(content) == 48 * 48
    assert read_image(content).equal(read_image(source))


def test_the_errors_are_those_of_decoding(tmp_path):
    for path in (tmp_path / "absent.png", tmp_path):
        with pytest.raises(DataError) as now:
            read_file(path, 10)
        with pytest.raises(DataError) as then:
            read_image(path)
        assert str(now.value) == str(then.value)


def test_a_file_that_does_not_answer_is_an_error(tmp_path, stuck):
    with pytest.raises(DataError, match=r"stuck\.png: not read within 0\.05 s: see to its disk or mount"):
        read_file(tmp_path / "stuck.png", 0.05)


def test_a_folder_that_hangs_is_left_alone_until_it_answers(tmp_path, stuck):
    others = set(threading.enumerate())
    (tmp_path / "good").mkdir()
    for folder in (tmp_path, tmp_path / "good"):
        for number in range(9):
            (folder / f"{number}.png").write_bytes(b"content")
            (folder / f"stuck{number}.png").write_bytes(b"content")
    for number in range(9):
        with pytest.raises(DataError, match="not read"):
            read_file(tmp_path / f"stuck{number}.png", 0.02)
    assert len(stuck.calls) == reading.HANGING
    with pytest.raises(DataError, match="3 files of this folder hang"):
        read_file(tmp_path / "0.png", 10)
    assert read_file(tmp_path / "good/0.png", 10).data == b"content"
    stuck.set()
    for thread in set(threading.enumerate()) - others:
        thread.join(30)
    assert read_file(tmp_path / "0.png", 10).data == b"content"
