"""Between the thread that reads a source and the model: one place, for the newest frame."""

import threading
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Counts:
    """Where the frames that have arrived are: `arrived` is the sum of the others, at any moment."""

    arrived: int = 0
    dropped: int = 0  # a newer one took their place
    skipped: int = 0  # no trigger asked for them
    waiting: int = 0  # in the place
    taken: int = 0


class Slot(Generic[Item]):
    """Holds one item, and counts what becomes of all.

    >>> slot = Slot()
    >>> slot.put("old")
    >>> slot.put("new")
    >>> slot.end()
    >>> slot.take(), slot.take(), slot.counts.dropped
    ('new', None, 1)

    Args:
        keep_all: `put` waits until the place is free; otherwise it replaces what nobody has taken.
    """

    def __init__(self, keep_all: bool = False) -> None:
        self._keep_all = keep_all
        self._items: list[Item] = []  # at most one
        self._counts = Counts()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    @property
    def counts(self) -> Counts:
        """As they stand."""
        with self._changed:
            return self._counts

    def put(self, item: Item) -> None:
        """Have an item taken next."""
        with self._changed:
            if self._closed:
                self._count(arrived=1, dropped=1)
                return
            if self._keep_all:
                self._count(arrived=1, waiting=1)
                self._changed.wait_for(lambda: self._closed or not self._items)
                if self._closed:
                    self._count(waiting=-1, dropped=1)
                    return
            elif self._items:
                self._items.clear()
                self._count(arrived=1, dropped=1)
            else:
                self._count(arrived=1, waiting=1)
            self._items.append(item)
            self._changed.notify_all()

    def skip(self) -> None:
        """Count a frame that nobody asked for."""
        with self._changed:
            self._count(arrived=1, skipped=1)

    def drop(self) -> None:
        """Count a frame that was passed over before it was decoded, for a newer one."""
        with self._changed:
            self._count(arrived=1, dropped=1)

    def take(self) -> Item | None:
        """The next item, waiting for it; None after the last.

        Raises:
            Exception: that `end` was given, once nothing is left.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended or self._closed)
            if self._items and not self._closed:
                self._count(waiting=-1, taken=1)
                self._changed.notify_all()
                return self._items.pop()
            if self._error is not None:
                raise self._error
            return None

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will be put, for a reason that `take` raises if it is given."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more will be taken; what waits is dropped."""
        with self._changed:
            self._count(waiting=-len(self._items), dropped=len(self._items))
            self._items.clear()
            self._closed = True
            self._changed.notify_all()

    def _count(self, **more: int) -> None:
        self._counts = replace(self._counts, **{name: getattr(self._counts, name) + by for name, by in more.items()})
