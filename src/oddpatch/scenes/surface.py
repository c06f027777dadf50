"""What the light falls on: reflectance and relief, drawn analytically in millimetres and pasted without aliasing."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

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


#: Planes of a surface: linear red, green, blue; height in mm; metalness; roughness, the spread of its facets' slopes;
#: and how much of the pixel it covers. Planes, not pixels, lie together in memory: the arithmetic is by plane.
COLOUR, HEIGHT, METAL, ROUGH, COVER = slice(0, 3), 3, 4, 5, 6
_PLANES = 7


@dataclass(frozen=True)
class Surface:
    """A height field with a material at each point: (7, H, W), all planes premultiplied by the last, the coverage."""

    planes: Array
    scale: float  # pixels per mm

    def copy(self) -> "Surface":
        """An independent copy, to paste on."""
        return Surface(self.planes.copy(), self.scale)


@dataclass(frozen=True)
class Pose:
    """Where a sprite lies: centre in mm from the middle of the view, clockwise angle in degrees, base height in mm."""

    x: float
    y: float
    angle: float = 0.0
    base: float = 0.0


class _Placement:
    """How a sprite's pixels fall on a square canvas."""

    def __init__(self, sprite: Surface, pose: Pose, side: int, scale: float) -> None:
        height, width = sprite.planes.shape[1:]
        turn = np.deg2rad(pose.angle)
        linear = scale / sprite.scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        centre = np.array([pose.x, pose.y]) * scale + (side - 1) / 2
        reach = np.abs(linear) @ np.array([width, height]) / 2 + 2
        low = np.clip(np.floor(centre - reach), 0, side).astype(int)
        high = np.clip(np.ceil(centre + reach), 0, side).astype(int)
        offset = centre - linear @ np.array([(width - 1) / 2, (height - 1) / 2]) - low
        self.matrix = np.column_stack([linear, offset])
        self.extent = (int(high[0] - low[0]), int(high[1] - low[1]))
        self.window = np.s_[low[1] : high[1], low[0] : high[0]]
        self.visible = min(self.extent) > 0

    def warp(self, plane: Array) -> Array:
        return floats(cv2.warpAffine(plane, self.matrix, self.extent, flags=cv2.INTER_LINEAR))


def paste(
    canvas: Surface, sprite: Surface, pose: Pose, tint: Sequence[float], only: NDArray[np.bool_] | None = None
) -> None:
    """Lay `sprite` over `canvas`, where `only` (H, W) allows it; `tint`: none or three factors of its colour."""
    placement = _Placement(sprite, pose, canvas.planes.shape[1], canvas.scale)
    if not placement.visible:
        return
    allowed = np.float32(1) if only is None else only[placement.window].astype(np.float32)
    cover = placement.warp(sprite.planes[COVER])
    keep = 1 - cover * allowed
    for k in range(COVER):
        plane = placement.warp(sprite.planes[k])
        if k < len(tint):
            plane *= np.float32(tint[k])
        elif k == HEIGHT and pose.base:
            plane += np.float32(pose.base) * cover
        below = canvas.planes[k][placement.window]
        below *= keep
        below += plane if only is None else plane * allowed


def claim(
    owner: NDArray[np.uint8],
    sprite: Surface,
    pose: Pose,
    scale: float,
    instance: int,
    share: float = 0.5,
    bare_only: bool = False,
) -> None:
    """Give the pixels of `owner` (H, W), of which `sprite` covers more than `share`, to `instance`."""
    placement = _Placement(sprite, pose, owner.shape[0], scale)
    if placement.visible:
        seen = owner[placement.window]
        covered = placement.warp(sprite.planes[COVER]) > share
        seen[covered & (seen == 0) if bare_only else covered] = instance


def shifted(plane: Array, dx: float, dy: float, shape: tuple[int, ...], border: int = cv2.BORDER_CONSTANT) -> Array:
    """A plane moved by a fraction of pixels, (H, W) = `shape`."""
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
    return floats(cv2.warpAffine(plane, matrix, shape[::-1], flags=cv2.INTER_LINEAR, borderMode=border))


def resized(plane: Array, shape: tuple[int, ...], how: int = cv2.INTER_LINEAR) -> Array:
    """A plane at another resolution, (H, W) = `shape`."""
    return floats(cv2.resize(plane, shape[::-1], interpolation=how))


def floats(image: Any) -> Array:
    """OpenCV's stubs know arrays of any number only."""
    return cast(Array, image)


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
        self.shape = shape
        self.surface = Surface(np.zeros((_PLANES, *shape), np.float32), scale)

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
        cover = self.cover(distance) * opacity
        if bevel:
            inward = np.clip(1 + distance / bevel, 0, 1)
            height = height * (0.35 + 0.65 * np.sqrt(1 - inward**2))
        # Each plane blends from zero, which is the premultiplied form that `paste` needs.
        for plane, value in zip(self.surface.planes, (*_split(colour), height, metal, rough, 1.0), strict=True):
            plane += (np.asarray(value, np.float32) - plane) * cover

    def cover(self, distance: Array) -> Array:
        """Coverage (H, W) in 0..1 of a shape."""
        return np.clip(0.5 - distance * self.scale, 0, 1)

    def stamp(
        self,
        cover: Array,
        colour: Colour | Array,
        *,
        rough: float | None = None,
        metal: float | None = None,
        emboss: float = 0.0,
    ) -> None:
        """Print on what is there: colour, and if asked the rest, change where `cover` (H, W) in 0..1 says."""
        held = self.surface.planes[COVER]
        for plane, value in zip(self.surface.planes[COLOUR], _split(colour), strict=True):
            plane += (value * held - plane) * cover
        self.surface.planes[HEIGHT] += emboss * held * cover
        for k, value in ((ROUGH, rough), (METAL, metal)):
            if value is not None:
                self.surface.planes[k] += (value * held - self.surface.planes[k]) * cover

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
        """Distance to a filled polygon (even-anomalous)."""
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
        dx = x * self.scale + (self.shape[1] - glyphs.shape[1]) / 2
        dy = y * self.scale + (self.shape[0] - glyphs.shape[0]) / 2
        return shifted(np.ascontiguousarray(glyphs), dx, dy, self.shape)


def _split(colour: Colour | Array) -> tuple[Any, Any, Any]:
    """Red, green, blue of one colour or of an (H, W, 3) image."""
    red, green, blue = colour if isinstance(colour, tuple) else np.moveaxis(colour, -1, 0)
    return red, green, blue


@lru_cache(maxsize=256)
def _glyphs(words: str, pixels: int) -> Array:
    """Coverage of a line of text, cropped to its ink."""
    # Capitals of Pillow's own font are about 0.72 em tall.
    font = ImageFont.load_default(size=pixels / 0.72)
    left, top, right, bottom = (int(v) for v in font.getbbox(words))
    image = Image.new("L", (right - left + 4, bottom - top + 4))
    ImageDraw.Draw(image).text((2 - left, 2 - top), words, fill=255, font=font)
    return np.asarray(image, np.float32) / np.float32(255)


def cloud(rng: np.random.Generator, shape: tuple[int, int], grains: Sequence[tuple[float, float]]) -> Array:
    """Smooth random texture of zero mean: the sum over (grain in pixels, standard deviation)."""
    total = np.zeros(shape, np.float32)
    for grain, deviation in grains:
        coarse = [max(2, int(np.ceil(n / grain))) for n in shape]
        noise = rng.standard_normal(coarse, dtype=np.float32)
        total += deviation * cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return total
