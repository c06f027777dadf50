"""The newest frame, whatever the source does: slow models, lost connections, streams that freeze."""

import gc
import logging
import threading
import time
from contextlib import closing, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from narrowing import pixels, present
from patience import wait_until
from scoring import green_detector
from videos import MotionJpeg, motion_jpeg, number_of, numbered, write_video

from oddpatch.errors import ConfigError, DataError
from oddpatch.watch import capture as module
from oddpatch.watch import sources
from oddpatch.watch.capture import Capture, Crop
from oddpatch.watch.sources import ConnectionLostError, Picture, RefusedError, StalledError, make_source
from oddpatch.watch.triggers import Every


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Connections are tried again at once, and silence is noticed sooner."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(sources, "SILENCE", 0.5)


class Scripted:
    """A source that does what a list says: a picture, "passed", or an error to raise; a list for each connection."""

    name, keep_all, moving = "script", False, True

    def __init__(self, *connections, keep_all=False):
        self.connections, self.keep_all, self.begun = list(connections), keep_all, 0

    def pictures(self, stop):
        self.begun += 1
        steps = self.connections.pop(0)
        for number, step in enumerate(steps):
            if isinstance(step, BaseException):
                raise step
            words = {"passed": None, "broken": DataError("broken")}
            yield Picture(words[step] if isinstance(step, str) else step, float(number))


def picture(value=0):
    return np.full((16, 16, 3), value, np.uint8)


def next_of(frames):
    return present(frames.take()).frame


def total(counts):
    return counts.dropped + counts.skipped + counts.waiting + counts.taken


def ended(capture):
    wait_until(lambda: capture.connection.state == "ended")


def test_a_slow_reader_gets_the_newest(tmp_path):
    step = threading.Event()

    class Stepped(Scripted):
        def pictures(self, stop):
            for value in range(10):
                yield Picture(picture(value), value)
            step.set()

    with Capture(Stepped()) as frames:
        step.wait(30)
        ended(frames)
        taken = present(frames.take())
        assert (taken.number, np.asarray(taken.frame.image)[0, 0, 0], taken.frame.name) == (9, 9, "script#000009")
        assert frames.take() is None
        assert frames.counts == module.Counts(10, 9, 0, 0, 1)


def test_connections_are_made_again_until_the_source_ends(caplog):
    lost = ConnectionLostError("the connection broke")
    source = Scripted([picture(), lost], [lost], [StalledError("nothing came in time")], [picture(), picture()])
    with caplog.at_level(logging.WARNING), Capture(source) as frames:
        ended(frames)
        assert source.begun == 4
        assert frames.connection.reconnects == 1
        assert frames.counts.arrived == 3 == total(frames.counts)
    assert caplog.messages == [
        "script: the connection broke: trying again", "script: nothing came in time: trying again",
    ]  # fmt: skip


@pytest.mark.parametrize("attempts", [1, 5, 20])
def test_pauses_grow_from_one_failure_to_the_next(monkeypatch, attempts):
    failures = []

    def note(*given):
        failures.append(given)
        return 0

    monkeypatch.setattr(module, "pause", note)
    source = Scripted(*[[ConnectionLostError("gone")] for _ in range(attempts)], [])
    with Capture(source) as frames:
        ended(frames)
    assert failures == [(number, module.FIRST_PAUSE, module.LONGEST_PAUSE) for number in range(1, attempts + 1)]


def test_giving_up():
    gone = [[ConnectionLostError("gone")] for _ in range(1000)]
    with Capture(Scripted(*gone), give_up=0.1) as frames, pytest.raises(ConnectionLostError) as error:
        frames.take()
    assert str(error.value) == "script: gone, and no connection for 0.1 s: see to the camera"


def test_a_refusal_at_first_is_final_and_later_is_not():
    with Capture(Scripted([RefusedError("no connection: 401")])) as frames, pytest.raises(ConfigError) as error:
        frames.take()
    assert str(error.value) == "script: no connection: 401: correct the address, or what it names"
    source = Scripted([picture(), ConnectionLostError("rebooting")], [RefusedError("404")], [picture()])
    with Capture(source) as frames:
        ended(frames)
        assert frames.counts.arrived == 2


@settings(deadline=None, max_examples=40)
@given(
    steps=st.lists(st.lists(st.sampled_from(["picture", "broken", "passed"]), max_size=8), min_size=1, max_size=4),
    keep_all=st.booleans(),
    every=st.sampled_from([None, 2, 3]),
    crop=st.sampled_from([None, Crop(0, 0, 8, 8), Crop(10, 10, 8, 8)]),
)
def test_every_frame_that_arrived_is_accounted_for(steps, keep_all, every, crop):
    """Whatever comes, over any number of connections."""
    pause, module.FIRST_PAUSE = module.FIRST_PAUSE, 0.0
    try:
        lost = ConnectionLostError("lost")
        connections = [[picture() if step == "picture" else step for step in one] for one in steps]
        source = Scripted(*[[*one, lost] for one in connections[:-1]], connections[-1], keep_all=keep_all)
        taken = 0
        with Capture(source, crop, None if every is None else Every(every)) as frames:
            while (one := frames.take()) is not None:
                counts = frames.counts
                assert counts.arrived == total(counts)
                assert one.number < counts.arrived
                if crop == Crop(10, 10, 8, 8):
                    assert isinstance(one.frame.image, DataError)
                taken += 1
    finally:
        module.FIRST_PAUSE = pause
    counts = frames.counts
    assert counts.arrived == total(counts) == sum(map(len, steps))
    assert (counts.taken, counts.waiting) == (taken, 0)
    if keep_all:
        assert counts.dropped == sum(one.count("passed") for one in steps)
    if every is None:
        assert counts.skipped == 0


def test_errors_of_the_source_reach_who_takes():
    with Capture(Scripted([picture(), ValueError("a fault of ours")])) as frames, pytest.raises(ValueError):
        list(frames)
    with Capture(sources.Recording(Path(__file__))) as frames, pytest.raises(DataError, match="cannot be read as a"):
        list(frames)  # which was a video when its source was made


def test_closing_ends_the_thread():
    class Endless(Scripted):
        def pictures(self, stop):
            for value in count():
                yield Picture(picture(), value)
                if stop.wait(0.001):
                    return

    before = threading.active_count()
    for keep_all in (False, True):
        with Capture(Endless(keep_all=keep_all)) as frames:
            frames.take()
        assert frames.take() is None
        wait_until(lambda: threading.active_count() == before)
        assert frames.counts.arrived == total(frames.counts)
        assert frames.counts.waiting == 0


def test_crop():
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    with Capture(Scripted([image]), Crop(2, 3, 5, 4)) as frames:
        np.testing.assert_array_equal(next_of(frames).image, image[3:7, 2:7])
    with Capture(Scripted([image]), Crop(12, 3, 5, 4)) as frames:
        told = "script#000000: the crop 12,3,5,4 does not lie within a picture of 16x16 pixels"
        assert str(next_of(frames).image) == told
    with pytest.raises(ConfigError, match="crop 0,0,0,5: give X,Y,WIDTH,HEIGHT"):
        Capture(Scripted(), Crop(0, 0, 0, 5))


def test_another_size_is_told(caplog):
    source = Scripted([picture(), np.zeros((8, 20, 3), np.uint8)], keep_all=True)
    with caplog.at_level(logging.WARNING), Capture(source) as frames:
        assert [pixels(frame.image).shape for frame in frames] == [(16, 16, 3), (8, 20, 3)]
    assert caplog.messages == ["script: pictures are 20x8 from now on, were 16x16"]


def test_a_recording_at_its_pace_and_as_fast_as_may_be(tmp_path):
    path = write_video(tmp_path / "line.mp4", map(numbered, range(20)), rate=20)
    start = time.time()
    with Capture(str(path)) as frames:
        seen = [(number_of(frame.image), frame.time or 0.0) for frame in frames]
    assert time.time() - start >= 0.95
    assert all(abs(taken - seen[0][1] - (number - seen[0][0]) / 20) < 0.01 for number, taken in seen)
    with Capture(str(path), fast=True) as frames:
        assert [number_of(frame.image) for frame in frames] == list(range(20))
        assert frames.counts == module.Counts(20, 0, 0, 0, 20)


def test_a_detector_streams_it(tmp_path):
    path = write_video(tmp_path / "line.mp4", map(numbered, range(12)))
    with Capture(str(path), fast=True) as frames, closing(green_detector().stream(frames, batch_size=1)) as found:
        results = list(found)
    assert [frame.name for frame, _ in results] == [f"{path}#{number:06}" for number in range(12)]
    assert all(0 < result.score < 100 for _, result in results)


def test_pictures_of_another_size_in_one_stream(caplog):
    with motion_jpeg() as camera, Capture(camera.address) as frames:
        frames.take()
        camera.size = (64, 144)
        wait_until(lambda: pixels(next_of(frames).image).shape == (64, 144, 3))
        assert frames.connection.reconnects == 0
    assert f"{camera.address}: pictures are 144x64 from now on, were 128x96" in caplog.text


def test_motion_jpeg_over_http_and_a_slow_reader():
    with motion_jpeg(rate=50) as camera, Capture(camera.address) as frames:
        ages = []
        while camera.sent < 150:
            frame = next_of(frames)
            ages.append(camera.sent - number_of(frame.image))
            assert frame.name.startswith(camera.address + "#")
            time.sleep(0.2)
        # A backlog that is worked off would have grown to most of what was sent.
        assert frames.counts.dropped > 50
        assert np.median(ages) < 30


def test_a_camera_that_hangs_is_noticed_and_connected_again():
    with motion_jpeg() as camera, Capture(camera.address) as frames:
        frames.take()
        camera.hanging.set()
        wait_until(lambda: frames.connection.state == "stalled")
        assert "nothing came in time" in (frames.connection.error or "")
        camera.hanging.clear()
        wait_until(lambda: frames.connection.state == "connected")
        assert frames.connection.reconnects >= 1
        assert frames.take() is not None
        assert frames.counts.arrived == total(frames.counts)


def test_a_stream_that_is_cut_goes_on():
    with motion_jpeg() as camera, Capture(camera.address) as frames:
        for cuts in range(1, 4):
            before = frames.counts.arrived
            wait_until(lambda before=before: frames.counts.arrived > before + 3)
            camera.cut.set()
            wait_until(lambda cuts=cuts: frames.connection.reconnects == cuts)
        assert frames.counts.arrived == total(frames.counts)
    # Each picture that was sent arrived once: those in flight when a connection was cut belong to neither count.
    assert 0 <= camera.sent - frames.counts.arrived <= 200


def test_a_connection_that_was_lost_leaves_nothing_behind():
    """No cycle of objects, which would keep the decoder until Python looks for garbage: that may take hours."""
    gc.collect()
    gc.disable()
    try:
        with motion_jpeg() as camera, Capture(camera.address) as frames:
            for cuts in range(1, 4):
                before = frames.counts.arrived
                wait_until(lambda before=before: frames.counts.arrived > before + 3)
                camera.cut.set()
                wait_until(lambda cuts=cuts: frames.connection.reconnects == cuts)
            there = [one for one in gc.get_objects() if type(one) is sources.Reading]
    finally:
        gc.enable()
    assert len(there) <= 1  # that of the connection that stands


def test_a_server_that_is_down_is_waited_for(monkeypatch):
    camera = MotionJpeg()
    address = camera.address
    camera.close()
    with Capture(address) as frames:
        wait_until(lambda: frames.connection.error is not None)
        assert frames.connection.error == "no connection: Connection refused"
        assert frames.connection.state == "connecting"


def test_an_address_of_nothing_is_an_error():
    with motion_jpeg() as camera:
        address = f"http://127.0.0.1:{camera.port}/nothing"
        with Capture(address) as frames, pytest.raises(ConfigError) as error:
            frames.take()
        told = f"{address}: no connection: Server returned 404 Not Found: correct the address, or what it names"
        assert str(error.value) == told


@contextmanager
def files_over_http(folder):
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", ["line.m3u8", "line.mp4"])
def test_what_comes_in_pieces_is_no_camera(name, tmp_path):
    """FFmpeg reads a playlist a segment at a time, seconds late, and a recording over and over."""
    write_video(tmp_path / name, map(numbered, range(50)))
    with files_over_http(tmp_path) as server, Capture(f"{server}/{name}") as frames:
        with pytest.raises(ConfigError) as error:
            frames.take()
        told = "HLS and recordings are not live: they come in pieces, seconds late: give the RTSP or MJPEG address"
        assert str(error.value).startswith(f"{server}/{name}: {told}")
        assert frames.counts.arrived == 0


def test_a_page_is_no_video(tmp_path):
    (tmp_path / "index.html").write_text("<p>Please log in.</p>")
    with files_over_http(tmp_path) as server, Capture(server) as frames, pytest.raises(ConfigError) as error:
        frames.take()
    assert str(error.value) == f"{server}: what comes from there is no video: correct the address, or what it names"


def test_a_device_is_opened_by_video4linux(tmp_path, monkeypatch):
    """A video in place of the camera, which no test machine has."""
    path, opened = write_video(tmp_path / "line.mp4", map(numbered, range(10))), []

    def stand_in(address, **settings):
        opened.append((address, settings))
        return av_open(str(path))

    av_open = av.open
    monkeypatch.setattr(av, "open", stand_in)
    for there in ("exists", "is_char_device"):
        monkeypatch.setattr(Path, there, lambda path, **_: str(path) == "/dev/video3")
    source = make_source("3")
    assert isinstance(source, sources.Device)
    pictures = source.pictures(threading.Event())
    shown = [next(pictures) for _ in range(10)]
    assert [number_of(one.image) for one in shown] == list(range(10))
    assert all(0 <= time.time() - one.time < 60 for one in shown)
    with pytest.raises(ConnectionLostError, match="the stream ended"):  # as if it were unplugged
        next(pictures)
    ((address, settings),) = opened
    assert (address, settings["format"], settings["timeout"]) == ("/dev/video3", "v4l2", (10.0, sources.SILENCE))
    assert av.format.ContainerFormat("v4l2", "r").is_input  # PyAV's FFmpeg has it


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="there is no /dev/null")
def test_a_device_that_is_no_camera_is_an_error_at_once():
    with Capture("/dev/null") as frames, pytest.raises(ConfigError) as error:
        frames.take()
    assert str(error.value).startswith("/dev/null: cannot be used (Inappropriate ioctl for device): give a camera")


def test_secrets_are_in_no_error(monkeypatch):
    monkeypatch.setenv("CAMERA_PASSWORD", "hunter2")
    with motion_jpeg() as camera:
        for path in ("nothing", "line"):
            address = f"http://admin:${{CAMERA_PASSWORD}}@127.0.0.1:{camera.port}/{path}"
            with Capture(address) as frames:
                try:
                    assert "hunter2" not in next_of(frames).name
                except ConfigError as error:
                    link: BaseException | None = error
                    while link is not None:
                        assert "hunter2" not in str(link)
                        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
                assert "hunter2" not in repr(frames.connection)


def test_names_of_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "line.mp4", [numbered(0)])
    (tmp_path / "part.png").touch()
    (tmp_path / "torn.mp4").write_bytes((tmp_path / "line.mp4").read_bytes()[:100])
    (tmp_path / "fallen").mkdir()
    kinds = {"line.mp4": sources.Recording, "boards:": sources.Boards, "rtsp://192.0.2.7/a": sources.Stream}
    for name, kind in kinds.items():
        assert isinstance(make_source(name), kind)
        assert make_source(name).name == name.removesuffix(":")
    assert type(make_source("fallen")).__name__ == "Folder"
    for name, told in {
        "part.png": "part.png is no video: `oddpatch predict` inspects images",
        "torn.mp4": "torn.mp4: cannot be read as a video (",
        "nowhere": "nowhere: no such file, folder or device: give rtsp://...",
        "/dev/video77": "/dev/video77: no such camera (there is ",
        "77": "/dev/video77: no such camera (there is ",
        "rtsp://u:p@h/": "a password stands in the address of h",
    }.items():
        with pytest.raises((ConfigError, DataError)) as error:
            make_source(name)
        assert str(error.value).startswith(told)
    with pytest.raises(ConfigError, match="only a video file"):
        make_source("fallen", fast=True)
    with pytest.raises(ConfigError, match="every image of a folder is judged"):
        Capture("fallen", trigger=Every(1))
