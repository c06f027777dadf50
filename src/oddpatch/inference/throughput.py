"""Decoding, inference and writing side by side: a stream passes threads in order, through bounded queues."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Generic, Self, TypeVar

from oddpatch.data.png import decode_beside_others
from oddpatch.limits import cores

Item = TypeVar("Item")
Result = TypeVar("Result")
#: Threads that may decode with Python's lock held, one at a time; more would decode faster by releasing it.
HOLDING = 2


class Overlap:
    """Threads that work ahead of whoever consumes a stream of items; leaving the block ends them.

    Decoders, encoders and networks release Python's lock, so that they use all cores. `map` may be given what another
    `map` of the same block gives: the steps then run side by side.

    >>> with Overlap() as overlap:
    ...     images = overlap.map(str.upper, ["a", "b"], ahead=8)
    ...     for line in overlap.map("{}!".format, map(ord, images), ahead=8):  # `ord` runs in one thread
    ...         print(line)
    65!
    66!

    Args:
        workers: threads; None for one per core.
        holding: images may be decoded with Python's lock held, which takes half as long: for two threads, and a network
            that needs the lock now and then. More threads would wait for each other.
    """

    def __init__(self, workers: int | None = None, holding: bool = False) -> None:
        self.workers = workers or cores()
        prepare_thread = None if holding and self.workers <= HOLDING else decode_beside_others
        self._pool = ThreadPoolExecutor(self.workers, initializer=prepare_thread)
        self._queues: list[_Queue[Any]] = []
        self._feeders: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for queue in self._queues:
            queue.close()
        self._pool.shutdown(cancel_futures=True)
        # The first waits for the source, which may be a camera that gives nothing more; it ends with the process.
        for feeder in self._feeders[1:]:
            feeder.join()

    def map(self, work: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
        """What `work` returns for each of the items, in their order.

        Args:
            work: is called by several threads at once.
            items: iterated by a thread of its own, no further than `ahead` items before the consumer.
            ahead: the most results that are kept, 1 or more.

        Raises:
            Exception: whatever `work` or `items` raise, when it is its turn.
        """
        queue: _Queue[Future[Result] | None] = _Queue(ahead)

        def feed() -> None:
            last: Future[Result] | None = None
            with suppress(_ClosedError):
                try:
                    for item in items:
                        queue.put(self._pool.submit(work, item))
                except BaseException as error:
                    last = Future()
                    last.set_exception(error)
                queue.put(last)

        self._queues.append(queue)
        self._feeders.append(threading.Thread(target=feed, daemon=True))
        self._feeders[-1].start()
        return _results(queue)


def in_order(work: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Generator[Result, None, None]:
    """One step on its own, see `Overlap.map`; close the iterator where it is left early."""
    with Overlap() as overlap:
        yield from overlap.map(work, items, ahead)


def _results(queue: "_Queue[Future[Result] | None]") -> Iterator[Result]:
    while (future := queue.get()) is not None:
        yield future.result()


class _ClosedError(Exception):
    """The block has been left."""


class _Queue(Generic[Item]):
    """A bounded queue that can be closed, which wakes whoever waits for it."""

    def __init__(self, size: int) -> None:
        self._items: deque[Item] = deque()
        self._size, self._closed = size, False
        self._changed = threading.Condition()

    def put(self, item: Item) -> None:
        with self._changed:
            self._wait(lambda: len(self._items) < self._size)
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> Item:
        with self._changed:
            self._wait(lambda: bool(self._items))
            self._changed.notify_all()
            return self._items.popleft()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait(self, ready: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: self._closed or ready())
        if self._closed:
            raise _ClosedError


class Room:
    """What several threads may use together, such as pixels in memory.

    Args:
        size: how much there is; who wants more gets all of it, alone.
    """

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._changed = threading.Condition()

    @contextmanager
    def taking(self, amount: int) -> Iterator[None]:
        """Wait until so much is free, and hold it for the block."""
        amount = min(amount, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()
