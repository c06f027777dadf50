"""What every scene shares: objects in slots, how they come to be missing or misplaced, and how all is photographed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from oddpatch.scenes.optics import SUPERSAMPLE, Camera, Light, shade
from oddpatch.scenes.surface import HEIGHT, OVERSAMPLE, Pose, Surface, claim, paste

#: Defects stay in this central share of the image, which a centre crop to 224 of 256 keeps.
INSPECTED = 0.8
#: A mark may be thinner than a pixel: it owns each that it covers by more than this share.
_TOUCHED = 0.1


@dataclass(frozen=True)
class Slot:
    """Where one object belongs.

    `look` says which objects cannot be told apart, `package` which fit each other's slots; `size` is (width, height)
    of the object before it is turned, in mm.
    """

    label: str
    look: str
    package: str
    pose: Pose
    size: tuple[float, float]
    polarised: bool = False

    def corner(self) -> tuple[float, float]:
        """The farthest x and y, in mm from the middle, that the object covers."""
        turn = np.deg2rad(self.pose.angle)
        cos, sin = abs(np.cos(turn)), abs(np.sin(turn))
        width, height = self.size
        reach = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
        return abs(self.pose.x) + reach[0], abs(self.pose.y) + reach[1]


@dataclass(frozen=True)
class Item:
    """An object of a specimen: which slot's object it is, where it lies and its own shade."""

    slot: int
    pose: Pose
    tint: tuple[float, float, float]

    @property
    def instance(self) -> int:
        """Its value in owner maps, 1 and up: an object keeps it wherever it lies."""
        return self.slot + 1


@dataclass(frozen=True)
class Mark:
    """Something that should not be there: solder, a scratch. It has relief but is too thin to cast a shadow."""

    label: str
    sprite: Surface
    pose: Pose
    bare_only: bool  # does not touch the objects


@dataclass(frozen=True)
class Specimen:
    """One part as it came off the line: its objects, marks, and what varies in its material."""

    items: tuple[Item, ...]
    material: NDArray[np.float64]  # (8,) standard normal: what each scene makes of it
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Tolerance:
    """Standard deviations of good placement, cut off at 2.5 of them: mm, degrees, relative brightness."""

    shift: float
    turn: float
    tint: float


Spoil = Callable[[Specimen, np.random.Generator], tuple[Specimen, frozenset[int]]]


class Scene(ABC):
    """A fixed design, made from a seed, of which every image shows another specimen.

    Args:
        size: width and height of the images in pixels.
        seed: of the design.
    """

    fov: float  # mm that the image is wide and high
    tolerance: Tolerance
    #: Misplaced: shift as a share of the object's shorter side, and its limits in mm, also for what a turn sweeps.
    shift_share: tuple[float, float]
    shift_limits: tuple[float, float]

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.scale = size * SUPERSAMPLE / self.fov
        self.slots, self.sprites = self.design(np.random.default_rng([seed, 0xDE5]), self.scale * OVERSAMPLE)
        limit = INSPECTED / 2 * self.fov
        self.inspected = [i for i, slot in enumerate(self.slots) if max(slot.corner()) <= limit]

    @abstractmethod
    def design(self, rng: np.random.Generator, scale: float) -> tuple[list[Slot], list[Surface]]:
        """The slots, and for each the sprite of its object at `scale` pixels per mm."""

    @abstractmethod
    def ground(self, specimen: Specimen) -> Surface:
        """A fresh canvas, (size * SUPERSAMPLE) pixels a side: all but the objects."""

    @property
    def defects(self) -> Mapping[str, Spoil]:
        """Each defect type, and what makes a good specimen one of it and names the instances that are wrong."""
        return {"missing_objects": self.remove, "misplaced_objects": self.misplace}

    def labels(self) -> list[str]:
        """Every semantic label of the scene, in a fixed order: label ids count from 1."""
        return sorted({slot.label for slot in self.slots})

    def specimen(self, rng: np.random.Generator) -> Specimen:
        """A good part."""
        draws = np.clip(rng.standard_normal((len(self.slots), 7)), -2.5, 2.5)
        items = []
        for i, (slot, draw) in enumerate(zip(self.slots, draws, strict=True)):
            dx, dy, turn = draw[:3] * [self.tolerance.shift, self.tolerance.shift, self.tolerance.turn]
            pose = replace(slot.pose, x=slot.pose.x + dx, y=slot.pose.y + dy, angle=slot.pose.angle + turn)
            tint = np.exp(self.tolerance.tint * (draw[3] + 0.3 * draw[4:7]))
            items.append(Item(i, pose, (float(tint[0]), float(tint[1]), float(tint[2]))))
        return Specimen(tuple(items), rng.standard_normal(8))

    def render(self, specimen: Specimen, light: Light, camera: Camera) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Photograph a specimen: the image (size, size, 3) sRGB, and the instance each pixel shows (size, size).

        An instance covers its solder joints, not its shadow. Marks count up from the last slot.
        """
        owner = self._owners(specimen)
        canvas = self.ground(specimen)
        for item in specimen.items:
            paste(canvas, self.sprites[item.slot], item.pose, item.tint)
        blockers = canvas.planes[HEIGHT].copy()
        bare = (owner == 0) | (owner > len(self.slots))
        for mark in specimen.marks:
            paste(canvas, mark.sprite, mark.pose, (), bare if mark.bare_only else None)
        return camera.expose(shade(canvas, blockers, light), self.size), camera.project(owner, self.size)

    def owners(self, specimen: Specimen, camera: Camera) -> NDArray[np.uint8]:
        """The instance each pixel shows, as `render` gives it, without the light."""
        return camera.project(self._owners(specimen), self.size)

    def _owners(self, specimen: Specimen) -> NDArray[np.uint8]:
        """The instance each canvas pixel shows."""
        owner = np.zeros((self.size * SUPERSAMPLE,) * 2, np.uint8)
        for item in specimen.items:
            claim(owner, self.sprites[item.slot], item.pose, self.scale, item.instance)
        for instance, mark in enumerate(specimen.marks, start=len(self.slots) + 1):
            claim(owner, mark.sprite, mark.pose, self.scale, instance, _TOUCHED, mark.bare_only)
        return owner

    # Defects every scene has.
    def remove(self, specimen: Specimen, rng: np.random.Generator) -> tuple[Specimen, frozenset[int]]:
        """Leave out one object, now and then two."""
        count = 1 + int(rng.random() < 0.25)
        gone = {int(i) for i in rng.choice(self.inspected, count, replace=False)}
        items = tuple(item for item in specimen.items if item.slot not in gone)
        return replace(specimen, items=items), frozenset(i + 1 for i in gone)

    def misplace(self, specimen: Specimen, rng: np.random.Generator) -> tuple[Specimen, frozenset[int]]:
        """Shift an object, turn it, or exchange two."""
        ways = (self._shift, self._turn, self._swap)
        moved = ways[rng.integers(len(ways))](specimen, rng)
        items = tuple(moved.get(item.slot, item) for item in specimen.items)
        return replace(specimen, items=items), frozenset(i + 1 for i in moved)

    def _shift(self, specimen: Specimen, rng: np.random.Generator) -> dict[int, Item]:
        item = specimen.items[int(rng.choice(self.inspected))]
        length = np.clip(min(self.slots[item.slot].size) * rng.uniform(*self.shift_share), *self.shift_limits)
        towards = rng.uniform(0, 2 * np.pi)
        # Towards the middle where it would leave the inspected part of the image.
        step = length * np.array([np.cos(towards), np.sin(towards)])
        if np.hypot(item.pose.x + step[0], item.pose.y + step[1]) > np.hypot(item.pose.x, item.pose.y):
            step = -step
        return {item.slot: self._moved(item, x=item.pose.x + float(step[0]), y=item.pose.y + float(step[1]))}

    def _turn(self, specimen: Specimen, rng: np.random.Generator) -> dict[int, Item]:
        slots = [i for i in self.inspected if self.slots[i].polarised or self.slots[i].size[0] != self.slots[i].size[1]]
        item = specimen.items[int(rng.choice(slots))]
        # Far enough for its ends to move as much as a shift would move it.
        sweep = rng.uniform(*self.shift_limits) / (max(self.slots[item.slot].size) / 2)
        angle = float(min(np.rad2deg(sweep), 90) * rng.choice([-1, 1]))
        if self.slots[item.slot].polarised and rng.random() < 0.4:
            angle = 180.0
        return {item.slot: self._moved(item, angle=item.pose.angle + angle)}

    def _swap(self, specimen: Specimen, rng: np.random.Generator) -> dict[int, Item]:
        pairs = [
            (i, j)
            for n, i in enumerate(self.inspected)
            for j in self.inspected[n + 1 :]
            if self.slots[i].package == self.slots[j].package and self.slots[i].look != self.slots[j].look
        ]
        if not pairs:
            return self._shift(specimen, rng)
        first, second = (specimen.items[i] for i in pairs[rng.integers(len(pairs))])
        return {first.slot: replace(first, pose=second.pose), second.slot: replace(second, pose=first.pose)}

    def _moved(self, item: Item, **pose: float) -> Item:
        return replace(item, pose=replace(item.pose, **pose))
