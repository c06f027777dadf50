"""Alarms to an HTTP receiver that dies, hangs, refuses and comes back: each arrives, in order."""

import json
import random
import signal
import ssl
import subprocess
import sys
import time
from email.utils import formatdate

import alarms
import psutil
import pytest
from alarms import Receiver, make_event, receiving
from conftest import ROOT
from patience import wait_until

from oddpatch.errors import ConfigError
from oddpatch.watch.events import Verdict
from oddpatch.watch.sinks import make_sinks
from oddpatch.watch.sinks.webhook import Webhook, retry_after


@pytest.fixture(autouse=True)
def without_settings(monkeypatch):
    for name in ("ODDPATCH_WEBHOOK_TOKEN", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def webhook(tmp_path, monkeypatch):
    sinks = []

    def make(receiver, **settings):
        monkeypatch.setenv("HOOK", "a/secret")
        url = f"http://127.0.0.1:{receiver.port}/secret/${{HOOK}}?key=${{HOOK}}"
        sink = Webhook(url, tmp_path / "queue/webhook.sqlite", **{"waits": (0.01, 0.05), "silence": 10.0, **settings})
        sink.start()
        sinks.append(sink)
        return sink

    yield make
    for sink in sinks:
        sink.close(5)


def test_an_alarm_is_posted_once_with_its_id(webhook):
    with receiving() as receiver:
        sink = webhook(receiver)
        for number, verdict in enumerate([Verdict.ACCEPT, Verdict.WARN, Verdict.REJECT, Verdict.FAILED]):
            sink.put(make_event(number, verdict))
        wait_until(lambda: sink.sent == 3)
    assert receiver.ids == ["e-00001", "e-00002", "e-00003"]
    headers, body = receiver.received[1]
    event = json.loads(body)
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    assert receiver.asked[0][2] == "/secret/a/secret?key=a%2Fsecret"
    assert {name: event[name] for name in ("id", "source", "number", "time", "delay", "verdict", "score")} == {
        "id": "e-00002", "source": "rtsp://camera/1", "number": 2, "time": alarms.START + 2, "delay": 0.0421,
        "verdict": "reject", "score": 2.0,
    }  # fmt: skip
    assert event["regions"][0]["area"] == 200
    assert json.loads(receiver.received[2][1])["error"] == "broken <b>frame</b>"
    assert sink.counts() == {"sent": 3, "waiting": 0, "given_up": 0, "lost": 0}


def test_chosen_verdicts_are_sent(webhook):
    with receiving() as receiver:
        sink = webhook(receiver, verdicts={Verdict.ACCEPT})
        sink.put(make_event(0, Verdict.REJECT))
        sink.put(make_event(1, Verdict.ACCEPT))
        wait_until(lambda: receiver.ids == ["e-00001"])


@pytest.mark.parametrize("answer", [500, 502, 503, 408, 429, "hang", (301, {"Location": "http://elsewhere/"})])
def test_what_may_pass_is_tried_again(webhook, answer, caplog):
    with receiving() as receiver:
        receiver.answers = [answer] * 3
        sink = webhook(receiver, **({"silence": 1.0} if answer == "hang" else {}))
        for number in range(3):
            sink.put(make_event(number))
        wait_until(lambda: sink.sent == 3)
    assert receiver.ids == ["e-00000", "e-00001", "e-00002"]
    assert [headers["Idempotency-Key"] for headers, *_ in receiver.asked[:4]] == ["e-00000"] * 4
    assert len(caplog.messages) == 2  # once that it waits, once that it goes on
    assert "alarms wait in" in caplog.messages[0]
    assert "answers again" in caplog.messages[1]
    assert "secret" not in caplog.text


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 413, 422])
def test_what_will_never_pass_is_given_up_and_told(webhook, code, caplog):
    with receiving() as receiver:
        receiver.answers = [code]
        sink = webhook(receiver)
        sink.put(make_event(0))
        sink.put(make_event(1))
        wait_until(lambda: sink.sent == 1)
    assert receiver.ids == ["e-00001"]
    assert sink.counts()["given_up"] == 1
    (told,) = caplog.messages
    assert told == f"webhook http://127.0.0.1:{receiver.port}: answers {code}: alarm e-00000 is given up"


def test_redirections_are_not_followed(webhook, monkeypatch):
    monkeypatch.setenv("ODDPATCH_WEBHOOK_TOKEN", "bearer-secret")
    with receiving() as receiver, receiving() as other:
        receiver.answers = [
            (code, {"Location": f"http://127.0.0.1:{other.port}/"}) for code in (301, 302, 303, 307, 308)
        ]
        sink = webhook(receiver)
        sink.put(make_event())
        wait_until(lambda: sink.sent == 1)
        assert not other.asked
    assert len(receiver.asked) == 6


def test_a_receiver_says_when_to_come_again(webhook):
    with receiving() as receiver:
        receiver.answers = [(503, {"Retry-After": "1"})]
        sink = webhook(receiver)
        begin = time.monotonic()
        sink.put(make_event())
        wait_until(lambda: sink.sent == 1)
        assert time.monotonic() - begin >= 1


@pytest.mark.parametrize(
    ("text", "wait"),
    [
        ("7", 7),
        ("0", 0),
        ("-3", 0),
        ("9e9", 3600),
        ("nan", 0),
        ("soon", 0),
        (None, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
    ],
)
def test_retry_after_is_a_number(text, wait):
    assert retry_after(text) == wait


def test_retry_after_is_a_date():
    assert 50 < retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60


def test_alarms_wait_for_a_receiver_that_is_not_there_yet(webhook, tmp_path):
    with receiving() as gone:
        port = gone.port
    sink = webhook(gone)
    for number in range(5):
        sink.put(make_event(number))
    sink.close(0.5)
    assert len(sink.outbox) == 5
    with receiving(port) as receiver:
        again = webhook(receiver)
        wait_until(lambda: again.sent == 5)
    assert receiver.ids == [f"e-{number:05}" for number in range(5)]


def test_closing_sends_what_waits(webhook):
    with receiving() as receiver:
        sink = webhook(receiver)
        for number in range(20):
            sink.put(make_event(number, Verdict.FAILED))
        sink.close(10)
    assert len(receiver.ids) == 20


def test_closing_takes_no_longer_than_it_may(webhook, caplog):
    with receiving() as receiver:
        receiver.answers = ["hang"] * 9
        sink = webhook(receiver, silence=20)
        sink.put(make_event())
        wait_until(lambda: receiver.asked)
        begin = time.monotonic()
        sink.close(0.2)
        assert time.monotonic() - begin < 3
    assert "1 alarm waits in" in caplog.text


@pytest.mark.slow
def test_no_alarm_is_lost_while_receiver_and_sender_die_by_turns(tmp_path):
    """The receiver hangs, answers 500, is gone; the sender is killed in between. Each alarm arrives, in order."""
    rng = random.Random(3)
    receiver = Receiver()
    port, put, first = receiver.port, [], 0
    for _ in range(5):
        receiver.answers = [rng.choice([500, 503, 429, 200, 200, 200]) for _ in range(60)]
        command = [sys.executable, str(ROOT / "tests/alarms.py"), "webhook", f"http://127.0.0.1:{port}/",
                   str(tmp_path / "q.sqlite"), str(first), "1000"]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        put.append(json.loads(process.stdout.readline()))
        time.sleep(rng.uniform(0.1, 0.4))
        receiver.die()
        time.sleep(rng.uniform(0.05, 0.2))
        receiver = Receiver(port, receiver.received)
        time.sleep(rng.uniform(0.05, 0.2))
        process.send_signal(signal.SIGKILL)
        put += [json.loads(line) for line in process.stdout if line.endswith("\n")]
        process.wait()
        first += 1000
    sink = Webhook(f"http://127.0.0.1:{port}/", tmp_path / "q.sqlite", waits=(0.01, 0.05))
    sink.start()
    wait_until(lambda: not len(sink.outbox))
    sink.close(5)
    receiver.die()
    arrived = receiver.ids
    once = list(dict.fromkeys(arrived))
    assert len(put) > 100
    # What was on disk when the kill came, but not yet printed, arrives, too: at most one a kill.
    assert [name for name in once if name in set(put)] == put
    assert once == sorted(once)
    assert len(once) <= len(put) + 5
    assert len(arrived) <= len(once) + 10  # repetitions: at most one a kill and one a death


def test_the_token_is_sent_and_never_shown(webhook, monkeypatch, caplog):
    monkeypatch.setenv("ODDPATCH_WEBHOOK_TOKEN", "bearer-secret")
    with receiving() as receiver:
        receiver.answers = [500, 403]
        sink = webhook(receiver)
        sink.put(make_event(0))
        sink.put(make_event(1))
        wait_until(lambda: sink.sent == 1)
    assert receiver.asked[0][0]["Authorization"] == "Bearer bearer-secret"
    assert "secret" not in caplog.text
    assert "secret" not in sink.receiver


def test_a_token_travels_encrypted_only(monkeypatch, tmp_path):
    monkeypatch.setenv("ODDPATCH_WEBHOOK_TOKEN", "bearer-secret")
    with pytest.raises(ConfigError, match=r"unencrypted to line\.example: use https") as caught:
        make_sinks(webhook="http://line.example/", queue=tmp_path)
    assert "bearer-secret" not in str(caught.value)
    monkeypatch.setenv("ODDPATCH_WEBHOOK_TOKEN", "two\nlines")
    with pytest.raises(ConfigError, match="cannot hold"):
        make_sinks(webhook="https://line.example/", queue=tmp_path)


@pytest.mark.parametrize(
    "url",
    ["line.example", "ftp://line.example/", "https://", "https://user:hunter2@line.example/", "https://${HOME}@host/",
     "https://line.example/hook?key=hunter2", "https://line.example/${NOBODY_SET_THIS}", "http://host:0/",
     "http://host:hunter2/", "https://hunter2\u2100.example/",
     "http://host:99999/", "http://[::1/", "http://host/a b", "http://host/\n", "http://höst/", "file:///etc/passwd"],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_refused_at_once(url, tmp_path):
    with pytest.raises(ConfigError, match="--webhook") as caught:
        make_sinks(webhook=url, queue=tmp_path)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for localhost that no authority has signed, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("needs the program openssl")
    return cert, key


@pytest.mark.parametrize("trusted", [False, True])
def test_a_certificate_is_checked(certificate, trusted, tmp_path, monkeypatch, caplog):
    cert, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with receiving() as receiver:
        receiver.server.socket = context.wrap_socket(receiver.server.socket, server_side=True)
        if trusted:
            monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        monkeypatch.setenv("ODDPATCH_WEBHOOK_TOKEN", "bearer-secret")
        sink = Webhook(f"https://localhost:{receiver.port}/", tmp_path / "q.sqlite", waits=(0.01, 0.05))
        sink.start()
        sink.put(make_event())
        wait_until(lambda: receiver.ids if trusted else "CERTIFICATE_VERIFY_FAILED" in caplog.text)
        sink.close(0.2)
        assert len(receiver.asked) == trusted


def test_a_fault_of_ours_keeps_no_later_alarm_waiting(webhook, caplog):
    with receiving() as receiver:
        sink = webhook(receiver)
        faults = [ValueError("oh")]
        deliver = sink.deliver
        sink.deliver = lambda alarm: (_ for _ in ()).throw(faults.pop()) if faults else deliver(alarm)
        sink.put(make_event())
        wait_until(lambda: receiver.ids == ["e-00000"])
    assert "ValueError('oh')" in caplog.text


def test_many_alarms_leave_no_connection_open(webhook):
    with receiving() as receiver:
        sink = webhook(receiver)
        sink.put(make_event(0, Verdict.FAILED))
        wait_until(lambda: sink.sent == 1)
        before = psutil.Process().num_fds()
        for number in range(1, 200):
            if number % 20 == 0:
                receiver.answers = [500, 429]
            sink.put(make_event(number, Verdict.FAILED))
        wait_until(lambda: sink.sent == 200)
        wait_until(lambda: psutil.Process().num_fds() <= before)
    assert receiver.ids == [f"e-{number:05}" for number in range(200)]
