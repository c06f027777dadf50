"""Videos whose frames show their number, and servers that send them, well or badly."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import cv2
import numpy as np
from narrowing import present

SIZE = (96, 128)  # (H, W)


def numbered(number, size=SIZE):
    """A grey picture (H, W, 3) with its number in 16 fields along its upper edge."""
    image = np.full((*size, 3), 100, np.uint8)
    image[size[0] // 2 :, : 8 + number % 100] = 160  # something that moves
    for bit in range(16):
        image[:8, 8 * bit : 8 * bit + 8] = 255 * (number >> bit & 1)
    return image


def number_of(image):
    """The number that a picture (H, W, 3) or (3, H, W) shows."""
    image = image if image.shape[2] == 3 else image.transpose(1, 2, 0)
    return sum(int(image[4, 8 * bit + 4].mean() > 128) << bit for bit in range(16))


def write_video(path, images, rate=25, codec="libx264", pixels="yuv420p", **options):
    """Encode pictures (H, W, 3); a key frame each second, one slice for each frame."""
    settings = {"g": str(rate), "bf": "0", "x264-params": "slices=1:sliced-threads=0"} if codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream = None
        for image in images:
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options={**settings, **options})
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else pixels
                stream.codec_context.thread_count = 1
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(present(stream).encode(None))
    return path


class MotionJpeg:
    """A camera that sends JPEG pictures over HTTP while `sending` is set; the first path component must be `line`.

    Attributes:
        port: where it listens.
        sent: pictures so far.
        hanging: sends nothing while it is set, and keeps the connection.
        cut: closes the connection when it is set, and clears it.
        size: of the pictures.
    """

    def __init__(self, rate=50.0):
        self.sent, self.size, self.last = 0, SIZE, 10**9
        self.hanging, self.cut, self._stop = threading.Event(), threading.Event(), threading.Event()
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if not self.path.startswith("/line"):
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                while not camera._stop.wait(1 / rate) and not camera.cut.is_set():
                    if camera.hanging.is_set() or camera.sent >= camera.last:
                        continue
                    data = cv2.imencode(".jpg", numbered(camera.sent, camera.size)[..., ::-1])[1].tobytes()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                    try:
                        self.wfile.write(head + data + b"\r\n")
                    except OSError:
                        return
                    camera.sent += 1
                camera.cut.clear()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.address = f"http://127.0.0.1:{self.port}/line"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def motion_jpeg(**settings):
    camera = MotionJpeg(**settings)
    try:
        yield camera
    finally:
        camera.close()
