"""Frames of a video, from a file or a stream: each packet gives a picture or the reason why there is none.

Decoding is PyAV's, which is FFmpeg's. A decoder hides damage: it fills in what it could not read, and predicts the
frames that follow from that. Such a frame looks like any other and is not what the camera saw, so here it is an error,
and so is every frame up to the next key frame.
"""

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.decoding import pixels_that_fit
from oddpatch.errors import DataError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

SUFFIXES = frozenset(
    {
        ".avi", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm",
        ".wmv",
    }
)  # fmt: skip
#: What a file may hold, whatever its suffix: a playlist would make FFmpeg open other files and addresses.
_FILE = {
    "format_whitelist": "asf,avi,matroska,webm,mjpeg,mov,mp4,m4a,3gp,3g2,mj2,mpeg,mpegts",
    "protocol_whitelist": "file",
}
#: More packets than any decoder keeps back: one that is older gave no picture.
_KEPT_BACK = 64
#: Frames that may be missing at the end of a file that does not tell how many it has: headers round.
_MARGIN = 3
_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


class Shot(NamedTuple):
    """What one packet of a video gave."""

    image: NDArray[np.uint8] | DataError | None  # (H, W, 3) RGB; None: passed over without decoding
    time: float | None  # on the clock of the video, in seconds
    arrived: float  # when its packet had been read, in seconds since the epoch


class Opened(NamedTuple):
    """A video whose packets can be read."""

    container: "InputContainer"
    stream: "av.VideoStream"


def is_video_name(name: str) -> bool:
    """Whether a file name is that of a video: a known suffix in any letter case."""
    return Path(name).suffix.lower() in SUFFIXES


def open_video(
    address: str,
    options: Mapping[str, str],
    format: str | None = None,
    timeout: tuple[float, float] | None = None,
    low_delay: bool = False,
) -> Opened:
    """Open a file, a device or the address of a stream; close its container when done.

    Args:
        address: for FFmpeg.
        options: of FFmpeg's for the container.
        format: of the container; None to find out.
        timeout: seconds in which it must open, and in which each read must end.
        low_delay: give each frame as soon as the order allows.

    Raises:
        DataError: it holds no video.
        av.FFmpegError: it cannot be opened.
    """
    import av
    from av.codec.context import Flags

    container = av.open(address, format=format, options=dict(options), timeout=timeout)
    if not container.streams.video:
        container.close()
        raise DataError("holds no video")
    stream = container.streams.video[0]
    codec = stream.codec_context
    codec.options = {"err_detect": "explode", "max_pixels": str(pixels_that_fit())}
    codec.thread_type = "SLICE"  # threads that take a frame each keep as many frames back
    codec.copy_opaque = True
    if low_delay:
        codec.flags |= Flags.low_delay
    return Opened(container, stream)


def read_video(path: str | Path) -> Iterator[Shot]:
    """All frames of a file, in order.

    Raises:
        DataError: it cannot be opened, or ends before its time; the frames before that were given.
    """
    import av

    try:
        container, stream = open_video(str(path), _FILE)
        with container:
            count, last, until = 0, -math.inf, _end(container, stream)
            for shot in decode(container.demux(stream), stream.codec_context):
                count, last = count + 1, last if shot.time is None else max(last, shot.time)
                yield shot
            # FFmpeg takes a file that was cut between two frames for a whole one.
            missing = stream.frames - count if stream.frames else _MARGIN
            interval = 1 / float(stream.average_rate or 25)
            if until is not None and missing > 0 and last + (1.5 if stream.frames else _MARGIN) * interval < until:
                raise DataError(f"ends after {max(last + interval, 0):.2f} s of {until:.2f} s: copy it again")
    except av.FFmpegError as error:
        raise _unreadable(path, error) from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def check_video(path: str | Path) -> None:
    """See that a file is a video, by its beginning.

    Raises:
        DataError: it cannot be opened.
    """
    import av

    try:
        open_video(str(path), _FILE).container.close()
    except av.FFmpegError as error:
        raise _unreadable(path, error) from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _unreadable(path: str | Path, error: "av.FFmpegError") -> DataError:
    return DataError(f"{path}: cannot be read as a video ({error.strerror}): replace or remove it")


def _end(container: "InputContainer", stream: "av.VideoStream") -> float | None:
    """When the last frame ends, in seconds on the clock of the frames, as the header says; None if it does not."""
    start = float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0
    if stream.duration is not None and stream.time_base is not None:
        return start + float(stream.duration * stream.time_base)
    if (text := stream.metadata.get("DURATION")) and (parts := _CLOCK.fullmatch(text)):  # Matroska's
        hours, minutes, seconds = map(float, parts.groups())
        return 3600 * hours + 60 * minutes + seconds
    return start + container.duration / 1e6 if container.duration and len(container.streams) == 1 else None


def num_frames(path: str | Path) -> int | None:
    """Frames of a file as its header says; None if it does not, or cannot be read."""
    import av

    try:
        container, stream = open_video(str(path), _FILE)
        with container:
            return stream.frames or None
    except (av.FFmpegError, DataError):
        return None


def decode(
    packets: "Iterable[av.Packet | None]", codec: Any, pass_over: "Callable[[av.Packet], bool] | None" = None
) -> Iterator[Shot]:
    """A shot for each packet, in the order in which frames are shown.

    Args:
        packets: of the video; None, or one without content, has the decoder give what it keeps back.
        codec: the decoder, with `copy_opaque`.
        pass_over: says which packets are not to be decoded; whoever leaves one out begins again at a key frame.
    """
    import av

    waiting: dict[int, Shot] = {}  # packets that have not given a picture, by number
    damaged = False  # whether frames are predicted from one that is
    flushed = False
    for number, packet in enumerate(packets):
        if packet is not None and packet.size and not packet.is_discard:
            when = None if packet.pts is None or packet.time_base is None else float(packet.pts * packet.time_base)
            shot = Shot(None, when, time.time())
            if pass_over is not None and pass_over(packet):
                yield shot
                continue
            packet.opaque = number
            waiting[number] = shot
        if flushed:
            codec.flush_buffers()
        flushed = packet is None or not packet.size
        try:
            frames = codec.decode(None if flushed else packet)
        except av.FFmpegError as error:
            damaged = True
            if (lost := waiting.pop(number, None)) is not None:
                yield lost._replace(image=DataError(f"cannot be decoded ({error.strerror})"))
            continue
        for frame in frames:
            if (kept := waiting.pop(frame.opaque, None)) is None:
                continue
            yield from _lost(waiting, before=kept.time)
            damaged = frame.is_corrupt or (damaged and not frame.key_frame)
            image = DataError("damaged, or predicted from a damaged frame") if damaged else _pixels(frame)
            yield kept._replace(image=image)
        if flushed or len(waiting) > _KEPT_BACK:
            yield from _lost(waiting, keep=0 if flushed else _KEPT_BACK)


def _lost(waiting: dict[int, Shot], before: float | None = None, keep: int | None = None) -> Iterator[Shot]:
    """Packets that will give no picture any more: frames come in the order of their times."""
    if keep is not None:
        numbers = list(waiting)[: max(len(waiting) - keep, 0)]
    else:
        numbers = [
            n for n, shot in waiting.items() if before is not None and shot.time is not None and shot.time < before
        ]
    for number in numbers:
        yield waiting.pop(number)._replace(image=DataError("cannot be decoded"))


def _pixels(frame: "av.VideoFrame") -> NDArray[np.uint8]:
    """(H, W, 3) RGB, upright as the video's header says."""
    image = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image
