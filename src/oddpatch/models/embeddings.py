"""What a patch is to a memory bank: PatchCore's `embedding`."""

from abc import ABC, abstractmethod

from torch import Tensor


class Embedding(ABC):
    """Makes patches of feature maps. In a config it is "pooled" or "joined", or an object of a class of your own.

    Distances between its patches are Euclidean or, with `distance=cosine`, those of their directions: another distance
    is one between what an embedding makes of them.
    """

    @abstractmethod
    def __call__(self, features: list[Tensor]) -> Tensor:
        """Patches (B, h, w, D), each by itself, of feature maps [(B, C_l, h_l, w_l)], finest first."""
