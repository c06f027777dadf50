"""A real RTSP server on this machine: cut, frozen, of another size, with damaged packets; every frame is counted."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from narrowing import present
from patience import PATIENCE, wait_until
from test_capture import total
from videos import number_of, numbered, write_video

from oddpatch.errors import ConfigError, DataError
from oddpatch.watch.capture import Capture

pytestmark = pytest.mark.system
PACKAGES = "apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-good"
RATE = 25


@pytest.fixture(scope="module")
def system_python():
    """The Python that has GStreamer's bindings."""
    python = shutil.which("python3", path="/usr/bin")
    needed = "import gi; gi.require_version('GstRtspServer', '1.0')"
    if python is None or subprocess.run([python, "-c", needed], capture_output=True, check=False).returncode:
        pytest.skip(f"GStreamer's RTSP server is not installed: {PACKAGES}")
    return python


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Of a minute, and of 4 seconds in another size."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "line.mp4", map(numbered, range(60 * RATE)), RATE)
    write_video(folder / "small.mp4", (numbered(number, (64, 144)) for number in range(4 * RATE)), RATE)
    return folder


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


class Server:
    def __init__(self, python, video, *login, port=None):
        self.port = port or free_port()
        self.address = f"rtsp://127.0.0.1:{self.port}/line"
        command = [python, ROOT / "tests/rtsp_server.py", video, str(self.port), *login]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean)
        assert present(self.process.stdout).readline() == "ready\n"

    def send(self, which):
        self.process.send_signal(which)

    def close(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def serve(system_python):
    servers = []

    def start(*arguments, **settings):
        servers.append(Server(system_python, *arguments, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


class Reader:
    """Takes all frames of a capture in a thread, and looks at what they show."""

    def __init__(self, frames):
        self.pictures, self.errors = [], []
        self._frames = frames
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while (captured := self._frames.take()) is not None:
            image = captured.frame.image
            if isinstance(image, DataError):
                self.errors.append((captured.number, str(image)))
            else:
                self.pictures.append(
                    (captured.number, number_of(image), image.shape, time.time() - captured.frame.time)
                )

    def join(self):
        self._thread.join(30)


@contextmanager
def reading(address):
    with Capture(address) as frames:
        reader = Reader(frames)
        try:
            yield frames, reader
        finally:
            frames.close()
            reader.join()
            counts = frames.counts
            assert counts.arrived == total(counts)
            assert counts.taken == len(reader.pictures) + len(reader.errors)
            assert counts.waiting == 0


def test_every_frame_of_a_stream_arrives_in_time(serve, videos):
    server = serve(videos / "small.mp4")
    with reading(server.address) as (frames, reader):
        wait_until(lambda: frames.connection.error == "the stream ended")
    assert frames.counts.arrived >= 4 * RATE
    first = [picture for picture in reader.pictures if picture[0] < 4 * RATE]
    assert reader.errors == []
    assert all(number == shown for number, shown, _, _ in first)  # none is lost or shown twice
    later = [delay for _, shown, _, delay in first if shown > 2 * RATE]
    assert min(later) > 0
    assert sorted(later)[len(later) // 2] < 0.15


def test_a_server_that_is_killed_and_comes_back_in_another_size(serve, videos, caplog):
    server = serve(videos / "line.mp4")
    with reading(server.address) as (frames, reader):
        wait_until(lambda: len(reader.pictures) > 20)
        server.close()
        wait_until(lambda: frames.connection.state == "connecting")
        before, arrived = len(reader.pictures), frames.counts.arrived
        serve(videos / "small.mp4", port=server.port)
        wait_until(lambda: len(reader.pictures) > before + 20)
        assert frames.connection.reconnects == 1
        assert reader.pictures[-1][2] == (64, 144, 3)
        assert next(shown for number, shown, *_ in reader.pictures if number >= arrived) < 2 * RATE
    assert reader.errors == []
    assert "pictures are 144x64 from now on, were 128x96" in caplog.text


def test_a_server_that_freezes_is_noticed_within_five_seconds(serve, videos):
    server = serve(videos / "line.mp4")
    with reading(server.address) as (frames, reader):
        wait_until(lambda: len(reader.pictures) > 2 * RATE)
        server.send(signal.SIGSTOP)
        start = time.monotonic()
        wait_until(lambda: frames.connection.state == "stalled")
        assert time.monotonic() - start < 5
        wait_until(lambda: frames.connection.error.startswith("no frame for 4"))
        assert time.monotonic() - start < 5
        server.send(signal.SIGCONT)
        before = len(reader.pictures)
        wait_until(lambda: len(reader.pictures) > before + 20)
        assert frames.connection.reconnects == 1
    assert reader.errors == []


def test_a_short_pause_is_caught_up_with(serve, videos):
    """After 3 seconds of silence the frames of 3 seconds come at once: they are passed over for the newest."""
    server = serve(videos / "line.mp4")
    with reading(server.address) as (frames, reader):
        wait_until(lambda: len(reader.pictures) > 3 * RATE)
        server.send(signal.SIGSTOP)
        time.sleep(3)
        server.send(signal.SIGCONT)
        before = len(reader.pictures)
        wait_until(lambda: len(reader.pictures) > before + 3 * RATE)
        assert frames.connection.reconnects == 0
        assert max(delay for *_, delay in reader.pictures[-10:]) < 0.5
    assert reader.errors == []


class Damaging:
    """A proxy that flips a bit in every so many bytes that the server sends, once the stream runs."""

    def __init__(self, port, every, seed=0):
        self.every, self.flipped, self._server_port = every, 0, port
        self._draw = random.Random(seed)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.address = f"rtsp://127.0.0.1:{self.port}/line"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server_port))
            for source, target, damage in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pass_on, args=(source, target, damage), daemon=True).start()

    def _pass_on(self, source, target, damage):
        passed, next_flip = 0, 40_000  # the answers of the beginning are left whole
        try:
            while data := bytearray(source.recv(4096)):
                while damage and next_flip < passed + len(data):
                    data[max(next_flip - passed, 0)] ^= 1 << self._draw.randrange(8)
                    self.flipped += 1
                    next_flip += self._draw.randrange(1, 2 * self.every)
                passed += len(data)
                target.sendall(data)
        except OSError:
            pass
        for one in (source, target):
            one.close()

    def close(self):
        self._listening.close()


@pytest.mark.parametrize("seed", range(3))
def test_damaged_packets_never_make_a_picture(serve, tmp_path, seed):
    # Pictures with noise, so that a frame has some thousand bytes, and most of what is damaged is picture.
    draw = np.random.default_rng(seed)

    def noisy(number):
        image = numbered(number)
        image[16:] = draw.integers(60, 120, image[16:].shape)
        return image

    server = serve(write_video(tmp_path / "noisy.mp4", map(noisy, range(20 * RATE)), RATE, crf="20", sc_threshold="0"))
    proxy = Damaging(server.port, 60_000, seed)
    try:
        with reading(proxy.address) as (frames, reader):
            wait_until(lambda: frames.connection.error is not None or len(reader.pictures) > 15 * RATE)
    finally:
        proxy.close()
    assert proxy.flipped > 3
    assert len(reader.errors) > 0
    shown = [number for _, number, *_ in reader.pictures]
    assert len(shown) > 2 * RATE
    one = shown[: next((k for k in range(1, len(shown)) if shown[k] < shown[k - 1]), len(shown))]
    assert one == sorted(set(one))
    assert max(one) < 20 * RATE
    sys.stderr.write(f"flips {proxy.flipped}, {frames.counts}, errors {len(reader.errors)}, {frames.connection}\n")


def test_login_from_the_environment(serve, videos, monkeypatch):
    server = serve(videos / "line.mp4", "admin", "p@ss:w/rd")
    monkeypatch.setenv("CAMERA_USER", "admin")
    monkeypatch.setenv("CAMERA_PASSWORD", "p@ss:w/rd")
    address = f"rtsp://${{CAMERA_USER}}:${{CAMERA_PASSWORD}}@127.0.0.1:{server.port}/line"
    with reading(address) as (frames, reader):
        wait_until(lambda: len(reader.pictures) > 3)
    monkeypatch.setenv("CAMERA_PASSWORD", "hunter2")
    with Capture(address) as frames, pytest.raises(ConfigError) as error:
        frames.take()
    assert "401 Unauthorized" in str(error.value)
    assert "hunter2" not in str(error.value)


def test_no_secret_on_the_command_line_or_in_what_is_said(serve, videos, monkeypatch, tmp_path):
    """Of a process that runs: its arguments as others see them, its output and its errors."""
    server = serve(videos / "small.mp4", "admin", "hunter2")
    script = tmp_path / "reads.py"
    script.write_text(
        "import logging, sys\nfrom oddpatch.watch.capture import Capture\nlogging.basicConfig(level=0)\n"
        "with Capture(sys.argv[1]) as frames:\n"
        "    for number, frame in enumerate(frames):\n"
        "        print(frame.name, flush=True)\n"
        "        if number == 150: break\n"
    )
    address = f"rtsp://admin:${{CAMERA_PASSWORD}}@127.0.0.1:{server.port}/line"
    environment = {**os.environ, "CAMERA_PASSWORD": "hunter2"}
    command = [sys.executable, script, address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    first = present(process.stdout).readline()
    seen = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert re.fullmatch(re.escape(address) + r"#\d{6}\n", first)
    assert "the stream ended" in errors  # it was connected again
    assert "hunter2" not in seen + first + output + errors
