"""The server of a watch, asked over real connections: who may ask, and what is answered."""

import io
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from itertools import count
from pathlib import Path

import pytest
from alarms import START, make_event, make_status
from patience import wait_until
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from oddpatch.errors import ConfigError
from oddpatch.watch.events import Verdict
from oddpatch.watch.serving import Server, app, listen, live, server

TOKEN = "a-token-of-some-length"
PATHS = ["/", "/state", "/healthz", "/metrics", "/frames/e-00001.jpg"]


class Fake:
    name = "webhook"

    def put(self, event):
        pass

    def counts(self):
        return {"sent": 5, "waiting": 2, "given_up": 1, "lost": 0}

    def close(self, timeout):
        pass


class Running:
    """A server, and the status that it is told."""

    def __init__(self, address="127.0.0.1:0", **status):
        self.status = make_status(**status)
        thresholds = {Verdict.WARN: 3.0, Verdict.REJECT: 5.0}
        listening = listen(address)
        self.server = Server(listening, lambda: self.status, [Fake()], thresholds)
        self.url = listening.url

    def get(self, path="/", **headers):
        """Status code, headers and body."""
        request = urllib.request.Request(self.url + path.removeprefix("/"), headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as answer:
            return answer.code, answer.headers, answer.read()

    def state(self):
        return json.loads(self.get("/state")[2])


@pytest.fixture(autouse=True)
def without_token(monkeypatch):
    monkeypatch.delenv("ODDPATCH_WATCH_TOKEN", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def start():
    started = []

    def make(*args, **status):
        started.append(Running(*args, **status))
        return started[-1]

    yield make
    for running in started:
        running.server.close(5)


@pytest.fixture
def guarded(start, monkeypatch):
    monkeypatch.setenv("ODDPATCH_WATCH_TOKEN", TOKEN)
    return start()


@pytest.mark.parametrize(
    ("status", "code"),
    [({}, 200), ({"connection": "stalled"}, 503), ({"connection": "connecting", "error": "no route"}, 503),
     ({"connection": "ended"}, 503)],
)  # fmt: skip
def test_health_is_that_of_the_source(start, status, code):
    running = start(**status, last_frame=time.time() - 2)
    answered, headers, body = running.get("/healthz")
    health = json.loads(body)
    assert answered == code
    assert headers["Content-Type"] == "application/json"
    assert health["healthy"] == (code == 200)
    assert health["connection"] == running.status.connection
    assert 2 <= health["last_frame_age"] < 10
    assert (health["error"] is None) == (code == 200)
    assert health["error"] in (None, "no route", f"the source is {running.status.connection}")


@pytest.mark.slow
def test_a_model_that_hangs_is_no_health(start, monkeypatch):
    monkeypatch.setattr(live, "STUCK", 1.5)
    monkeypatch.setattr(live, "PERIOD", 0.05)
    running = start(waiting=1)
    running.server.put(make_event())
    time.sleep(0.3)
    assert running.get("/healthz")[0] == 200
    wait_until(lambda: running.get("/healthz")[0] == 503)
    assert "has waited" in json.loads(running.get("/healthz")[2])["error"]
    for number in range(1, 8):  # it judges: one waits at any moment, but never the same for long
        running.server.put(make_event(number))
        time.sleep(0.3)
    assert running.get("/healthz")[0] == 200
    running.status = make_status(waiting=0)
    time.sleep(2)
    assert running.get("/healthz")[0] == 200


def test_metrics_are_the_counts(start):
    running = start(waiting=1)
    _, headers, body = running.get("/metrics")
    assert headers["Content-Type"].startswith("text/plain")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    frames = {key[1]: value for key, value in found.items() if key[0] == "oddpatch_frames_total"}
    assert frames == {"accept": 7, "warn": 2, "reject": 1, "failed": 0, "dropped": 3, "skipped": 2}
    assert found["oddpatch_frames_waiting",] + sum(frames.values()) == 16
    assert {
        ("oddpatch_frames_arrived_total",): 15, ("oddpatch_reconnects_total",): 4, ("oddpatch_connected",): 1,
        ("oddpatch_healthy",): 1, ("oddpatch_last_frame_timestamp_seconds",): START + 10,
        ("oddpatch_frames_per_second", "judged"): 9.5, ("oddpatch_delay_seconds", "0.95"): 0.06,
        ("oddpatch_threshold", "warn"): 3, ("oddpatch_threshold", "reject"): 5,
        ("oddpatch_sink_total", "webhook", "sent"): 5, ("oddpatch_sink_total", "webhook", "given_up"): 1,
        ("oddpatch_sink_level", "webhook", "waiting"): 2,
    }.items() <= found.items()  # fmt: skip
    running.status = make_status(connection="stalled", last_frame=None, rates={}, delays={})
    body = running.get("/metrics")[2].decode()
    assert "oddpatch_connected 0.0" in body
    assert "last_frame" not in body


def test_the_state_holds_scores_counts_and_frames(start):
    running = start()
    verdicts = [Verdict.ACCEPT, Verdict.WARN, Verdict.FAILED, Verdict.REJECT]
    for number, verdict in enumerate(verdicts):
        running.server.put(make_event(number, verdict))
    assert running.state()["points"] == [
        [START // 1, 0.0, "accept"], [START // 1 + 1, 1.0, "warn"], [START // 1 + 2, None, "failed"],
        [START // 1 + 3, 3.0, "reject"],
    ]  # fmt: skip
    wait_until(lambda: (state := running.state())["newest"] and len(state["alarms"]) == 3)
    state = running.state()
    assert state["newest"]["id"] == "e-00003"
    assert [frame["verdict"] for frame in state["alarms"]] == ["reject", "failed", "warn"]
    assert [frame["picture"] for frame in state["alarms"]] == [True, False, True]
    assert state["alarms"][1]["error"] == "broken <b>frame</b>"
    assert state["verdicts"] == {"accept": 7, "warn": 2, "reject": 1, "failed": 0}
    assert state["thresholds"] == {"warn": 3.0, "reject": 5.0}
    assert state["sinks"]["webhook"]["given_up"] == 1
    code, headers, body = running.get("/frames/e-00003.jpg")
    assert (code, headers["Content-Type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(body)).size == (64, 48)
    assert running.get("/frames/e-00002.jpg")[0] == 404


def test_of_a_second_the_highest_score_and_the_worst_verdict_are_shown(start):
    running = start()
    second = [
        make_event(0, Verdict.WARN, score=4.0),
        make_event(0, Verdict.ACCEPT, score=2.0),
        make_event(0, Verdict.FAILED),
    ]
    for event in second:
        running.server.put(event)
    assert running.state()["points"] == [[START // 1, 4.0, "failed"]]
    running.server.put(make_event(1, score=float("nan")))
    assert running.state()["points"][1][1] is None


@pytest.mark.slow
def test_memory_is_bounded(start):
    running = start()
    for number in range(1000):
        running.server.put(make_event(number, Verdict.REJECT, size=(8, 8)))
        if number % 100 == 0:
            running.state()
            time.sleep(0.3)
    state = running.state()
    assert len(state["points"]) == live.POINTS
    assert len(state["alarms"]) <= live.ALARMS
    assert len(json.dumps(state)) < 30_000


def test_nobody_looks_and_only_alarms_are_drawn(start):
    running = start()
    running.server.put(make_event(0, Verdict.ACCEPT))
    running.server.put(make_event(1, Verdict.WARN))
    wait_until(lambda: running.get("/frames/e-00001.jpg")[0] == 200)
    time.sleep(2 * live.PERIOD)
    assert running.get("/frames/e-00000.jpg")[0] == 404


@pytest.mark.parametrize("path", ["/", "/nothing", "/healthz", "/state"])
def test_every_answer_has_the_headers(start, path):
    headers = start().get(path)[1]
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert "server" not in headers


def test_the_page_brings_all_it_needs(start):
    running = start()
    page = running.get("/")[2].decode()
    files = [path.read_text() for path in Path(live.__file__).parent.glob("page.*")]
    assert len(files) == 3
    assert not [url for text in files for url in re.findall(r"https?://[^\"'\s]+", text) if "w3.org" not in url]
    assert " style=" not in page
    assert "onclick" not in page
    assert not re.search(r"<script(?![^>]*src=)", page)
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page):
        code, headers, _ = running.get(path)
        assert code == 200
        assert headers["Content-Type"].split(";")[0] in app.ASSETS.values()


def test_there_is_nothing_else(start):
    running = start()
    for path in ["/frames/", "/frames/..%2f..%2fpyproject.toml", "/docs", "/openapi.json", "/../pyproject.toml",
                 "/token.html", "/page.html", "/server.py"]:  # fmt: skip
        assert running.get(path)[0] == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        request = urllib.request.Request(running.url, method=method)
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(request, timeout=5)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "192.0.2.1", "127.0.0.1.evil.example", "localhost.", "", "[::1"]
)
def test_another_name_that_leads_here_is_refused(start, host):
    running = start()
    for path in PATHS:
        assert running.get(path, Host=host)[0] == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "127.0.0.2", "[::1]:5"])
def test_this_machine_has_several_names(start, host):
    assert start().get("/healthz", Host=host)[0] == 200


@pytest.mark.parametrize(
    "given", [None, "Bearer wrong-token-of-length", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"]
)
def test_without_the_token_nothing_is_told(guarded, given):
    guarded.server.put(make_event(1))
    for path in PATHS:
        code, headers, body = guarded.get(path, **({"Authorization": given} if given else {}))
        assert code == 401
        assert headers["WWW-Authenticate"] == "Bearer"
        assert b"camera" not in body
        assert "Set-Cookie" not in headers
        assert guarded.get(f"{path}?token=wrong-token-of-length")[0] == 401


def test_the_token_is_given_in_a_header(guarded):
    for path in PATHS[:-1]:
        code, headers, _ = guarded.get(path, Authorization=f"Bearer {TOKEN}")
        assert code == 200
        assert "Set-Cookie" not in headers


def test_the_token_in_an_address_becomes_a_cookie(guarded):
    code, headers, body = guarded.get(f"/?token={TOKEN}")
    assert code == 200
    assert b"page.js" in body
    cookie, *attributes = headers["Set-Cookie"].split("; ")
    assert attributes == ["HttpOnly", "SameSite=Strict", "Path=/"]
    assert TOKEN not in cookie
    assert guarded.get("/state", Cookie=cookie)[0] == 200
    assert guarded.get("/state", Cookie=cookie[:-1])[0] == 401
    assert guarded.get("/state", Cookie=f"{cookie.partition('=')[0]}={TOKEN}")[0] == 401


def test_a_browser_is_asked_for_the_token(guarded):
    code, _, body = guarded.get("/", Accept="text/html,*/*")
    assert code == 401
    assert b'name="token"' in body
    assert guarded.get("/page.css")[0] == 200


def test_other_machines_are_served_with_a_token_only(start, monkeypatch):
    for address in ("0.0.0.0:0", "[::]:0"):
        with pytest.raises(ConfigError, match="set ODDPATCH_WATCH_TOKEN to a secret of 16 or more characters"):
            start(address)
    monkeypatch.setenv("ODDPATCH_WATCH_TOKEN", "short")
    with pytest.raises(ConfigError, match="ODDPATCH_WATCH_TOKEN: give 16 or more") as caught:
        start("127.0.0.1:0")
    assert "short" not in str(caught.value)
    monkeypatch.setenv("ODDPATCH_WATCH_TOKEN", TOKEN)
    running = start("0.0.0.0:0")
    assert running.get("/state")[0] == 401
    assert running.get("/state", Authorization=f"Bearer {TOKEN}", Host="line-pc")[0] == 200


@pytest.mark.parametrize(
    "address", ["8765", "localhost", "localhost:", ":8765", "localhost:70000", "localhost:x", "a:²"]
)
def test_an_address_that_is_none_is_refused(start, address):
    with pytest.raises(ConfigError, match=r"give HOST:PORT, such as 127\.0\.0\.1:8765"):
        start(address)


def test_an_address_that_is_taken_is_refused(start):
    running = start()
    port = running.url.rstrip("/").rpartition(":")[2]
    with pytest.raises(ConfigError, match="choose another address or port"):
        start(f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match="choose another address or port"):
        start("no-such-host.invalid:80")


def test_clients_are_bounded_and_the_silent_are_ended(start, monkeypatch):
    monkeypatch.setattr(server, "CLIENTS", 4)
    monkeypatch.setattr(server, "IDLE", 2.0)
    running = start()
    port = int(running.url.rstrip("/").rpartition(":")[2])
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(6)]
    silent[0].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")  # and never ends
    wait_until(lambda: running.get("/healthz")[0] == 503)
    wait_until(lambda: running.get("/healthz")[0] == 200)
    for connection in silent:
        connection.settimeout(5)
        assert connection.recv(1000) == b""
        connection.close()


def test_a_picture_that_cannot_be_drawn_stops_nothing(start, monkeypatch, caplog):
    calls = count()
    draw = live.to_jpeg
    monkeypatch.setattr(live, "to_jpeg", lambda *args: draw(*args) if next(calls) else 1 / 0)
    running = start()
    running.server.put(make_event(0))
    wait_until(lambda: "cannot be drawn" in caplog.text)
    running.server.put(make_event(1))
    wait_until(lambda: running.get("/frames/e-00001.jpg")[0] == 200)


def test_closing_ends_the_threads_and_frees_the_port(start):
    before = set(threading.enumerate())
    running = start()
    assert running.get("/healthz")[0] == 200
    running.server.close(5)
    assert set(threading.enumerate()) <= before
    Running(running.url.removeprefix("http://").rstrip("/")).server.close(5)
