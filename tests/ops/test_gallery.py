"""Rows in a file without a name: read back one by one, and what is said where its disk has no room."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

from oddpatch.errors import ResourceError
from oddpatch.ops.gallery import Spool

TOLD = r"features could not be written to .* \(No space left on device\): free disk space there, or set TMPDIR"


def test_rows_are_read_back_in_any_order_while_more_are_appended():
    rows = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    spool = Spool((3, 4, 5))
    spool.append(rows[:4])
    assert torch.equal(spool.read([2, 0, 2]), rows[[2, 0, 2]])
    spool.append(rows[4:].contiguous(memory_format=torch.channels_last))
    assert torch.equal(spool.read(range(6)), rows)
    assert torch.equal(spool.rows(), rows)


def test_rows_that_are_gone_are_an_error(monkeypatch):
    with tempfile.TemporaryFile() as file:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda prefix: file)
        spool = Spool((8,))
        spool.append(torch.ones(3, 8))
        file.truncate(40)
        with pytest.raises(ResourceError, match=r"features could not be read back from .*: see to its disk"):
            spool.read([0, 1])


def test_rows_that_a_full_disk_does_not_take_are_one_line(monkeypatch):
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda prefix: full)
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
