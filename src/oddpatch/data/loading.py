"""How images are loaded: what makes batches of a dataset, and how many processes read for it."""

import os
import platform
import sys
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from oddpatch.data.dataset import DatasetWrapper, MVTecDataset
from oddpatch.errors import ConfigError
from oddpatch.limits import cores, free_shared_memory
from oddpatch.ops.ranks import Ranks
from oddpatch.resources import format_bytes

#: Batches that each worker has ready, which is torch's own default.
PREFETCHED = 2
#: The first Python whose fork leaves no lock of the interpreter closed in the child: python/cpython#112275.
SAFE_FORKS = (3, 11, 10)


def make_loader(
    images: MVTecDataset | DatasetWrapper, batches: Sampler[list[int]], num_workers: int
) -> DataLoader[Any]:
    """A loader of these batches, which are lists of positions."""
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=num_workers if images.decodes else 0,
        collate_fn=images.collate,
        pin_memory=torch.cuda.is_available(),
    )


def check_workers(num_workers: int | str) -> int:
    """How many processes are to read.

    Raises:
        ConfigError: that many cannot work.
    """
    if num_workers == "auto":
        own = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # other ranks of this run decode too
        # A worker prepares images on one thread, which costs fewer CPU seconds than several threads on one image.
        return min(own, 8) if own > 1 else 0
    most = max(4 * cores(), 32)
    if not isinstance(num_workers, int) or not 0 <= num_workers <= most:
        raise ConfigError(f"num_workers={num_workers!r} must be auto or 0 to {most}, for the {cores()} cores there are")
    return num_workers


def workers_that_fit(num_workers: int, batch_size: int, image_size: tuple[int, int]) -> tuple[int, str]:
    """As many workers as there is shared memory for their batches, without which they die; and why these are fewer."""
    if not num_workers or (free := free_shared_memory()) is None:
        return num_workers, ""
    height, width = image_size
    held = batch_size * height * width * (3 * 4 + 1) * (PREFETCHED + 1)  # float32 images and uint8 masks
    fitting = min(int(free * 0.9) // held, num_workers)
    if fitting == num_workers:
        return num_workers, ""
    return fitting, (
        f"num_workers={num_workers} need {format_bytes(held * num_workers)} of shared memory, /dev/shm has "
        f"{format_bytes(free)}: using {fitting}; give a container more by --shm-size=1g, or lower data.batch_size"
    )


def fork_hazard(num_workers: int) -> str:
    """Why workers of this process may hang as they start; empty where they cannot.

    Threads of the process group enter Python, and one may hold such a lock at that very moment.
    """
    if not num_workers or sys.version_info >= SAFE_FORKS or sys.platform != "linux" or Ranks().size == 1:
        return ""
    return (
        f"Python {platform.python_version()} has a fault by which several ranks with data loaders can hang, though "
        f"rarely: use Python {'.'.join(map(str, SAFE_FORKS))} or later, or set data.num_workers=0"
    )
