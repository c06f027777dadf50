"""`oddpatch watch` beside a simulated camera: what passes between a picture and its verdict, and what grows in an hour.

python benchmarks/watch.py RUN --rate 5 --minutes 1      # a rate that the model can hold
python benchmarks/watch.py RUN --rate 60 --minutes 10    # one that it cannot: the delay must not grow
python benchmarks/watch.py RUN --soak 18000              # an hour of 5 frames a second, as fast as they are judged

The camera is a process of its own that sends JPEG over HTTP, each at its time, with its number drawn into the picture,
so that the delay is measured from outside. What is added is what is left of it without the time spent on the frame.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from oddpatch.data.decoding import to_uint8
from oddpatch.inference.detector import AnomalyDetector
from oddpatch.scenes.dataset import Job, design_scene, render_one
from oddpatch.watch.watcher import Watch

#: Fields along the upper edge that show the number of a frame, and their side in pixels.
BITS, SIDE = 20, 12


def camera(pipe: Connection, rate: float, cut_after: int) -> None:
    """Send frames at a rate, or as fast as they are read if it is 0; tell the port and when the first one was due."""
    scene = design_scene("pcb", 320, 0)
    boards = [render_one(scene, 0, Job("line", "good", index)).image[..., ::-1] for index in range(10)]
    sent = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal sent
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            here, start = 0, time.time()
            if rate and not sent:
                pipe.send(start)
            while here < cut_after:
                image = boards[sent // 10 % 10].copy()
                for bit in range(BITS):
                    image[:SIDE, SIDE * bit : SIDE * (bit + 1)] = 255 * (sent >> bit & 1)
                data = cv2.imencode(".jpg", image)[1].tobytes()
                if rate:
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


def run_camera(rate: float, cut_after: int, watch: Callable[[str, Connection], None]) -> None:
    """Call `watch` with the address of a camera that runs."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=camera, args=(theirs, rate, cut_after), daemon=True)
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

    run_camera(rate, 10**9, watch)


def soak(detector: AnomalyDetector, frames: int, cut_after: int = 1000) -> None:
    """Print memory, threads and descriptors over many frames of a camera whose connection breaks again and again."""
    process = psutil.Process()

    def watch(address: str, _: Connection) -> None:
        count, seen = 0, []
        with Watch(detector, address, maps=False) as watching:
            for count, _event in enumerate(watching, 1):
                if count % (frames // 24) == 0:
                    seen.append((count, process.memory_info().rss / 1e6))
                    print(
                        f"  {count:6} judged: {seen[-1][1]:7.1f} MB, {process.num_threads()} threads, "
                        f"{process.num_fds()} descriptors", flush=True,
                    )  # fmt: skip
                if count == frames:
                    break
            counts, sizes = np.array(seen[len(seen) // 2 :]).T
            slope, _ = np.polyfit(counts, sizes, 1)
            print(f"  second half: {1e6 * slope:+.1f} kB in 1,000 frames")
            print(f"  {watching.status().reconnects} reconnects, {watching.status().arrived} frames arrived")

    print(f"{frames} frames judged, a connection breaks after {cut_after} frames:")
    run_camera(0, cut_after, watch)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rate", type=float, default=5.0, help="frames per second of the camera")
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--soak", type=int, metavar="FRAMES", help="judge so many instead")
    parser.add_argument("--engine", help="torch or openvino")
    chosen = parser.parse_args()
    detector = AnomalyDetector.load(chosen.run, engine=chosen.engine)
    if chosen.soak:
        soak(detector, chosen.soak)
    else:
        delays(detector, chosen.rate, chosen.minutes)


if __name__ == "__main__":
    main()
