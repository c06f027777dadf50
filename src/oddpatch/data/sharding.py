"""Which items of a dataset each device sees: every item once, over all of them."""

from collections.abc import Iterator, Sequence

from torch import distributed
from torch.utils.data import Sampler

from oddpatch.ops.ranks import Ranks


class ShardedSampler(Sampler[int]):
    """Every world-th of some positions of a dataset: each item once over all devices, none repeated to fill up.

    Ranks may therefore differ by one item, and hold none if there are fewer items than devices.
    """

    def __init__(self, positions: Sequence[int]) -> None:
        self.positions = positions

    def _positions(self) -> Sequence[int]:
        # Asked for when iterated, as the process group may not be there yet when the loader is made.
        if distributed.is_available() and distributed.is_initialized():
            return self.positions[distributed.get_rank() :: distributed.get_world_size()]
        return self.positions

    def __iter__(self) -> Iterator[int]:
        return iter(self._positions())

    def __len__(self) -> int:
        return len(self._positions())


class ShardedBatches(Sampler[list[int]]):
    """The positions of a `ShardedSampler` in batches, as many on every rank: the last may hold fewer, or none.

    Lightning has the ranks talk to each other in every step, so none may have a step less than the others.
    """

    def __init__(self, positions: Sequence[int], batch_size: int) -> None:
        self.sampler, self.batch_size = ShardedSampler(positions), batch_size

    def __iter__(self) -> Iterator[list[int]]:
        own = list(self.sampler)
        return (own[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self)))

    def __len__(self) -> int:
        longest = -(-len(self.sampler.positions) // Ranks().size)
        return -(-longest // self.batch_size)
