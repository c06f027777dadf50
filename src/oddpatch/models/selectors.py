"""Which patches a memory bank keeps: PatchCore's `selector`."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    #: Whether every point is kept where no number is asked for.
    keeps_all: bool = False

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


@dataclass(frozen=True)
class _Function(Selector):
    """A function of `oddpatch.ops.coreset`."""

    pick: Callable[..., Tensor]
    measures: bool = True
    tracks_others: bool = True
    keeps_all: bool = False

    def __call__(self, points: Tensor, count: int, *args: Any, **kwargs: Any) -> Tensor:
        return self.pick(points, count, *args, **kwargs)


def _random(points: Tensor, count: int, generator: torch.Generator, **_: Any) -> Tensor:
    return random_subset(len(points), count, generator).to(points.device)


def _density(points: Tensor, count: int, generator: torch.Generator, progress: ProgressFn | None, **_: Any) -> Tensor:
    return density_subset(points, count, generator, progress=progress)


GREEDY = _Function(k_center_greedy)
SELECTORS: dict[str, Selector] = {
    "greedy": GREEDY,
    "approximate_greedy": _Function(approximate_greedy),
    "random": _Function(_random, measures=False, tracks_others=False),
    "density": _Function(_density, tracks_others=False),
    "none": _Function(k_center_greedy, keeps_all=True),
}


def make_selector(selector: str | Selector) -> Selector:
    """The selector of this name, or the one that was given.

    Raises:
        ConfigError: there is none of this name.
    """
    if isinstance(selector, Selector):
        return selector
    if not isinstance(selector, str) or selector not in SELECTORS:
        raise ConfigError(f"selector={selector!r}: choose one of {', '.join(SELECTORS)}")
    return SELECTORS[selector]
