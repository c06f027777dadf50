"""Addresses of cameras and receivers, without the secrets in them: these are named, and stand in the environment."""

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
    refuse_secrets(address, "CAMERA_PASSWORD")
    scheme = address.partition("://")[0]
    if scheme not in SCHEMES:
        raise ConfigError(f"{address}: {scheme}:// is not read: give {', '.join(f'{one}://' for one in SCHEMES)}")
    with_secrets(address)


def with_secrets(address: str, called: str | None = None) -> str:
    """The address as it is asked for: each ${NAME} is that variable of the environment, quoted. Never show it.

    In a path, a slash of the variable stays one: it may hold several parts.

    Args:
        address: as the user gave it.
        called: what an error calls it; None to show it as it was given.

    Raises:
        ConfigError: one is not set.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise ConfigError(f"{called or address}: {found[1]} is not set: export {found[1]}=...")
        before = address[: found.start()]
        in_path = before.count("/") > 2 and "?" not in before  # two of them follow the scheme
        return quote(os.environ[found[1]], safe="/" if in_path else "")

    return _NAME.sub(value, address)


def refuse_secrets(address: str, example: str) -> None:
    """See that an address can be shown.

    Args:
        address: as the user gave it.
        example: name of a variable that its secret could be in.

    Raises:
        ConfigError: it holds a secret, or is none; the error does not show it.
    """
    secret = _secret(address)
    if secret is not None:
        raise ConfigError(
            f"{secret}: every list of processes would show it: write '${{{example}}}' in its place, in single "
            f"quotes, and give it by `export {example}=...`"
        )


def _secret(address: str) -> str | None:
    """What in an address is a secret, by the place where it stands; None if there is none."""
    try:
        parts = urlsplit(_NAME.sub("", address))
    except ValueError:
        raise ConfigError("the address is not one: write it as rtsp://HOST:554/PATH or https://HOST/PATH") from None
    if parts.password:
        return f"a password stands in the address of {parts.hostname}"
    for pair in parts.query.split("&"):
        name, _, value = pair.partition("=")
        if value and _SECRET.search(name):
            return f"a secret stands in the address of {parts.hostname}, as {name}"
    return None
