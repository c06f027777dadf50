"""Electronic components: how each looks from above, and the pads it is soldered to. All lengths in mm.

Chips and other two- and three-legged ones are here, the larger ones in `packages`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from oddpatch.scenes.surface import Brush, Surface, srgb

TIN = srgb("d9d9d4")
GOLD = srgb("d8b25a")
STEEL = srgb("c9cbcc")
EPOXY = srgb("33353a")
WHITE = srgb("e9e8e2")


@dataclass(frozen=True)
class Pad:
    """A rectangle of exposed copper, in the frame of its component."""

    x: float
    y: float
    width: float
    height: float
    round: bool = False

    def turned(self, quarter: int) -> "Pad":
        """The pad of a component turned clockwise by quarter turns."""
        x, y = ((self.x, self.y), (-self.y, self.x), (-self.x, -self.y), (self.y, -self.x))[quarter % 4]
        width, height = (self.width, self.height) if quarter % 2 == 0 else (self.height, self.width)
        return Pad(x, y, width, height, self.round)


@dataclass(frozen=True)
class Component:
    """A kind of component.

    `draw` paints it, solder joints included, on a brush of its `extent`; parts of one `package` fit each other's pads.
    """

    label: str
    prefix: str  # of its reference designator
    package: str
    extent: tuple[float, float]  # (width, height) of the courtyard
    body: tuple[float, float]  # of what the silkscreen outlines
    pads: tuple[Pad, ...]
    draw: Callable[[Brush], None]
    polarised: bool = False
    tone: str = ""  # colour, where it tells the component from others of its label

    @property
    def look(self) -> str:
        """What distinguishes it from others at a glance, as its printed value does not."""
        return f"{self.label} {self.package} {self.tone}"

    def sprite(self, scale: float) -> Surface:
        """The component drawn at `scale` pixels per mm."""
        brush = Brush(*self.extent, scale)
        self.draw(brush)
        return brush.surface


def solder(brush: Brush, pads: tuple[Pad, ...], height: float, share: float = 0.86) -> None:
    """A fillet on each pad: a concave heap of tin, highest in the middle."""
    for pad in pads:
        shape = brush.box(pad.x, pad.y, pad.width * share, pad.height * share, 0.3 * min(pad.width, pad.height))
        depth = np.clip(-shape / (0.45 * min(pad.width, pad.height)), 0, 1)
        brush.add(shape, TIN, 0.05 + height * depth**1.4, metal=1.0, rough=0.22)


def _two_pads(length: float, width: float, pad: float) -> tuple[Pad, ...]:
    reach = length / 2 - pad * 0.22
    return tuple(Pad(side * reach, 0, pad, width * 1.12) for side in (-1, 1))


def gull_wings(brush: Brush, pads: tuple[Pad, ...], width: float, edge: float, height: float) -> None:
    """Bent leads, from a body whose side lies `edge` from the centre line out to the pads."""
    for pad in pads:
        upright = pad.height >= pad.width
        along = abs(pad.y if upright else pad.x)
        side = np.sign(pad.y if upright else pad.x)
        outer, inner = along + 0.30 * max(pad.width, pad.height), edge - 0.15
        middle, length = side * (outer + inner) / 2, outer - inner
        x, y, across, down = (pad.x, middle, width, length) if upright else (middle, pad.y, length, width)
        shape = brush.box(x, y, across, down, 0.04)
        run = side * (brush.y if upright else brush.x) + 0 * shape
        bend = np.clip((outer - 0.45 * max(pad.width, pad.height) - run) / 0.35, 0, 1)
        brush.add(shape, STEEL, 0.16 + height * bend * bend * (3 - 2 * bend), metal=1.0, rough=0.20)


def resistor(package: str, length: float, width: float, digits: str) -> Component:
    """A thick-film chip resistor: white ceramic, black glaze with its value, tinned ends."""
    pads = _two_pads(length, width, 0.42 * length if length < 1.2 else 0.36 * length)

    def draw(brush: Brush) -> None:
        solder(brush, pads, 0.30)
        brush.add(brush.box(0, 0, length, width, 0.03), TIN, 0.42, metal=1.0, rough=0.25, bevel=0.08)
        brush.add(brush.box(0, 0, length * 0.64, width, 0.0), srgb("d6d3cb"), 0.42, rough=0.6)
        brush.add(brush.box(0, 0, length * 0.58, width * 0.90, 0.02), srgb("23242a"), 0.46, rough=0.28, bevel=0.05)
        if digits:
            brush.stamp(brush.text(digits, 0, 0, width * 0.46), WHITE, rough=0.5)

    return Component("resistor", "R", package, (length * 1.7, width * 1.5), (length, width), pads, draw)


def capacitor(package: str, length: float, width: float, tone: str) -> Component:
    """A multilayer ceramic capacitor: a brown block between tinned ends."""
    pads = _two_pads(length, width, 0.42 * length if length < 1.2 else 0.36 * length)

    def draw(brush: Brush) -> None:
        solder(brush, pads, 0.40)
        brush.add(brush.box(0, 0, length, width, 0.08), TIN, width * 0.70, metal=1.0, rough=0.28, bevel=0.14 * width)
        brush.add(brush.box(0, 0, length * 0.56, width, 0.02), srgb(tone), width * 0.66, rough=0.40, bevel=0.10 * width)

    return Component("capacitor", "C", package, (length * 1.7, width * 1.5), (length, width), pads, draw, tone=tone)


def led(package: str, length: float, width: float, glow: str) -> Component:
    """A chip LED: white carrier, tinted lens, a green mark at the cathode."""
    pads = _two_pads(length, width, 0.36 * length)

    def draw(brush: Brush) -> None:
        solder(brush, pads, 0.30)
        brush.add(brush.box(0, 0, length, width, 0.03), GOLD, 0.30, metal=1.0, rough=0.25, bevel=0.06)
        brush.add(brush.box(0, 0, length * 0.66, width, 0.02), WHITE, 0.35, rough=0.5)
        lens = brush.box(0, 0, length * 0.60, width * 0.84, 0.15)
        dome = np.sqrt(np.clip(1 - (brush.x / (0.40 * length)) ** 2 - (brush.y / (0.60 * width)) ** 2, 0, 1))
        brush.add(lens, srgb(glow), 0.4 + 0.5 * dome, rough=0.10)
        brush.add(brush.circle(0, 0, width * 0.20), srgb("f4efc9"), 0.4 + 0.5 * dome, rough=0.10, opacity=0.5)
        brush.add(brush.box(-length * 0.30, 0, length * 0.07, width * 0.8), srgb("1f8a4c"), 0.36, rough=0.5)

    return Component("led", "D", package, (length * 1.7, width * 1.5), (length, width), pads, draw, tone=glow)


def tantalum(package: str, length: float, width: float, digits: str) -> Component:
    """A moulded tantalum capacitor: ochre, a brown stripe at its anode."""
    pads = _two_pads(length, width * 0.8, 0.34 * length)

    def draw(brush: Brush) -> None:
        solder(brush, pads, 0.35)
        brush.add(brush.box(0, 0, length * 1.04, width * 0.62, 0.02), TIN, 0.5, metal=1.0, rough=0.25, bevel=0.1)
        brush.add(brush.box(0, 0, length * 0.96, width, 0.05), srgb("d79a35"), 1.7, rough=0.35, bevel=0.18)
        brush.stamp(brush.cover(brush.box(-0.36 * length, 0, 0.13 * length, width)), srgb("6b3a17"))
        brush.stamp(brush.text(digits, 0.08 * length, 0, width * 0.30), srgb("5a3210"))

    return Component("tantalum", "C", package, (length * 1.5, width * 1.3), (length, width), pads, draw, polarised=True)


def diode(package: str, length: float, width: float, code: str) -> Component:
    """A moulded power diode: black, a pale band at the cathode."""
    pads = _two_pads(length * 1.1, width * 0.7, 0.34 * length)

    def draw(brush: Brush) -> None:
        solder(brush, pads, 0.35)
        brush.add(brush.box(0, 0, length * 1.16, width * 0.52, 0.02), TIN, 0.5, metal=1.0, rough=0.22, bevel=0.1)
        brush.add(brush.box(0, 0, length * 0.92, width, 0.05), EPOXY, 1.9, rough=0.38, bevel=0.22)
        brush.stamp(brush.cover(brush.box(-0.30 * length, 0, 0.12 * length, width)), srgb("b9bab8"))
        brush.stamp(brush.text(code, 0.08 * length, 0, width * 0.28), srgb("a9aaa6"))

    return Component("diode", "D", package, (length * 1.6, width * 1.3), (length, width), pads, draw, polarised=True)


def transistor(code: str) -> Component:
    """A SOT-23: three leads, black body."""
    pads = (Pad(-0.95, 1.05, 0.6, 0.8), Pad(0.95, 1.05, 0.6, 0.8), Pad(0, -1.05, 0.6, 0.8))

    def draw(brush: Brush) -> None:
        solder(brush, pads, 0.12)
        gull_wings(brush, pads, 0.42, 0.65, 0.4)
        brush.add(brush.box(0, 0, 2.9, 1.3, 0.06), EPOXY, 1.0, rough=0.36, bevel=0.16)
        brush.stamp(brush.text(code, 0, 0, 0.50), srgb("b4b5b2"))

    return Component("transistor", "Q", "SOT-23", (3.4, 3.4), (2.9, 1.3), pads, draw, polarised=True)
