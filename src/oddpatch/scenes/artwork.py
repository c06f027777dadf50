"""The bare board as a surface: laminate, copper, solder mask and silkscreen, drawn from a layout."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from oddpatch.scenes.board import HALF_BOARD, HALF_USED, Layout
from oddpatch.scenes.components import GOLD, TIN, Pad
from oddpatch.scenes.surface import COLOUR, HEIGHT, ROUGH, Array, Brush, Surface, cloud, shifted, srgb

_MASK_ON_LAMINATE = srgb("173f2b")
_MASK_ON_COPPER = srgb("245f40")
_SILK = srgb("e6e8e0")
_PLATE = srgb("3b3d40")


class Artwork:
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

    def specimen(self, material: NDArray[np.float64]) -> Surface:
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
        ink = brush.text(text, 0, 0, tall)
        dx, dy = (v * self.scale + self.middle - n / 2 for v, n in ((x, brush.shape[1]), (y, brush.shape[0])))
        whole = np.rint(shifted(ink, dx, dy, self.image.shape) * 255).astype(np.uint8)
        np.maximum(self.image, whole, out=self.image)

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
