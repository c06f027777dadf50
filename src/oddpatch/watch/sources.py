"""What can be watched: cameras, recordings, folders that images fall into, and a line of rendered boards.

A source is connected again and again by `oddpatch.watch.capture`, in a thread of its own.
"""

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.video import check_video, decode, is_video_name, open_video, read_video
from oddpatch.errors import ConfigError, DataError, OddpatchError
from oddpatch.inference.scorer import ImageLike
from oddpatch.watch.addresses import check_address, is_address, with_secrets

if TYPE_CHECKING:
    import av

#: Seconds in which a connection must stand, and in which a connected camera must have sent something.
CONNECTING, SILENCE = 10.0, 4.0
#: Seconds that a stream may lag behind its camera's clock before frames are passed over undecoded.
LAG = 1.0


class Picture(NamedTuple):
    """A frame as a source gives it."""

    image: ImageLike | DataError | None  # None: passed over before it was decoded, as a newer one is there already
    time: float  # when it was taken, in seconds since the epoch
    name: str | None = None  # such as that of its file; None: its number is its name


class ConnectionLostError(OddpatchError):
    """The source gives nothing more, though it may again later."""


class RefusedError(ConnectionLostError):
    """Whoever answers does not give this stream.

    Args:
        remedy: what to do if it was never given.
    """

    def __init__(self, reason: str, remedy: str = "correct the address, or what it names") -> None:
        super().__init__(reason)
        self.remedy = remedy


class StalledError(ConnectionLostError):
    """The connection stands, but nothing comes."""


class Source(Protocol):
    """Where pictures come from."""

    name: str  # as it may be shown: without secrets
    keep_all: bool  # every picture is to be judged; otherwise the newest
    moving: bool  # pictures show what moves, so that triggers choose among them

    def pictures(self, stop: threading.Event) -> Iterator[Picture]:
        """The pictures of one connection, until the source ends or `stop` is set.

        Raises:
            ConnectionLostError: it may be tried again.
            OddpatchError: it never will give anything.
        """


def make_source(source: str, fast: bool = False) -> Source:
    """The source of a name: an address, /dev/videoN or N, a video file, a folder, or `boards:`.

    Args:
        source: its name.
        fast: of a file, every frame as fast as the model judges them, not at the pace of the recording.

    Raises:
        ConfigError: there is no such source, or its address shows a secret.
        DataError: a file is no video.
    """
    if fast and not Path(source).is_file():
        raise ConfigError("only a video file can be read faster than it was taken: leave --fast out")
    if source == "boards:":
        return Boards()
    import av  # noqa: F401 - that it is missing is said now, and not by the thread that reads
    import watchfiles  # noqa: F401

    if is_address(source):
        check_address(source)
        return Stream(source)
    path = Path(f"/dev/video{source}" if source.isdecimal() else source)
    if path.is_char_device() or (not path.exists() and path.parent == Path("/dev")):
        return Device(path)
    if path.is_dir():
        from oddpatch.watch.folder import Folder

        return Folder(path)
    if path.is_file():
        if not is_video_name(path.name):
            raise DataError(f"{path} is no video: `oddpatch predict` inspects images")
        check_video(path)
        return Recording(path, fast)
    raise ConfigError(f"{source}: no such file, folder or device: give rtsp://..., /dev/video0, a video or a folder")


class Stream:
    """A camera on the network: RTSP over TCP, or MJPEG over HTTP.

    A frame was taken when its first packet could have been here at the earliest. Over RTSP that is told by the camera's
    own time stamps: the least delay of the last minute counts as none, and a frame's interval is taken off, as it is
    complete for the demuxer only when the next begins. Over HTTP it is when the packet arrived.
    """

    keep_all, moving = False, True

    def __init__(self, address: str) -> None:
        self.name = address

    def pictures(self, stop: threading.Event) -> Iterator[Picture]:
        """See `Source`."""
        timed = self.name.startswith("rtsp")
        options = {"rtsp_transport": "tcp"} if timed else {}
        return _live(with_secrets(self.name), options, None, stop, timed)


class Device:
    """A camera on USB, by Video4Linux; a frame was taken when it arrived.

    Raises:
        ConfigError: there is no such device.
    """

    keep_all, moving = False, True

    def __init__(self, path: Path) -> None:
        if not path.exists():
            there = ", ".join(map(str, sorted(Path("/dev").glob("video*")))) or "none"
            raise ConfigError(f"{path}: no such camera (there is {there}): connect it, or give another")
        self.name = str(path)

    def pictures(self, stop: threading.Event) -> Iterator[Picture]:
        """See `Source`."""
        return _live(self.name, {}, "v4l2", stop, timed=False)


class Recording:
    """A video file, at its own pace like a camera, or as fast as it can be judged."""

    moving = True

    def __init__(self, path: Path, fast: bool = False) -> None:
        self.name, self.keep_all, self._path = str(path), fast, path

    def pictures(self, stop: threading.Event) -> Iterator[Picture]:
        """See `Source`."""
        start = time.time()
        for shot in read_video(self._path):
            now = time.time()
            due = now if self.keep_all or shot.time is None else start + shot.time
            if stop.wait(max(due - now, 0)):
                return
            yield Picture(shot.image, due)


class Boards:
    """A line of circuit boards of the design that `data=pcb` renders, other ones than it trains on; one in ten is bad.

    Each board comes in, stands still for a second and leaves, ten frames a second.
    """

    name = "boards"
    keep_all, moving = False, True
    _PERIOD, _STANDING, _MOVING = 0.1, 10, 5

    def pictures(self, stop: threading.Event) -> Iterator[Picture]:
        """See `Source`."""
        due = time.time()
        before = np.full((320, 320, 3), 60, np.uint8)
        for board in self._boards():
            belt = np.concatenate([board, before], 1)  # (H, 2 W, 3), which the camera looks at from right to left
            places = [round(320 * (self._MOVING - step) / (self._MOVING + 1)) for step in range(self._MOVING)]
            for place in [*places, *[0] * self._STANDING]:
                due = max(due + self._PERIOD, time.time() - self._PERIOD)
                if stop.wait(max(due - time.time(), 0)):
                    return
                yield Picture(np.ascontiguousarray(belt[:, place : place + 320]), due)
            before = board

    def _boards(self) -> Iterator[NDArray[np.uint8]]:
        from oddpatch.scenes.dataset import Job, design_scene, render_one

        scene, rng = design_scene("pcb", 320, 0), np.random.default_rng(0)
        for index in range(1_000_000_000):
            kind = str(rng.choice(list(scene.defects))) if rng.random() < 0.1 else "good"
            yield render_one(scene, 0, Job("line", kind, index)).image


class _Clock:
    """When frames were taken, from the time stamps of their camera and when they arrived."""

    _WINDOW = 30.0  # seconds; two of them are looked back on
    _JUMP = 10.0  # seconds by which stamps do not differ from one frame to the next

    def __init__(self) -> None:
        self._least = [math.inf, math.inf]  # arrival less time stamp, of the last window and of this one
        self._until = -math.inf
        self._before = math.nan

    def see(self, stamp: float, arrived: float) -> None:
        """A packet that its camera stamps with `stamp` (s) arrived, in seconds since the epoch."""
        if abs(stamp - self._before) > self._JUMP:
            self._least, self._until = [math.inf, math.inf], -math.inf
        if arrived > self._until:
            self._least = [self._least[1], math.inf]
            self._until = arrived + self._WINDOW
        self._before = stamp
        self._least[1] = min(self._least[1], arrived - stamp)

    def taken(self, stamp: float) -> float:
        """When a frame was taken that is stamped so, in seconds since the epoch: as if the least delay were none."""
        return stamp + min(self._least)


def _live(
    address: str, options: dict[str, str], format: str | None, stop: threading.Event, timed: bool
) -> Iterator[Picture]:
    """The pictures of a camera while it is connected; no error shows its address."""
    import av

    try:
        container, stream = open_video(address, options, format, (CONNECTING, SILENCE), low_delay=True)
    except av.FFmpegError as error:
        if format is not None:
            raise RefusedError(
                f"cannot be used ({error.strerror})",
                "give a camera that no other program uses, and see that you may read it (`ls -l` shows who may)",
            ) from None
        if isinstance(error, av.error.InvalidDataError) and address.startswith("http"):  # such as a page
            raise RefusedError("what comes from there is no video") from None
        raise _lost(error, "no connection") from None
    except DataError as error:
        raise RefusedError(f"the stream {error}") from None
    if address.startswith("http") and (container.format.name == "hls" or container.duration is not None):
        container.close()
        raise RefusedError(
            "HLS and recordings are not live: they come in pieces, seconds late",
            "give the RTSP or MJPEG address of the camera, or download the recording",
        )
    reading = Reading(container, stream, stop, timed)
    with container:
        for shot in decode(reading.packets(), stream.codec_context, reading.is_late):
            taken = reading.clock.taken(shot.time) - reading.held if timed and shot.time is not None else shot.arrived
            yield Picture(shot.image, min(taken, shot.arrived))
        if reading.error is not None:
            try:
                raise reading.error
            finally:
                del reading  # else it and its error keep each other, and the decoder, until garbage is collected


class Reading:
    """The packets of a camera.

    Attributes:
        clock: of the camera, where it stamps its packets.
        held: seconds that a frame lies in the demuxer until the next begins.
        error: why the packets ended; None if they were to.
    """

    def __init__(self, container: Any, stream: Any, stop: threading.Event, timed: bool) -> None:
        self.clock, self.held = _Clock(), 0.0
        self.error: ConnectionLostError | None = None
        self._container, self._stream, self._stop, self._timed = container, stream, stop, timed
        self._started = self._behind = False
        if timed and stream.average_rate and stream.codec_context.name in ("h264", "hevc"):
            self.held = 1 / float(stream.average_rate)

    def packets(self) -> "Iterator[av.Packet | None]":
        """Those of the video; in the end None, so that no frame is left in the decoder whatever ended them."""
        import av

        last = time.monotonic()
        try:
            for packet in self._container.demux():
                if self._stop.is_set():
                    break
                silent = time.monotonic() - last
                if packet.stream is self._stream and packet.size:
                    last = time.monotonic()
                    yield packet
                # A read that is given up gives what the demuxer holds, and only the next one fails.
                if silent > 0.9 * SILENCE:
                    self.error = StalledError(f"no frame for {silent:.1f} s")
                    break
            else:
                self.error = ConnectionLostError("the stream ended")
        except av.FFmpegError as error:
            self.error = _lost(error, "the connection broke")
        yield None

    def is_late(self, packet: "av.Packet") -> bool:
        """Whether to pass a packet over: there are newer ones, or nothing comes of it without an earlier one."""
        lag = 0.0
        if self._timed and packet.pts is not None and packet.time_base is not None:
            stamp, now = float(packet.pts * packet.time_base), time.time()
            self.clock.see(stamp, now)
            lag = now - self.clock.taken(stamp)
        self._behind = lag > LAG or (self._behind and not packet.is_keyframe)
        self._started = self._started or packet.is_keyframe
        return self._behind or not self._started


def _lost(error: Exception, what: str) -> ConnectionLostError:
    """What a failure of FFmpeg means; its own text would show the address."""
    import av

    reason = f"{what}: {getattr(error, 'strerror', None) or type(error).__name__}"
    if isinstance(error, av.error.ExitError | av.error.TimeoutError):
        return StalledError(f"{what}: nothing came in time")
    if isinstance(error, av.error.HTTPClientError):
        return RefusedError(reason)
    return ConnectionLostError(reason)
