"""Lays a circuit board out: which components there are, and where they and their names go."""

import numpy as np

from oddpatch.scenes import components as chip
from oddpatch.scenes import packages as package
from oddpatch.scenes.board import HALF_BOARD, HALF_CHIPS, MARGIN, Grid, Layout, Placed
from oddpatch.scenes.components import Component
from oddpatch.scenes.routing import route


def _large() -> list[Component]:
    return [
        package.qfp(8, "OP32F1", "2437 B"),
        package.soic(14, "74HC595D", "K2419"),
        package.soic(8, "LM358", "41AX"),
        package.socket(4),
        package.header(8),
        package.electrolytic(5.0, "47 25V"),
        package.electrolytic(4.0, "10 35V"),
        package.inductor(4.4, "100"),
        package.switch(),
        package.crystal("16.000"),
        chip.diode("SMA", 4.3, 2.6, "SS34"),
        chip.tantalum("CASE-A", 3.4, 1.8, "107A"),
        chip.transistor("1AM"),
        chip.transistor("702"),
        chip.transistor("1AM"),
    ]


def _small() -> list[list[Component]]:
    """Rows of chip components, each laid side by side."""
    r0805 = [chip.resistor("0805", 2.0, 1.25, digits) for digits in ("103", "472", "221")]
    c0805 = [chip.capacitor("0805", 2.0, 1.25, tone) for tone in ("a98a62", "b39a74")]
    leds = [chip.led("0805", 2.0, 1.25, glow) for glow in ("d8402f", "e2a62b", "57b24a")]
    r0603 = [chip.resistor("0603", 1.6, 0.8, digits) for digits in ("102", "104", "330", "01C")]
    c0603 = [chip.capacitor("0603", 1.6, 0.8, tone) for tone in ("a5835a", "b89c78")]
    r0402 = chip.resistor("0402", 1.0, 0.5, "")
    c0402 = chip.capacitor("0402", 1.0, 0.5, "a98a62")
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


def lay_out(rng: np.random.Generator) -> Layout:
    """A board design: the fullest of a few placements, as many connections routed as there is room for."""
    designs = []
    for _ in range(10):
        grid, layout = Grid(), Layout()
        _place(layout, grid, rng)
        designs.append((layout, grid))
    layout, grid = max(designs, key=lambda design: len(design[0].placed))
    _print_names(layout, grid)
    route(layout, rng)
    return layout


def _place(layout: Layout, grid: Grid, rng: np.random.Generator) -> None:
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
        x, y = some[np.argmax([grid.contact(sx, sy, *room) for sx, sy in some])]
        grid.take(x, y, *room)
        offset = -along / 2
        for component in block:
            offset += component.extent[1] / 2
            turned = (0.0, offset) if quarter % 2 == 0 else (offset, 0.0)
            counts[component.prefix] = counts.get(component.prefix, 0) + 1
            name = f"{component.prefix}{counts[component.prefix]}"
            layout.placed.append(Placed(component, float(x + turned[0]), float(y + turned[1]), quarter, name))
            offset += component.extent[1] / 2 + gap


def _print_names(layout: Layout, grid: Grid) -> None:
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
