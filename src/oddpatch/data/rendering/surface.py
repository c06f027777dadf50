"""What the light falls on: reflectance and relief, drawn analytically in millimetres and pasted without aliasing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[np.float32]
Colour = tuple[float, float, float]

#: Sprites are drawn finer than the canvas, so that a rotated paste stays smooth.
OVERSAMPLE = 1.5


def srgb(code: str) -> Colour:
    """Linear RGB reflectance of a hexadecimal sRGB colour such as "1f6b3a"."""
    red, green, blue = (float((int(code[i : i + 2], 16) / 255) ** 2.2) for i in (0, 2, 4))
    return red, green, blue


@dataclass
class Surface:
    """A height field with a material at each point. Everything but `coverage` is premultiplied by it.

    colour and coverage lie in `paint` (H, W, 4): linear R, G, B, coverage; `relief` is (H, W, 3): height in mm,
    metalness, roughness (the spread of its facets' slopes). `owner` (H, W) uint8 is the instance seen, 0 for none.
    """

    paint: Array
    relief: Array
    scale: float  # pixels per mm
    owner: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0), np.uint8))

    def copy(self) -> "Surface":
        """An independent copy, to paste on."""
        return Surface(self.paint.copy(), self.relief.copy(), self.scale, self.owner.copy())


@dataclass(frozen=True)
class Pose:
    """Where a sprite lies: centre in mm from the middle of the field of view, clockwise angle in degrees, base in mm."""

    x: float
    y: float
    angle: float = 0.0
    base: float = 0.0


def paste(canvas: Surface, sprite: Surface, pose: Pose, tint: Array, instance: int, bare_only: bool = False) -> None:
    """Lay `sprite` over `canvas`; `bare_only` keeps it off what belongs to other instances."""
    height, width = sprite.paint.shape[:2]
    ratio, turn = canvas.scale / sprite.scale, np.deg2rad(pose.angle)
    linear = ratio * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    size = np.array(canvas.owner.shape[::-1])
    centre = np.array([pose.x, pose.y]) * canvas.scale + (size - 1) / 2
    reach = np.abs(linear) @ np.array([width, height]) / 2 + 2
    low = np.clip(np.floor(centre - reach), 0, size).astype(int)
    high = np.clip(np.ceil(centre + reach), 0, size).astype(int)
    if (high <= low).any():
        return
    offset = centre - linear @ np.array([(width - 1) / 2, (height - 1) / 2]) - low
    matrix, extent = np.column_stack([linear, offset]), tuple(int(v) for v in high - low)
    paint = cv2.warpAffine(sprite.paint, matrix, extent, flags=cv2.INTER_LINEAR)  # (h, w, 4)
    relief = cv2.warpAffine(sprite.relief, matrix, extent, flags=cv2.INTER_LINEAR)  # (h, w, 3)
    window = np.s_[low[1] : high[1], low[0] : high[0]]
    owner = canvas.owner[window]
    if bare_only:
        bare = (owner == 0)[..., None]
        paint, relief = paint * bare, relief * bare
    cover = paint[..., 3:]
    paint[..., :3] *= tint
    relief[..., :1] += pose.base * cover
    keep = 1 - cover
    canvas.paint[window] = canvas.paint[window] * keep + paint
    canvas.relief[window] = canvas.relief[window] * keep + relief
    owner[cover[..., 0] > 0.5] = instance


class Brush:
    """Draws a `Surface` from signed distances in mm (negative inside), with analytic anti-aliasing.

    Args:
        width, height: extent in mm; the origin is the centre, x to the right, y down.
        scale: pixels per mm.
    """

    def __init__(self, width: float, height: float, scale: float) -> None:
        shape = (int(np.ceil(height * scale)) + 2, int(np.ceil(width * scale)) + 2)
        self.y, self.x = (
            ((axis - (axis.shape[0] - 1) / 2) / scale).astype(np.float32).reshape(order)
            for axis, order in ((np.arange(shape[0]), (-1, 1)), (np.arange(shape[1]), (1, -1)))
        )
        self.scale = scale
        self.surface = Surface(np.zeros((*shape, 4), np.float32), np.zeros((*shape, 3), np.float32), scale)

    def add(
        self,
        distance: Array,
        colour: Colour | Array,
        height: float | Array,
        *,
        rough: float = 0.5,
        metal: float = 0.0,
        bevel: float = 0.0,
        opacity: float | Array = 1.0,
    ) -> None:
        """Lay a shape over what is there; within `bevel` mm of its edge its top falls off as a quarter round."""
        cover = np.clip(0.5 - distance * self.scale, 0, 1) * opacity
        if bevel:
            inward = np.clip(1 + distance / bevel, 0, 1)
            height = height * (0.35 + 0.65 * np.sqrt(1 - inward**2))
        self._blend(self.surface.paint[..., :3], np.asarray(colour, np.float32), cover)
        self.surface.paint[..., 3] += (1 - self.surface.paint[..., 3]) * cover
        for channel, value in enumerate((height, metal, rough)):
            old = self.surface.relief[..., channel]
            old += (np.asarray(value, np.float32) - old) * cover

    def stamp(self, cover: Array, colour: Colour, *, rough: float | None = None, emboss: float = 0.0) -> None:
        """Print on what is there: colour, and if asked roughness and height, change where `cover` (H, W) says."""
        held = self.surface.paint[..., 3]
        self._blend(self.surface.paint[..., :3], held[..., None] * np.asarray(colour, np.float32), cover)
        self.surface.relief[..., 0] += emboss * held * cover
        if rough is not None:
            self.surface.relief[..., 2] += (rough * held - self.surface.relief[..., 2]) * cover

    @staticmethod
    def _blend(old: Array, new: Array, cover: Array) -> None:
        old += (new - old) * cover[..., None]

    def finish(self) -> Surface:
        """The drawing, premultiplied by its coverage, as `paste` needs it."""
        # `add` blends each channel against zero, which already is the premultiplied form.
        return self.surface

    # Signed distances, (H, W) in mm.
    def circle(self, x: float, y: float, radius: float) -> Array:
        """Distance to a disc."""
        return np.hypot(self.x - x, self.y - y) - np.float32(radius)

    def box(self, x: float, y: float, width: float, height: float, corner: float = 0.0, angle: float = 0.0) -> Array:
        """Distance to a rounded rectangle turned clockwise by `angle` degrees."""
        cos, sin = np.float32(np.cos(np.deg2rad(angle))), np.float32(np.sin(np.deg2rad(angle)))
        across, down = self.x - np.float32(x), self.y - np.float32(y)
        u = np.abs(across * cos + down * sin) - np.float32(width / 2 - corner)
        v = np.abs(down * cos - across * sin) - np.float32(height / 2 - corner)
        return np.hypot(np.maximum(u, 0), np.maximum(v, 0)) + np.minimum(np.maximum(u, v), 0) - np.float32(corner)

    def line(self, points: Sequence[tuple[float, float]], width: float | Sequence[float]) -> Array:
        """Distance to a polyline with round ends; one width for each point makes it taper."""
        widths = [width] * len(points) if isinstance(width, float | int) else list(width)
        result = np.full(np.broadcast_shapes(self.x.shape, self.y.shape), 1e6, np.float32)
        for (ax, ay), (bx, by), start, end in zip(points[:-1], points[1:], widths[:-1], widths[1:], strict=True):
            dx, dy = bx - ax, by - ay
            along = np.clip(((self.x - ax) * dx + (self.y - ay) * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
            away = np.hypot(self.x - (ax + along * dx), self.y - (ay + along * dy))
            np.minimum(result, away - (start + along * (end - start)) / 2, out=result)
        return result.astype(np.float32)

    def polygon(self, points: Sequence[tuple[float, float]]) -> Array:
        """Distance to a filled polygon (even-odd)."""
        outline = self.line([*points, points[0]], 0.0)
        inside = np.zeros(outline.shape, bool)
        for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
            if ay == by:
                continue
            crosses = (self.y < ay) != (self.y < by)
            inside ^= crosses & (self.x < ax + (self.y - ay) / (by - ay) * (bx - ax))
        return np.where(inside, -outline, outline)

    def text(self, words: str, x: float, y: float, height: float, angle: int = 0) -> Array:
        """Coverage (H, W) of a line of text centred at (x, y), capitals `height` mm tall, turned by quarter turns."""
        glyphs = np.rot90(_glyphs(words, max(4, round(height * self.scale))), -(angle // 90))
        shape = self.surface.paint.shape[:2]
        matrix = np.float32(
            [
                [1, 0, x * self.scale + (shape[1] - glyphs.shape[1]) / 2],
                [0, 1, y * self.scale + (shape[0] - glyphs.shape[0]) / 2],
            ]
        )
        return cv2.warpAffine(np.ascontiguousarray(glyphs), matrix, shape[::-1], flags=cv2.INTER_LINEAR)


@lru_cache(maxsize=256)
def _glyphs(words: str, pixels: int) -> Array:
    """Coverage of a line of text, cropped to its ink."""
    # Capitals of Pillow's own font are about 0.72 em tall.
    font = ImageFont.load_default(size=pixels / 0.72)
    left, top, right, bottom = (int(v) for v in font.getbbox(words))
    image = Image.new("L", (right - left + 4, bottom - top + 4))
    ImageDraw.Draw(image).text((2 - left, 2 - top), words, fill=255, font=font)
    return np.asarray(image, np.float32) / 255


def cloud(rng: np.random.Generator, shape: tuple[int, int], grains: Sequence[tuple[float, float]]) -> Array:
    """Smooth random texture of zero mean: the sum over (grain in pixels, standard deviation)."""
    total = np.zeros(shape, np.float32)
    for grain, deviation in grains:
        coarse = [max(2, int(np.ceil(n / grain))) for n in shape]
        noise = rng.standard_normal(coarse, dtype=np.float32)
        total += deviation * cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return total
