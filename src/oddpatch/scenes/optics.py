"""Light and camera: a height field with materials becomes a photograph.

The light is a softbox above the part, with a dim dome around it. Diffuse light follows Lambert, highlights the
Beckmann distribution of facet slopes (Beckmann and Spizzichino, 1963); shadows march along the height field.
"""

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from oddpatch.scenes.surface import COLOUR, HEIGHT, METAL, ROUGH, Array, Surface, floats, resized, shifted

#: Canvas pixels per image pixel along each axis.
SUPERSAMPLE = 2
#: Distances in fields of view: how far a shadow is followed, and how wide the sky is that a crevice sees.
SHADOW_REACH = 0.12
OCCLUSION_REACH = 0.03
_SHADOW_STEPS = 18


@dataclass(frozen=True)
class Light:
    """One exposure's light, in the frame of the image."""

    azimuth: float  # degrees clockwise from the right: where the softbox stands
    elevation: float  # degrees above the plane
    key: float  # irradiance of the softbox
    dome: float  # and of the dome
    colour: Array  # (3,) linear gains of red, green, blue: colour temperature
    gradient: tuple[float, float]  # relative change of irradiance from the middle to the right and lower edge
    vignette: float  # relative loss in the corners

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Light":
        """The drift of a light over a shift: a few degrees, a tenth of its brightness, a few hundred kelvin."""
        warmth, green = rng.normal(0, 0.045), rng.normal(0, 0.012)
        return cls(
            azimuth=float(228 + rng.uniform(-9, 9)),
            elevation=float(54 + rng.uniform(-4, 4)),
            key=float(1.2 * np.exp(rng.normal(0, 0.08))),
            dome=float(0.62 * np.exp(rng.normal(0, 0.08))),
            colour=np.array([1 + warmth, 1 + green, 1 - warmth], np.float32),
            gradient=(float(rng.normal(0, 0.09)), float(rng.normal(0, 0.09))),
            vignette=float(rng.uniform(0.05, 0.18)),
        )


@dataclass(frozen=True)
class Camera:
    """One exposure's camera: where it stands, how sharp it is and how much it adds."""

    homography: NDArray[np.float64]  # (3, 3), from the plane to the image, both in fields of view from the middle
    blur: float  # standard deviation of the point spread, in image pixels per 320
    read_noise: float  # standard deviation in linear units
    shot_noise: float  # variance per linear unit
    noise_seed: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Camera":
        """The play of a fixture: up to about 1 % in position, 1 degree, and a hint of tilt."""
        turn = np.deg2rad(np.clip(rng.normal(0, 0.4), -1.0, 1.0))
        zoom = 1 + np.clip(rng.normal(0, 0.005), -0.012, 0.012)
        shift = np.clip(rng.normal(0, 0.003, 2), -0.008, 0.008)
        tilt = np.clip(rng.normal(0, 0.008, 2), -0.020, 0.020)
        cos, sin = zoom * np.cos(turn), zoom * np.sin(turn)
        return cls(
            homography=np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]], [*tilt, 1.0]]),
            blur=float(rng.uniform(0.45, 0.75)),
            read_noise=float(rng.uniform(0.0015, 0.0030)),
            shot_noise=float(rng.uniform(0.00020, 0.00045)),
            noise_seed=int(rng.integers(2**32)),
        )

    def matrix(self, source: int, target: int) -> NDArray[np.float64]:
        """The homography between pixel grids of `source` and `target` pixels a side."""
        to_fov = np.array([[1 / source, 0, 0.5 / source - 0.5], [0, 1 / source, 0.5 / source - 0.5], [0, 0, 1]])
        to_pixels = np.array([[target, 0, target / 2 - 0.5], [0, target, target / 2 - 0.5], [0, 0, 1]])
        return to_pixels @ self.homography @ to_fov

    def project(self, owner: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        """The instance at the centre of each of (size, size) image pixels."""
        matrix = self.matrix(owner.shape[0], size)
        seen = cv2.warpPerspective(owner, matrix, (size, size), flags=cv2.INTER_NEAREST)
        return cast(NDArray[np.uint8], seen)

    def expose(self, radiance: Array, size: int) -> NDArray[np.uint8]:
        """The photograph (size, size, 3), uint8 sRGB, of linear `radiance` (H, W, 3)."""
        fine = size * SUPERSAMPLE
        matrix, border = self.matrix(radiance.shape[0], fine), cv2.BORDER_REPLICATE
        moved = cv2.warpPerspective(radiance, matrix, (fine, fine), flags=cv2.INTER_LINEAR, borderMode=border)
        sharp = cv2.resize(moved, (size, size), interpolation=cv2.INTER_AREA)
        seen = floats(cv2.GaussianBlur(sharp, (5, 5), max(self.blur * size / 320, 0.1)))
        noise = np.random.default_rng(self.noise_seed).standard_normal(seen.shape, dtype=np.float32)
        deviation = np.sqrt(np.float32(self.read_noise**2) + np.float32(self.shot_noise) * np.maximum(seen, 0))
        return develop(seen + noise * deviation)


def develop(linear: Array) -> NDArray[np.uint8]:
    """A filmic shoulder that keeps highlights from clipping hard, then the sRGB curve."""
    linear = np.maximum(linear, 0)
    toned = np.where(linear < 0.6, linear, 1 - 0.4 * np.exp(-(linear - 0.6) / 0.4))
    encoded = np.where(toned <= 0.0031308, 12.92 * toned, 1.055 * np.power(toned, 1 / 2.4) - 0.055)
    return np.clip(np.rint(encoded * 255), 0, 255).astype(np.uint8)


def _shadow(height: Array, scale: float, light: Light, fov: float) -> Array:
    """How much of the softbox each point sees, (H, W) in 0..1."""
    turn = np.deg2rad(light.azimuth)
    rise = np.tan(np.deg2rad(light.elevation))
    step = SHADOW_REACH * fov / _SHADOW_STEPS  # mm
    blocked = np.zeros_like(height)
    for k in range(1, _SHADOW_STEPS + 1):
        # A softbox is wide: the nearer the edge that blocks it, the sharper the shadow.
        away = -k * step * scale
        towards = shifted(height, away * np.cos(turn), away * np.sin(turn), height.shape, cv2.BORDER_REPLICATE)
        over = towards - height - np.float32(k * step * rise)
        softness = np.float32(0.25 * step * (k + 1))
        np.maximum(blocked, np.clip(over / softness + 0.3, 0, 1), out=blocked)
    return 1 - floats(cv2.GaussianBlur(blocked, (3, 3), 0.8))


def _occlusion(height: Array, scale: float, fov: float) -> Array:
    """How much of the dome each point sees, (H, W) in 0..1: less beside a wall or in a pocket."""
    total = np.ones_like(height)
    for reach, strength in ((OCCLUSION_REACH, 0.55), (OCCLUSION_REACH / 3, 0.45)):
        radius = max(1, round(reach * fov * scale))
        above = cv2.blur(height, (2 * radius + 1, 2 * radius + 1)) - height
        total *= 1 - strength * np.clip(above / np.float32(reach * fov), 0, 1)
    return total


def shade(surface: Surface, blockers: Array, light: Light) -> Array:
    """Linear radiance (H, W, 3) of an opaque surface seen from straight above.

    Args:
        surface: what is lit.
        blockers: (H, W) heights in mm that cast shadows; thin marks on a surface have relief and cast none.
        light: the exposure's light.
    """
    shape = blockers.shape
    fov = shape[1] / surface.scale
    half = (shape[1] // 2, shape[0] // 2)  # shadows are soft: half the resolution is enough
    coarse = resized(blockers, half[::-1], cv2.INTER_AREA)
    shadow = resized(_shadow(coarse, surface.scale / 2, light, fov), shape)
    sky = np.float32(light.dome) * resized(_occlusion(coarse, surface.scale / 2, fov), shape)
    key = np.float32(light.key) * shadow

    height, metal, rough = (surface.planes[k] for k in (HEIGHT, METAL, ROUGH))
    slope_x, slope_y = (
        np.clip(cv2.Sobel(height, cv2.CV_32F, dx, 1 - dx, scale=-surface.scale / 8), -2.5, 2.5) for dx in (1, 0)
    )
    flat = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)  # the normal's z

    turn, lift = np.deg2rad(light.azimuth), np.deg2rad(light.elevation)
    lx, ly, lz = (np.float32(v) for v in (np.cos(lift) * np.cos(turn), np.cos(lift) * np.sin(turn), np.sin(lift)))
    u = np.linspace(-1, 1, shape[1], dtype=np.float32)[None, :]
    v = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    towards = slope_x * lx + slope_y * ly
    diffuse = key * np.maximum((towards + lz) * flat, 0) + sky * (0.5 + 0.5 * flat)

    # The softbox stands near, so the slope that mirrors it into the lens changes across the part.
    off_x, off_y = slope_x - (lx / (1 + lz) - 0.16 * u), slope_y - (ly / (1 + lz) - 0.16 * v)
    spread = rough * rough + np.float32(0.012)  # the softbox's own width
    glint = key * np.exp(-(off_x * off_x + off_y * off_y) / spread) * (np.float32(0.10) / spread)
    # Metal mirrors the dome: bright towards the softbox, dark straight above, where the camera is.
    dome = sky * (0.80 - 0.25 * flat + np.clip(0.55 * towards, -0.42, 0.7))

    falloff = (1 + light.gradient[0] * u + light.gradient[1] * v) * (1 - light.vignette * 0.5 * (u * u + v * v))
    falloff = falloff.astype(np.float32)
    body = (diffuse + metal * (dome + glint - 0.78 * diffuse)) * falloff
    coat = (1 - metal) * (0.05 * glint + 0.012 * dome) * falloff
    planes = [(plane * body + coat) * gain for plane, gain in zip(surface.planes[COLOUR], light.colour, strict=True)]
    return np.stack(planes, axis=-1)
