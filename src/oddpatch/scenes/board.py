"""What the design of a circuit board consists of."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from oddpatch.scenes.components import Component, Pad

#: Half the side of the board, of the part components may take, and of the part for small chips, mm.
HALF_BOARD = 17.0
HALF_USED = 16.0
HALF_CHIPS = 14.2
MARGIN = 0.4  # mm, between courtyards
CELL = 0.25  # mm, the grid for placing and routing
CELLS = round(2 * HALF_BOARD / CELL)


@dataclass(frozen=True)
class Placed:
    """A component on the board, turned clockwise by quarter turns."""

    component: Component
    x: float
    y: float
    quarter: int
    designator: str

    def pads(self) -> list[Pad]:
        """Its pads in the frame of the board."""
        turned = [pad.turned(self.quarter) for pad in self.component.pads]
        return [Pad(p.x + self.x, p.y + self.y, p.width, p.height, p.round) for p in turned]

    def spread(self, size: tuple[float, float]) -> tuple[float, float]:
        """(width, height) of something of `size` turned as the component is."""
        return size if self.quarter % 2 == 0 else size[::-1]


@dataclass
class Layout:
    """A finished design: components, tracks (points, width), vias, and printed words (text, x, y, height)."""

    placed: list[Placed] = field(default_factory=list)
    tracks: list[tuple[list[tuple[float, float]], float]] = field(default_factory=list)
    vias: list[tuple[float, float]] = field(default_factory=list)
    words: list[tuple[str, float, float, float]] = field(default_factory=list)


class Grid:
    """Which cells of the board are taken."""

    def __init__(self) -> None:
        self.taken = np.ones((CELLS, CELLS), bool)
        margin = round((HALF_BOARD - HALF_USED) / CELL)
        self.taken[margin:-margin, margin:-margin] = False

    def free(self, width: float, height: float) -> NDArray[np.float64]:
        """Centres (n, 2) in mm where a rectangle fits."""
        rows, columns = (int(np.ceil(v / CELL)) for v in (height, width))
        total = np.pad(self.taken, ((1, 0), (1, 0))).astype(np.int64).cumsum(0).cumsum(1)
        inside = total[rows:, columns:] - total[:-rows, columns:] - total[rows:, :-columns] + total[:-rows, :-columns]
        y, x = np.nonzero(inside == 0)
        return np.column_stack([x + columns / 2, y + rows / 2]) * CELL - HALF_BOARD

    def contact(self, x: float, y: float, width: float, height: float) -> float:
        """Share of the cells around a rectangle that are taken."""
        return float(self.taken[self.window(x, y, width + 2 * CELL, height + 2 * CELL)].mean())

    def take(self, x: float, y: float, width: float, height: float) -> None:
        """Mark a rectangle as taken."""
        self.taken[self.window(x, y, width, height)] = True

    @staticmethod
    def window(x: float, y: float, width: float, height: float) -> tuple[slice, slice]:
        """The cells a rectangle touches."""
        centre, reach = np.array([y, x]), np.array([height, width]) / 2
        top, left = np.floor((centre - reach + HALF_BOARD) / CELL + 1e-6).clip(0).astype(int).tolist()
        bottom, right = np.ceil((centre + reach + HALF_BOARD) / CELL - 1e-6).astype(int).tolist()
        return slice(top, bottom), slice(left, right)
