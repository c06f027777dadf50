"""A foam tray of tools seen from above: tools missing from their cut-outs or misplaced."""

import cv2
import numpy as np

from oddpatch.scenes import scene, tools
from oddpatch.scenes.optics import SUPERSAMPLE
from oddpatch.scenes.scene import Slot, Specimen, Tolerance
from oddpatch.scenes.surface import COLOUR, COVER, HEIGHT, Pose, Surface, cloud, paste, srgb
from oddpatch.scenes.tools import Tool

_FOAM = srgb("3a3c40")
_BENCH = srgb("8a8378")
_DEPTH = 11.0  # of a cut-out
_PLAY = 3.0  # of a tool in its cut-out
_HALF_TRAY = 192.0


class Scene(scene.Scene):
    """A tray 384 mm square with fifteen tools; lower layer of the foam in a colour that shows in an empty cut-out."""

    fov = 420.0
    tolerance = Tolerance(shift=0.9, turn=0.5, tint=0.05)
    shift_share = (0.25, 0.6)
    shift_limits = (7.0, 16.0)

    def __init__(self, size: int, seed: int) -> None:
        super().__init__(size, seed)
        self._foam = self._empty_tray(np.random.default_rng([seed, 0xF0A3]), size * SUPERSAMPLE)

    def design(self, rng: np.random.Generator, scale: float) -> tuple[list[Slot], list[Surface]]:
        """Arrange the tools, and draw each."""
        flip = int(rng.integers(2))  # the tray upside down is another design
        slots, sprites = [], []
        for tool, (x, y, angle) in _arrangement(rng):
            sign = 1 - 2 * flip
            pose = Pose(sign * x, sign * y, angle + 180.0 * flip, -_DEPTH)
            slots.append(Slot(tool.label, tool.look, tool.package, pose, tool.size, tool.polarised))
            sprites.append(tool.sprite(scale))
        return slots, sprites

    def ground(self, specimen: Specimen) -> Surface:
        """The tray with empty cut-outs."""
        canvas = self._foam.copy()
        tint = np.exp(0.05 * specimen.material[0] + 0.02 * specimen.material[1:4]).astype(np.float32)
        canvas.planes[COLOUR] *= tint[:, None, None]
        side = self.size * SUPERSAMPLE
        y, x = (int((0.5 + 0.2 * np.clip(m, -2, 2)) * side) for m in specimen.material[4:6])
        canvas.planes[HEIGHT] += self._grain[y : y + side, x : x + side]
        return canvas

    def _empty_tray(self, rng: np.random.Generator, pixels: int) -> Surface:
        """Bench, tray edge and foam with a cut-out for each slot."""
        shape = (pixels, pixels)
        across = np.abs((np.arange(pixels) + 0.5) / self.scale - self.fov / 2)
        edge = np.maximum(across[:, None], across[None]).astype(np.float32) - np.float32(_HALF_TRAY)
        tray = np.clip(0.5 - edge * self.scale, 0, 1)
        rim = np.clip(0.5 - (np.abs(edge + 4) - 4) * self.scale, 0, 1)
        speckle = 1 + cloud(rng, shape, [(1.0, 0.07), (2.5, 0.05), (50, 0.04)])
        bench = 1 + cloud(rng, shape, [(3, 0.04), (80, 0.08)])
        layers = [
            (b * bench * (1 - tray) + f * speckle * tray) * (1 - rim) + r * rim
            for b, f, r in zip(_BENCH, _FOAM, srgb("27292c"), strict=True)
        ]
        planes = [*layers, -20 * (1 - tray) + 6 * rim, 0 * tray, 0.75 - 0.35 * rim, np.ones_like(tray)]
        canvas = Surface(np.stack(planes).astype(np.float32), self.scale)
        lower = srgb(str(rng.choice(["2f5f8f", "9a7a2a", "8f3b32", "3f7a55"])))
        for slot, sprite in zip(self.slots, self.sprites, strict=True):
            paste(canvas, _cut_out(sprite, lower, slot.size), slot.pose, ())
        self._grain = cloud(rng, (pixels * 2, pixels * 2), [(1.2, 0.05), (4, 0.10)])
        return canvas


def _cut_out(sprite: Surface, lower: tuple[float, float, float], size: tuple[float, float]) -> Surface:
    """The hole for a tool: its silhouette with play all round, and a notch for the fingers across its middle."""
    border = int(np.ceil((_PLAY + 16) * sprite.scale))
    silhouette = cv2.copyMakeBorder(sprite.planes[COVER], border, border, border, border, cv2.BORDER_CONSTANT, value=0)
    away = cv2.distanceTransform((silhouette < 0.5).astype(np.uint8), cv2.DIST_L2, 5) / np.float32(sprite.scale)
    away = cv2.GaussianBlur(away, (0, 0), 1.5 * sprite.scale)
    y, x = (
        (np.arange(n, dtype=np.float32) - (n - 1) / 2).reshape(order) / np.float32(sprite.scale)
        for n, order in ((away.shape[0], (-1, 1)), (away.shape[1], (1, -1)))
    )
    if size[0] > 2 * size[1]:
        away = np.minimum(away, np.hypot(x, np.maximum(np.abs(y) - size[1] / 2 + 3, 0)) - 7.0)
    cover = np.clip(0.5 - (away - _PLAY) * sprite.scale, 0, 1)
    return Surface(np.stack([value * cover for value in (*lower, 0.0, 0.0, 0.7, 1.0)]).astype(np.float32), sprite.scale)


def _arrangement(rng: np.random.Generator) -> list[tuple[Tool, tuple[float, float, float]]]:
    """The tools and where they lie: (x, y, angle). The seed deals out colours and the order of those that fit alike."""
    colours = [str(c) for c in rng.permutation(["b8322a", "d8a022", "2c5fa8", "2f8a4e", "c8601e"])]
    grips = colours[:3]
    spanners = [tools.wrench(196, 42, "17"), tools.wrench(172, 36, "13")]
    nippers = [tools.pliers(172, colours[3], False), tools.pliers(160, colours[3], True)]
    places: list[tuple[Tool, tuple[float, float, float]]] = [
        (tools.hammer(248, colours[4]), (-40, -112, 180)),
        (tools.tape_measure(70, colours[3]), (126, -118, 0)),
        (tools.cutter(150, colours[4]), (0, -148, 0)),
        (tools.allen_key(96, 7.0), (-52, -72, 0)),
        (tools.allen_key(84, 5.0), (48, -72, 0)),
    ]
    places += [(tools.screwdriver(200, grip), (x, 60, -90)) for grip, x in zip(grips, (-148, -109, -70), strict=True)]
    places += [(tool, (x, y, -90)) for tool, (x, y) in zip(_deal(rng, nippers), ((-16, 62), (136, 12)), strict=True)]
    places += [(tool, (x, y, -90)) for tool, (x, y) in zip(spanners, ((41, 62), (86, 32)), strict=True)]
    sockets = _deal(rng, [tools.socket(d) for d in (20.0, 26.0, 33.0)])
    places += [(tool, (x, 142, 0)) for tool, x in zip(sockets, (78, 113, 149), strict=True)]
    return places


def _deal(rng: np.random.Generator, hand: list[Tool]) -> list[Tool]:
    return [hand[i] for i in rng.permutation(len(hand))]
