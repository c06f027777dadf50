"""When a frame is looked at: each, every so often, or once whenever the picture has come to rest."""

import math
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from oddpatch.errors import ConfigError

#: Sides of the small grey picture that movement is looked for in.
_SIDE = 64
#: Part of the full scale by which a place of it may change in a picture that is still.
STILLNESS = 0.04


class Trigger(Protocol):
    """Says of each frame, in their order, whether it is to be judged."""

    def __call__(self, image: NDArray[np.uint8] | None, time: float) -> bool:
        """Whether to judge an image (H, W, 3) that was taken at `time` (s); None if it could not be decoded."""


class Every:
    """A frame every so many seconds: the first from each mark on.

    >>> trigger = Every(0.1)
    >>> [trigger(None, time) for time in (0.0, 0.04, 0.08, 0.12, 0.16, 0.2)]
    [True, False, False, True, False, True]

    Raises:
        ConfigError: it is no time.
    """

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            raise ConfigError(f"every {seconds * 1000:g} ms: give more than 0, such as 500")
        self._seconds = seconds
        self._next: float | None = None

    def __call__(self, image: NDArray[np.uint8] | None, time: float) -> bool:
        """See `Trigger`."""
        if self._next is None or time < self._next - 2 * self._seconds:  # the first, or the clock was set back
            self._next = time
        if time < self._next - 1e-6:
            return False
        self._next += self._seconds * (math.floor((time - self._next + 1e-6) / self._seconds) + 1)
        return True


class WhenStill:
    """One frame of each stop: the first after the picture has not changed for some time.

    Each frame is compared with the first one of the rest, so that what creeps is seen to move, too. What is compared is
    the mean grey of 64 x 64 fields, which noise of the sensor does not change by much.

    Args:
        seconds: without a change.
        stillness: part of the full scale by which no field may differ.

    Raises:
        ConfigError: a value cannot work.
    """

    def __init__(self, seconds: float, stillness: float = STILLNESS) -> None:
        if not seconds > 0:
            raise ConfigError(f"still for {seconds * 1000:g} ms: give more than 0, such as 300")
        if not 0 < stillness < 1:
            raise ConfigError(f"stillness={stillness}: choose a part of the full scale between 0 and 1, such as 0.04")
        self._seconds, self._stillness = seconds, stillness
        self._reference: NDArray[np.float32] | None = None
        self._since, self._told = 0.0, False

    def __call__(self, image: NDArray[np.uint8] | None, time: float) -> bool:
        """See `Trigger`; what cannot be seen is for somebody to look at."""
        if image is None:
            return True
        small = _small(image)
        if self._reference is None or np.abs(small - self._reference).max() > self._stillness:
            self._reference, self._since, self._told = small, time, False
            return False
        if self._told or time - self._since < self._seconds - 1e-6:
            return False
        self._told = True
        return True


def _small(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(64, 64) grey in [0, 1]."""
    small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(small.mean(axis=2, dtype=np.float32) / np.float32(255))
