"""The newest frames of a source: read in a thread that connects again and again, and never waited for."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.decoding import read_pixels
from oddpatch.errors import ConfigError, DataError
from oddpatch.inference.scorer import ImageLike
from oddpatch.inference.sources import Frame
from oddpatch.watch.pauses import pause
from oddpatch.watch.slot import Counts, Slot
from oddpatch.watch.sources import ConnectionLostError, Picture, RefusedError, Source, StalledError, make_source
from oddpatch.watch.triggers import Trigger

log = logging.getLogger(__name__)

#: Seconds before the first attempt to connect again, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: Seconds without a frame after which a connected source counts as stalled.
STALLED = 4.5
#: Seconds that rates and delays are told of.
WINDOW = 60.0


class Crop(NamedTuple):
    """The part of the picture that is looked at, in its pixels."""

    x: int
    y: int
    width: int
    height: int

    def __call__(self, image: NDArray[Any]) -> NDArray[Any]:
        """That part of an image (H, W) or (H, W, C).

        Raises:
            DataError: it does not lie within.
        """
        height, width = image.shape[:2]
        if self.x + self.width > width or self.y + self.height > height:
            raise DataError(
                f"the crop {','.join(map(str, self))} does not lie within a picture of {width}x{height} pixels"
            )
        return image[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True, slots=True)
class Connection:
    """How it stands."""

    state: str  # "connecting", "connected", "stalled" or "ended"
    since: float  # in seconds since the epoch
    error: str | None = None  # why there is none
    reconnects: int = 0


class Captured(NamedTuple):
    """A frame and when it counts as taken."""

    number: int  # among all that arrived, from 0
    frame: Frame


class Capture:
    """A source whose newest frame is there when it is asked for: what `AnomalyDetector.stream` takes, too.

    >>> from oddpatch.watch.capture import Capture
    >>> with Capture("line.mp4", fast=True) as frames:
    ...     print([frame.name for frame in frames][:2])
    ['line.mp4#000000', 'line.mp4#000001']

    Args:
        source: its name, see `make_source`, or a `Source`.
        crop: the part of each picture that is looked at.
        trigger: says which frames are given; None for all.
        fast: see `make_source`.
        give_up: seconds without a connection after which it is an error; None to try for ever.

    Raises:
        ConfigError: there is no such source, or settings do not go together.
        DataError: a file is no video.
    """

    def __init__(
        self,
        source: str | Source,
        crop: Crop | None = None,
        trigger: Trigger | None = None,
        fast: bool = False,
        give_up: float | None = None,
    ) -> None:
        self.source: Source = make_source(source, fast) if isinstance(source, str) else source
        check(self.source, crop, trigger, give_up)
        self._crop, self._trigger, self._give_up = crop, trigger, give_up
        self._slot: Slot[Captured] = Slot(self.source.keep_all)
        self._connection = Connection("connecting", time.time())
        self._last: float | None = None
        self._arrivals: deque[float] = deque(maxlen=10_000)
        self._number = 0
        self._size: tuple[int, ...] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)

    @property
    def counts(self) -> Counts:
        """What became of the frames."""
        return self._slot.counts

    @property
    def connection(self) -> Connection:
        """How it stands now."""
        now, connection = self._connection, self._connection
        last = self._last or now.since
        if connection.state == "connected" and not self.source.keep_all and time.time() - last > STALLED:
            return Connection("stalled", last + STALLED, f"no frame for {STALLED:g} s", connection.reconnects)
        return connection

    @property
    def last_frame(self) -> float | None:
        """When a frame arrived last, in seconds since the epoch."""
        return self._last

    def rate(self) -> float:
        """Frames per second that arrived, over the last minute."""
        return per_second(list(self._arrivals))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Read nothing more."""
        self._stop.set()
        self._slot.close()
        if self._thread.is_alive():
            self._thread.join(1)  # one that hangs in a read ends by itself when that does

    def take(self) -> Captured | None:
        """The next frame, waiting for it; None after the last.

        Raises:
            OddpatchError: the source is none, or there was no connection for too long.
        """
        return self._slot.take()

    def __iter__(self) -> Iterator[Frame]:
        if self._thread.ident is None:
            self._thread.start()
        while (captured := self.take()) is not None:
            yield captured.frame

    def _run(self) -> None:
        try:
            self._connect()
        except BaseException as error:
            self._set("ended", str(error))
            self._slot.end(error)
        else:
            self._set("ended")
            self._slot.end()

    def _connect(self) -> None:
        """Read the source, and again when the connection is lost, until it ends."""
        attempts, lost_at = 0, time.monotonic()
        ever = False
        while not self._stop.is_set():
            connected = False
            try:
                with closing(self.source.pictures(self._stop)) as pictures:  # type: ignore[type-var]
                    for picture in pictures:
                        if not connected:
                            self._set("connected", reconnects=self._connection.reconnects + ever)
                            connected = ever = True
                            attempts = 0
                        self._offer(picture)
                return
            except ConnectionLostError as error:
                if isinstance(error, RefusedError) and not ever:
                    raise ConfigError(f"{self.source.name}: {error}: {error.remedy}") from None
                lost_at = time.monotonic() if connected else lost_at
                text = str(error)
                if text != self._connection.error:
                    log.warning("%s: %s: trying again", self.source.name, text)
                self._set("stalled" if isinstance(error, StalledError) else "connecting", text)
                if self._give_up is not None and time.monotonic() - lost_at >= self._give_up:
                    raise ConnectionLostError(
                        f"{self.source.name}: {text}, and no connection for {self._give_up:g} s: see to the camera"
                    ) from None
            attempts += 1
            self._stop.wait(pause(attempts, FIRST_PAUSE, LONGEST_PAUSE))

    def _set(self, state: str, error: str | None = None, reconnects: int | None = None) -> None:
        count = self._connection.reconnects if reconnects is None else reconnects
        self._connection = Connection(state, time.time(), error, count)

    def _offer(self, picture: Picture) -> None:
        """Have a picture judged, unless no trigger asks for it."""
        self._last = time.time()
        self._arrivals.append(self._last)
        number, self._number = self._number, self._number + 1
        image = picture.image
        if image is None:
            self._slot.drop()
            return
        try:
            if self._crop is not None and not isinstance(image, DataError):
                image = self._crop(as_array(image))
        except DataError as error:
            image = error
        if isinstance(image, np.ndarray):
            self._see(image)
        if self._trigger is not None:
            seen = image if isinstance(image, np.ndarray) else None
            if not self._trigger(seen, picture.time):
                self._slot.skip()
                return
        name = picture.name or f"{self.source.name}#{number:06}"
        if isinstance(image, DataError) and not str(image).startswith(name):
            image = DataError(f"{name}: {image}")
        self._slot.put(Captured(number, Frame(name, image, picture.time, PurePath(f"{number:09}"))))

    def _see(self, image: NDArray[Any]) -> None:
        if self._size is not None and image.shape != self._size:
            before, now = (f"{size[1]}x{size[0]}" for size in (self._size, image.shape))
            log.warning("%s: pictures are %s from now on, were %s", self.source.name, now, before)
        self._size = image.shape


def check(source: Source, crop: Crop | None, trigger: Trigger | None, give_up: float | None) -> None:
    """See that settings of a `Capture` go together.

    Raises:
        ConfigError: they do not.
    """
    if crop is not None and (min(crop) < 0 or min(crop[2:]) < 1):
        raise ConfigError(f"crop {','.join(map(str, crop))}: give X,Y,WIDTH,HEIGHT in pixels, such as 100,50,640,480")
    if trigger is not None and not source.moving:
        raise ConfigError(f"{source.name}: every image of a folder is judged: leave the trigger out")
    if give_up is not None and not give_up > 0:
        raise ConfigError(f"give up after {give_up:g} s: give more than 0, such as 600")


def as_array(image: ImageLike) -> NDArray[Any]:
    """An image of a source, decoded if it is a file."""
    return image if isinstance(image, np.ndarray) else read_pixels(image)  # type: ignore[arg-type]


def per_second(times: list[float]) -> float:
    """How often something happened in the last minute, or since it first did, whichever is shorter."""
    now = time.time()
    recent = [one for one in times if now - one <= WINDOW]
    return len(recent) / max(now - recent[0], 1.0) if recent else 0.0
