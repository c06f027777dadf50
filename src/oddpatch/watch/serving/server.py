"""The server: one thread beside the watch, on loopback unless a token protects it."""

import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from oddpatch.errors import ConfigError
from oddpatch.watch.events import Event, Sink, Status, Verdict
from oddpatch.watch.serving.live import Live
from oddpatch.watch.sinks.address import is_loopback

#: Environment variable of the token, and how long it must be.
TOKEN, TOKEN_LENGTH = "ODDPATCH_WATCH_TOKEN", 16
#: Where the page is unless another address is chosen.
ADDRESS = "127.0.0.1:8765"
#: Connections at once; seconds that an idle one is kept open, and any at most.
CLIENTS, IDLE, LONGEST = 32, 10.0, 30.0


class Listening(NamedTuple):
    """An address that is ours: who connects waits until a `Server` answers."""

    socket: socket.socket
    loopback: bool  # only this machine can reach it
    token: str | None  # that is demanded

    @property
    def url(self) -> str:
        """Of the page."""
        host, port = self.socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


class Server:
    """A sink that shows: `/` a live page, `/healthz`, `/metrics` for Prometheus.

    Args:
        listening: where it answers; it is closed in the end.
        status: how the watch stands at the moment.
        sinks: whose counts are shown.
        thresholds: score above which a frame is warned of, and rejected.
    """

    name = "page"

    def __init__(
        self,
        listening: Listening,
        status: Callable[[], Status],
        sinks: Sequence[Sink] = (),
        thresholds: Mapping[Verdict, float] | None = None,
    ) -> None:
        from uvicorn import Config
        from uvicorn import Server as Uvicorn

        from oddpatch.watch.serving.app import make_app

        self._live = Live(status, sinks, thresholds)
        port = listening.socket.getsockname()[1]
        config = Config(
            make_app(self._live, listening.token, listening.loopback, port), http=_protocol(), loop="asyncio",
            ws="none", lifespan="off", log_config=None, access_log=False, proxy_headers=False, server_header=False,
            limit_concurrency=CLIENTS, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = Uvicorn(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening.socket],), name="server", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Show an event."""
        self._live.put(event)

    def counts(self) -> dict[str, int]:
        """Nothing: what it shows is not sent."""
        return {}

    def close(self, timeout: float) -> None:
        """Stop answering."""
        self._server.should_exit = True
        self._thread.join(timeout)
        self._live.close()


def listen(address: str) -> Listening:
    """Take an address for a server that begins later.

    Args:
        address: `HOST:PORT`; another host than this machine's own demands a token.

    Raises:
        ConfigError: the address is wrong or taken, or a token is missing or too short.
        ModuleNotFoundError: what a server needs is not installed.
    """
    import uvicorn  # noqa: F401 - that something is missing is said now

    import oddpatch.watch.serving.app  # noqa: F401

    token = os.environ.get(TOKEN) or None
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 2**16):
        raise ConfigError(f"--serve={address}: give HOST:PORT, such as {ADDRESS}")
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        loopback = is_loopback(str(place[0]))
        if not loopback and token is None:
            raise ConfigError(
                f"--serve={address} shows pictures to other machines: set {TOKEN} to a secret of {TOKEN_LENGTH} or "
                f"more characters, or serve at {ADDRESS}"
            )
        if token is not None and (len(token) < TOKEN_LENGTH or not token.isascii() or not token.isprintable()):
            raise ConfigError(f"{TOKEN}: give {TOKEN_LENGTH} or more characters without accents")
        listening = socket.socket(family, kind)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(place)
            listening.listen()
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise ConfigError(f"--serve={address}: {error.strerror}: choose another address or port") from error
    return Listening(listening, loopback, token)


def _protocol() -> type[Any]:
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        """Ends connections that ask for nothing or never end asking: they would keep others out."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(IDLE, self._end_if_idle)
            self.loop.call_later(LONGEST, transport.abort)

        def _end_if_idle(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Impatient
