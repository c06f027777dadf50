"""Paths of the server, and who may ask for them."""

import hashlib
import hmac
import time
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from oddpatch.watch.serving.live import Live
from oddpatch.watch.serving.metrics import exposition
from oddpatch.watch.sinks.address import is_loopback

#: Sent with every answer: the page loads nothing from elsewhere, runs no code but its own file, and is framed by none.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
#: Files of the page, which hold nothing of the watch.
ASSETS = {"/page.css": "text/css", "/page.js": "text/javascript", "/icon.svg": "image/svg+xml"}


def make_app(live: Live, token: str | None, loopback: bool, port: int) -> ASGIApp:
    """The application.

    Args:
        live: what is shown.
        token: that must be given; None for none.
        loopback: whether only this machine can ask.
        port: of the server, which names the cookie: cookies of one host are shared by its ports.
    """

    async def page(_: Request) -> Response:
        return HTMLResponse(_asset("page.html"))

    async def asset(request: Request) -> Response:
        return Response(_asset(request.url.path[1:]), media_type=ASSETS[request.url.path])

    async def state(_: Request) -> Response:
        return JSONResponse(live.state())

    async def frame(request: Request) -> Response:
        jpeg = live.picture(request.path_params["identity"])
        return PlainTextResponse("not shown any more", 404) if jpeg is None else Response(jpeg, media_type="image/jpeg")

    async def health(_: Request) -> Response:
        status = live.status()
        trouble = live.trouble(status)
        age = None if status.last_frame is None else round(time.time() - status.last_frame, 3)
        answer = {"healthy": trouble is None, "connection": status.connection, "last_frame_age": age, "error": trouble}
        return JSONResponse(answer, 200 if trouble is None else 503)

    async def metrics(_: Request) -> Response:
        text, kind = exposition(live)
        return Response(text, headers={"Content-Type": kind})

    routes = [
        Route("/", page),
        *(Route(path, asset) for path in ASSETS),
        Route("/state", state),
        Route("/frames/{identity}.jpg", frame),
        Route("/healthz", health),
        Route("/metrics", metrics),
    ]
    return _Guard(Starlette(routes=routes), token, loopback, f"oddpatch-{port}")


class _Guard:
    """Refuses who may not ask, and adds the headers."""

    def __init__(self, app: ASGIApp, token: str | None, loopback: bool, cookie: str) -> None:
        self._app, self._token, self._loopback, self._name = app, token, loopback, cookie
        # Not the token itself: who sees the cookie knows no password of this server.
        self._cookie = hmac.new((token or "").encode(), b"oddpatch", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        typed = self._token is not None and _equal(request.query_params.get("token"), self._token)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if typed:
                    headers.append("Set-Cookie", f"{self._name}={self._cookie}; HttpOnly; SameSite=Strict; Path=/")
            await send(message)

        app: Any = self._app
        if self._loopback and not is_loopback(_host(request)):  # of a site that wants to read the answers
            app = PlainTextResponse("this name does not lead here: ask for localhost\n", 421)
        elif not (typed or self._is_known(request) or request.url.path in ASSETS):
            headers = {"WWW-Authenticate": "Bearer"}
            if "text/html" in request.headers.get("accept", ""):
                app = HTMLResponse(_asset("token.html"), 401, headers)
            else:
                app = PlainTextResponse("a token is needed: Authorization: Bearer TOKEN\n", 401, headers)
        await app(scope, receive, sending)

    def _is_known(self, request: Request) -> bool:
        if self._token is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        by_header = scheme.lower() == "bearer" and _equal(given.strip(), self._token)
        return by_header or _equal(request.cookies.get(self._name), self._cookie)


def _equal(given: str | None, wanted: str) -> bool:
    """Whether two secrets are one, in a time that does not tell how much of them is."""
    return given is not None and hmac.compare_digest(given.encode(errors="replace"), wanted.encode())


def _host(request: Request) -> str | None:
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:
        return None


def _asset(name: str) -> str:
    return (files("oddpatch.watch.serving") / name).read_text(encoding="utf-8")
