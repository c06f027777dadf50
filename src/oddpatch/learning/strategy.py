"""How Lightning runs a module on several devices, whether or not it has anything that learns by gradients."""

from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.parallel import ParallelStrategy
from lightning.pytorch.trainer import Trainer
from torch.nn import Module

from oddpatch.ops.ranks import Ranks


class RanksStrategy(DDPStrategy):
    """DDP, without DistributedDataParallel for a module that has no parameter to train: it refuses one.

    Then there are no gradients to exchange. What the ranks exchange is in `oddpatch.learning.distributed.fit` and in
    the metrics.

    Examples:
        >>> from lightning import Trainer
        >>> from oddpatch.learning.strategy import RanksStrategy
        >>> Trainer(strategy=RanksStrategy(), accelerator="cpu", devices=2, logger=False).world_size
        2
    """

    def setup(self, trainer: Trainer) -> None:
        """Move the module to its device; without gradients nothing is synchronised: all have fitted the same."""
        if self._learns():
            super().setup(trainer)
        else:
            super(ParallelStrategy, self).setup(trainer)

    def _setup_model(self, model: Module) -> Module:  # type: ignore[override]
        return super()._setup_model(model) if self._learns() else model

    def _learns(self) -> bool:
        assert self.model is not None
        return any(parameter.requires_grad for parameter in self.model.parameters())

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for all ranks, on the CPU: a device would keep it busy."""
        Ranks().exchange(None)
