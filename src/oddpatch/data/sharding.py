"""Which items of a dataset each device sees: every item once, over all of them."""

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from oddpatch.ops.ranks import Ranks


class ShardedBatches(Sampler[list[int]]):
    """Some positions of a dataset in batches: each position once over all devices, none repeated to fill up.

    Every rank takes every world-th position, in as many batches as the others, the last of which may hold fewer, or
    none: Lightning has the ranks talk to each other in every step, so none may have a step less than the others.
    """

    def __init__(self, positions: Sequence[int], batch_size: int) -> None:
        self.positions, self.batch_size = positions, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        ranks = Ranks()  # asked for when iterated, as the process group may not be there yet when the loader is made
        own = list(self.positions[ranks.rank :: ranks.size])
        return (own[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self)))

    def __len__(self) -> int:
        longest = -(-len(self.positions) // Ranks().size)
        return -(-longest // self.batch_size)
