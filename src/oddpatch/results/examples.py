"""Which images are worth a picture: found while they stream by, so that memory does not grow with their number."""

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.layout import GOOD
from oddpatch.files import shown

#: Images kept of each type, among which the typical one is looked for.
DRAWN_PER_TYPE = 5


class Box(NamedTuple):
    """A rectangle in pixels of the preprocessed image."""

    left: float
    top: float
    width: float
    height: float


class Match(NamedTuple):
    """A patch of the image, and the nearest normal patch."""

    patch: Box
    normal: Box
    train_image: str  # path as the checkpoint knows it
    distance: float


class Neighbour(NamedTuple):
    """The most anomalous patch of an image with the normal patch nearest to it, and the image that one is of."""

    match: Match
    image: NDArray[np.uint8]  # (H, W, 3)


@dataclass(frozen=True, eq=False, slots=True)
class Example:
    """One test image with its truth and its result, on the CPU."""

    image: NDArray[np.uint8]  # (H, W, 3); empty as long as only features are at hand, which came from a cache
    mask: NDArray[np.uint8]  # (H, W), 1 = defect, 0 = normal, IGNORE = not known
    anomaly_map: NDArray[np.float32] | None  # (H, W)
    score: float
    label: int
    defect_type: str
    index: int
    path: str
    note: str = ""  # shown in place of the verdict
    neighbour: Neighbour | None = None  # where that was wanted, and the detector keeps normal patches

    @property
    def stem(self) -> str:
        """The file's name without its ending, escaped where it cannot be written."""
        return shown(PurePath(self.path).stem)


Key = tuple[float, int]  # what to sort by, then the image's index: ties fall the same way whatever the batches


class Lowest:
    """The `size` examples with the lowest keys, in whatever order they come."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.kept: list[tuple[Key, Example]] = []

    def wants(self, key: Key) -> bool:
        """Whether an example with this key would be kept: ask before making one."""
        if any(kept == key for kept, _ in self.kept):
            return False  # seen before, as a sampler that pads would have it
        return len(self.kept) < self.size or (self.size > 0 and key < self.kept[-1][0])

    def add(self, key: Key, example: Example) -> None:
        """Keep an example if it is among the lowest."""
        if self.wants(key):
            insort(self.kept, (key, example), key=lambda pair: pair[0])
            del self.kept[self.size :]

    def examples(self) -> list[Example]:
        """Those kept, lowest key first."""
        return [example for _, example in self.kept]


class Candidates:
    """The test images that may be shown.

    Args:
        worst: how many anomalous images of the lowest scores, and good ones of the highest.
        typical: how many images that stand for their type; 0 keeps none.
    """

    def __init__(self, worst: int, typical: int) -> None:
        self.typical = typical
        self.misses, self.false_alarms = Lowest(worst), Lowest(worst)
        self.by_type: dict[str, Lowest] = {}

    def pools(self, score: float, label: int, defect_type: str, index: int) -> list[tuple[Lowest, Key]]:
        """Where an image with this score would be kept, and under which key."""
        worst = (self.misses, (score, index)) if label else (self.false_alarms, (-score, index))
        drawn = self.by_type.setdefault(defect_type, Lowest(DRAWN_PER_TYPE if self.typical else 0))
        # Fibonacci hashing: the lowest values are spread evenly over the indices, and do not depend on the batches.
        return [(pool, key) for pool, key in (worst, (drawn, (index * 0x9E3779B1 % 2**32, index))) if pool.wants(key)]

    def add(self, example: Example) -> None:
        """Keep an example where it is wanted."""
        for pool, key in self.pools(example.score, example.label, example.defect_type, example.index):
            pool.add(key, example)

    def merge(self, others: Iterable["Candidates"]) -> None:
        """Add what other devices kept: the result is as if one device had seen all images."""
        for other in others:
            for pool in (other.misses, other.false_alarms, *other.by_type.values()):
                for example in pool.examples():
                    self.add(example)

    def choose(self, scores: Mapping[str, Sequence[float]]) -> dict[str, list[Example]]:
        """The examples to show, by kind: `miss`, `false_alarm`, `typical`; kinds without any are left out.

        Args:
            scores: of all test images, by type.

        Typical are, of up to `DRAWN_PER_TYPE` images drawn evenly from each type, those nearest to the type's median
        score: one of each type (good first, then the types with the most images), then a second of each, and so on.
        Images shown as worst are not shown again.
        """
        chosen = {"miss": self.misses.examples(), "false_alarm": self.false_alarms.examples()}
        shown = {example.index for examples in chosen.values() for example in examples}
        order = sorted(self.by_type, key=lambda name: (name != GOOD, -len(scores[name]), name))
        queues = []
        for name in order:
            middle = median(scores[name])
            left = [example for example in self.by_type[name].examples() if example.index not in shown]
            queues.append(sorted(left, key=lambda it, middle=middle: (abs(it.score - middle), it.index)))  # type: ignore[misc]
        turns = [queue[turn] for turn in range(DRAWN_PER_TYPE) for queue in queues if turn < len(queue)]
        chosen["typical"] = turns[: self.typical]
        return {kind: examples for kind, examples in chosen.items() if examples}
