"""The queue of alarms: on disk, in order, whatever happens to the disk."""

import logging
import shutil
import sqlite3
import subprocess
import sys
from contextlib import suppress
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from narrowing import present

from oddpatch.errors import ConfigError, DataError, ResourceError
from oddpatch.watch.sinks import outbox as module
from oddpatch.watch.sinks.outbox import Outbox


def drain(box):
    box.stop_waiting()
    found = []
    while alarm := box.first():
        found.append(alarm.id)
        box.done(alarm)
    return found


def test_alarms_survive_their_process_and_keep_their_order(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from oddpatch.watch.sinks.outbox import Outbox\n"
        "box = Outbox(Path(sys.argv[1]))\n"
        "for i in range(20): box.put(f'a{i}', b'x')\n"
        "for _ in range(5): box.done(box.first())\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "q.sqlite"], check=False)
    assert done.returncode == -9
    box = Outbox(tmp_path / "q.sqlite")
    box.put("last", b"y")
    assert drain(box) == [*(f"a{i}" for i in range(5, 20)), "last"]
    box.close()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["put", "done", "reopen"]), max_size=30))
def test_the_queue_is_a_list_that_is_kept(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("queue") / "q.sqlite"
    box, expected, names = Outbox(path), [], count()
    for step in steps:
        if step == "put":
            expected.append(name := f"a{next(names)}")
            box.put(name, b"x")
        elif step == "reopen":
            box.close()
            box = Outbox(path)
        elif expected:
            alarm = present(box.first())
            assert alarm.id == expected.pop(0)
            box.done(alarm)
        assert len(box) == len(expected)
    assert drain(box) == expected
    box.close()


def test_beyond_the_limit_the_oldest_are_lost_and_it_is_told(tmp_path, caplog):
    box = Outbox(tmp_path / "q.sqlite", limit=100)
    for i in range(15):
        box.put(f"a{i}", bytes(10))
    assert box.lost == 5
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "the oldest are lost" in told
    assert "a0" in told
    box.close()
    assert drain(Outbox(tmp_path / "q.sqlite")) == [f"a{i}" for i in range(5, 15)]


def test_an_alarm_that_was_dropped_while_it_was_sent_takes_no_other_with_it(tmp_path):
    box = Outbox(tmp_path / "q.sqlite", limit=20)
    box.put("a", bytes(10))
    sending = present(box.first())
    box.put("b", bytes(10))
    box.put("c", bytes(10))  # drops a
    box.done(sending)
    assert drain(box) == ["b", "c"]


def test_one_watch_at_a_time(tmp_path):
    box = Outbox(tmp_path / "q.sqlite")
    with pytest.raises(ConfigError, match="used by another watch"):
        Outbox(tmp_path / "q.sqlite")
    box.close()
    Outbox(tmp_path / "q.sqlite").close()


@pytest.mark.parametrize("content", [b"this is no database, but long enough to be taken for one" * 50, b"short"])
def test_a_file_that_is_something_else_is_refused(tmp_path, content):
    path = tmp_path / "q.sqlite"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        Outbox(path)
    assert path.read_bytes() == content


def test_a_table_that_is_another_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "q.sqlite") as connection:
        connection.execute("CREATE TABLE alarms (other TEXT)")
    connection.close()
    with pytest.raises(DataError, match="is damaged"):
        Outbox(tmp_path / "q.sqlite")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        Outbox(tmp_path / "file/q.sqlite")
    with pytest.raises(ResourceError, match="cannot be written"):
        Outbox(tmp_path)


def test_on_a_full_disk_alarms_go_on_and_are_safe_once_there_is_room(small_disk, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(module, "AGAIN", 0.0)
    box = Outbox(small_disk / "q.sqlite")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(120_000))
    names = [f"a{i}" for i in range(200)]
    for name in names:  # 200 kB
        box.put(name, bytes(1000))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "cannot be written" in told[0]
    assert len(box) == 200  # of which not all are on disk
    for name in names[:150]:
        alarm = present(box.first())
        assert alarm.id == name
        box.done(alarm)
    filler.unlink()
    box.put("last", b"x")
    assert "is written again" in caplog.messages[-1]
    shutil.copytree(small_disk, tmp_path / "killed")
    assert drain(Outbox(tmp_path / "killed/q.sqlite")) == [*names[150:], "last"]
    box.close()


def test_closing_on_a_disk_that_refuses_does_not_fail(small_disk, caplog):
    box = Outbox(small_disk / "q.sqlite")
    box.put("a", b"x")
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(1000))
    box.put("b", bytes(10_000))
    box.close()
    assert "cannot be written" in caplog.text
