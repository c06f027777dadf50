"""What this machine has: memory before a run starts, and how much a run took."""

import logging
import resource
import sys

import torch

from oddpatch.errors import ResourceError
from oddpatch.limits import free_memory

log = logging.getLogger(__name__)


def format_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory()


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held: of GPU memory where it computes on one, else of main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if sys.platform == "darwin" else 1024  # Linux counts kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def check_memory(needed: int, device: torch.device, what: str, remedy: str) -> None:
    """Say how much memory a fit needs, and raise a `ResourceError` if the device does not have it."""
    available = available_memory(device)
    log.info("%s needs %s of memory, %s is available", what, format_bytes(needed), format_bytes(available))
    if needed > available:
        raise ResourceError(
            f"{what} needs {format_bytes(needed)} of memory but only {format_bytes(available)} is available: {remedy}"
        )
