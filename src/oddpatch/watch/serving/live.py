"""What the live page shows: scores of the last minutes, the newest frame, the last frames that were not accepted."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from oddpatch.watch.drawing import to_jpeg
from oddpatch.watch.events import Event, Sink, Status, Verdict

log = logging.getLogger(__name__)
#: Seconds whose scores are shown, frames that were not accepted, pixels of the longer side of a picture.
POINTS, ALARMS, LONGEST = 300, 12, 800
#: Seconds between pictures; without anybody looking after which no frames are drawn that were accepted.
PERIOD, UNSEEN = 0.5, 10.0
#: Seconds in which a frame that waits must have been judged.
STUCK = 30.0
#: From the best to the worst: of several verdicts in one second the worst is shown.
_ORDER = list(Verdict)


class Live:
    """The last events, and pictures of some. Memory is bounded, and drawing is left to a thread.

    Args:
        status: how the watch stands at the moment.
        sinks: whose counts are shown.
        thresholds: score above which a frame is warned of, and rejected.
    """

    def __init__(
        self,
        status: Callable[[], Status],
        sinks: Sequence[Sink] = (),
        thresholds: Mapping[Verdict, float] | None = None,
    ) -> None:
        self.status, self.sinks, self.thresholds = status, tuple(sinks), dict(thresholds or {})
        if self.thresholds.get(Verdict.WARN) == self.thresholds.get(Verdict.REJECT):
            self.thresholds.pop(Verdict.WARN, None)  # there are no warnings
        self._lock = threading.Lock()
        self._points: deque[list[Any]] = deque(maxlen=POINTS)  # [second, highest score, worst verdict]
        self._newest: Event | None = None
        self._pending: deque[Event] = deque(maxlen=4)  # to be drawn
        self._frames: dict[bool, deque[tuple[dict[str, Any], bytes | None]]] = {
            False: deque(maxlen=3), True: deque(maxlen=ALARMS),
        }  # fmt: skip
        self._seen, self._moved = 0.0, time.monotonic()
        self._events = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live page", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Take an event."""
        score, second = event.record.get("score"), math.floor(event.time)
        with self._lock:
            self._events += 1
            self._newest = event
            if event.verdict != Verdict.ACCEPT:
                self._pending.append(event)
            last = self._points[-1] if self._points else None
            if last is None or last[0] != second:
                self._points.append([second, score, event.verdict])
                return
            last[1] = max((value for value in (last[1], score) if value is not None), default=None)
            last[2] = max(last[2], event.verdict, key=_ORDER.index)

    def state(self) -> dict[str, Any]:
        """All that the page shows, as JSON has it."""
        self._seen = time.monotonic()
        status = self.status()
        with self._lock:
            points = [[second, _rounded(score), verdict] for second, score, verdict in self._points]
            shown = {alarm: [frame for frame, _ in frames] for alarm, frames in self._frames.items()}
        return {
            "now": time.time(),
            "trouble": self.trouble(status),
            "drift": [drift.change for drift in status.drift],
            "source": status.source,
            "connection": status.connection,
            "since": status.since,
            "reconnects": status.reconnects,
            "arrived": status.arrived,
            "dropped": status.dropped,
            "skipped": status.skipped,
            "waiting": status.waiting,
            "verdicts": {verdict.value: status.verdicts.get(verdict, 0) for verdict in Verdict},
            "last_frame": status.last_frame,
            "rates": status.rates,
            "delays": status.delays,
            "thresholds": {verdict.value: value for verdict, value in self.thresholds.items()},
            "sinks": {sink.name: sink.counts() for sink in self.sinks},
            "points": points,
            "newest": shown[False][-1] if shown[False] else None,
            "alarms": shown[True][::-1],
        }

    def picture(self, identity: str) -> bytes | None:
        """JPEG of a frame that is shown."""
        with self._lock:
            return next(
                (jpeg for frames in self._frames.values() for frame, jpeg in frames if frame["id"] == identity), None
            )

    def trouble(self, status: Status) -> str | None:
        """Why nothing is inspected at the moment; None if all is well."""
        if status.connection != "connected":
            return status.error or f"the source is {status.connection}"
        if (waited := time.monotonic() - self._moved) > STUCK:
            return f"a frame has waited for {waited:.0f} s to be judged"
        return None

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join(5)

    def _run(self) -> None:
        events = -1
        failed = False
        while not self._over.wait(PERIOD):
            with self._lock:
                pending, newest, count = list(self._pending), self._newest, self._events
                self._pending.clear()
            try:
                if count != events or not self.status().waiting:
                    self._moved, events = time.monotonic(), count
                for event in pending:
                    self._draw(event, alarm=True)
                if newest is not None and time.monotonic() - self._seen < UNSEEN:
                    self._draw(newest, alarm=False)
            except Exception as error:  # such as of one picture: the page goes on
                if not failed:
                    log.error("live page: a frame cannot be drawn (%r)", error)
                failed = True

    def _draw(self, event: Event, alarm: bool) -> None:
        with self._lock:
            frames = self._frames[alarm]
            if frames and frames[-1][0]["id"] == event.id:
                return
            known = next((jpeg for frame, jpeg in self._frames[True] if frame["id"] == event.id), None)
        jpeg = to_jpeg(event, LONGEST) if known is None else known
        entry = {
            "id": event.id,
            "number": event.number,
            "time": event.time,
            "verdict": event.verdict.value,
            "score": _rounded(event.record.get("score")),
            "error": event.record.get("error"),
            "picture": jpeg is not None,
        }
        with self._lock:
            frames.append((entry, jpeg))


def _rounded(score: float | None) -> float | None:
    return None if score is None or not math.isfinite(score) else float(f"{score:.5g}")
