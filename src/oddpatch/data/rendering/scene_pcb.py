"""Circuit boards under a top light: components missing or misplaced, solder bridges and scratches."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from oddpatch.data.rendering import scene
from oddpatch.data.rendering.board import HALF_BOARD, HALF_USED, Layout, Placed, lay_out
from oddpatch.data.rendering.components import GOLD, TIN, Pad
from oddpatch.data.rendering.optics import SUPERSAMPLE
from oddpatch.data.rendering.scene import INSPECTED, Mark, Slot, Specimen, Spoil, Tolerance
from oddpatch.data.rendering.surface import (
    COLOUR,
    HEIGHT,
    OVERSAMPLE,
    ROUGH,
    Array,
    Brush,
    Pose,
    Surface,
    cloud,
    shifted,
    srgb,
)

_MASK_ON_LAMINATE = srgb("173f2b")
_MASK_ON_COPPER = srgb("245f40")
_SILK = srgb("e6e8e0")
#: What a scratch lays open: scuffed mask, laminate, copper.
_SCORED = ("76a085", "b8b894", "c69055")
_PLATE = srgb("3b3d40")


class Scene(scene.Scene):
    """A board 34 mm square with some fifty components."""

    fov = 36.0
    tolerance = Tolerance(shift=0.045, turn=0.9, tint=0.05)
    shift_share = (0.4, 0.8)
    shift_limits = (0.35, 1.1)
    turn_limits = (9.0, 32.0)

    def __init__(self, size: int, seed: int) -> None:
        super().__init__(size, seed)
        rng = np.random.default_rng([seed, 0xB0A2D])
        self._board = _Artwork(self.layout, rng, size * SUPERSAMPLE, self.scale)
        self._pairs = _neighbours(self.layout)
        bare = self._owners(self.specimen(rng)) == 0
        inside = np.abs(np.linspace(-1, 1, bare.shape[0])) < INSPECTED
        self._bare = bare & inside[:, None] & inside[None]

    def design(self, rng: np.random.Generator, scale: float) -> tuple[list[Slot], list[Surface]]:
        self.layout = lay_out(rng)
        slots = [_slot(placed) for placed in self.layout.placed]
        drawn: dict[str, Surface] = {}
        for placed, slot in zip(self.layout.placed, slots, strict=True):
            if slot.look not in drawn:
                drawn[slot.look] = placed.component.sprite(scale)
        return slots, [drawn[slot.look] for slot in slots]

    @property
    def defects(self) -> Mapping[str, Spoil]:
        return {**super().defects, "solder_bridge": self.bridge, "scratch": self.scratch}

    def labels(self) -> list[str]:
        return sorted({*super().labels(), "solder_bridge", "scratch"})

    def ground(self, specimen: Specimen) -> Surface:
        return self._board.specimen(specimen.material)

    def bridge(self, specimen: Specimen, rng: np.random.Generator) -> tuple[Specimen, frozenset[int]]:
        """Join two neighbouring pads of a component with solder."""
        first, second, centre = self._pairs[rng.integers(len(self._pairs))]
        dx, dy = second.x - first.x, second.y - first.y
        length = float(np.hypot(dx, dy))
        middle = np.array([first.x + second.x, first.y + second.y]) / 2
        outward = np.array([-dy, dx]) / length
        outward *= np.sign(outward @ (middle - centre)) or 1
        # Along the leads, from the heel to the toe of the joint.
        middle = middle + outward * rng.uniform(-0.1, 0.4) * max(first.width, first.height)
        brush = Brush(length + 1.6, length + 1.6, self.scale * OVERSAMPLE)
        neck, ends = rng.uniform(0.26, 0.50), rng.uniform(0.40, 0.62, 2)
        sag = rng.uniform(-0.12, 0.12)
        shape = brush.line([(-length / 2, 0), (0, sag), (length / 2, 0)], [ends[0], neck, ends[1]])
        depth = np.sqrt(np.clip(-shape / (0.55 * neck), 0, 1))
        brush.add(shape, TIN, 0.22 + 0.20 * depth, metal=1.0, rough=0.16)
        pose = Pose(float(middle[0]), float(middle[1]), float(np.rad2deg(np.arctan2(dy, dx))))
        return self._marked(specimen, Mark("solder_bridge", brush.surface, pose, bare_only=False))

    def scratch(self, specimen: Specimen, rng: np.random.Generator) -> tuple[Specimen, frozenset[int]]:
        """Score the solder mask: a thin, slightly bent line of varying depth, down to the copper in places."""
        ways = [self._scratch_path(rng) for _ in range(40)]
        path = max(ways, key=self._bareness)
        brush = Brush(self.fov, self.fov, self.scale)
        widths = (
            rng.uniform(0.08, 0.20)
            * np.sin(np.linspace(0.35, np.pi - 0.25, len(path)))
            * rng.uniform(0.75, 1.25, len(path))
        )
        shape = brush.line([(float(x), float(y)) for x, y in path], [float(w) for w in widths])
        tone = srgb(_SCORED[rng.integers(len(_SCORED))])
        depth = np.clip(-shape / 0.06, 0, 1)
        brush.add(shape - 0.02, tone, -0.03 * depth, rough=0.35, metal=0.25)
        return self._marked(specimen, Mark("scratch", brush.surface, Pose(0, 0), bare_only=True))

    def _scratch_path(self, rng: np.random.Generator) -> Array:
        """(n, 2) points in mm."""
        length, heading, bend = rng.uniform(3.0, 8.5), rng.uniform(0, 2 * np.pi), rng.normal(0, 0.35)
        start = rng.uniform(-0.45, 0.45, 2) * INSPECTED * self.fov
        steps = heading + bend * np.linspace(0, 1, 14) + np.cumsum(rng.normal(0, 0.03, 14))
        return start + np.cumsum(length / 14 * np.column_stack([np.cos(steps), np.sin(steps)]), axis=0)

    def _bareness(self, path: Array) -> float:
        """Share of a path that lies on bare, inspected board."""
        fine = np.column_stack([np.interp(np.linspace(0, 13, 80), np.arange(14), path[:, k]) for k in (0, 1)])
        cells = np.rint((fine / self.fov + 0.5) * len(self._bare)).astype(int)
        inside = ((cells >= 0) & (cells < len(self._bare))).all(1)
        cells = np.clip(cells, 0, len(self._bare) - 1)
        return float((self._bare[cells[:, 1], cells[:, 0]] & inside).mean())

    def _marked(self, specimen: Specimen, mark: Mark) -> tuple[Specimen, frozenset[int]]:
        return replace(specimen, marks=(mark,)), frozenset({len(self.slots) + 1})


def _slot(placed: Placed) -> Slot:
    component = placed.component
    pose = Pose(placed.x, placed.y, 90.0 * placed.quarter)
    return Slot(component.label, component.look, component.package, pose, component.body, component.polarised)


def _neighbours(layout: Layout) -> list[tuple[Pad, Pad, tuple[float, float]]]:
    """Inspected pads that solder could join, with the centre of their component: leads of one, or of chips in a row."""
    limit = INSPECTED / 2 * Scene.fov - 0.5
    pads = [(placed, pad) for placed in layout.placed for pad in placed.pads() if max(abs(pad.x), abs(pad.y)) < limit]
    return [
        (a, b, (placed.x, placed.y))
        for i, (placed, a) in enumerate(pads)
        for other, b in pads[i + 1 :]
        if np.hypot(a.x - b.x, a.y - b.y) < (1.4 if other is placed else 1.7)
        and (a.width, a.height) == (b.width, b.height)
        and not a.round
        and (other is not placed or len(placed.component.pads) > 2)
    ]


class _Artwork:
    """The bare board, drawn once: each specimen varies its tint, the register of its print and its texture."""

    def __init__(self, layout: Layout, rng: np.random.Generator, pixels: int, scale: float) -> None:
        self.scale, self.pixels = scale, pixels
        pads = [pad for placed in layout.placed for pad in placed.pads()]
        board, copper, opening, hole, self.print = (_Stencil(pixels, scale) for _ in range(5))
        board.box(0, 0, 2 * HALF_BOARD, 2 * HALF_BOARD, corner=1.2)
        for points, width in layout.tracks:
            copper.line(points, width)
        for pad in pads:
            for stencil, grow in ((copper, 0.0), (opening, 0.06)):
                stencil.pad(pad, grow)
            if pad.round:
                hole.circle(pad.x, pad.y, 0.40)
        for x, y in layout.vias:
            copper.circle(x, y, 0.36)
            hole.circle(x, y, 0.14)
        for side in (-1, 1):
            x, y = side * (HALF_BOARD - 2.0), -side * (HALF_BOARD - 2.0)
            opening.circle(x, y, 1.55)
            copper.circle(x, y, 1.6)
            hole.circle(x, y, 1.0)
        pour = self._pour(board.cover(), copper.cover())
        for x, y in rng.uniform(-HALF_USED, HALF_USED, (140, 2)):
            if pour[self._pixel(y), self._pixel(x)] > 0.99 and opening.clear(x, y, 0.6):
                hole.circle(float(x), float(y), 0.13)
        self._print(layout)
        self._combine(board.cover(), np.maximum(pour, copper.cover()), opening.cover(), hole.cover(), rng)

    def _pixel(self, position: float) -> int:
        return int(np.clip(position * self.scale + self.pixels / 2, 0, self.pixels - 1))

    def _pour(self, board: Array, copper: Array) -> Array:
        """Ground copper fills what tracks and pads leave, at a clearance."""
        gap = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(0.30 * self.scale) + 1,) * 2)
        edge = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * round(0.45 * self.scale) + 1,) * 2)
        return np.minimum(1 - cv2.dilate(copper, gap), cv2.erode(board, edge))

    def _print(self, layout: Layout) -> None:
        """Silkscreen: an outline with a mark at pin 1 for each component, and the words."""
        for placed in layout.placed:
            width, height = placed.spread(placed.component.body)
            grow = 0.35 if min(width, height) > 1 else 0.28
            x0, x1 = placed.x - width / 2 - grow, placed.x + width / 2 + grow
            y0, y1 = placed.y - height / 2 - grow, placed.y + height / 2 + grow
            if len(placed.component.pads) > 2 or placed.component.polarised:
                self.print.line([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], 0.12)
            elif placed.quarter % 2 == 0:  # chips have a line on each side only
                self.print.line([(x0 + 0.5, y0), (x1 - 0.5, y0)], 0.12)
                self.print.line([(x0 + 0.5, y1), (x1 - 0.5, y1)], 0.12)
            else:
                self.print.line([(x0, y0 + 0.5), (x0, y1 - 0.5)], 0.12)
                self.print.line([(x1, y0 + 0.5), (x1, y1 - 0.5)], 0.12)
            if placed.component.polarised:
                first = placed.pads()[0]
                towards = np.sign([first.x - placed.x, first.y - placed.y])
                self.print.circle(placed.x + towards[0] * (width / 2 + grow + 0.3), first.y, 0.2)
        for pad in (pad for placed in layout.placed for pad in placed.pads()):
            self.print.pad(pad, 0.16, value=0)  # print is kept off the pads
        for words, x, y, tall in layout.words:
            self.print.words(words, x, y, tall)

    def _combine(self, board: Array, copper: Array, opening: Array, hole: Array, rng: np.random.Generator) -> None:
        """Stack the layers into one surface."""
        shape = board.shape

        def mix(old: Array | float, new: Array | float, cover: Array) -> Array:
            return (old * (1 - cover) + new * cover).astype(np.float32)

        plate = 1 + cloud(rng, shape, [(2, 0.05), (40, 0.05)])
        mottle = 1 + cloud(rng, shape, [(60, 0.03), (8, 0.015)])
        bare = opening * (1 - hole)
        layers = []
        for c in range(3):
            mask = mix(_MASK_ON_LAMINATE[c], _MASK_ON_COPPER[c], copper) * mottle
            layer = mix(_PLATE[c] * plate, mask, board)
            layer = mix(layer, 0.7 * TIN[c] + 0.3 * GOLD[c], bare)
            layers.append(mix(layer, 0.012, hole))
        smooth = cv2.GaussianBlur(copper, (0, 0), 0.05 * self.scale)
        height = mix(-1.6, 0.05 * smooth, board) + 0.03 * opening - 0.8 * hole * board
        rough = mix(mix(mix(0.6, 0.24, board), 0.26, bare), 0.7, hole)
        planes = np.stack([*layers, height, bare * 0.95, rough, np.ones_like(board)])
        self.surface = Surface(planes.astype(np.float32), self.scale)
        self.board, self.ink = board, self.print.cover() * (1 - opening) * board * np.float32(0.92)
        # Orange peel of the mask and of the solder; a specimen takes its own window of it.
        self.peel = cloud(rng, (shape[0] * 2, shape[1] * 2), [(0.35 * self.scale, 0.0035), (1.6 * self.scale, 0.012)])

    def specimen(self, material: Array) -> Surface:
        """The bare board with a specimen's own tint, register of the print (0.06 mm) and texture."""
        canvas = self.surface.copy()
        tint = np.exp(0.05 * material[0] + np.array([0.05, 0.02, 0.05]) * material[1:4]) - 1
        dx, dy = 0.06 * self.scale * np.clip(material[4:6], -2, 2)
        ink = shifted(self.ink, dx, dy, self.ink.shape)
        bare = 1 - ink
        for plane, gain, silk in zip(canvas.planes[COLOUR], tint, _SILK, strict=True):
            plane *= (1 + np.float32(gain) * self.board) * bare
            plane += np.float32(silk) * ink
        rough = canvas.planes[ROUGH]
        rough *= bare
        rough += np.float32(0.6) * ink
        y, x = (int((0.5 + 0.2 * np.clip(m, -2, 2)) * self.pixels) for m in material[6:8])
        canvas.planes[HEIGHT] += self.peel[y : y + self.pixels, x : x + self.pixels] + np.float32(0.015) * ink
        return canvas


class _Stencil:
    """Coverage of the board by one layer, drawn at twice the canvas resolution. Lengths in mm."""

    FINE = 2
    SHIFT = 4  # fractional bits of OpenCV's coordinates

    def __init__(self, pixels: int, scale: float) -> None:
        self.image = np.zeros((pixels * self.FINE,) * 2, np.uint8)
        self.scale, self.middle = scale * self.FINE, pixels * self.FINE / 2 - 0.5

    def _fixed(self, values: Any) -> Any:
        return np.rint((np.asarray(values) * self.scale + self.middle) * 2**self.SHIFT).astype(np.int32)

    def line(self, points: list[tuple[float, float]], width: float) -> None:
        thick = max(1, round(width * self.scale))
        cv2.polylines(self.image, [self._fixed(points)], False, 255, thick, cv2.LINE_AA, self.SHIFT)

    def circle(self, x: float, y: float, radius: float, value: int = 255) -> None:
        centre = tuple(int(v) for v in self._fixed((x, y)))
        size = round(radius * self.scale * 2**self.SHIFT)
        cv2.circle(self.image, centre, size, value, -1, cv2.LINE_AA, self.SHIFT)

    def box(self, x: float, y: float, width: float, height: float, corner: float, value: int = 255) -> None:
        arc = np.deg2rad(np.arange(0, 91, 10))
        points = []
        for k, (sx, sy) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
            turn = arc + k * np.pi / 2
            cx, cy = x + sx * (width / 2 - corner), y + sy * (height / 2 - corner)
            points += [(cx + corner * np.cos(t), cy + corner * np.sin(t)) for t in turn]
        cv2.fillPoly(self.image, [self._fixed(points)], value, cv2.LINE_AA, self.SHIFT)

    def pad(self, pad: Pad, grow: float, value: int = 255) -> None:
        if pad.round:
            self.circle(pad.x, pad.y, max(pad.width, pad.height) / 2 + grow, value)
        else:
            corner = 0.18 * min(pad.width, pad.height)
            self.box(pad.x, pad.y, pad.width + 2 * grow, pad.height + 2 * grow, corner, value)

    def words(self, text: str, x: float, y: float, tall: float) -> None:
        brush = Brush(tall * len(text), 2 * tall, self.scale)
        ink = np.rint(brush.text(text, 0, 0, tall) * 255).astype(np.uint8)
        shift = np.float32(
            [
                [1, 0, x * self.scale + self.middle - ink.shape[1] / 2],
                [0, 1, y * self.scale + self.middle - ink.shape[0] / 2],
            ]
        )
        warped = cv2.warpAffine(ink, shift, self.image.shape[::-1])
        np.maximum(self.image, warped, out=self.image)

    def clear(self, x: float, y: float, radius: float) -> bool:
        """Whether nothing is drawn within `radius`."""
        low, high = (
            np.clip(np.array([y, x]) * self.scale + self.middle + d * radius * self.scale, 0, None).astype(int)
            for d in (-1, 1)
        )
        return not self.image[low[0] : high[0] + 1, low[1] : high[1] + 1].any()

    def cover(self) -> Array:
        """(H, W) in 0..1 at canvas resolution."""
        return cv2.resize(
            self.image, None, fx=1 / self.FINE, fy=1 / self.FINE, interpolation=cv2.INTER_AREA
        ) / np.float32(255)
