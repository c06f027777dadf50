"""A gallery of rows too large for memory: written to a temporary file as they come, then mapped."""

import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import IO

import torch
from torch import Tensor

from oddpatch.errors import ResourceError


class Spool:
    """Rows of one shape and type, appended to a temporary file.

    The file has no name (it is unlinked as soon as it is open), so that nothing is left behind however the process
    ends. It lies in the folder that `TMPDIR` names, which should not be one that lives in memory itself.

    Args:
        shape: shape of a row.
        dtype: float type in which rows are stored.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        self.shape, self.dtype, self.count = shape, dtype, 0
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="oddpatch-")  # noqa: SIM115 - it outlives this function

    def append(self, rows: Tensor) -> None:
        """Write rows (n, *shape).

        Raises:
            ResourceError: the disk is full.
        """
        try:
            self._file.write(rows.detach().to("cpu", self.dtype).contiguous().numpy().data)
            self._file.flush()
        except OSError as error:
            raise self._no_room(error) from error
        self.count += len(rows)

    def finish(self, order: Tensor) -> Tensor:
        """The rows that `order` (N,) names, in that order, as a tensor (N, *shape) that is mapped from the file.

        The tensor keeps the file alive; its pages are read when they are used, and dropped when memory is short.
        """
        if not torch.equal(order, torch.arange(self.count)):
            mapped, sorted_spool = self._map(), Spool(self.shape, self.dtype)
            for row in order.tolist():
                sorted_spool.append(mapped[row : row + 1])
            self._file, self.count = sorted_spool._file, sorted_spool.count
        return self._map()

    def rows(self) -> Tensor:
        """What was appended, (n, *shape) with n > 0, mapped from the file."""
        return self._map()

    def read(self, rows: Sequence[int]) -> Tensor:
        """The rows (n, *shape) at these places, copied: pages of a mapped file count as memory of the process."""
        found = torch.empty(len(rows), *self.shape, dtype=self.dtype)
        size = row_bytes(self.shape, self.dtype)
        for row, room in zip(rows, found.numpy(), strict=True):
            if os.preadv(self._file.fileno(), [room.data], row * size) != size:
                raise ResourceError(f"features could not be read back from {tempfile.gettempdir()}: see to its disk")
        return found

    def allocate(self, count: int) -> Tensor:
        """`count` rows of an empty spool to be filled in place, mapped from the file.

        Raises:
            ResourceError: the disk has no room for them.
        """
        size = count * row_bytes(self.shape, self.dtype)
        try:
            if hasattr(os, "posix_fallocate"):  # a sparse file would kill the process when the disk is full
                os.posix_fallocate(self._file.fileno(), 0, size)
            else:
                self._file.truncate(size)
        except OSError as error:
            raise self._no_room(error) from error
        self.count = count
        return self._map()

    def close(self) -> None:
        """Close the file; tensors mapped from it stay valid, and keep its space until they are freed."""
        self._file.close()

    @staticmethod
    def _no_room(error: OSError) -> ResourceError:
        return ResourceError(
            f"features could not be written to {tempfile.gettempdir()} ({error.strerror}): "
            "free disk space there, or set TMPDIR to a folder with more"
        )

    def _map(self) -> Tensor:
        region = mmap.mmap(self._file.fileno(), 0)
        return torch.frombuffer(region, dtype=self.dtype).view(self.count, *self.shape)

    @staticmethod
    def require_disk(needed: int, remedy: str, what: str = "the gallery") -> None:
        """Raise a `ResourceError` unless the folder of temporary files has `needed` bytes."""
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise ResourceError(
                f"{what} needs {needed / 2**30:.1f} GiB of disk in {folder} but {free / 2**30:.1f} GiB are free: "
                f"set TMPDIR to a folder with more, or {remedy}"
            )


def in_order(index: Tensor) -> Tensor:
    """Positions (N,) that put dataset indices (M,) in rising order, the first of each where one was seen twice."""
    order = index.argsort(stable=True)
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = index[order[1:]] != index[order[:-1]]
    return order[first]


def row_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of one row."""
    return math.prod(shape) * dtype.itemsize
