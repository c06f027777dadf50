"""Alarms as messages of MQTT 5."""

import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from oddpatch.errors import ConfigError
from oddpatch.watch.sinks.address import is_loopback, split
from oddpatch.watch.sinks.outbox import Alarm, Outbox
from oddpatch.watch.sinks.sender import Refused, Sender, Unanswered

#: Seconds without a message after which the broker is asked whether it lives, and in which it must acknowledge.
KEEPALIVE, SILENCE = 10, 10.0
#: What topics begin with unless the address says otherwise.
TOPIC = "oddpatch"


class Mqtt(Sender):
    """Publishes alarms at `TOPIC/alarms` with QoS 1, each until the broker has acknowledged it.

    `TOPIC/status` is "online" or "offline", retained: the broker itself says "offline" if the connection breaks.

    Args:
        url: `mqtt://[USER:PASSWORD@]HOST[:PORT][/TOPIC]`, or `mqtts://` for TLS; ${NAME} in it is that variable of the
            environment.
        queue: file of the alarms that wait.
        settings: see `Sender`.

    Raises:
        ConfigError: the address cannot be used, or the password would travel unencrypted.
    """

    def __init__(self, url: str, queue: Path, **settings: Any) -> None:
        from paho.mqtt.client import Client, MQTTv5
        from paho.mqtt.enums import CallbackAPIVersion

        parts = split(url, "--mqtt", ("mqtt", "mqtts"))
        host, port = str(parts.hostname), parts.port or {"mqtt": 1883, "mqtts": 8883}[parts.scheme]
        topic = unquote(parts.path).strip("/") or TOPIC
        if set("+#") & set(topic) or "#" in url or parts.query or topic.startswith("$"):
            raise ConfigError(f"--mqtt: {topic!r} is no topic to publish at: give a path without +, #, ? and leading $")
        user, password = (None if one is None else unquote(one) for one in (parts.username, parts.password))
        if password and parts.scheme == "mqtt" and not is_loopback(host):
            raise ConfigError(f"--mqtt: the password would travel unencrypted to {host}: use mqtts://, or leave it out")
        super().__init__("mqtt", f"{parts.scheme}://{host}:{port}/{topic}", Outbox(queue), **settings)
        self._alarms, self._status = f"{topic}/alarms", f"{topic}/status"
        self._why = "not connected yet"
        self._connected = threading.Event()
        self._reasons: dict[int, Any] = {}  # of acknowledgements, by message
        self._acknowledged = threading.Event()
        # What paho holds, and repeats by itself: the alarm and its message. paho's own `MQTTMessageInfo` is of no use:
        # if the connection was broken at first, it says so for ever.
        self._published: tuple[Alarm, int] | None = None
        client = self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        if user is not None:
            client.username_pw_set(user, password)
        if parts.scheme == "mqtts":
            client.tls_set()  # of the system's authorities, or those of SSL_CERT_FILE
        client.will_set(self._status, "offline", qos=1, retain=True)
        client.reconnect_delay_set(1, max(int(self.waits[1]), 1))
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_connect_fail, client.on_publish = self._on_connect_fail, self._on_publish
        client.connect_async(host, port, KEEPALIVE)

    def start(self) -> None:
        """Connect, and begin to deliver."""
        self._client.loop_start()
        super().start()

    def deliver(self, alarm: Alarm) -> None:
        """See `Sender`."""
        if self._published is None or self._published[0] != alarm:
            if not self._connected.wait(1.0):
                raise Unanswered(self._why)
            self._reasons.clear()
            self._published = alarm, self._client.publish(self._alarms, alarm.body, qos=1).mid
        message, end = self._published[1], time.monotonic() + SILENCE
        while message not in self._reasons:
            if not self._connected.is_set() or time.monotonic() > end:
                raise Unanswered("does not acknowledge" if self._connected.is_set() else self._why)
            self._acknowledged.wait(0.5)
            self._acknowledged.clear()
        self._published = None
        if (reason := self._reasons.pop(message)).is_failure:
            raise Refused(f"refuses ({reason})")

    def close(self, timeout: float) -> None:
        """Send what waits, and say that nobody is here any more."""
        end = time.monotonic() + timeout
        super().close(timeout)
        if self._connected.is_set():
            told = self._client.publish(self._status, "offline", qos=1, retain=True)
            told.wait_for_publish(max(end - time.monotonic(), 0.5))
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: Any, _: Any, __: Any, reason: Any, ___: Any) -> None:
        if reason.is_failure:
            self._why = f"refuses the connection ({reason})"
            return
        client.publish(self._status, "online", qos=1, retain=True)
        self._connected.set()
        self._wake.set()

    def _on_disconnect(self, _: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        if self._connected.is_set():
            self._why = f"the connection broke ({reason})"
        self._connected.clear()

    def _on_connect_fail(self, *_: Any) -> None:
        self._why = f"no connection ({sys.exc_info()[1] or 'it cannot be reached'})"

    def _on_publish(self, _: Any, __: Any, message: int, reason: Any, ___: Any) -> None:
        self._reasons[message] = reason
        self._acknowledged.set()
