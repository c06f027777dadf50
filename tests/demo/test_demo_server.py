"""The server: what it refuses before it starts, where it listens, and what may be uploaded to it."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib.util import find_spec

import pytest
from finished_runs import write_run
from narrowing import present
from patience import PATIENCE

from oddpatch.demo import server, sessions
from oddpatch.errors import CheckpointError, ConfigError, installing

pytestmark = pytest.mark.skipif(not find_spec("streamlit"), reason="needs Streamlit")


def free_port():
    with socket.socket() as probe:
        probe.bind((server.HOST, 0))
        return probe.getsockname()[1]


def test_a_port_that_is_taken_is_told_with_another():
    with socket.socket() as taken:
        taken.bind((server.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port={port} is taken: choose another, such as --port={port + 1}"):
            server.check_port(port)
        server.check_port(free_port())


def test_a_run_that_cannot_be_read_is_told_before_the_server_starts(tmp_path):
    with pytest.raises(CheckpointError):
        server.serve(str(write_run(tmp_path / "run")), free_port())


def test_the_extra_is_named_where_streamlit_is_missing():
    assert installing("streamlit") == "pip install 'oddpatch[demo]'"


def test_nothing_leaves_this_machine_and_nothing_else_is_served():
    found = server.settings(8501)
    assert found["server.address"] == "127.0.0.1"
    assert found["browser.gatherUsageStats"] is False
    assert found["server.enableStaticServing"] is False
    assert found["server.enableXsrfProtection"] is True
    assert found["server.enableCORS"] is True


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(port, folder of temporary files, what it prints) of `oddpatch demo`, which is interrupted at the end."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "oddpatch.cli.main", "demo", "--port", str(port)],
        env={**os.environ, "TMPDIR": str(folder), "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(present(process.stdout)), daemon=True)
    reader.start()
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex((server.HOST, port)) == 0:
                break
        assert process.poll() is None, said
        time.sleep(0.1)
    yield port, folder, said
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    reader.join()
    assert not [path for path in folder.iterdir() if path.name.startswith("oddpatch-demo")]
    assert not any("Traceback" in line for line in said), said


def answer(port, method, path, body=b"", **headers):
    connection = http.client.HTTPConnection(server.HOST, port, timeout=PATIENCE)
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    return reply.status, reply.read()


def test_the_page_is_served_on_this_machine_alone(served):
    port, folder, _ = served
    assert answer(port, "GET", "/")[0] == 200
    with socket.socket() as outside:
        assert outside.connect_ex(("127.0.0.2", port)) != 0
    made = [path for path in folder.iterdir() if path.name.startswith("oddpatch-demo")]
    assert [path.stat().st_mode & 0o777 for path in made] == [0o700]


def test_nobody_uploads_without_a_session_and_no_path_leads_to_a_file(served):
    port, folder, _ = served
    secret = folder / "secret"
    secret.write_text("secret")
    assert answer(port, "PUT", "/_stcore/upload_file/nobody/file", b"x" * 10)[0] in (403, 413)
    for path in (f"/{secret}", "/..%2f..%2fetc/passwd", "/app/static/../../server.py", "/media/../../../etc/passwd"):
        status, body = answer(port, "GET", path)
        assert b"secret" not in body
        assert b"root:" not in body
        assert status in (200, 400, 403, 404)


def test_uploads_beyond_what_a_session_holds_are_refused_before_they_are_read(monkeypatch, tmp_path):
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    monkeypatch.setattr(sessions, "FILES", 1)
    opened = sessions.Sessions()
    session = present(opened.open("mine", tmp_path))
    route = Route("/{path:path}", lambda _: PlainTextResponse("taken"), methods=["GET", "PUT", "DELETE"])
    client = TestClient(server.UploadLimit(Starlette(routes=[route]), opened))
    put = "/_stcore/upload_file/mine/"
    assert client.get("/anything").status_code == 200
    assert [client.put(f"{put}{name}", content=b"x").status_code for name in "abc"] == [200, 200, 413]
    assert client.delete(f"{put}a").status_code == 200
    assert client.put(f"{put}c", content=b"x").status_code == 200
    assert client.put("/_stcore/upload_file/other/a", content=b"x").status_code == 413
    assert client.put(f"{put}d", content=iter([b"x"])).status_code == 413  # of unknown size
    assert session.waiting == {"b": 1, "c": 1}
