"""Addresses of receivers, as a user gives them."""

import ipaddress
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from oddpatch.errors import ConfigError
from oddpatch.watch.addresses import refuse_secrets, with_secrets


def is_loopback(host: str | None) -> bool:
    """Whether a name or an address leads to this machine and no other, wherever it is asked for."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def split(url: str, option: str, schemes: Sequence[str]) -> SplitResult:
    """The parts of an address, with the secrets that it names.

    Args:
        url: what the user gave; it is not shown, as a part of its path may be a secret.
        option: by which it was given.
        schemes: that it may have.

    Raises:
        ConfigError: it cannot be used, holds a secret, or names a variable that is not set.
    """
    example = f"give one such as {schemes[-1]}://host/path"
    try:
        refuse_secrets(url, f"{option.strip('-').upper()}_SECRET")
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None
    url = with_secrets(url, option)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # whose text shows a part of it
        raise ConfigError(f"{option}: its host or port is wrong: {example}") from None
    if (
        parts.scheme not in schemes
        or not parts.hostname
        or port == 0
        or not url.isascii()
        or not url.isprintable()
        or " " in url
    ):
        raise ConfigError(f"{option}: no address of {' or '.join(schemes)}: {example}")
    return parts
