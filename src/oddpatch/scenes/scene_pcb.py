"""Circuit boards under a top light: components missing or misplaced, solder bridges and scratches."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from oddpatch.scenes import scene
from oddpatch.scenes.artwork import Artwork
from oddpatch.scenes.board import Layout, Placed
from oddpatch.scenes.components import TIN, Pad
from oddpatch.scenes.optics import SUPERSAMPLE
from oddpatch.scenes.placing import lay_out
from oddpatch.scenes.scene import INSPECTED, Mark, Slot, Specimen, Spoil, Tolerance
from oddpatch.scenes.surface import OVERSAMPLE, Brush, Pose, Surface, srgb

#: What a scratch lays open: scuffed mask, laminate, copper.
_SCORED = ("76a085", "b8b894", "c69055")


class Scene(scene.Scene):
    """A board 34 mm square with some fifty components."""

    fov = 36.0
    tolerance = Tolerance(shift=0.045, turn=0.9, tint=0.05)
    shift_share = (0.4, 0.8)
    shift_limits = (0.35, 1.1)

    def __init__(self, size: int, seed: int) -> None:
        super().__init__(size, seed)
        rng = np.random.default_rng([seed, 0xB0A2D])
        self._board = Artwork(self.layout, rng, size * SUPERSAMPLE, self.scale)
        self._pairs = _neighbours(self.layout)
        bare = self._owners(self.specimen(rng)) == 0
        inside = np.abs(np.linspace(-1, 1, bare.shape[0])) < INSPECTED
        self._bare = bare & inside[:, None] & inside[None]

    def design(self, rng: np.random.Generator, scale: float) -> tuple[list[Slot], list[Surface]]:
        """Lay the board out, and draw each kind of component once."""
        self.layout = lay_out(rng)
        components = [placed.component for placed in self.layout.placed]
        drawn = {component: component.sprite(scale) for component in dict.fromkeys(components)}
        return [_slot(placed) for placed in self.layout.placed], [drawn[component] for component in components]

    @property
    def defects(self) -> Mapping[str, Spoil]:
        """Those of every scene, solder bridges and scratches."""
        return {**super().defects, "solder_bridge": self.bridge, "scratch": self.scratch}

    def labels(self) -> list[str]:
        """Those of the components and of the marks."""
        return sorted({*super().labels(), "solder_bridge", "scratch"})

    def ground(self, specimen: Specimen) -> Surface:
        """The bare board."""
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
        taper = np.sin(np.linspace(0.35, np.pi - 0.25, len(path)))
        widths = rng.uniform(0.08, 0.20) * taper * rng.uniform(0.75, 1.25, len(path))
        shape = brush.line([(x, y) for x, y in path.tolist()], widths.tolist())
        tone = srgb(_SCORED[rng.integers(len(_SCORED))])
        depth = np.clip(-shape / 0.06, 0, 1)
        brush.add(shape - 0.02, tone, -0.03 * depth, rough=0.35, metal=0.25)
        return self._marked(specimen, Mark("scratch", brush.surface, Pose(0, 0), bare_only=True))

    def _scratch_path(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """(n, 2) points in mm."""
        length, heading, bend = rng.uniform(3.0, 8.5), rng.uniform(0, 2 * np.pi), rng.normal(0, 0.35)
        start = rng.uniform(-0.45, 0.45, 2) * INSPECTED * self.fov
        steps = heading + bend * np.linspace(0, 1, 14) + np.cumsum(rng.normal(0, 0.03, 14))
        return start + np.cumsum(length / 14 * np.column_stack([np.cos(steps), np.sin(steps)]), axis=0)

    def _bareness(self, path: NDArray[np.float64]) -> float:
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
        and min(abs(a.x - b.x), abs(a.y - b.y)) < 0.1
        and (a.width, a.height) == (b.width, b.height)
        and not a.round
        and (other is not placed or len(placed.component.pads) > 2)
    ]
