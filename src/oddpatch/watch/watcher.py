"""`Watch`: a detector at a line, an event for each frame that was judged."""

import math
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from oddpatch.drift.monitor import DriftMonitor
from oddpatch.errors import ConfigError, DataError
from oddpatch.inference.detector import AnomalyDetector, Detection
from oddpatch.inference.outputs import to_record
from oddpatch.inference.scorer import Preparing
from oddpatch.inference.sources import Frame
from oddpatch.watch.capture import WINDOW, Capture, Crop, per_second
from oddpatch.watch.events import Event, Status, Verdict
from oddpatch.watch.sources import Source
from oddpatch.watch.triggers import Trigger

#: How many times as often as it rejects good parts a watch warns of them, unless told otherwise.
WARNINGS = 5


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Scores above which a part is to be looked at, and is to be taken out."""

    warn: float
    reject: float

    def verdict(self, score: float, reason: str | None = None) -> Verdict:
        """What is to happen to a part of this score, or that is anomalous for a reason, whatever its score.

        >>> [Thresholds(1.0, 2.0).verdict(score).value for score in (1.0, 1.5, 2.5)]
        ['accept', 'warn', 'reject']
        """
        if score > self.reject or reason is not None:
            return Verdict.REJECT
        return Verdict.WARN if score > self.warn else Verdict.ACCEPT


def find_thresholds(
    detector: AnomalyDetector, warn: float | None = None, warn_score: float | None = None
) -> Thresholds:
    """The two thresholds of a watch: the detector rejects at its own.

    Args:
        detector: with a threshold.
        warn: rate of good parts that are warned of or rejected, by the scores of good images; None for five times the
            rate of the detector's threshold, at most 0.5, or for no warnings where it knows no good images.
        warn_score: the score itself instead.

    Raises:
        ConfigError: there is no threshold, or warnings would begin above it.
    """
    reject, calibration = detector.image_threshold, detector.scorer.calibration
    if reject is None:
        raise ConfigError(f"there is no threshold: {calibration.absent}, or give a score")
    check_warnings(warn, warn_score)
    if warn is not None and not calibration.calibrated:
        raise ConfigError(f"warn={warn:g} needs a threshold from good images: {calibration.absent}, or give a score")
    if warn_score is None:
        if not calibration.calibrated:
            return Thresholds(reject, reject)
        rate = min(WARNINGS * detector.target_fpr, 0.5) if warn is None else warn
        warn_score = calibration.image_at(rate).value
        if warn is None:
            return Thresholds(min(warn_score, reject), reject)
    if warn_score > reject:
        raise ConfigError(
            f"warnings from {warn_score:.4g} on, but parts are rejected from {reject:.4g} on: warn earlier"
        )
    return Thresholds(warn_score, reject)


def check_warnings(warn: float | None, warn_score: float | None) -> None:
    """See that a wish for warnings can be met by some detector; arguments are those of `find_thresholds`.

    Raises:
        ConfigError: it cannot.
    """
    if warn is not None and warn_score is not None:
        raise ConfigError(f"warn={warn:g} and warn_score={warn_score:g}: give one of them")
    if warn is not None and not 0 < warn < 1:
        raise ConfigError(
            f"warn={warn:g}: the rate of good parts that are warned of lies between 0 and 1, such as 0.05"
        )
    if warn_score is not None and math.isnan(warn_score):
        raise ConfigError("warn_score=nan is no score: give a number")


class Watch:
    """The events of a source: for each frame that was judged what was found, in the order of the frames.

    >>> from oddpatch import AnomalyDetector
    >>> from oddpatch.watch.watcher import Watch
    >>> with Watch(AnomalyDetector.load("housing"), "line.mp4", fast=True) as watch:
    ...     for event in watch:
    ...         print(event.number, event.verdict, event.detection.is_anomalous)
    0 accept False
    1 reject True
    >>> watch.status().arrived, watch.status().dropped
    (2, 0)

    Args:
        detector: with a threshold.
        source: see `oddpatch.watch.capture.Capture`, as for crop, trigger, fast and give_up.
        thresholds: None for those of `find_thresholds`.
        crop: see there.
        trigger: see there.
        fast: see there.
        give_up: see there.
        maps: whether detections have maps, which cost time: for who draws them.
        drift: sees each part that is judged, one frame of each: give a trigger that does so, or a folder.

    Raises:
        ConfigError: see there, or the detector has no threshold.
        DataError: see there.
    """

    def __init__(
        self,
        detector: AnomalyDetector,
        source: str | Source,
        thresholds: Thresholds | None = None,
        crop: Crop | None = None,
        trigger: Trigger | None = None,
        fast: bool = False,
        give_up: float | None = None,
        maps: bool = True,
        drift: DriftMonitor | None = None,
    ) -> None:
        self.thresholds = find_thresholds(detector) if thresholds is None else thresholds
        self._detector, self._maps, self._drift = detector, maps, drift
        self._capture = Capture(source, crop, trigger, fast, give_up)
        self.source = self._capture.source.name
        self._verdicts: Counter[Verdict] = Counter()
        self._recent: deque[tuple[float, float]] = deque(maxlen=10_000)  # when, and the delay
        self._id = uuid.uuid4().hex[:16]

    def __enter__(self) -> Self:
        scorer = self._detector.scorer
        if isinstance(scorer, Preparing):  # engines are made ready at the first image: no frame is to wait for that
            scorer.score([scorer.example()])
        self._capture.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Read nothing more."""
        self._capture.close()

    def __iter__(self) -> Iterator[Event]:
        for number, frame in iter(self._capture.take, None):
            event = self._judge(number, frame)
            self._verdicts[event.verdict] += 1
            self._recent.append((event.time + event.delay, event.delay))
            yield event

    def status(self) -> Status:
        """How it stands; may be asked by any thread."""
        verdicts = dict(self._verdicts)  # before the counts: a frame is taken first, and judged then
        counts, connection = self._capture.counts, self._capture.connection
        recent = [(when, delay) for when, delay in list(self._recent) if time.time() - when <= WINDOW]
        delays = [delay for _, delay in recent]
        return Status(
            source=self.source, connection=connection.state, since=connection.since, error=connection.error,
            reconnects=connection.reconnects, arrived=counts.arrived, dropped=counts.dropped, skipped=counts.skipped,
            drift=() if self._drift is None else tuple(self._drift.drifted.values()),
            waiting=counts.waiting + counts.taken - sum(verdicts.values()), verdicts=verdicts,
            last_frame=self._capture.last_frame,
            rates={"arrived": self._capture.rate(), "judged": per_second([when for when, _ in recent])},
            delays={f"p{q}": float(np.percentile(delays, q)) for q in (50, 95)} if delays else {},
        )  # fmt: skip

    def _judge(self, number: int, frame: Frame) -> Event:
        images: list[NDArray[Any]] = []
        found = self._detector.inspect(frame, lambda _, image, __: images.append(image), self._maps)
        now = time.time()
        taken = now if frame.time is None else frame.time
        verdict = Verdict.FAILED if isinstance(found, DataError) else self.thresholds.verdict(found.score, found.reason)
        record = to_record(frame, found)
        return Event(
            id=f"{self._id}-{number}", source=self.source, number=number, time=taken, delay=max(now - taken, 0.0),
            verdict=verdict, record=record, image=images[0] if images else None,
            detection=found if isinstance(found, Detection) else None,
            drift=() if self._drift is None else tuple(self._drift.add(record)),
        )  # fmt: skip
