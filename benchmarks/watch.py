"""`oddpatch watch` beside a simulated camera: what passes between a picture and its verdict, and what grows in an hour.

python benchmarks/watch.py RUN --rate 5 --minutes 1      # a rate that the model can hold
python benchmarks/watch.py RUN --rate 60 --minutes 10    # one that it cannot: the delay must not grow
python benchmarks/watch.py RUN --soak 18000 --rate 20    # an hour of 5 frames a second in a quarter of the time

The camera is a process of its own that sends JPEG over HTTP, each at its time, with its number drawn into the picture,
so that the delay is measured from outside. What is added is what is left of it without the time spent on the frame.
"""

import argparse
import json
import multiprocessing
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import psutil

from oddpatch.data.decoding import to_uint8
from oddpatch.inference.detector import AnomalyDetector
from oddpatch.scenes.dataset import Job, design_scene, render_one
from oddpatch.watch.watcher import Watch

#: Fields along the upper edge that show the number of a frame, and their side in pixels.
BITS, SIDE = 20, 12


def camera(pipe: Connection, rate: float, cut_after: int, numbered: bool) -> None:
    """Send frames at a rate; tell the port and when the first one was due.

    Each shows its number, or one board in ten has a defect.
    """
    scene = design_scene("pcb", 320, 0)
    kinds = ["good"] * 9 + ["good" if numbered else "missing_objects"]
    boards = [render_one(scene, 0, Job("line", kind, index)).image[..., ::-1] for index, kind in enumerate(kinds)]
    sent = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal sent
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            here, start = 0, time.time()
            if not sent:
                pipe.send(start)
            while here < cut_after:
                image = boards[sent // 10 % 10].copy()
                for bit in range(BITS * numbered):
                    image[:SIDE, SIDE * bit : SIDE * (bit + 1)] = 255 * (sent >> bit & 1)
                data = cv2.imencode(".jpg", image)[1].tobytes()
                time.sleep(max(start + here / rate - time.time(), 0))
                try:
                    self.wfile.write(
                        b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(data), data)
                    )
                except OSError:
                    return
                sent, here = sent + 1, here + 1

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_port)
    server.serve_forever()


def number_of(image: Any) -> int:
    """The number that a picture shows."""
    shown = to_uint8(image)[SIDE // 2, SIDE // 2 : SIDE * BITS : SIDE].mean(axis=-1) > 128
    return int((shown * 2 ** np.arange(BITS)).sum())


def run_camera(rate: float, cut_after: int, numbered: bool, watch: Callable[[str, Connection], None]) -> None:
    """Call `watch` with the address of a camera that runs."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=camera, args=(theirs, rate, cut_after, numbered), daemon=True
    )
    process.start()
    try:
        watch(f"http://127.0.0.1:{ours.recv()}/", ours)
    finally:
        process.kill()


def delays(detector: AnomalyDetector, rate: float, minutes: float) -> None:
    """Print the delays at a rate."""

    def watch(address: str, pipe: Connection) -> None:
        rows: list[tuple[float, float, float]] = []
        with Watch(detector, address, maps=False) as watching:
            for event in watching:
                now = time.time()
                if not rows:
                    start = pipe.recv()
                assert event.detection is not None
                taken = start + number_of(event.image) / rate
                rows.append((now, now - taken, event.detection.seconds))
                if now - rows[0][0] > 60 * minutes:
                    break
            status = watching.status()
        when, whole, model = np.array(rows[5:]).T  # the first ones find cold caches
        print(
            f"{rate:g} frames/s for {minutes:g} min: {status.arrived} arrived, {len(rows)} judged, "
            f"{status.dropped} dropped; {len(rows) / (when[-1] - when[0]):.1f} judged/s"
        )
        for name, values in (("capture to decision", whole), ("of it the model", model), ("added", whole - model)):
            p50, p95 = np.percentile(1000 * values, (50, 95))
            print(f"  {name:20} p50 {p50:6.1f} ms   p95 {p95:6.1f} ms")
        for q in (50, 95):
            tenths = [1000 * np.percentile(part, q) for part in np.array_split(whole, 10)]
            print(f"  capture to decision by tenths, p{q}: {', '.join(f'{value:.0f}' for value in tenths)} ms")

    run_camera(rate, 10**9, True, watch)


def receiver(ids: list[str]) -> HTTPServer:
    """A server that keeps the ids of the alarms that are posted to it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            ids.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["id"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def soak(run: Path, options: list[str], frames: int, rate: float, cut_after: int = 1000) -> None:
    """Print memory, threads and descriptors of the whole command over many frames.

    The connection breaks again and again, every alarm is posted and kept as a picture, and somebody looks at the page.
    """
    received: list[str] = []
    hook = receiver(received)

    def watch(address: str, _: Connection) -> None:
        with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
            page = f"127.0.0.1:{free.getsockname()[1]}"
            free.close()
            command = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("oddpatch")), "watch", str(run), address, *options,
                    "--webhook", f"http://127.0.0.1:{hook.server_port}/", "--queue", f"{folder}/queue",
                    "--pictures", f"{folder}/pictures", "--pictures-mb", "20", "--drift", f"{folder}/drift.json",
                    "--serve", page,
                ],
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert command.stdout is not None
            try:
                alarms = measure(psutil.Process(command.pid), command.stdout, frames, page)
            finally:
                command.send_signal(signal.SIGINT)
                late = command.stdout.read().splitlines()
            alarms += [event["id"] for event in map(json.loads, late) if is_alarm(event)]
            kept = sum(file.stat().st_size for file in Path(folder, "pictures").iterdir()) / 1e6
            print(f"  exit code {command.wait()}; pictures take {kept:.1f} MB of 20")
            print(f"  {len(alarms)} alarms, {len(received)} received, each once: {sorted(alarms) == sorted(received)}")

    print(f"{frames} frames judged, a connection breaks after {cut_after} frames:")
    run_camera(rate, cut_after, False, watch)


def is_alarm(event: dict[str, Any]) -> bool:
    """Whether somebody is told of an event."""
    return event["verdict"] != "accept" or "drift" in event


def measure(process: psutil.Process, lines: IO[str], frames: int, page: str) -> list[str]:
    """Print what a process uses while it judges so many frames; the ids of the alarms among them."""
    alarms, seen = [], []
    for count, line in enumerate(lines, 1):
        event = json.loads(line)
        if is_alarm(event):
            alarms.append(event["id"])
        if count % 100 == 0:
            for path in ("", "metrics", "state", "healthz"):
                with suppress(urllib.error.HTTPError), urllib.request.urlopen(f"http://{page}/{path}") as answer:
                    answer.read()
        if count % (frames // 24) == 0:
            seen.append((count, process.memory_info().rss / 1e6, process.num_threads(), process.num_fds()))
            print("  {:6} judged: {:7.1f} MB, {} threads, {} descriptors".format(*seen[-1]), flush=True)
        if count == frames:
            break
    counts, *used = np.array(seen[len(seen) // 2 :]).T
    slopes = [1000 * np.polyfit(counts, values, 1)[0] for values in used]
    print("  second half, in 1,000 frames: {:+.3f} MB, {:+.3f} threads, {:+.3f} descriptors".format(*slopes))
    return alarms


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rate", type=float, default=5.0, help="frames per second of the camera")
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--soak", type=int, metavar="FRAMES", help="judge so many instead")
    parser.add_argument("--engine", help="torch or openvino")
    parser.add_argument("--mqtt", help="for --soak: a broker, mqtt://HOST:PORT")
    chosen = parser.parse_args()
    if chosen.soak:
        given = {"--engine": chosen.engine, "--mqtt": chosen.mqtt}
        options = [part for name, value in given.items() if value for part in (name, value)]
        soak(chosen.run, options, chosen.soak, chosen.rate)
    else:
        delays(AnomalyDetector.load(chosen.run, engine=chosen.engine), chosen.rate, chosen.minutes)


if __name__ == "__main__":
    main()
