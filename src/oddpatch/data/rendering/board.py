"""The design of a circuit board: where components go, which pads are connected, and the way copper takes there."""

import heapq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.rendering import components as part
from oddpatch.data.rendering.components import Component, Pad

#: Half the side of the board, of the part components may take, and of the part for small chips, mm.
HALF_BOARD = 17.0
HALF_USED = 16.0
HALF_CHIPS = 14.2
MARGIN = 0.4  # mm, between courtyards
CELL = 0.25  # mm, the grid for placing and routing
_CELLS = round(2 * HALF_BOARD / CELL)


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


def _large() -> list[Component]:
    return [
        part.qfp(8, "OP32F1", "2437 B"),
        part.soic(14, "74HC595D", "K2419"),
        part.soic(8, "LM358", "41AX"),
        part.socket(4),
        part.header(8),
        part.electrolytic(5.0, "47 25V"),
        part.electrolytic(4.0, "10 35V"),
        part.inductor(4.4, "100"),
        part.switch(),
        part.crystal("16.000"),
        part.diode("SMA", 4.3, 2.6, "SS34"),
        part.tantalum("CASE-A", 3.4, 1.8, "107A"),
        part.transistor("1AM"),
        part.transistor("702"),
        part.transistor("1AM"),
    ]


def _small() -> list[list[Component]]:
    """Rows of chip components, each laid side by side."""
    r0805 = [part.resistor("0805", 2.0, 1.25, digits) for digits in ("103", "472", "221")]
    c0805 = [part.capacitor("0805", 2.0, 1.25, tone) for tone in ("a98a62", "b39a74")]
    leds = [part.led("0805", 2.0, 1.25, glow) for glow in ("d8402f", "e2a62b", "57b24a")]
    r0603 = [part.resistor("0603", 1.6, 0.8, digits) for digits in ("102", "104", "330", "01C")]
    c0603 = [part.capacitor("0603", 1.6, 0.8, tone) for tone in ("a5835a", "b89c78")]
    r0402 = part.resistor("0402", 1.0, 0.5, "")
    c0402 = part.capacitor("0402", 1.0, 0.5, "a98a62")
    return [
        leds,
        [r0805[0], c0805[0], r0805[1]],
        [c0805[1], r0805[2]],
        [r0603[0], c0603[0], r0603[1], r0603[1]],
        [r0603[2], r0603[2], c0603[1]],
        [c0603[0], r0603[3]],
        [r0402, r0402, c0402, r0402],
        [c0402, r0402, c0402],
        [r0402, c0402],
        [c0402, c0402],
        [r0603[0], r0603[1]],
        [c0402, r0402],
        [c0603[1], c0603[1]],
    ]


class _Grid:
    """Which cells of the board are taken."""

    def __init__(self) -> None:
        self.taken = np.ones((_CELLS, _CELLS), bool)
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
        edges = [
            (
                int(np.floor((c - e / 2 + HALF_BOARD) / CELL + 1e-6)),
                int(np.ceil((c + e / 2 + HALF_BOARD) / CELL - 1e-6)),
            )
            for c, e in ((y, height), (x, width))
        ]
        return slice(max(edges[0][0], 0), edges[0][1]), slice(max(edges[1][0], 0), edges[1][1])


def lay_out(rng: np.random.Generator) -> Layout:
    """A board design: the fullest of a few placements, as many connections routed as there is room for."""
    designs = []
    for _ in range(10):
        grid, layout = _Grid(), Layout()
        _place(layout, grid, rng)
        designs.append((layout, grid))
    layout, grid = max(designs, key=lambda design: len(design[0].placed))
    _print_names(layout, grid)
    _route(layout, rng)
    return layout


def _place(layout: Layout, grid: _Grid, rng: np.random.Generator) -> None:
    """Place the large components one by one, then the rows of chips; what does not fit is left out."""
    for corner in (-1, 1):  # mounting holes
        grid.take(corner * (HALF_BOARD - 2.0), -corner * (HALF_BOARD - 2.0), 3.6, 3.6)
    counts: dict[str, int] = {}
    blocks = [[component] for component in _large()] + _small()
    blocks.sort(key=lambda block: -sum(c.extent[0] * c.extent[1] for c in block if len(block) == 1))
    for block in blocks:
        quarter = int(rng.integers(4))
        gap = 0.35
        along = sum(c.extent[1] for c in block) + gap * (len(block) - 1)
        across = max(c.extent[0] for c in block)
        size = (across, along) if quarter % 2 == 0 else (along, across)
        room = (size[0] + MARGIN, size[1] + MARGIN)
        spots = grid.free(*room)
        if len(block) > 1:
            spots = spots[(np.abs(spots) + np.array(room) / 2 < HALF_CHIPS).all(1)]
        if not len(spots):
            continue
        # Of a few random spots the tightest, so that the room left stays in one piece.
        some = spots[rng.integers(len(spots), size=16)]
        x, y = max(some, key=lambda spot: grid.contact(*spot, *room))
        grid.take(x, y, *room)
        offset = -along / 2
        for component in block:
            offset += component.extent[1] / 2
            turned = (0.0, offset) if quarter % 2 == 0 else (offset, 0.0)
            counts[component.prefix] = counts.get(component.prefix, 0) + 1
            name = f"{component.prefix}{counts[component.prefix]}"
            layout.placed.append(Placed(component, float(x + turned[0]), float(y + turned[1]), quarter, name))
            offset += component.extent[1] / 2 + gap


def _print_names(layout: Layout, grid: _Grid) -> None:
    """Print each designator on the nearest free side of its component, and the board's name where there is room."""
    for placed in layout.placed:
        width, height = placed.spread(placed.component.extent)
        tall = 0.8
        wide = 0.62 * tall * len(placed.designator) + 0.2
        for dx, dy in ((0, -1), (0, 1), (-1, 0), (1, 0)):
            x = placed.x + dx * (width + MARGIN + wide) / 2
            y = placed.y + dy * (height + MARGIN + tall) / 2
            window = grid.window(x, y, wide - 0.3, tall - 0.2)
            if not grid.taken[window].any():
                grid.taken[window] = True
                layout.words.append((placed.designator, x, y, tall))
                break
    for words, tall in (("ODDPATCH", 1.1), ("REV 2.1", 0.8)):
        spots = grid.free(0.66 * tall * len(words) + 0.4, tall + 0.4)
        if len(spots):
            x, y = spots[len(spots) // 2]
            grid.take(x, y, 0.66 * tall * len(words), tall)
            layout.words.append((words, float(x), float(y), tall))


def _route(layout: Layout, rng: np.random.Generator) -> None:
    """Connect pads to near pads of other components, shortest first, on one layer with 45 degree tracks."""
    pads = [(n, pad) for n, placed in enumerate(layout.placed) for pad in placed.pads()]
    blocked = np.zeros((_CELLS, _CELLS), np.int32)  # 1 + pad where a pad keeps others off, -1 where a track does
    for i, (_, pad) in enumerate(pads):
        blocked[_Grid.window(pad.x, pad.y, pad.width + 0.35, pad.height + 0.35)] = i + 1
    centres = np.array([(pad.x, pad.y) for _, pad in pads])
    owner = np.array([n for n, _ in pads])
    apart = np.abs(centres[:, None] - centres[None]).sum(-1) + 1e3 * (owner[:, None] == owner[None])
    free = np.ones(len(pads), bool)
    for i in np.argsort(apart.min(1), kind="stable"):
        if not free[i]:
            continue
        for j in np.argsort(np.where(free, apart[i], np.inf), kind="stable")[:3]:
            if apart[i, j] > 16 or not free[j]:
                continue
            path = _shortest(blocked, centres[i], centres[j], (i + 1, j + 1))
            if path:
                free[i] = free[j] = False
                _lay_track(layout, blocked, path, centres[i], centres[j], 0.25 if rng.random() < 0.75 else 0.4)
                break
    for i in np.flatnonzero(free):  # the rest go to the other side of the board through a via
        _fan_out(layout, blocked, pads[i][1], layout.placed[owner[i]], int(i) + 1)


def _cell(point: NDArray[np.float64]) -> tuple[int, int]:
    x, y = np.clip((point + HALF_BOARD) / CELL, 0, _CELLS - 1).astype(int)
    return int(y), int(x)


_STEPS = [(dy, dx, float(np.hypot(dy, dx))) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def _shortest(
    blocked: NDArray[np.int32], start: NDArray[np.float64], end: NDArray[np.float64], own: tuple[int, int]
) -> list[tuple[int, int]]:
    """Cells of the shortest free way (A* with the octile distance), [] if there is none; bends cost a little."""
    source, target = _cell(start), _cell(end)
    passable = (blocked == 0) | (blocked == own[0]) | (blocked == own[1])

    def ahead(y: int, x: int) -> float:
        dy, dx = abs(y - target[0]), abs(x - target[1])
        return max(dy, dx) + 0.4142 * min(dy, dx)

    queue: list[tuple[float, float, tuple[int, int], tuple[int, int]]] = [(ahead(*source), 0.0, source, (0, 0))]
    came: dict[tuple[int, int], tuple[int, int]] = {}
    best = {source: 0.0}
    closed = set()
    while queue:
        _, cost, here, heading = heapq.heappop(queue)
        if here == target:
            path = [here]
            while here != source:
                here = came[here]
                path.append(here)
            return path[::-1]
        if here in closed or len(closed) > 4000:
            continue
        closed.add(here)
        for dy, dx, length in _STEPS:
            there = (here[0] + dy, here[1] + dx)
            if not (0 <= there[0] < _CELLS and 0 <= there[1] < _CELLS and passable[there]):
                continue
            total = cost + length + (0.6 if heading not in ((0, 0), (dy, dx)) else 0)
            if total < best.get(there, np.inf):
                best[there], came[there] = total, here
                heapq.heappush(queue, (total + ahead(*there), total, there, (dy, dx)))
    return []


def _lay_track(
    layout: Layout,
    blocked: NDArray[np.int32],
    path: list[tuple[int, int]],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    width: float,
) -> None:
    points = [((x + 0.5) * CELL - HALF_BOARD, (y + 0.5) * CELL - HALF_BOARD) for y, x in path]
    points[0], points[-1] = (float(start[0]), float(start[1])), (float(end[0]), float(end[1]))
    layout.tracks.append((points, width))
    for y, x in path:
        window = blocked[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
        window[window == 0] = -1


def _fan_out(layout: Layout, blocked: NDArray[np.int32], pad: Pad, placed: Placed, own: int) -> None:
    """A short track away from the component to a via, if there is room."""
    away = np.array([pad.x - placed.x, pad.y - placed.y])
    if pad.round or not away.any():
        return  # through-hole pads need no via
    axis = int(np.argmax(np.abs(away)))
    step = np.zeros(2)
    step[axis] = np.sign(away[axis])
    start = np.array([pad.x, pad.y])
    reach = (pad.width, pad.height)[axis] / 2 + 0.75
    for length in (reach, reach + 0.5):
        end = start + step * length
        y, x = _cell(end)
        ring = blocked[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        if np.isin(ring, (0, own)).all() and np.abs(end).max() < HALF_USED:
            layout.tracks.append(([(pad.x, pad.y), (float(end[0]), float(end[1]))], 0.25))
            layout.vias.append((float(end[0]), float(end[1])))
            blocked[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = -1
            return
