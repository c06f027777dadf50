"""How the processes of one run communicate, on top of torch.distributed; a single process needs none of it."""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from oddpatch.errors import ConfigError
from oddpatch.ops.ranks import Ranks

if TYPE_CHECKING:
    from oddpatch.models.base import Detector, ProgressFn

#: The others wait while rank zero fits, which may take hours. That a rank has died is noticed by whoever started it.
TIMEOUT = timedelta(days=7)
#: Names the file that the processes of one machine meet at; set by `oddpatch.learning.launcher`.
STORE = "ODDPATCH_STORE"


def fit(detector: "Detector", progress: "ProgressFn") -> None:
    """Fit a detector to what all ranks accumulated; in the end all have the same buffers, bit for bit.

    Rank zero fits and sends the result to the others. So what was accumulated is held once, not on every device,
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
