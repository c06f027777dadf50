"""One function over many items, in several processes where that pays."""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import cv2
import torch

from oddpatch.datatools.writing import Progress
from oddpatch.ending import follow_parent
from oddpatch.limits import cores

T = TypeVar("T")
R = TypeVar("R")


def run_many(
    function: Callable[[T], R],
    items: Sequence[T],
    workers: int | None = None,
    progress: Progress | None = None,
    worth: int = 200,
) -> list[R]:
    """Results in the order of the items.

    Args:
        function: can be pickled, as a partial of a function at module level can.
        items: what it is called with.
        workers: processes; None for one a core, or none of its own with fewer than `worth` items.
        progress: told (items done, items in all).
        worth: items that make up for the start of the workers.
    """
    if workers is None:
        workers = cores() if len(items) >= worth else 1
    found: list[R] = []
    if workers == 1:
        for item in items:
            found.append(function(item))
            if progress is not None:
                progress(len(found), len(items))
        return found
    # Spawned rather than forked: the caller may hold threads, which do not survive a fork.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as pool:
        try:
            for result in pool.map(function, items, chunksize=16):
                found.append(result)
                if progress is not None:
                    progress(len(found), len(items))
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    follow_parent()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
