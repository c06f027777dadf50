"""Events as a watch makes them, and receivers of alarms that fail as real ones do. As a program: sends alarms."""

import json
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from oddpatch.data.light import Light
from oddpatch.inference.detector import Detection
from oddpatch.inference.regions import Region
from oddpatch.watch.events import Event, Status, Verdict

#: Of the first event; the others follow by a second each.
START = 1_700_000_000.25


def make_event(number=0, verdict=Verdict.REJECT, identity=None, size=(48, 64), score=None):
    """An event with a picture and a region, or of a frame that could not be inspected."""
    record: dict[str, Any]
    if verdict == Verdict.FAILED:
        record, image, found = {"path": f"camera#{number}", "error": "broken <b>frame</b>"}, None, None
    else:
        rng = np.random.default_rng(number)
        image = rng.integers(0, 256, (3, *size), dtype=np.uint8)
        heat = np.linspace(0, 1, size[0] * size[1], dtype=np.float32).reshape(size)
        region = Region((10, 5, 20, 10), 200, 9.0, 8.0, [[(10, 5), (29, 5), (29, 14), (10, 14)]])
        score = float(number) if score is None else score
        found = Detection(score, True, 0.01, 0.9, heat, heat, [region], None, 1.0, None, Light(0.4, 0.01), 0.02, 5.0)
        record = {"path": f"camera#{number}", "score": score, "threshold": 5.0, "regions": [region.to_dict()]}
    return Event(
        identity or f"e-{number:05}", "rtsp://camera/1", number, START + number, 0.0421, verdict, record, image, found
    )


def make_status(**changes):
    counts = {Verdict.ACCEPT: 7, Verdict.WARN: 2, Verdict.REJECT: 1, Verdict.FAILED: 0}
    standing = {"source": "rtsp://camera/1", "connection": "connected", "since": START, "arrived": 15, "dropped": 3,
                "skipped": 2, "verdicts": counts, "last_frame": START + 10, "reconnects": 4,
                "rates": {"arrived": 25.0, "judged": 9.5}, "delays": {"p50": 0.04, "p95": 0.06}}  # fmt: skip
    return Status(**{**standing, **changes})


class Receiver:
    """An HTTP server that keeps what it was sent, and answers as it is told.

    Attributes:
        answers: status codes with headers for the next requests, or "hang"; 200 for all others.
        received: (headers, body) of the requests that were answered by 2xx; of several servers if it is given.
        asked: of all requests.
    """

    def __init__(self, port=0, received=None):
        self.received: list[Any] = [] if received is None else received
        self.answers: list[Any] = []
        self.asked: list[Any] = []
        self._release = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                receiver.asked.append((dict(self.headers), body, self.path))
                answer = receiver.answers.pop(0) if receiver.answers else 200
                if answer == "hang":
                    receiver._release.wait(30)
                    return
                code, headers = answer if isinstance(answer, tuple) else (answer, {})
                if 200 <= code < 300:
                    receiver.received.append((dict(self.headers), body))
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def ids(self):
        return [headers["Idempotency-Key"] for headers, _ in self.received]

    def die(self):
        self._release.set()
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def receiving(port=0):
    receiver = Receiver(port)
    try:
        yield receiver
    finally:
        receiver.die()


def send(kind, url, queue, first, count):
    """Put alarms until killed, and print the name of each when it is put."""
    from oddpatch.watch.sinks.mqtt import Mqtt
    from oddpatch.watch.sinks.webhook import Webhook

    sink = (Webhook if kind == "webhook" else Mqtt)(url, Path(queue), waits=(0.02, 0.1))
    sink.start()
    for number in range(first, first + count):
        event = make_event(number, Verdict.FAILED)
        sink.put(event)
        sys.stdout.write(json.dumps(event.id) + "\n")
        sys.stdout.flush()
        time.sleep(0.005)
    sink.close(20)


if __name__ == "__main__":
    send(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
