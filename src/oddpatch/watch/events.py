"""What a watch says: an event for each frame it judged, and at any moment how it stands."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol

from numpy.typing import NDArray

from oddpatch.drift.monitor import Drift
from oddpatch.inference.detector import Detection


class Verdict(StrEnum):
    """What is to happen to the part."""

    ACCEPT = "accept"  # up to both thresholds
    WARN = "warn"  # above the first
    REJECT = "reject"  # above the second
    FAILED = "failed"  # not inspected: somebody has to look


@dataclass(frozen=True, slots=True)
class Event:
    """One frame and what was decided."""

    id: str  # letters, digits and hyphens; unique also after a restart: by this a receiver knows a repetition
    source: str  # as it may be shown: without credentials
    number: int  # of the frame since the watch began, counting those that were dropped
    time: float  # when the frame was captured, in seconds since the epoch
    delay: float  # seconds from capture to decision
    verdict: Verdict
    record: dict[str, Any]  # the fields of `predict`'s line of JSON
    image: NDArray[Any] | None = None  # (3, H, W); None where there was none
    detection: Detection | None = None
    drift: tuple[Drift, ...] = ()  # what this part made sure of: the line is not what the model was calibrated on

    @property
    def is_alarm(self) -> bool:
        """Whether somebody is to be told."""
        return self.verdict is not Verdict.ACCEPT or bool(self.drift)

    def to_dict(self) -> dict[str, Any]:
        """The event as JSON has it, without its arrays."""
        return {
            "id": self.id,
            "source": self.source,
            "number": self.number,
            "time": self.time,
            "delay": round(self.delay, 4),
            "verdict": self.verdict.value,
            **self.record,
            **({"drift": [drift._asdict() for drift in self.drift]} if self.drift else {}),
        }

    @property
    def stem(self) -> str:
        """What files of this event are called: names sort by time (UTC)."""
        when = datetime.fromtimestamp(self.time, UTC)
        return f"{when:%Y%m%dT%H%M%S}.{when.microsecond // 1000:03}Z_{self.verdict}_{self.id}"


@dataclass(frozen=True, slots=True)
class Status:
    """How a watch stands. Every frame that arrived is in exactly one of judged, dropped, skipped, failed or waiting."""

    source: str
    connection: str  # "connecting", "connected", "stalled" or "ended"
    since: float  # of this connection state, in seconds since the epoch
    error: str | None = None  # why it is not connected
    reconnects: int = 0
    arrived: int = 0  # frames that the source delivered, decodable or not
    dropped: int = 0  # frames that a newer one replaced before the model was free
    skipped: int = 0  # frames between triggers
    waiting: int = 0  # frames being judged or next in turn
    verdicts: dict[Verdict, int] = field(default_factory=dict)
    last_frame: float | None = None  # when it arrived, in seconds since the epoch
    drift: tuple[Drift, ...] = ()  # alarms so far, one for each of what is watched for drift
    rates: dict[str, float] = field(default_factory=dict)  # frames per second over the last minute: arrived, judged
    delays: dict[str, float] = field(default_factory=dict)  # seconds from capture to decision: p50, p95


class Sink(Protocol):
    """Somebody who is told about events, such as a webhook. It never holds up the watch: what takes time, it queues."""

    name: str

    def put(self, event: Event) -> None:
        """Take an event. Raises `ResourceError` only if nothing can be kept any more."""

    def counts(self) -> dict[str, int]:
        """How many were sent, are waiting, were given up."""

    def close(self, timeout: float) -> None:
        """Send what is waiting, for at most so many seconds; what is then left stays on disk where the sink has one."""
