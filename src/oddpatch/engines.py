"""What engines on the CPU have in common, in whichever room they run: threads, and OpenVINO's one core."""

import functools
import os
from typing import Any

from oddpatch.limits import cores

#: What a network of torch is run with.
ENGINES = ("torch", "openvino")


def threads() -> int:
    """How many threads an engine computes with: what OMP_NUM_THREADS says, as for torch, else one per core."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(given), cores()) if given.isdigit() and int(given) else cores()


@functools.cache
def openvino_core() -> Any:
    """The one OpenVINO core of this process, which is never given up.

    Each core installs a stack for signal handlers and frees it with itself. With two of them the process is left with a
    freed one, and dies at the next signal that Python handles, such as that of a data worker that ends.
    """
    import openvino as ov

    return ov.Core()
