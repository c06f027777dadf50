"""Which patches a memory bank keeps: PatchCore's `selector`."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from oddpatch.errors import ConfigError
from oddpatch.ops.coreset import (
    OtherGroups,
    ProgressFn,
    approximate_greedy,
    density_subset,
    k_center_greedy,
    random_subset,
)


class Selector(ABC):
    """Picks points to keep. In a config it is one of `SELECTORS` by name, or an object of a class of your own."""

    #: Whether it looks at the points: they are then normalised and projected as PatchCore is set to.
    measures: bool = True
    #: Whether it keeps an `OtherGroups` up to date, which makes leaving an image out cheap.
    tracks_others: bool = False

    @abstractmethod
    def __call__(
        self,
        points: Tensor,
        count: int,
        generator: torch.Generator,
        progress: ProgressFn | None = None,
        others: OtherGroups | None = None,
    ) -> Tensor:
        """Distinct indices (count,) of points (N, D), in the order of picking; what is drawn, `generator` draws."""


class Greedy(Selector):
    """k-center: each pick is the point that is farthest from those before (the paper)."""

    tracks_others = True

    def __call__(
        self,
        points: Tensor,
        count: int,
        generator: torch.Generator,
        progress: ProgressFn | None = None,
        others: OtherGroups | None = None,
    ) -> Tensor:
        """See `k_center_greedy`."""
        return k_center_greedy(points, count, generator=generator, progress=progress, others=others)


class ApproximateGreedy(Selector):
    """k-center whose distances begin as the mean to ten random points (the authors' code)."""

    tracks_others = True

    def __call__(
        self,
        points: Tensor,
        count: int,
        generator: torch.Generator,
        progress: ProgressFn | None = None,
        others: OtherGroups | None = None,
    ) -> Tensor:
        """See `approximate_greedy`."""
        return approximate_greedy(points, count, generator, progress=progress, others=others)


class Random(Selector):
    """Each subset equally likely."""

    measures = False

    def __call__(
        self,
        points: Tensor,
        count: int,
        generator: torch.Generator,
        progress: ProgressFn | None = None,
        others: OtherGroups | None = None,
    ) -> Tensor:
        """See `random_subset`."""
        return random_subset(len(points), count, generator).to(points.device)


class Density(Selector):
    """Fewer of points that lie close together than of others (SuperADD)."""

    def __call__(
        self,
        points: Tensor,
        count: int,
        generator: torch.Generator,
        progress: ProgressFn | None = None,
        others: OtherGroups | None = None,
    ) -> Tensor:
        """See `density_subset`."""
        return density_subset(points, count, generator, progress=progress)


class KeepAll(Greedy):
    """Every point; where fewer are asked for, greedily."""


SELECTORS: dict[str, type[Selector]] = {
    "greedy": Greedy, "approximate_greedy": ApproximateGreedy, "random": Random, "density": Density,
    "none": KeepAll,
}  # fmt: skip


def make_selector(selector: str | Selector) -> Selector:
    """The selector of this name, or the one that was given.

    Raises:
        ConfigError: there is none of this name.
    """
    if isinstance(selector, Selector):
        return selector
    if not isinstance(selector, str) or selector not in SELECTORS:
        raise ConfigError(f"selector={selector!r}: choose one of {', '.join(SELECTORS)}")
    return SELECTORS[selector]()
