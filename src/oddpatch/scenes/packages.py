"""The larger electronic components: integrated circuits, cans, connectors. All lengths in mm."""

import numpy as np

from oddpatch.scenes.components import EPOXY, GOLD, STEEL, TIN, Component, Pad, gull_wings, solder
from oddpatch.scenes.surface import Brush, Colour, cloud, srgb


def _two_rows(pins: int, pitch: float, row: float, pad: tuple[float, float]) -> tuple[Pad, ...]:
    """Pads of a dual-row package, pin 1 at the lower left, rows above and below."""
    places = (np.arange(pins // 2) - (pins // 2 - 1) / 2) * pitch
    return tuple(Pad(float(x), side * row / 2, *pad) for side in (1, -1) for x in places)


def _moulded(brush: Brush, width: float, height: float, thick: float, lines: tuple[str, ...], mark: Colour) -> None:
    """An IC's body: matt epoxy with a bevel, a dimple at pin 1 and laser-marked lines."""
    grain = 1 + cloud(np.random.default_rng(len(lines[0])), brush.shape, [(1.5, 0.06)])
    brush.add(brush.box(0, 0, width, height, 0.08), np.asarray(EPOXY) * grain[..., None], thick, rough=0.34, bevel=0.30)
    dimple = brush.circle(-width / 2 + 0.85, height / 2 - 0.85, 0.36)
    brush.stamp(np.clip(-dimple / 0.12, 0, 1), srgb("1c1d20"), rough=0.16, emboss=-0.10)
    size = 0.72 if width > 5.5 else 0.58
    for i, line in enumerate(lines):
        brush.stamp(brush.text(line, 0.15, (i - (len(lines) - 1) / 2) * size * 1.6, size), mark)


def soic(pins: int, code: str, lot: str) -> Component:
    """A small-outline IC, 1.27 mm pitch."""
    width, height = pins / 2 * 1.27 - 0.08, 3.9
    pads = _two_rows(pins, 1.27, 5.4, (0.62, 1.45))

    def draw(brush: Brush) -> None:
        solder(brush, pads, 0.14)
        gull_wings(brush, pads, 0.42, height / 2, 0.75)
        _moulded(brush, width, height, 1.55, (code, lot), srgb("c3c4c0"))

    body = (width, height)
    return Component(f"soic{pins}", "U", f"SOIC-{pins}", (width + 0.5, 7.0), body, pads, draw, polarised=True)


def qfp(side: int, code: str, lot: str) -> Component:
    """A quad flat package, 0.8 mm pitch, `side` leads a side."""
    body = side * 0.8 + 0.6
    row = body + 1.35
    places = (np.arange(side) - (side - 1) / 2) * 0.8
    pads = tuple(
        pad
        for p in places
        for pad in (
            Pad(float(p), row / 2, 0.46, 1.35),
            Pad(float(p), -row / 2, 0.46, 1.35),
            Pad(row / 2, float(p), 1.35, 0.46),
            Pad(-row / 2, float(p), 1.35, 0.46),
        )
    )

    def draw(brush: Brush) -> None:
        solder(brush, pads, 0.12)
        gull_wings(brush, pads, 0.32, body / 2, 0.6)
        _moulded(brush, body, body, 1.35, ("oddpatch", code, lot), srgb("cfd0cc"))

    extent = body + 2.9
    return Component("qfp", "U", f"QFP-{4 * side}", (extent, extent), (body, body), pads, draw, polarised=True)


def electrolytic(diameter: float, digits: str) -> Component:
    """An aluminium can on its square base, the negative side printed black."""
    base = diameter + 0.35
    pads = (Pad(-diameter * 0.42, 0, diameter * 0.5, 0.9), Pad(diameter * 0.42, 0, diameter * 0.5, 0.9))

    def draw(brush: Brush) -> None:
        solder(brush, pads, 0.2)
        notch = (brush.x - brush.y) / np.float32(np.sqrt(2)) - np.float32(0.60 * base)
        cut = np.maximum(notch, (brush.x + brush.y) / 1.414 - 0.60 * base)
        plinth = np.maximum(brush.box(0, 0, base, base, 0.15), cut)
        brush.add(plinth, srgb("2a2a2c"), 0.7, rough=0.4, bevel=0.12)
        can = brush.circle(0, 0, diameter / 2)
        lip = np.clip(-can / 0.45, 0, 1)
        top = 3.4 + 0.35 * np.sin(np.pi * np.clip(lip, 0, 1)) - 0.05 * lip
        brush.add(can, srgb("d5d7d8"), top, metal=1.0, rough=0.20)
        disc = brush.cover(brush.circle(0, 0, diameter / 2 - 0.5))
        brushed = 0.82 + cloud(np.random.default_rng(5), brush.shape, [(1.2, 0.03), (6, 0.02)])
        brush.stamp(disc, np.asarray(srgb("c3c5c6")) * brushed[..., None], rough=0.34, metal=0.45)
        brush.stamp(disc * (brush.x < -diameter * 0.20), srgb("1d1e21"), rough=0.4)
        for i, line in enumerate(digits.split()):
            brush.stamp(brush.text(line, diameter * 0.13, (i - 0.5) * 0.95, 0.66), srgb("25262a"))

    return Component(
        "electrolytic", "C", f"CAN-{diameter:g}", (base + 1.1, base + 0.4), (base, base), pads, draw, polarised=True
    )


def crystal(code: str) -> Component:
    """A quartz crystal under a welded metal lid."""
    length, width = 5.0, 3.2
    pads = tuple(Pad(sx * 1.9, sy * 1.15, 1.5, 1.2) for sx in (-1, 1) for sy in (-1, 1))

    def draw(brush: Brush) -> None:
        solder(brush, pads, 0.1)
        brush.add(brush.box(0, 0, length, width, 0.12), srgb("b59a67"), 0.55, rough=0.5, bevel=0.05)
        lid = brush.box(0, 0, length - 0.4, width - 0.4, 0.45)
        brush.add(lid, srgb("cfd2d3"), 0.95, metal=0.75, rough=0.26, bevel=0.22)
        brush.stamp(brush.text(code, 0, -0.45, 0.62), srgb("44474b"))
        brush.stamp(brush.text("K24", 0, 0.55, 0.5), srgb("44474b"))

    return Component("crystal", "Y", "XTAL-5032", (5.9, 4.0), (length, width), pads, draw)


def inductor(size: float, digits: str) -> Component:
    """A shielded power inductor: grey ferrite, a round core in it."""
    pads = (Pad(-size * 0.42, 0, size * 0.32, size * 0.72), Pad(size * 0.42, 0, size * 0.32, size * 0.72))

    def draw(brush: Brush) -> None:
        solder(brush, pads, 0.25)
        grain = 1 + cloud(np.random.default_rng(9), brush.shape, [(1.3, 0.10), (5, 0.05)])
        ferrite = np.asarray(srgb("5c5d60")) * grain[..., None]
        brush.add(brush.box(0, 0, size, size, size * 0.16), ferrite, 2.6, rough=0.45, bevel=0.3)
        brush.add(brush.circle(0, 0, size * 0.43), srgb("1b1b1d"), 2.1, rough=0.5)
        brush.add(brush.circle(0, 0, size * 0.40), srgb("b2622f"), 2.2, metal=0.7, rough=0.3, bevel=0.1)
        brush.add(brush.circle(0, 0, size * 0.355), ferrite * 0.9, 2.75, rough=0.42, bevel=0.18)
        brush.stamp(brush.text(digits, 0, 0, size * 0.20), srgb("d5d6d4"))

    return Component("inductor", "L", f"IND-{size:g}", (size + 0.8, size + 0.5), (size, size), pads, draw)


def header(pins: int) -> Component:
    """A two-row pin header: black housing, square gilded pins."""
    length, width = pins / 2 * 2.0, 4.0
    places = (np.arange(pins // 2) - (pins // 2 - 1) / 2) * 2.0
    pads = tuple(Pad(float(x), side * 1.0, 1.3, 1.3, True) for side in (-1, 1) for x in places)

    def draw(brush: Brush) -> None:
        housing = brush.box(0, 0, length, width, 0.1)
        for x in (np.arange(pins // 2 + 1) - pins / 4) * 2.0:  # a notch between neighbours
            for side in (-1, 1):
                housing = np.maximum(housing, -brush.box(float(x), side * width / 2, 0.5, 0.5, angle=45))
        brush.add(housing, srgb("1f2022"), 2.2, rough=0.34, bevel=0.25)
        for pad in pads:
            brush.add(brush.box(pad.x, pad.y, 0.98, 0.98, 0.1), srgb("131314"), 2.0, rough=0.4)
            brush.add(brush.box(pad.x, pad.y, 0.62, 0.62, 0.12), GOLD, 3.2, metal=1.0, rough=0.18, bevel=0.2)

    return Component("header", "J", f"HDR-{pins}", (length + 0.4, width + 0.4), (length, width), pads, draw)


def socket(pins: int) -> Component:
    """A wire-to-board connector: ivory housing with a cavity and tinned pins."""
    length, width = pins * 2.0 + 2.0, 4.6
    places = (np.arange(pins) - (pins - 1) / 2) * 2.0
    pads = tuple(Pad(float(x), 0.4, 1.3, 1.5, True) for x in places)

    def draw(brush: Brush) -> None:
        ivory = srgb("e4dcc6")
        brush.add(brush.box(0, 0, length, width, 0.15), ivory, 3.6, rough=0.42, bevel=0.3)
        brush.add(brush.box(0, 0.2, length - 1.1, width - 1.6, 0.15), srgb("a9a08a"), 1.2, rough=0.5)
        for x in (-length * 0.28, length * 0.28):
            brush.add(brush.box(x, width / 2 - 0.35, 1.0, 0.9), srgb("b5ac96"), 1.6, rough=0.5)
        for pad in pads:
            brush.add(brush.box(pad.x, pad.y, 0.6, 0.6, 0.1), TIN, 2.6, metal=1.0, rough=0.18, bevel=0.2)

    return Component(
        "connector", "J", f"JST-{pins}", (length + 0.4, width + 0.4), (length, width), pads, draw, polarised=True
    )


def switch() -> Component:
    """A tact switch: steel frame, four rivets, a round black actuator."""
    pads = tuple(Pad(sx * 2.9, sy * 1.6, 1.3, 0.9) for sx in (-1, 1) for sy in (-1, 1))

    def draw(brush: Brush) -> None:
        solder(brush, pads, 0.12)
        for pad in pads:
            brush.add(brush.box(pad.x * 0.92, pad.y, 1.1, 0.6, 0.05), STEEL, 0.35, metal=1.0, rough=0.2, bevel=0.08)
        brush.add(brush.box(0, 0, 4.9, 4.9, 0.3), srgb("222325"), 1.2, rough=0.45, bevel=0.15)
        brush.add(brush.box(0, 0, 4.5, 4.5, 0.3), srgb("bfc1c2"), 1.8, metal=0.8, rough=0.30, bevel=0.2)
        for sx in (-1, 1):
            for sy in (-1, 1):
                brush.add(brush.circle(sx * 1.75, sy * 1.75, 0.32), srgb("2a2b2d"), 2.0, rough=0.3, bevel=0.15)
        brush.add(brush.circle(0, 0, 1.35), srgb("26272a"), 3.0, rough=0.30, bevel=0.35)

    return Component("switch", "S", "TACT", (7.2, 5.4), (4.9, 4.9), pads, draw)
