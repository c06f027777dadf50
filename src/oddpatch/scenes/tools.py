"""Hand tools as they look from above. Each lies along x, its working end to the right; all lengths in mm."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from oddpatch.scenes.surface import Array, Brush, Surface, cloud, srgb

CHROME = srgb("cfd3d6")
DARK_STEEL = srgb("7e8286")
RUBBER = srgb("26272a")


@dataclass(frozen=True)
class Tool:
    """A kind of tool. Tools of one `package` fit each other's slots; `look` tells which is which."""

    label: str
    look: str
    package: str
    size: tuple[float, float]
    draw: Callable[[Brush], None]
    polarised: bool = True

    def sprite(self, scale: float) -> Surface:
        """The tool drawn at `scale` pixels per mm."""
        brush = Brush(self.size[0] + 4, self.size[1] + 4, scale)
        self.draw(brush)
        return brush.surface


def _round_bar(distance: Array, radius: float) -> Array:
    """Height of a bar of circular section over its edge distance."""
    inward = np.clip(1 + distance / radius, 0, 1)
    return radius * (1 + np.sqrt(1 - inward**2)).astype(np.float32)


def _brushed(brush: Brush, seed: int) -> Array:
    """Reflectance of brushed steel, finely streaked along x."""
    height, width = brush.shape
    streaks = cloud(np.random.default_rng(seed), (height, max(2, width // 24)), [(1.2, 0.05)])
    columns = np.clip(np.arange(width) // 24, 0, streaks.shape[1] - 1)
    return np.asarray(CHROME, np.float32) * (1 + streaks[:, columns])[..., None]


def screwdriver(length: float, colour: str) -> Tool:
    """A fluted two-colour grip, a round shaft."""
    width, grip = 31.0, 0.46 * length

    def draw(brush: Brush) -> None:
        left = -length / 2
        shaft = brush.line([(left + grip, 0), (length / 2 - 7, 0)], 7.0)
        brush.add(shaft, _brushed(brush, 1), 6 + _round_bar(shaft, 3.5), metal=1.0, rough=0.18)
        tip = brush.polygon([(length / 2 - 12, -3.4), (length / 2, -4.2), (length / 2, 4.2), (length / 2 - 12, 3.4)])
        brush.add(tip, DARK_STEEL, 9, metal=1.0, rough=0.25, bevel=2.0)
        points = [(left + 13, 0.0), (left + 0.35 * grip, 0.0), (left + 0.72 * grip, 0.0), (left + 0.95 * grip, 0.0)]
        body = brush.line(points, [25, 30, 20, 23])
        flutes = 1 + 0.10 * np.cos(brush.y * np.float32(2 * np.pi / 6.5)) * (brush.x < left + 0.7 * grip)
        brush.add(body, srgb(colour), 1 + _round_bar(body, 12.0) * flutes, rough=0.22)
        for reach in (np.abs(brush.x - (left + 0.80 * grip)) - 6, brush.x - (left + 8)):  # a band and the cap
            brush.stamp(brush.cover(np.maximum(body, reach)), RUBBER, rough=0.4)

    return Tool("screwdriver", f"screwdriver {colour}", "screwdriver", (length, width), draw)


def wrench(length: float, head: float, size: str) -> Tool:
    """A combination wrench: a ring at the left, an open jaw at the right, its size forged in."""

    def draw(brush: Brush) -> None:
        left, right = -length / 2 + head * 0.42, length / 2 - head * 0.5
        steel = _brushed(brush, 2)
        shank = brush.line([(left, 0), (0, 0), (right, 0)], [head * 0.42, head * 0.36, head * 0.46])
        hole = brush.circle(left, 0, head * 0.22)
        throat = brush.box(right + head * 0.42, 0, head * 0.9, head * 0.40, 2, -15)
        shank = np.maximum(shank, -np.minimum(hole, throat))
        groove = brush.box(0, 0, length * 0.52, head * 0.16, head * 0.08)
        brush.add(shank, steel, 6.5, metal=1.0, rough=0.24, bevel=3.0)
        ring = np.maximum(brush.circle(left, 0, head * 0.42), -hole)
        brush.add(ring, steel, 9.0, metal=1.0, rough=0.20, bevel=4.0)
        jaw = np.maximum(brush.circle(right, 0, head * 0.5), -throat)
        brush.add(jaw, steel, 7.5, metal=1.0, rough=0.22, bevel=3.0)
        brush.stamp(np.clip(-groove / 1.0, 0, 1), srgb("9a9ea2"), rough=0.35, emboss=-1.2)
        brush.stamp(brush.text(size, 0, 0, head * 0.15), srgb("4a4d50"))

    return Tool("wrench", f"wrench {size}", "wrench", (length, head), draw)


def pliers(length: float, colour: str, cutting: bool) -> Tool:
    """Two sheathed handles crossing at a pivot; flat or cutting jaws."""
    width = 58.0
    kind = "cutters" if cutting else "pliers"

    def draw(brush: Brush) -> None:
        pivot, end = length * 0.20, -length / 2
        steel = np.asarray(DARK_STEEL, np.float32)
        for side in (-1, 1):
            spine = [
                (pivot, side * 3.0), (pivot - 0.16 * length, side * 12.0), (pivot - 0.38 * length, side * 18.0),
                (end + 9, side * 20.0),
            ]  # fmt: skip
            brush.add(brush.line(spine[:2], [20, 13]), steel, 10, metal=1.0, rough=0.28, bevel=3)
            handle = brush.line(spine[1:], [14, 17, 14])
            brush.add(handle, srgb(colour), 2 + _round_bar(handle, 7.5), rough=0.30)
            brush.stamp(brush.cover(brush.line(spine[1:], [5, 7, 5])), RUBBER, rough=0.45)
        tip = length / 2
        if cutting:
            jaws = brush.polygon([(pivot, -17), (tip - 12, -13), (tip, -3), (tip, 3), (tip - 12, 13), (pivot, 17)])
        else:
            jaws = brush.polygon([(pivot, -14), (tip - 20, -9), (tip, -5), (tip, 5), (tip - 20, 9), (pivot, 14)])
        brush.add(jaws, steel * 1.1, 11, metal=1.0, rough=0.26, bevel=4)
        brush.add(brush.circle(pivot, 0, 16), steel * 1.15, 12, metal=1.0, rough=0.24, bevel=3)
        brush.stamp(brush.cover(brush.line([(pivot + 10, 0), (tip, 0)], [1.0, 1.4])), srgb("1a1b1c"), emboss=-3)
        brush.add(brush.circle(pivot, 0, 6), CHROME, 13.5, metal=1.0, rough=0.2, bevel=2)

    return Tool(kind, kind, "pliers", (length, width), draw)


def hammer(length: float, colour: str) -> Tool:
    """A steel head at the right, an ash handle with a painted end."""
    head = 104.0

    def draw(brush: Brush) -> None:
        left, right = -length / 2, length / 2
        handle = brush.line([(left + 14, 0), (left + 70, 0), (right - 60, 0), (right - 14, 0)], [27, 24, 19, 20])
        grain = cloud(np.random.default_rng(3), (brush.shape[0], 12), [(1.6, 0.16)])
        columns = np.linspace(0, 11, brush.shape[1]).astype(int)
        wood = np.asarray(srgb("c08a4e"), np.float32) * (1 + grain[:, columns])[..., None]
        brush.add(handle, wood, 4 + _round_bar(handle, 10), rough=0.35)
        brush.stamp(brush.cover(np.maximum(handle, brush.x - (left + 92))), srgb(colour), rough=0.30)
        x = right - 16
        steel = np.asarray(DARK_STEEL, np.float32)
        neck = brush.box(x, 0, 20, 70, 4)
        brush.add(neck, steel * 0.7, 20, metal=0.8, rough=0.35, bevel=6)
        face = brush.box(x, head / 2 - 17, 29, 32, 5)
        brush.add(face, steel * 1.2, 24, metal=1.0, rough=0.22, bevel=8)
        peen = brush.polygon([(x - 10, -18), (x + 10, -18), (x + 5, -head / 2), (x - 5, -head / 2)])
        brush.add(peen, steel, 20, metal=1.0, rough=0.26, bevel=6)
        brush.add(brush.box(x, 0, 27, 26, 4), steel * 0.8, 23, metal=0.8, rough=0.33, bevel=4)

    return Tool("hammer", "hammer", "hammer", (length, head), draw)


def tape_measure(size: float, colour: str) -> Tool:
    """A rounded case with rubber corners, a label, and the hook of the tape."""

    def draw(brush: Brush) -> None:
        half = size / 2
        brush.add(brush.box(half - 6, half - 9, 18, 12, 1), srgb("e2c23a"), 6, rough=0.3)
        brush.add(brush.box(half - 1.5, half - 9, 3, 15, 0.5), CHROME, 10, metal=1.0, rough=0.2, bevel=1)
        case = brush.box(-2, 0, size - 4, size - 2, 20)
        brush.add(case, RUBBER, 26, rough=0.42, bevel=9)
        brush.add(brush.box(-2, 0, size - 16, size - 14, 14), srgb(colour), 27, rough=0.25, bevel=4)
        disc = brush.circle(-2, 0, size * 0.30)
        brush.add(disc, srgb("dedbd0"), 28, rough=0.4, bevel=1.5)
        brush.stamp(brush.text("5m", -2, -3, size * 0.17), srgb("1e1f22"))
        brush.stamp(brush.text("ODDPATCH", -2, size * 0.14, size * 0.055), srgb("8a1f1f"))

    return Tool("tape_measure", "tape measure", "tape", (size, size), draw)


def cutter(length: float, colour: str) -> Tool:
    """A snap-off knife: ribbed case, slider, blade."""
    width = 25.0

    def draw(brush: Brush) -> None:
        left, right = -length / 2, length / 2
        blade = brush.polygon([(right - 34, -8), (right - 12, -8), (right, 8), (right - 34, 8)])
        brush.add(blade, CHROME, 5, metal=1.0, rough=0.16, bevel=0.8)
        for x in (right - 27, right - 20):
            brush.stamp(brush.cover(brush.line([(x - 4, -8), (x + 4, 8)], 0.7)), srgb("5f6366"))
        case = brush.polygon(
            [(left + 4, -11), (left + 40, -12), (right - 28, -10), (right - 28, 10), (left + 40, 12), (left + 4, 11)]
        )
        brush.add(case - 0.5, srgb(colour), 11, rough=0.28, bevel=4)
        brush.add(brush.box(left + length * 0.42, 0, length * 0.56, 6, 3), srgb("2b2c2f"), 8, rough=0.4)
        brush.add(brush.box(left + length * 0.58, 0, 24, 11, 3), RUBBER, 15, rough=0.4, bevel=3)
        for i in range(5):
            rib = brush.cover(brush.box(left + length * 0.58 - 8 + 4 * i, 0, 1.4, 9))
            brush.stamp(rib, srgb("4a4b4e"), emboss=0.8)

    return Tool("cutter", "cutter", "cutter", (length, width), draw)


def allen_key(length: float, thick: float) -> Tool:
    """A hexagonal bar with its short arm bent up."""
    arm = 30.0

    def draw(brush: Brush) -> None:
        left, right, base = -length / 2 + thick, length / 2 - 1, arm / 2 - thick
        points = [(right, base), (left + 7, base), (left + 2, base - 2), (left, base - 7), (left, -arm / 2 + 2)]
        bar = brush.line(points, thick)
        brush.add(bar, DARK_STEEL, 3 + _round_bar(bar, thick / 2), metal=1.0, rough=0.22)

    return Tool("allen_key", f"allen key {thick:g}", "allen", (length, arm), draw)


def socket(diameter: float) -> Tool:
    """A wrench socket standing on end."""

    def draw(brush: Brush) -> None:
        brush.add(brush.circle(0, 0, diameter / 2), CHROME, 22, metal=1.0, rough=0.20, bevel=3)
        hexagon = brush.polygon(
            [(diameter * 0.33 * np.cos(a), diameter * 0.33 * np.sin(a)) for a in np.arange(6) * np.pi / 3]
        )
        brush.add(hexagon, srgb("3a3d40"), 6, metal=0.8, rough=0.3)

    return Tool("socket", f"socket {diameter:g}", "socket", (diameter, diameter), draw, polarised=False)
