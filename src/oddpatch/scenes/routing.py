"""Routes a circuit board: which pads are connected, and the way copper takes there."""

import heapq

import numpy as np
from numpy.typing import NDArray

from oddpatch.scenes.board import CELL, CELLS, HALF_BOARD, HALF_USED, Grid, Layout, Placed
from oddpatch.scenes.components import Pad

Point = NDArray[np.float64]  # (2,) x and y, mm
Cell = tuple[int, int]  # of the grid, row and column
#: Steps between cells, and their lengths.
_STEPS = [(dy, dx, float(np.hypot(dy, dx))) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def route(layout: Layout, rng: np.random.Generator) -> None:
    """Connect pads to near pads of other components, shortest first, on one layer with 45 degree tracks."""
    pads = [(n, pad) for n, placed in enumerate(layout.placed) for pad in placed.pads()]
    blocked = np.zeros((CELLS, CELLS), np.int32)  # 1 + pad where a pad keeps others off, -1 where a track does
    for i, (_, pad) in enumerate(pads):
        blocked[Grid.window(pad.x, pad.y, pad.width + 0.35, pad.height + 0.35)] = i + 1
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
            if path := _shortest(blocked, centres[i], centres[j], (i + 1, j + 1)):
                free[i] = free[j] = False
                _lay_track(layout, blocked, path, centres[i], centres[j], 0.25 if rng.random() < 0.75 else 0.4)
                break
    for rest in np.flatnonzero(free).tolist():  # these go to the other side of the board, through a via
        _fan_out(layout, blocked, pads[rest][1], layout.placed[owner[rest]], rest + 1)


def _cell(point: Point) -> Cell:
    x, y = np.clip((point + HALF_BOARD) / CELL, 0, CELLS - 1).astype(int)
    return int(y), int(x)


def _shortest(blocked: NDArray[np.int32], start: Point, end: Point, own: tuple[int, int]) -> list[Cell]:
    """Cells of the shortest free way (A* with the octile distance), [] if there is none; bends cost a little."""
    source, target = _cell(start), _cell(end)
    passable = (blocked == 0) | (blocked == own[0]) | (blocked == own[1])

    def ahead(y: int, x: int) -> float:
        dy, dx = abs(y - target[0]), abs(x - target[1])
        return max(dy, dx) + 0.4142 * min(dy, dx)

    queue: list[tuple[float, float, Cell, tuple[int, int]]] = [(ahead(*source), 0.0, source, (0, 0))]
    came: dict[Cell, Cell] = {}
    best = {source: 0.0}
    closed: set[Cell] = set()
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
            if not (0 <= there[0] < CELLS and 0 <= there[1] < CELLS and passable[there]):
                continue
            total = cost + length + (0.6 if heading not in ((0, 0), (dy, dx)) else 0)
            if total < best.get(there, np.inf):
                best[there], came[there] = total, here
                heapq.heappush(queue, (total + ahead(*there), total, there, (dy, dx)))
    return []


def _lay_track(
    layout: Layout, blocked: NDArray[np.int32], path: list[Cell], start: Point, end: Point, width: float
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
    step = np.sign(away) * (np.arange(2) == axis)
    reach = (pad.width, pad.height)[axis] / 2 + 0.75
    for length in (reach, reach + 0.5):
        end = np.array([pad.x, pad.y]) + step * length
        y, x = _cell(end)
        ring = blocked[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        if np.isin(ring, (0, own)).all() and np.abs(end).max() < HALF_USED:
            layout.tracks.append(([(pad.x, pad.y), (float(end[0]), float(end[1]))], 0.25))
            layout.vias.append((float(end[0]), float(end[1])))
            blocked[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = -1
            return
