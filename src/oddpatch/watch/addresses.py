"""Addresses of cameras, without the secrets in them: these are named, and stand in the environment."""

import os
import re
from urllib.parse import quote, urlsplit

from oddpatch.errors import ConfigError

SCHEMES = ("rtsp", "rtsps", "http", "https")
_NAME = re.compile(r"\$\{(\w+)\}")
#: Names of parts of a query that hold a secret.
_SECRET = re.compile(r"(?i)pass|pwd|secret|token|auth|key")


def is_address(source: str) -> bool:
    """Whether a source is the address of a stream."""
    return "://" in source


def check_address(address: str) -> None:
    """See that an address can be shown, and that what it names is there.

    Args:
        address: such as rtsp://${CAMERA_USER}:${CAMERA_PASSWORD}@192.0.2.7/Streaming/Channels/101

    Raises:
        ConfigError: it holds a password, names a variable that is not set, or is of a scheme that is not read.
    """
    secret = _secret(address)
    if secret is not None:
        raise ConfigError(
            f"{secret}: every list of processes would show it: write '${{CAMERA_PASSWORD}}' in its place, in single "
            "quotes, and give it by `export CAMERA_PASSWORD=...`"
        )
    scheme = address.partition("://")[0]
    if scheme not in SCHEMES:
        raise ConfigError(f"{address}: {scheme}:// is not read: give {', '.join(f'{one}://' for one in SCHEMES)}")
    with_secrets(address)


def with_secrets(address: str) -> str:
    """The address as a camera takes it: each ${NAME} is that variable of the environment, quoted. Never show it.

    Raises:
        ConfigError: one is not set.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise ConfigError(f"{address}: {found[1]} is not set: export {found[1]}=...")
        return quote(os.environ[found[1]], safe="")

    return _NAME.sub(value, address)


def _secret(address: str) -> str | None:
    """What in an address is a password, by the place where it stands; None if there is none."""
    try:
        parts = urlsplit(_NAME.sub("", address))
    except ValueError:
        raise ConfigError("the address of the camera is not one: write it as rtsp://HOST:554/PATH") from None
    if parts.password:
        return f"a password stands in the address of {parts.hostname}"
    for pair in parts.query.split("&"):
        name, _, value = pair.partition("=")
        if value and _SECRET.search(name):
            return f"a secret stands in the address of {parts.hostname}, as {name}"
    return None
