"""A file without a name that a disk has no room for; what it holds otherwise: tests of SPADE and of the cache."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

from oddpatch.errors import ResourceError
from oddpatch.ops.gallery import Spool

TOLD = r"features could not be written to .* \(No space left on device\): free disk space there, or set TMPDIR"


def test_rows_that_a_full_disk_does_not_take_are_one_line(monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda prefix: Path("/dev/full").open("wb", buffering=0))  # noqa: SIM115 - the spool closes it
    spool = Spool((4,))
    with pytest.raises(ResourceError, match=TOLD):
        spool.append(torch.zeros(2, 4))
    assert spool.count == 0


def test_room_that_a_disk_does_not_have_is_one_line(monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ResourceError, match=TOLD):
        Spool((4,)).allocate(3)
