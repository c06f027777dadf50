"""Accumulators: what a method keeps of good images between `update` and `fit`.

A `Detector` finds the accumulators among its attributes. They bring the images into the order of the dataset, merge
what several devices have seen, and say how much memory they need, so that no method has to.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from oddpatch.errors import DataError
from oddpatch.ops.coreset import StreamingCoreset
from oddpatch.ops.gallery import Spool, in_order
from oddpatch.ops.statistics import Moments, add_samples, empty_moments, merge

if TYPE_CHECKING:
    from oddpatch.ops.ranks import Ranks

#: Bytes of covariances that are merged at a time.
MERGE_BYTES = 64 * 2**20
#: Bytes of vectors that are added at a time, in the type of the scatter.
ADDED_BYTES = 4 * 2**20
#: Points of a stream that travel at a time.
PIECE = 65536


class Accumulator(ABC):
    """What `update` adds to and `fit` takes."""

    #: Set on a copy that is shown a single image: large blocks are measured, and not allocated.
    probing = False
    #: Whether there is one row per image, and of an image that came twice only the first one counts.
    unique = False

    @abstractmethod
    def merge(self, ranks: "Ranks", device: torch.device) -> None:
        """Bring what all ranks hold to rank zero, as if it had been given all of it; the others are emptied.

        Called by every rank; one of them may hold nothing.
        """

    @abstractmethod
    def clear(self) -> None:
        """Forget everything."""

    @abstractmethod
    def required(self, num_images: int) -> int:
        """Bytes at the peak, for so many images like the one that it was given."""


class Rows(Accumulator):
    """Rows in memory, each with the index of the image that it belongs to.

    Args:
        device: where they are kept; None leaves them where they were computed.
        unique: there is one row per image, and of an image that came twice the first one counts.
    """

    def __init__(self, device: str | None = None, *, unique: bool = False) -> None:
        self.device, self.unique = device, unique
        self._columns: list[list[Tensor]] = []

    def __len__(self) -> int:
        return sum(map(len, self._columns[0])) if self._columns else 0

    def add(self, index: Tensor, *values: Tensor) -> None:
        """Add rows (n, ...) of one or more kinds, of the images `index` (n,).

        Raises:
            DataError: rows before them have another shape.
        """
        self._columns = self._columns or [[] for _ in (index, *values)]
        for column, value in zip(self._columns, (index, *values), strict=True):
            if column and column[0].shape[1:] != value.shape[1:]:
                raise DataError(
                    f"an image gives features of shape {tuple(value.shape[1:])} where others gave "
                    f"{tuple(column[0].shape[1:])}: use images of one size"
                )
            column.append(value.to(self.device or values[0].device))

    def merge(self, ranks: "Ranks", device: torch.device) -> None:
        """See `Accumulator.merge`; exact."""
        width = max(ranks.exchange(len(self._columns)))
        own = [part for batch in zip(*self._columns, strict=True) for part in batch]
        received = list(ranks.collect(own, self.device or device))
        if ranks.first:
            self._columns = [(self._columns[i] if self._columns else []) + received[i::width] for i in range(width)]
        else:
            self.clear()

    def take(self) -> list[Tensor]:
        """Index (n,) and values (n, ...) by rising index, rows of one image as they came; empties it."""
        columns, self._columns = self._columns, []
        index = torch.cat(columns[0])
        order = in_order(index) if self.unique else index.argsort(stable=True)
        in_place = torch.equal(order, torch.arange(len(index), device=index.device))
        taken = []
        while columns:
            joined = torch.cat(columns.pop(0))
            taken.append(joined if in_place else joined[order])
        return taken

    def clear(self) -> None:
        """See `Accumulator.clear`."""
        self._columns = []

    def required(self, num_images: int) -> int:
        """All rows, and once more while they are joined."""
        return 2 * num_images * sum(part.nbytes for column in self._columns for part in column)


class Stream(Accumulator):
    """Patches of which k-center keeps as many as there is room for, as they come: see `StreamingCoreset`.

    Args:
        max_bytes: of the patches that are held at any time.
        generator: of its selections.
        reduce_to: share that is kept when there is no more room.
    """

    def __init__(self, max_bytes: int, generator: torch.Generator, reduce_to: float) -> None:
        self.max_bytes, self.generator, self.reduce_to = max_bytes, generator, reduce_to
        self.coreset: StreamingCoreset | None = None
        self._probed, self._bytes = 0, 0

    def __len__(self) -> int:
        return self._probed if self.coreset is None else self.coreset.num_seen

    @property
    def room(self) -> int:
        """Patches like those it was given while probing that `max_bytes` holds."""
        return self.max_bytes * self._probed // self._bytes

    def add(self, index: Tensor, points: Tensor, positions: Tensor) -> None:
        """Add points (n, D), found at `positions` (n,) of the grid of the images `index` (n,)."""
        if self.probing:
            self._probed += len(points)
            self._bytes += points.nbytes + index.nbytes + positions.nbytes
            return
        if self.coreset is None:
            row_bytes = points.shape[1] * points.element_size() + 16
            self.coreset = StreamingCoreset(max(2, self.max_bytes // row_bytes), self.generator, self.reduce_to)
        self.coreset.add(points, torch.stack([index.to(points.device), positions.to(points.device)], dim=1))

    def merge(self, ranks: "Ranks", device: torch.device) -> None:
        """Bring together what all ranks hold, in the room of one.

        While no rank has dropped a point and there is room for all of them, the result is that of one stream which was
        given them in the order of the images. Otherwise it depends on the number of ranks, as it depends on the order
        of the points for one stream.
        """
        own = self.coreset
        counts = [c for c in ranks.exchange((own.num_seen, own.num_held, own.max_rows) if own else None) if c]
        parts = [part.split(PIECE) for part in own.held()] if own else [(), ()]
        received = ranks.collect([part for pair in zip(*parts, strict=True) for part in pair], device)
        self.coreset = None
        if not ranks.first or not counts:
            return
        seen, held, room = (list(numbers) for numbers in zip(*counts, strict=True))
        pieces: Iterable[tuple[Tensor, Tensor]] = zip(received, received, strict=True)
        if sum(held) == sum(seen) <= room[0]:
            points, labels = (torch.cat(part) for part in zip(*([own.held()] if own else []), *pieces, strict=True))
            order = labels[:, 0].argsort(stable=True)
            own, pieces = None, [(points[order], labels[order])]
        self.coreset = own or StreamingCoreset(room[0], self.generator, self.reduce_to)
        for points, labels in pieces:
            self.coreset.add(points, labels)
        self.coreset.num_seen = sum(seen)

    def clear(self) -> None:
        """See `Accumulator.clear`."""
        self.coreset = None

    def required(self, num_images: int) -> int:
        """The room, or less where all patches need less."""
        return min(self.max_bytes, num_images * self._bytes)


class Spooled(Accumulator):
    """One row per image in a temporary file, for what is too large for memory.

    Args:
        dtype: float type in which rows are stored.
    """

    unique = True

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.spools: list[Spool] = []
        self._index: list[Tensor] = []

    def add(self, index: Tensor, *values: Tensor) -> None:
        """Write rows (n, ...) of one or more kinds, of the images `index` (n,); an image that came twice counts once.

        Raises:
            DataError: rows before them have another shape.
            ResourceError: the disk is full.
        """
        self.spools = self.spools or [Spool(tuple(value.shape[1:]), self.dtype) for value in values]
        for spool, value in zip(self.spools, values, strict=True):
            if value.shape[1:] != spool.shape:
                raise DataError(
                    f"an image gives {value.shape[1]} patches where others gave {spool.shape[0]}: "
                    "use images of one size"
                )
            spool.append(value)
        self._index.append(index.cpu())

    def merge(self, ranks: "Ranks", device: torch.device) -> None:
        """Write one file, image by image in the order of the dataset; nothing is held in memory or sorted again."""
        index = torch.cat([torch.empty(0, dtype=torch.int64), *self._index])
        shapes = {tuple(s) for s in ranks.exchange([spool.shape for spool in self.spools]) if s}
        if len(shapes) > 1:
            raise DataError(f"images give patches (number, channels) of {sorted(shapes)}: use images of one size")
        held = ranks.exchange(index.tolist())
        # Who holds what, in the order of the dataset: (image, rank, row on that rank).
        order = sorted((image, rank, row) for rank, images in enumerate(held) for row, image in enumerate(images))
        spools = [
            self._merge_one(ranks, order, spool, shape)
            for spool, shape in zip_longest(self.spools, next(iter(shapes), ()))
        ]
        self.clear()
        if ranks.first and order:
            self.spools, self._index = spools, [torch.tensor([image for image, _, _ in order])]

    def _merge_one(
        self, ranks: "Ranks", order: list[tuple[int, int, int]], own: Spool | None, shape: tuple[int, ...]
    ) -> Spool:
        """One kind of rows of all ranks, on rank zero; the spool of any other rank is empty."""
        rows, merged = own.rows() if own else torch.empty(0), Spool(shape, self.dtype)
        for _, rank, row in order:
            if ranks.first:
                mine = rank == ranks.rank
                merged.append(rows[row : row + 1] if mine else ranks.receive((1, *shape), self.dtype, "cpu", rank))
            elif rank == ranks.rank:
                ranks.send(rows[row])
        return merged

    def take(self) -> list[Tensor]:
        """Index (n,) and rows (n, ...) by rising index, mapped from the file; empties it."""
        index = torch.cat(self._index)
        order = in_order(index)
        taken = [index[order], *(spool.finish(order) for spool in self.spools)]
        self.clear()
        return taken

    def clear(self) -> None:
        """See `Accumulator.clear`."""
        self.spools, self._index = [], []

    def required(self, num_images: int) -> int:
        """None of memory; of the disk, see `disk`."""
        return 0

    def disk(self, num_images: int) -> int:
        """Bytes of the file, for so many images like the one that it was given."""
        return num_images * sum(math.prod(spool.shape) for spool in self.spools) * self.dtype.itemsize


class RunningMoments(Accumulator):
    """Mean and scatter of vectors in one pass, at each position of a grid or, on a grid of one, of all of them.

    Its size does not depend on the number of vectors.

    Args:
        dtype: of the scatter; means are float64.
    """

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype
        self.grid: tuple[int, int] | None = None
        self.count, self.dim = 0, 0
        self._moments: Moments | None = None

    def add(self, samples: Tensor) -> None:
        """Add vectors (n, D) to the moments of all."""
        for part in samples.split(max(1, ADDED_BYTES // (self.dtype.itemsize * samples.shape[1]))):
            self.add_parts([(slice(0, 1), part[None])], (1, 1), len(part))

    def add_parts(self, parts: Iterable[tuple[slice, Tensor]], grid: tuple[int, int], count: int) -> None:
        """Add vectors to the moments of their positions.

        Args:
            parts: positions, and of each of them `count` vectors (p, count, D).
            grid: (h, w), of which each position comes once.
            count: of images.

        Raises:
            DataError: the grid is not that of the images before.
        """
        self._require_one({grid} | ({self.grid} if self.grid else set()))
        self.grid = grid
        for part, samples in parts:
            self.dim = samples.shape[2]
            if self.probing:
                continue
            if self._moments is None:
                self._moments = empty_moments(math.prod(grid), self.dim, samples.device, self.dtype)
            add_samples(Moments(self.count, self._moments.mean[part], self._moments.scatter[part]), samples)
        self.count += count

    @staticmethod
    def _require_one(grids: set[tuple[int, int]]) -> None:
        if len(grids) > 1:
            named = " and ".join(f"{height}x{width}" for height, width in sorted(grids))
            raise DataError(f"images give grids of {named} patches: use images of one size")

    def merge(self, ranks: "Ranks", device: torch.device) -> None:
        """Merge counts, means and scatters, some positions at a time: rank zero never holds them twice."""
        own = self._moments
        seen = ranks.exchange((self.count, self.grid, self.dim) if self.grid else None)
        self._require_one({grid for _, grid, _ in filter(None, seen)})
        if not any(seen):
            return
        grid, self.dim = next((grid, dim) for _, grid, dim in filter(None, seen))
        self.grid, positions = grid, math.prod(grid)
        parts = list(split_positions(positions, self.dtype.itemsize * self.dim**2, MERGE_BYTES))
        received = ranks.collect([] if own is None else [t[p] for p in parts for t in (own.mean, own.scatter)], device)
        if not ranks.first:
            self.clear()
            return
        if own is None:
            own = empty_moments(positions, self.dim, device, self.dtype)
        for count, _, _ in filter(None, seen[1:]):
            for part in parts:
                theirs = Moments(count, next(received), next(received))
                merge(Moments(self.count, own.mean[part], own.scatter[part]), theirs)
            self.count += count
        self._moments = own

    def take(self) -> Moments:
        """Count, mean (P, D) and scatter (P, D, D), of at least one vector; empties it."""
        assert self._moments is not None
        taken = self._moments._replace(count=self.count)
        self.clear()
        return taken

    def clear(self) -> None:
        """See `Accumulator.clear`."""
        self.grid, self.count, self.dim, self._moments = None, 0, 0, None

    def required(self, num_images: int) -> int:
        """Means and scatters, whatever the number of images."""
        return math.prod(self.grid or (0,)) * self.dim * (8 + self.dtype.itemsize * self.dim)


def split_positions(positions: int, bytes_each: int, part_bytes: int) -> Iterator[slice]:
    """Positions 0..positions - 1, as many at a time as fill `part_bytes`."""
    step = max(1, part_bytes // max(bytes_each, 1))
    for start in range(0, positions, step):
        yield slice(start, min(start + step, positions))
