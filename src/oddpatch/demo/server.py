"""The server of the page: on this machine alone, with limits on what is uploaded."""

import errno
import socket
import tempfile
from pathlib import Path
from typing import Any

from oddpatch.api import HUB, AnomalyDetector
from oddpatch.data.layout import Sample, is_category, scan, scan_together
from oddpatch.data.splits import follow
from oddpatch.demo import uploads
from oddpatch.demo.boards import STANDARD, Boards
from oddpatch.demo.sessions import Sessions, Setting
from oddpatch.errors import ConfigError
from oddpatch.inference.artifact import is_artifact

HOST = "127.0.0.1"
#: Of the page that runs in this process; whoever starts it sets them.
setting: Setting
sessions = Sessions()

_UPLOAD = "/_stcore/upload_file/"


def serve(run: str | None, port: int, boards: Boards = STANDARD) -> None:
    """Serve the page until the program is ended; the folders of all sessions are removed then.

    Args:
        run: see `oddpatch.AnomalyDetector.load`; None to fit in the page.
        port: on this machine.
        boards: to work with when there are no other images.

    Raises:
        ConfigError: the port is taken, or the run has no threshold.
        CheckpointError: the run cannot be read.
        ModuleNotFoundError: Streamlit is not installed.
    """
    global setting
    import streamlit  # that it is missing is said before the run is read

    if run is not None:
        load(run)
    check_port(port)
    from starlette.middleware import Middleware

    with tempfile.TemporaryDirectory(prefix="oddpatch-demo-") as folder:
        setting = Setting(Path(folder).resolve(), boards, run)
        script = Path(__file__).with_name("app.py")
        app: Any = streamlit.App(script, middleware=[Middleware(UploadLimit, sessions=sessions)])
        app.run(config=settings(port))


def load(run: str) -> AnomalyDetector:
    """The detector of a run that the page begins with.

    Raises:
        ConfigError: it has no threshold.
        CheckpointError: it cannot be read.
    """
    detector = AnomalyDetector.load(run)
    if detector.image_threshold is None:
        raise ConfigError(f"{run} has no threshold: {detector.scorer.calibration.absent}")
    return detector


def images_of(run: str) -> list[Sample]:
    """The images that a run was tested on, where they are on this machine.

    Raises:
        DataError: they are there, but not as they were.
    """
    from oddpatch.factory import restore  # which loads torch

    if is_artifact(Path(run)) or run.startswith(HUB):
        return []
    data = restore(Path(run))[1]["config"]["data"]
    root, category = Path(data["root"]), data["category"]
    if not isinstance(category, str):
        return scan_together(root, [name for name in category if is_category(root / name)]).test
    if not is_category(root / category):
        return []
    found = scan(root, category)
    split = data.get("split")
    return follow(found, root / category, Path(split), data.get("fold")).test if split else found.test


def check_port(port: int) -> None:
    """See that the server can listen.

    Raises:
        ConfigError: it cannot.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise ConfigError(f"--port={port} {reason}: choose another, such as --port={port + 1}") from error


def settings(port: int) -> dict[str, Any]:
    """Of Streamlit, whatever the user's own files say: nothing leaves this machine, and nothing else is served."""
    return {
        "server.address": HOST,
        "server.port": port,
        "browser.serverAddress": HOST,
        "server.allowedHosts": [HOST, "localhost"],
        "server.headless": True,
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        "server.enableStaticServing": False,
        "server.enableAgentApi": False,
        "server.maxUploadSize": uploads.FILE_BYTES // 2**20,
        "server.fileWatcherType": "none",
        "server.runOnSave": False,
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "none",
        "theme.base": "light",
        "theme.primaryColor": "#00796b",
    }


class UploadLimit:
    """Refuses uploads of nobody's session, and more files or bytes of a session than it may hold.

    Streamlit keeps what is uploaded in memory until the page takes it, and limits single files only.

    Args:
        app: what answers all other requests.
        sessions: those that may upload.
    """

    def __init__(self, app: Any, sessions: Sessions) -> None:
        self._app, self._sessions = app, sessions

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI has it."""
        if scope["type"] == "http" and scope["path"].startswith(_UPLOAD):
            name, _, file = scope["path"].removeprefix(_UPLOAD).partition("/")
            session = self._sessions.get(name)
            if session is not None and scope["method"] == "DELETE":
                session.waiting.pop(file, None)
            if scope["method"] == "PUT":
                size = dict(scope["headers"]).get(b"content-length", b"")
                if session is None or not size.isdigit() or not session.expect(file, int(size)):
                    from starlette.responses import PlainTextResponse

                    refusal = PlainTextResponse("more than a session may hold", 413)
                    return await refusal(scope, receive, send)
        return await self._app(scope, receive, send)
