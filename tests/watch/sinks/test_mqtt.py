"""Alarms to a real broker, mosquitto on loopback, that is killed, stopped and restarted: each arrives, in order."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest
from alarms import make_event
from conftest import ROOT, program
from narrowing import present, stand_in
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode
from patience import wait_until

from oddpatch.errors import ConfigError
from oddpatch.watch.events import Verdict
from oddpatch.watch.sinks import make_sinks
from oddpatch.watch.sinks.mqtt import Mqtt
from oddpatch.watch.sinks.sender import Refused


@pytest.fixture(autouse=True)
def without_settings(monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)


@pytest.mark.parametrize(
    ("url", "told"),
    [("broker", "no address"), ("http://broker/", "no address"),
     ("mqtt://user:secret@broker/", "a password stands in the address of broker"),
     ("mqtt://${NOBODY_SET_THIS}@broker/", "NOBODY_SET_THIS is not set"),
     ("mqtt://broker/a/+/b", "no topic"), ("mqtt://broker/a/%23", "no topic"), ("mqtt://broker/#", "no topic"),
     ("mqtt://broker/$SYS", "no topic"), ("mqtt://broker/a?b", "no topic")],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_refused_at_once(url, told, tmp_path):
    with pytest.raises(ConfigError, match=f"--mqtt.*{told}") as caught:
        make_sinks(mqtt=url, queue=tmp_path)
    assert "secret" not in str(caught.value)


def test_a_password_travels_encrypted_only(monkeypatch, tmp_path):
    monkeypatch.setenv("MQTT_PASSWORD", "secret-word")
    with pytest.raises(ConfigError, match="unencrypted to broker: use mqtts") as caught:
        make_sinks(mqtt="mqtt://line:${MQTT_PASSWORD}@broker/", queue=tmp_path)
    assert "secret-word" not in str(caught.value)


def test_a_broker_that_is_not_there_keeps_nobody_waiting(tmp_path, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    sink = Mqtt(f"mqtt://127.0.0.1:{port}", tmp_path / "q.sqlite", waits=(0.01, 0.05))
    sink.start()
    sink.put(make_event())
    wait_until(lambda: "alarms wait in" in caplog.text)
    sink.close(0.5)
    assert sink.counts() == {"sent": 0, "waiting": 1, "given_up": 0, "lost": 0}
    assert "1 alarm waits in" in caplog.messages[-1]


class Forgetful(threading.Thread):
    """A broker that breaks the connection at the first alarm, and acknowledges those that are sent again."""

    def __init__(self):
        super().__init__(daemon=True)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port, self.alarms = self.listening.getsockname()[1], []

    def run(self):
        with self.listening:
            while len(self.alarms) < 3:
                connection, _ = self.listening.accept()
                with connection, connection.makefile("rb") as packets:
                    self.answer(connection, packets)

    def answer(self, connection, packets):
        while head := packets.read(1):
            (kind,), length, shift = head, 0, 0
            while (byte := packets.read(1)[0]) & 128:
                length, shift = length + ((byte & 127) << shift), shift + 7
            body = packets.read(length + (byte << shift))
            if kind >> 4 == 1:  # CONNECT
                connection.sendall(b"\x20\x03\x00\x00\x00")
            elif kind >> 4 == 3:  # PUBLISH
                size = int.from_bytes(body[:2])
                if body[2 : 2 + size].endswith(b"alarms"):
                    self.alarms.append(kind >> 3 & 1)  # whether it is a repetition
                    if len(self.alarms) == 1:
                        return
                connection.sendall(b"\x40\x02" + body[2 + size : 4 + size])


def test_a_connection_that_breaks_as_an_alarm_is_published_does_not_stop_the_queue(tmp_path):
    broker = Forgetful()
    broker.start()
    sink = Mqtt(f"mqtt://127.0.0.1:{broker.port}", tmp_path / "q.sqlite", waits=(0.01, 0.05))
    sink.start()
    for number in range(2):
        sink.put(make_event(number))
    wait_until(lambda: sink.sent == 2)
    sink.close(1)
    assert broker.alarms == [0, 1, 0]


#: Of which everything has to be quoted in an address.
PASSWORD = "secret/w@rd:#?%+"


class Broker:
    """Mosquitto on a free port of loopback."""

    def __init__(self, folder: Path, *settings: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._program, self._config = program("mosquitto", "mosquitto"), folder / "mosquitto.conf"
        lines = [f"listener {self.port} 127.0.0.1", *settings]
        if os.geteuid() == 0:
            lines.append("user root")  # else it gives its rights up, and can read no file of ours
        self._config.write_text("\n".join(lines) + "\n")
        self.start()

    def start(self):
        self.process = subprocess.Popen([self._program, "-c", self._config], stderr=subprocess.DEVNULL)
        wait_until(self.answers)

    def answers(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def broker(tmp_path):
    kept = ["persistence true", f"persistence_location {tmp_path}/", "autosave_on_changes true", "autosave_interval 1"]
    broker = Broker(tmp_path, "allow_anonymous true", *kept)
    yield broker
    broker.kill()


class Listener:
    """Another client, which keeps what is published. The broker keeps for it what comes while it is away."""

    def __init__(self, port, name="listener"):
        from paho.mqtt.client import Client, MQTTv5
        from paho.mqtt.enums import CallbackAPIVersion
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        self.messages: list[Any] = []
        self.ready = False
        self.client = Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTv5)
        kept = Properties(PacketTypes.CONNECT)
        kept.SessionExpiryInterval = 3600
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda *_: self.client.subscribe("#", qos=1) and None
        self.client.on_disconnect = lambda *_: setattr(self, "ready", False)
        self.client.on_subscribe = lambda *_: setattr(self, "ready", True)
        self.client.on_message = lambda _, __, message: self.messages.append(message)
        self.client.connect_async("127.0.0.1", port, 5, clean_start=False, properties=kept)
        self.client.loop_start()
        wait_until(lambda: self.ready)

    def ids(self):
        return [json.loads(m.payload)["id"] for m in self.messages if m.topic.endswith("/alarms")]

    def statuses(self):
        return [m.payload.decode() for m in self.messages if m.topic.endswith("/status")]

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def listener(broker):
    listener = Listener(broker.port)
    yield listener
    listener.close()


def sending(broker, tmp_path, topic=""):
    sink = Mqtt(f"mqtt://127.0.0.1:{broker.port}{topic}", tmp_path / "q.sqlite", waits=(0.02, 0.1))
    sink.start()
    return sink


@pytest.mark.system
def test_alarms_are_published_and_the_status_is_retained(broker, listener, tmp_path):
    sink = sending(broker, tmp_path, "/plant/line%201")
    for number, verdict in enumerate([Verdict.ACCEPT, Verdict.WARN, Verdict.REJECT, Verdict.FAILED]):
        sink.put(make_event(number, verdict))
    wait_until(lambda: len(listener.ids()) == 3)
    assert listener.ids() == ["e-00001", "e-00002", "e-00003"]
    alarm = next(message for message in listener.messages if message.topic == "plant/line 1/alarms")
    assert alarm.qos == 1
    assert not alarm.retain
    assert json.loads(alarm.payload)["verdict"] == "warn"
    late = Listener(broker.port, "late")
    wait_until(lambda: late.statuses() == ["online"])
    assert late.messages[0].retain
    sink.close(5)
    wait_until(lambda: late.statuses() == ["online", "offline"])
    late.close()
    assert sink.counts() == {"sent": 3, "waiting": 0, "given_up": 0, "lost": 0}


@pytest.mark.system
def test_the_broker_says_offline_for_a_watch_that_was_killed(broker, listener, tmp_path):
    command = [sys.executable, str(ROOT / "tests/alarms.py"), "mqtt", f"mqtt://127.0.0.1:{broker.port}",
               str(tmp_path / "q.sqlite"), "0", "100000"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_until(lambda: listener.statuses() == ["online"] and listener.ids())
    process.kill()
    process.wait()
    wait_until(lambda: listener.statuses() == ["online", "offline"])


@pytest.mark.system
def test_a_broker_that_is_killed_and_restarted_loses_no_alarm(broker, listener, tmp_path, caplog):
    sink = sending(broker, tmp_path)
    for number in range(100):
        sink.put(make_event(number, Verdict.FAILED))
        if number in (20, 60):
            # What a broker has acknowledged and not yet passed on is lost with it when it is killed: that is not ours.
            wait_until(lambda sent=number + 1: len(set(listener.ids())) == sent)
            broker.kill()
        if number == 40:
            wait_until(lambda: "alarms wait in" in caplog.text)
        if number in (40, 80):
            broker.start()
    wait_until(lambda: not len(sink.outbox))
    wait_until(lambda: len(set(listener.ids())) == 100)
    sink.close(5)
    assert list(dict.fromkeys(listener.ids())) == [f"e-{number:05}" for number in range(100)]
    # The broker repeats for its listeners, too, what it had not yet written down: receivers know an alarm by its id.
    assert sink.counts()["sent"] == 100
    assert "answers again" in caplog.text


@pytest.mark.system
def test_a_broker_that_hangs_is_noticed_and_gets_what_it_has_not_acknowledged(broker, listener, tmp_path, monkeypatch):
    monkeypatch.setattr("oddpatch.watch.sinks.mqtt.SILENCE", 0.2)
    sink = sending(broker, tmp_path)
    sink.put(make_event(0))
    wait_until(lambda: sink.sent == 1)
    broker.process.send_signal(signal.SIGSTOP)
    for number in range(1, 5):
        sink.put(make_event(number))
    time.sleep(1)
    assert sink.counts()["waiting"] == 4
    broker.process.send_signal(signal.SIGCONT)
    wait_until(lambda: sink.sent == 5)
    wait_until(lambda: len(listener.ids()) >= 5)
    sink.close(5)
    assert listener.ids() == [f"e-{number:05}" for number in range(5)]


@pytest.mark.system
def test_no_alarm_is_lost_while_broker_and_sender_die_by_turns(broker, tmp_path):
    rng = random.Random(5)
    listeners, put = [], []
    for turn in range(4):
        listeners.append(Listener(broker.port))
        command = [sys.executable, str(ROOT / "tests/alarms.py"), "mqtt", f"mqtt://127.0.0.1:{broker.port}",
                   str(tmp_path / "q.sqlite"), str(1000 * turn), "1000"]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        put.append(json.loads(present(process.stdout).readline()))
        time.sleep(rng.uniform(0.3, 0.8))
        process.kill()
        put += [json.loads(line) for line in present(process.stdout) if line.endswith("\n")]
        process.wait()
        time.sleep(0.2)
        listeners[-1].close()
        broker.kill()
        broker.start()
    listeners.append(Listener(broker.port))
    sink = sending(broker, tmp_path)
    wait_until(lambda: not len(sink.outbox))
    sink.close(5)
    wait_until(lambda: any(put[-1] in listener.ids() for listener in listeners))
    listeners[-1].close()
    arrived = [name for listener in listeners for name in listener.ids()]
    once = list(dict.fromkeys(arrived))
    assert len(put) > 100
    assert [name for name in once if name in set(put)] == put
    assert once == sorted(once)
    assert len(arrived) <= len(once) + 4


@pytest.mark.system
def test_a_message_that_the_broker_refuses_is_given_up_and_told(tmp_path, caplog):
    (tmp_path / "acl").write_text("topic read #\n")
    broker = Broker(tmp_path, "allow_anonymous true", f"acl_file {tmp_path / 'acl'}")
    try:
        sink = sending(broker, tmp_path)
        sink.put(make_event())
        wait_until(lambda: sink.given_up == 1)
        sink.close(5)
    finally:
        broker.kill()
    assert "refuses (Not authorized): alarm e-00000 is given up" in caplog.text


@pytest.fixture
def passwords(tmp_path):
    made = subprocess.run(
        [program("mosquitto_passwd", "mosquitto"), "-b", "-c", tmp_path / "passwords", "line", PASSWORD],
        capture_output=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0
    return f"password_file {tmp_path / 'passwords'}"


@pytest.mark.system
@pytest.mark.parametrize("known", [False, True])
def test_name_and_password_come_from_the_environment(passwords, known, tmp_path, monkeypatch, caplog):
    broker = Broker(tmp_path, "allow_anonymous false", passwords)
    monkeypatch.setenv("MQTT_USER", "line")
    monkeypatch.setenv("MQTT_PASSWORD", PASSWORD if known else "secret-guess")
    try:
        sink = Mqtt(
            f"mqtt://${{MQTT_USER}}:${{MQTT_PASSWORD}}@127.0.0.1:{broker.port}/plant/line1",
            tmp_path / "q.sqlite", waits=(0.02, 0.1),
        )  # fmt: skip
        sink.start()
        sink.put(make_event())
        wait_until(lambda: sink.sent == 1 if known else "Not authorized" in caplog.text)
        sink.close(1)
    finally:
        broker.kill()
    assert len(sink.outbox) == (not known)
    assert "secret" not in caplog.text + sink.receiver


@pytest.mark.system
@pytest.mark.parametrize("trusted", [False, True])
def test_a_certificate_is_checked(trusted, tmp_path, monkeypatch, caplog):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [program("openssl", "openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert],
        capture_output=True, check=True,
    )  # fmt: skip
    broker = Broker(tmp_path, "allow_anonymous true", f"certfile {cert}", f"keyfile {key}")
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    try:
        sink = Mqtt(f"mqtts://localhost:{broker.port}", tmp_path / "q.sqlite", waits=(0.02, 0.1))
        sink.start()
        sink.put(make_event())
        wait_until(lambda: sink.sent == 1 if trusted else "CERTIFICATE_VERIFY_FAILED" in caplog.text)
        sink.close(1)
    finally:
        broker.kill()


def test_an_alarm_that_the_broker_refuses_is_not_sent_again():
    refused = ReasonCode(PacketTypes.PUBACK, "Not authorized")
    sent = stand_in(_published=("alarm", 7), _reasons={7: refused})
    with pytest.raises(Refused, match=r"^refuses \(Not authorized\)$"):
        Mqtt.deliver(sent, cast(Any, "alarm"))
