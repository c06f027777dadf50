"""What the processes of one run say to each other, on top of torch.distributed; alone, nothing is said."""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from oddpatch.errors import ConfigError

if TYPE_CHECKING:
    from oddpatch.models.base import Detector, ProgressFn

T = TypeVar("T")
#: The others wait while rank zero fits, which may take hours. That a rank has died is noticed by whoever started it.
TIMEOUT = timedelta(days=7)
#: Bytes of a message: a tensor of any size travels without a second copy of it.
MESSAGE = 64 * 2**20
#: Names the file that the processes of one machine meet at; set by `oddpatch.parallel.launcher`.
STORE = "ODDPATCH_STORE"


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


def fit(detector: "Detector", progress: "ProgressFn") -> None:
    """Fit a detector to what all ranks took in; in the end all have the same buffers, bit for bit.

    Rank zero fits and gives the result to the others. So what was taken in is held together once, not on every device,
    and ranks on unlike hardware cannot come to unlike models, whose scores would not be comparable.
    """
    ranks = Ranks()
    if ranks.size == 1:
        detector.fit(progress)
        return
    detector.merge(ranks)
    if ranks.first:
        detector.fit(progress)
    detector.share(ranks)


@contextmanager
def first_of_machine_first() -> Iterator[None]:
    """Have one process of each machine do something before the others look at what it did."""
    ranks, leads = Ranks(), os.environ.get("LOCAL_RANK", "0") == "0"
    if not leads:
        ranks.exchange(None)
    yield
    if leads:
        ranks.exchange(None)


def join(trainer: Mapping[str, Any], folder: str) -> None:
    """Become one of the processes that the environment describes, if it describes several; see docs/scaling.md.

    From then on warnings and log messages come from rank zero only.

    Args:
        trainer: settings of the Trainer.
        folder: where this process will write.

    Raises:
        ConfigError: the Trainer is set up for one process, or the ranks would write into different folders.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "LOCAL_RANK" not in os.environ or dist.is_initialized():
        return
    if not trainer.get("strategy"):
        raise ConfigError(f"{size} processes were started for one run, but trainer is set up for one: add trainer=ddp")
    on_gpu = trainer.get("accelerator") != "cpu" and torch.cuda.is_available()
    # Tensors on the CPU need gloo beside nccl: what metrics and Gaussian-AD keep lies there.
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    store = os.environ.get(STORE)
    rank = int(os.environ["RANK"])
    dist.init_process_group(backend, f"file://{store}" if store else "env://", TIMEOUT, size, rank)
    if rank:
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    folders = set(Ranks().exchange(folder))
    if len(folders) > 1:
        raise ConfigError(
            f"the ranks would write into {len(folders)} folders: give all the same by hydra.run.dir=FOLDER"
        )


def environment() -> list[Any]:
    """Where Lightning is to look for its rank, in a rank of our launcher: it may run inside a job of a scheduler."""
    if STORE not in os.environ:
        return []
    from lightning.pytorch.plugins.environments import LightningEnvironment

    return [LightningEnvironment()]


def leave() -> None:
    """Part from the other processes; without it, torch warns at the end."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
