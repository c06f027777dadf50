"""Secrets of a camera stand in the environment and are never shown."""

import threading

import pytest

from oddpatch.errors import ConfigError, DataError
from oddpatch.watch import sources
from oddpatch.watch.addresses import check_address, with_secrets
from oddpatch.watch.sources import RefusedError


def test_secrets_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("CAMERA_USER", "admin")
    monkeypatch.setenv("CAMERA_PASSWORD", "p@ss/w:rd?#%")
    address = "rtsp://${CAMERA_USER}:${CAMERA_PASSWORD}@192.0.2.7:554/Streaming/Channels/101"
    check_address(address)
    assert with_secrets(address) == "rtsp://admin:p%40ss%2Fw%3Ard%3F%23%25@192.0.2.7:554/Streaming/Channels/101"
    monkeypatch.setenv("HOOK", "T0/B1/x y?")
    assert with_secrets("https://hooks.example/services/${HOOK}") == "https://hooks.example/services/T0/B1/x%20y%3F"
    assert with_secrets("http://h/a?user=x&pwd=${CAMERA_PASSWORD}") == "http://h/a?user=x&pwd=p%40ss%2Fw%3Ard%3F%23%25"


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("rtsp://admin:hunter2@192.0.2.7/101", "a password stands in the address of 192.0.2.7"),
        ("rtsp://${USER_NAME}:hunter2@192.0.2.7/101", "a password stands in the address of 192.0.2.7"),
        ("http://192.0.2.7/mjpg?usr=admin&pwd=hunter2", "a secret stands in the address of 192.0.2.7, as pwd"),
        ("http://192.0.2.7/mjpg?access_token=hunter2", "as access_token"),
        ("rtsp://${NOBODY_SET_THIS}:${NOR_THIS}@192.0.2.7/101", "NOBODY_SET_THIS is not set"),
        ("ftp://192.0.2.7/a", "ftp:// is not read"),
        ("concat:a://b", "is not read"),
        ("rtsp://[::1/x", "is not one"),
    ],
)
def test_what_is_refused(address, told):
    with pytest.raises(ConfigError) as error:
        check_address(address)
    assert told in str(error.value)
    assert "hunter2" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_stream_that_cannot_be_inspected_is_refused_without_its_address(monkeypatch):
    def refuse(*args, **settings):
        raise DataError("has no pictures")

    monkeypatch.setattr(sources, "open_video", refuse)
    with pytest.raises(RefusedError, match=r"^the stream has no pictures$"):
        next(sources._live("rtsp://user:secret@camera/", {}, None, threading.Event(), False))  # noqa: SLF001 - the step alone: what leads to it takes seconds
