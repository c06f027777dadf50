"""The folder of pictures: limited, whole files only, and nobody else's files are touched."""

import io
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from alarms import make_event
from conftest import ROOT
from narrowing import present
from patience import wait_until
from PIL import Image

from oddpatch.errors import ConfigError, ResourceError
from oddpatch.watch.drawing import to_jpeg, to_png
from oddpatch.watch.events import Verdict
from oddpatch.watch.sinks import make_sinks
from oddpatch.watch.sinks.pictures import BACKLOG, INDEX, Pictures

SIZE = (240, 320)  # 230 kB as PNG: noise


def write(sink, *events):
    for number, event in enumerate(events, start=over(sink) + 1):
        sink.put(event)
        wait_until(lambda number=number: over(sink) == number)


def over(sink):
    """Events whose pictures were written or failed."""
    return sink.counts()["written"] + sink.counts()["failed"]


def pictures(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".png", ".jpg"))


def start(folder, **settings):
    sink = Pictures(folder, **settings)
    sink.start()
    return sink


def test_a_frame_is_kept_as_it_was_judged_with_its_overlay_beside_it(tmp_path):
    sink = start(tmp_path)
    event = make_event(3, Verdict.WARN)
    write(sink, event)
    sink.close(5)
    name = "20231114T221323.250Z_warn_e-00003"
    assert pictures(tmp_path) == [f"{name}.png", f"{name}_overlay.jpg"]
    assert sink.picture(event) == f"{name}.png"
    kept = np.asarray(Image.open(tmp_path / f"{name}.png"))
    assert (kept == event.image.transpose(1, 2, 0)).all()
    assert Image.open(tmp_path / f"{name}_overlay.jpg").size == (64, 48)
    assert sink.counts() == {"written": 1, "kept": 2, "removed": 0, "failed": 0, "dropped": 0}


def test_only_chosen_verdicts_with_a_frame_are_kept(tmp_path):
    sink = start(tmp_path, verdicts={Verdict.ACCEPT, Verdict.FAILED})
    sink.put(make_event(0, Verdict.REJECT))
    sink.put(make_event(1, Verdict.FAILED))
    write(sink, make_event(2, Verdict.ACCEPT))
    sink.close(5)
    assert len(pictures(tmp_path)) == 2
    assert sink.picture(make_event(0, Verdict.REJECT)) is None


def test_names_sort_by_time(tmp_path):
    stems = [make_event(number).stem for number in (0, 1, 2, 10, 100, 5000)]
    assert stems == sorted(stems)


def test_the_oldest_are_removed_beyond_the_limit_also_after_a_restart(tmp_path):
    def held():
        return sum((tmp_path / name).stat().st_size for name in pictures(tmp_path))

    sink = start(tmp_path, megabytes=1)
    for number in range(8):
        write(sink, make_event(number, size=SIZE))
        assert held() <= 10**6
    sink.close(5)
    assert sink.removed > 0
    newest = pictures(tmp_path)
    assert newest[-1].startswith(make_event(7).stem)
    sink = start(tmp_path, megabytes=1)
    assert sink.counts()["kept"] == len(newest)
    write(sink, make_event(8, size=SIZE))
    sink.close(5)
    assert held() <= 10**6
    assert newest[0] not in pictures(tmp_path)
    assert make_event(8).stem + ".png" in pictures(tmp_path)


def test_a_lower_limit_counts_from_the_start(tmp_path):
    sink = start(tmp_path, megabytes=3)
    write(sink, *(make_event(number, size=SIZE) for number in range(8)))
    sink.close(5)
    sink = start(tmp_path, megabytes=1)
    sink.close(5)
    assert sum((tmp_path / name).stat().st_size for name in pictures(tmp_path)) <= 10**6
    assert (tmp_path / f"{make_event(7).stem}.png").exists()


def test_files_of_others_are_never_removed_nor_overwritten(tmp_path):
    own = tmp_path / "20200101T000000.000Z_reject_mine.png"  # as ours are named
    own.write_bytes(bytes(900_000))
    (tmp_path / "notes.txt").write_text("mine")
    outside = tmp_path.parent / f"{tmp_path.name}-outside.png"
    outside.write_bytes(b"12345")
    sink = start(tmp_path, megabytes=1)
    write(sink, *(make_event(number, size=SIZE) for number in range(3)))
    replaced = tmp_path / f"{make_event(0).stem}.png"
    replaced.write_bytes(b"by the user")
    taken = tmp_path / f"{make_event(50).stem}.png"
    taken.write_bytes(b"there already")
    write(sink, *(make_event(number, size=SIZE) for number in (50, 51, 52, 53, 54)))
    sink.close(5)
    assert sink.failed == 1
    with sqlite3.connect(tmp_path / INDEX) as index:  # a list that somebody has changed
        index.execute("INSERT INTO pictures VALUES (0, ?, 5)", (f"../{outside.name}",))
        index.execute("INSERT INTO pictures VALUES (-1, 'notes.txt', 99)")
    index.close()
    sink = start(tmp_path, megabytes=1)
    write(sink, *(make_event(number, size=SIZE) for number in range(60, 66)))
    sink.close(5)
    assert own.exists()
    assert (tmp_path / "notes.txt").exists()
    assert outside.read_bytes() == b"12345"
    assert replaced.read_bytes() == b"by the user"
    assert taken.read_bytes() == b"there already"


def test_after_a_kill_every_picture_is_whole_and_known(tmp_path):
    code = (
        "import sys; from pathlib import Path; from alarms import make_event\n"
        "from oddpatch.watch.sinks.pictures import Pictures\n"
        "sink = Pictures(Path(sys.argv[1]), 1); sink.start()\n"
        "for number in range(10**6):\n"
        "    sink.put(make_event(number, size=(240, 320))); print(number, flush=True)\n"
        "    while sink.counts()['written'] < number: pass"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, cwd=ROOT / "tests")
    assert process.stdout is not None
    for _ in range(12):
        process.stdout.readline()
    process.kill()
    process.communicate()
    for name in pictures(tmp_path):
        Image.open(tmp_path / name).load()
    sink = start(tmp_path, megabytes=1)
    assert sink.counts()["kept"] == len(pictures(tmp_path)) > 0
    write(sink, make_event(10**6, size=SIZE))
    sink.close(5)
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))


def test_a_full_disk_is_told_once_and_the_next_picture_is_tried(small_disk, caplog):
    sink = start(small_disk, megabytes=1)
    write(sink, *(make_event(number, size=SIZE) for number in range(3)))
    assert sink.counts()["failed"] == 3
    assert len(caplog.messages) == 1
    assert "free disk space" in caplog.messages[0]
    write(sink, make_event(9, size=(24, 32)))
    sink.close(5)
    assert sink.counts()["written"] == 1
    assert len(pictures(small_disk)) == 2


def test_a_picture_larger_than_the_limit_is_told_with_the_remedy(tmp_path, caplog):
    sink = start(tmp_path, megabytes=1)
    write(sink, make_event(0, size=(700, 700)))
    sink.close(5)
    assert "raise --pictures-mb=1" in caplog.text
    assert pictures(tmp_path) == []


def test_what_comes_too_fast_is_dropped_and_told(tmp_path, caplog):
    sink = Pictures(tmp_path)  # not at work yet
    for number in range(BACKLOG + 3):
        sink.put(make_event(number))
    assert sink.counts()["dropped"] == 3
    assert len(caplog.messages) == 1
    sink.start()
    sink.close(10)
    assert sink.counts()["written"] == BACKLOG


def test_one_watch_writes_into_a_folder(tmp_path):
    sink = start(tmp_path)
    with pytest.raises(ConfigError, match="used by another watch"):
        make_sinks(pictures=tmp_path)
    sink.close(5)
    with pytest.raises(ConfigError, match="--pictures-mb=0: choose 1 or more"):
        make_sinks(pictures=tmp_path, pictures_mb=0)


def test_the_list_is_written_to_disk_before_the_picture(tmp_path, monkeypatch):
    def listed():
        """What a program would find after a kill now."""
        shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True)
        with closing(sqlite3.connect(tmp_path / "copy" / INDEX)) as index:
            return index.execute("SELECT name, size FROM pictures").fetchall()

    def look(path, data):
        found.extend(listed())
        raise ResourceError("full")

    folder, found, event = tmp_path / "pictures", [], make_event()
    sink = start(folder)
    monkeypatch.setattr("oddpatch.watch.sinks.pictures.write_whole", look)
    write(sink, event)
    sink.close(5)
    assert (f"{event.stem}.png", len(to_png(event.image))) in found
    assert listed() == []
    assert sink.counts() == {"written": 0, "kept": 0, "removed": 0, "failed": 1, "dropped": 0}


@pytest.mark.parametrize("longest", [1280, 32])
def test_an_overlay_shows_the_region_where_it_is(longest):
    event = make_event(0)
    event.image[:] = 128
    event.detection.normalized_map[:] = 0
    picture = np.asarray(Image.open(io.BytesIO(present(to_jpeg(event, longest))))).astype(int)
    scale = picture.shape[1] / 64
    assert picture.shape[:2] == (round(48 * scale), round(64 * scale))
    changed = np.argwhere(np.abs(picture - 128).sum(axis=2) > 120)
    top, left = changed.min(axis=0) / scale
    bottom, right = (changed.max(axis=0) + 1) / scale
    assert np.allclose([left, top, right, bottom], [10, 5, 30, 15], atol=4 / scale)


def test_the_webhook_names_the_picture_that_is_kept(tmp_path):
    sinks: Any = make_sinks(webhook="http://127.0.0.1:9/", pictures=tmp_path / "pictures", queue=tmp_path / "queue")
    for event in (make_event(0, Verdict.REJECT), make_event(1, Verdict.FAILED)):
        for sink in sinks:
            sink.put(event)
    box = sinks[1].outbox
    box.stop_waiting()
    alarms = []
    while alarm := box.first():
        alarms.append(alarm)
        box.done(alarm)
    for sink in sinks:
        sink.close(0.2)
    assert f'"picture": "{make_event(0).stem}.png"'.encode() in alarms[0].body
    assert b'"picture": null' in alarms[1].body
    assert (tmp_path / "pictures" / f"{make_event(0).stem}.png").exists()
