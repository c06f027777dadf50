"""How Lightning runs a module with nothing to train on several devices."""

from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.parallel import ParallelStrategy
from lightning.pytorch.trainer import Trainer
from torch.nn import Module

from oddpatch.ops.ranks import Ranks


class FrozenDDPStrategy(DDPStrategy):
    """DDP without DistributedDataParallel, which refuses a module that has no parameter to train.

    There are no gradients to exchange. What the ranks exchange is in `oddpatch.learning.distributed.fit` and in the
    metrics.
    """

    def setup(self, trainer: Trainer) -> None:
        """Move the module to its device; nothing is synchronised: all ranks have fitted, or loaded, the same."""
        super(ParallelStrategy, self).setup(trainer)

    def _setup_model(self, model: Module) -> Module:  # type: ignore[override]
        return model

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for all ranks, on the CPU: a device would keep it busy."""
        Ranks().exchange(None)
