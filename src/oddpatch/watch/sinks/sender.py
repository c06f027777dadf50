"""What webhook and MQTT have in common: a thread that delivers alarms one after another, however long it takes."""

import json
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection

from oddpatch.watch.events import Event, Verdict
from oddpatch.watch.pauses import pause
from oddpatch.watch.sinks.outbox import Alarm, Outbox
from oddpatch.wording import counted

log = logging.getLogger(__name__)
#: What is an alarm.
ALARMING = frozenset({Verdict.WARN, Verdict.REJECT, Verdict.FAILED})
#: Seconds before the second attempt, and between attempts at most.
WAITS = (1.0, 60.0)


class Refused(Exception):
    """The receiver will never accept this alarm."""


class Unanswered(Exception):
    """The receiver cannot be reached, or asks to be tried again.

    Args:
        wait: seconds it asks for.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Sender(ABC):
    """A sink that delivers alarms in order, each at least once: an alarm leaves the disk when it was accepted.

    Args:
        name: of the sink.
        receiver: as it may be shown.
        outbox: the alarms that wait.
        verdicts: events to send, beside those of drift.
        picture: name of the picture that is kept of an event, or None; None if no pictures are kept.
        waits: seconds before the second attempt, and between attempts at most.
    """

    def __init__(
        self,
        name: str,
        receiver: str,
        outbox: Outbox,
        verdicts: Collection[Verdict] = ALARMING,
        picture: Callable[[Event], str | None] | None = None,
        waits: tuple[float, float] = WAITS,
    ) -> None:
        self.name, self.receiver, self.outbox = name, receiver, outbox
        self.verdicts, self.picture, self.waits = frozenset(verdicts), picture, waits
        self.sent = self.given_up = 0
        self._wake = threading.Event()  # try again now
        self._deadline: float | None = None  # of closing
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def put(self, event: Event) -> None:
        """Queue an event if it is an alarm, or one of drift."""
        if event.verdict in self.verdicts or event.drift:
            kept = {} if self.picture is None else {"picture": self.picture(event)}
            self.outbox.put(event.id, json.dumps({**event.to_dict(), **kept}).encode())

    def counts(self) -> dict[str, int]:
        """Alarms that were sent, are waiting, were given up (refused for good), were lost (the queue was full)."""
        return {
            "sent": self.sent, "waiting": len(self.outbox), "given_up": self.given_up, "lost": self.outbox.lost,
        }  # fmt: skip

    def close(self, timeout: float) -> None:
        """Send what waits, for at most so many seconds; the rest is sent after the next start."""
        self._deadline = time.monotonic() + timeout
        self.outbox.stop_waiting()
        self._wake.set()
        self._thread.join(timeout)
        if waiting := len(self.outbox):
            log.warning(
                "%s %s: %s in %s, sent after the next start",
                self.name, self.receiver, counted(waiting, "alarm waits", "alarms wait"), self.outbox.path,
            )  # fmt: skip
        if not self._thread.is_alive():  # else it may still write there; the file is whole at any moment
            self.outbox.close()

    @abstractmethod
    def deliver(self, alarm: Alarm) -> None:
        """Return when the alarm was accepted; raise `Refused` or `Unanswered`."""

    def _run(self) -> None:
        failures, told = 0, ""
        while alarm := self.outbox.first():
            self._wake.clear()
            try:
                self.deliver(alarm)
            except Refused as error:
                self.given_up += 1
                log.error("%s %s: %s: alarm %s is given up", self.name, self.receiver, error, alarm.id)
            except Exception as error:  # whatever it is, later alarms must not wait in silence
                if self._deadline is not None:
                    return
                failures += 1
                reason = str(error) if isinstance(error, Unanswered) else repr(error)
                if reason != told:
                    told = reason
                    log.warning("%s %s: %s: alarms wait in %s", self.name, self.receiver, reason, self.outbox.path)
                asked = error.wait if isinstance(error, Unanswered) else 0.0
                self._wake.wait(max(asked, pause(failures, *self.waits)))
                continue
            else:
                self.sent += 1
            if failures:
                log.warning("%s %s: answers again", self.name, self.receiver)
            failures, told = 0, ""
            self.outbox.done(alarm)
            if self._deadline is not None and time.monotonic() > self._deadline:
                return
