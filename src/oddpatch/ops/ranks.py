"""The processes that fit one model together, and how they bring tensors of any size to the first of them."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
#: Bytes of a message: a tensor of any size travels without a second copy of it.
MESSAGE = 64 * 2**20


class Ranks:
    """The processes of this run, and this one's place among them.

    Every method but `send` and `receive` is called by all ranks, in the same order.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.size = dist.get_world_size() if together else 1

    @property
    def first(self) -> bool:
        """Whether this is rank zero."""
        return self.rank == 0

    def exchange(self, value: T) -> list[T]:
        """Every rank's small value, in the order of the ranks. None of them goes on before all have come here."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def send(self, tensor: Tensor) -> None:
        """Send a tensor to rank zero, which has to `receive` it."""
        for part in _messages(tensor.contiguous()):
            dist.send(part, 0)

    def receive(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str, source: int) -> Tensor:
        """A tensor that another rank sends to this one, rank zero, from a device of the same type."""
        tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
        for part in _messages(tensor):
            dist.recv(part, source)
        return tensor

    def collect(self, tensors: Sequence[Tensor], device: torch.device | str) -> Iterator[Tensor]:
        """On rank zero the tensors of rank one, then those of rank two and so on, one at a time; on others nothing.

        Rank zero has to take all of them: the others wait until it has.

        Args:
            tensors: this rank's, on `device`; those of rank zero stay where they are.
            device: where rank zero wants the others'.
        """
        described = self.exchange([(tuple(tensor.shape), tensor.dtype) for tensor in tensors])
        if not self.first:
            for tensor in tensors:
                self.send(tensor)
            return iter(())
        return (
            self.receive(shape, dtype, device, source)
            for source in range(1, self.size)
            for shape, dtype in described[source]
        )

    def broadcast_(self, tensor: Tensor) -> None:
        """Overwrite a contiguous tensor by that of rank zero, which has the same shape and type."""
        if self.size > 1:
            for part in _messages(tensor):
                dist.broadcast(part, 0)

    def maximum_(self, tensor: Tensor) -> None:
        """Overwrite a tensor on the CPU by the largest of all ranks, element by element."""
        if self.size > 1:
            largest = tensor.clone()
            dist.all_reduce(largest, dist.ReduceOp.MAX)
            tensor.copy_(largest)


def _messages(tensor: Tensor) -> tuple[Tensor, ...]:
    """Views of a contiguous tensor's memory as bytes, whatever its type, each short enough for one message."""
    return tensor.detach().view(-1).view(torch.uint8).split(MESSAGE) if tensor.numel() else ()
