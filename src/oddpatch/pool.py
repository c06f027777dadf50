"""One function over many items, in several processes where that pays."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import cv2

from oddpatch.ending import follow_parent
from oddpatch.limits import cores

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]  # called with (items done, items in all)


def run_many(
    function: Callable[[T], R],
    items: Sequence[T],
    worth: int,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[R]:
    """Results in the order of the items.

    Args:
        function: can be pickled, as a partial of a function at module level can.
        items: what it is called with.
        worth: items that make up for the start of a worker.
        workers: processes; None for one a core, as far as there are items for them.
        progress: called after each item.
    """
    if workers is None:
        workers = max(1, min(cores(), len(items) // worth))
    found: list[R] = []
    with _one_thread() if workers == 1 else _processes(workers) as apply:
        for result in apply(function, items):
            found.append(result)
            if progress is not None:
                progress(len(found), len(items))
    return found


def tracked(items: Sequence[T], progress: Progress | None) -> Iterator[T]:
    """The items one by one; `progress` is called when each is done."""
    for done, item in enumerate(items, start=1):
        yield item
        if progress is not None:
            progress(done, len(items))


@contextmanager
def _one_thread() -> Iterator[Callable[..., Iterator[Any]]]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield map
    finally:
        cv2.setNumThreads(threads)


@contextmanager
def _processes(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    # Spawned rather than forked: the caller may hold CUDA or threads, which do not survive a fork.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as pool:
        try:
            yield lambda function, items: pool.map(function, items, chunksize=4)
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    follow_parent()
    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of torch, which most functions do without
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
