"""Addresses of receivers, as a user gives them."""

import ipaddress
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from oddpatch.errors import ConfigError


def is_loopback(host: str | None) -> bool:
    """Whether a name or an address leads to this machine and no other, wherever it is asked for."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def split(url: str, option: str, schemes: Sequence[str]) -> SplitResult:
    """The parts of an address.

    Args:
        url: what the user gave; it is not shown, as it may hold a secret.
        option: by which it was given.
        schemes: that it may have.

    Raises:
        ConfigError: it cannot be used, or holds a name and a password, which anybody on this machine could read.
    """
    example = f"give one such as {schemes[-1]}://host/path"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{option}: its address is wrong ({error}): {example}") from None
    if (
        parts.scheme not in schemes
        or not parts.hostname
        or port == 0
        or not url.isascii()
        or not url.isprintable()
        or " " in url
    ):
        raise ConfigError(f"{option}: no address of {' or '.join(schemes)}: {example}")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"{option}: other users of this machine can read a password on the command line: leave it out, and set it "
            "in the environment"
        )
    return parts
