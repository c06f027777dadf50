"""Alarms as HTTP requests."""

import email.utils
import os
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from oddpatch.errors import ConfigError
from oddpatch.watch.sinks.address import is_loopback, split
from oddpatch.watch.sinks.outbox import Alarm, Outbox
from oddpatch.watch.sinks.sender import Refused, Sender, Unanswered

#: Environment variable of the token that is sent as `Authorization: Bearer`.
TOKEN = "ODDPATCH_WEBHOOK_TOKEN"
#: Seconds without a sign of life after which a receiver counts as silent, and which it may ask us to wait at most.
SILENCE, PATIENCE = 10.0, 3600.0
#: Answers of the kind 4xx that mean "try again": request timeout, too many requests.
TEMPORARY = (408, 429)


class Webhook(Sender):
    """POSTs alarms as JSON, each until it is answered by 2xx; the header `Idempotency-Key` is the event's id.

    No answer, 5xx, 3xx, 408 and 429 are tried again, after `Retry-After` at the earliest; other 4xx are given up.

    Args:
        url: http or https; ${NAME} in it is that variable of the environment, and only its host is shown.
        queue: file of the alarms that wait.
        silence: seconds without a sign of life after which the receiver counts as silent.
        settings: see `Sender`.

    Raises:
        ConfigError: the address cannot be used, or the token would travel unencrypted.
    """

    def __init__(self, url: str, queue: Path, silence: float = SILENCE, **settings: Any) -> None:
        parts = split(url, "--webhook", ("http", "https"))
        if parts.username is not None:
            raise ConfigError(f"--webhook: a name in its address is not sent: leave it out, and set {TOKEN}")
        self._token = os.environ.get(TOKEN, "")
        if not self._token.isascii() or not self._token.isprintable():
            raise ConfigError(f"{TOKEN} has characters that a header cannot hold: use letters, digits and signs")
        if self._token and parts.scheme == "http" and not is_loopback(parts.hostname):
            raise ConfigError(
                f"--webhook: {TOKEN} would travel unencrypted to {parts.hostname}: use https://, or unset the variable"
            )
        super().__init__("webhook", f"{parts.scheme}://{parts.netloc}", Outbox(queue), **settings)
        self._url, self._silence = parts.geturl(), silence
        self._opener = urllib.request.build_opener(_NoRedirects)

    def deliver(self, alarm: Alarm) -> None:
        """See `Sender`."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": alarm.id, "User-Agent": "oddpatch"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self._url, alarm.body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._silence):
                return
        except urllib.error.HTTPError as answer:
            with answer:
                said = f"answers {answer.code}"
                if 400 <= answer.code < 500 and answer.code not in TEMPORARY:
                    raise Refused(said) from None
                if 300 <= answer.code < 400:
                    said += f" and leads to {_host(answer.headers.get('Location'))}, which is not followed"
                raise Unanswered(said, retry_after(answer.headers.get("Retry-After"))) from None
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise Unanswered(f"no answer ({' '.join(str(reason).split()) or type(reason).__name__})") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirection to us: its target is not the one that was chosen, and would be sent the token."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _host(location: str | None) -> str:
    try:
        return urlsplit(location or "").hostname or "another path"
    except ValueError:
        return "no address"


def retry_after(text: str | None) -> float:
    """Seconds that a receiver asks us to wait: it gives their number, or a date (RFC 9110, 10.2.3)."""
    try:
        wait = float(text or 0)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(text or "").timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(wait, PATIENCE) if wait > 0 else 0.0
