"""Renders a whole dataset: which images there are, the pool that renders them, and the files they become."""

import importlib
import pkgutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from oddpatch.errors import ConfigError, DataError
from oddpatch.pool import Progress, run_many
from oddpatch.scenes import unity_solo
from oddpatch.scenes.optics import Camera, Light
from oddpatch.scenes.scene import Scene, Specimen
from oddpatch.temporary import drafting

_PREFIX = "scene_"
#: Names of the scenes there are.
SCENES = tuple(
    sorted(
        module.name.removeprefix(_PREFIX)
        for module in pkgutil.iter_modules([str(Path(__file__).parent)])
        if module.name.startswith(_PREFIX)
    )
)
#: Smallest and largest image that makes sense: below, a chip is less than two pixels.
SIZES = (96, 2048)
#: A defect has at least this share of the image's pixels, and lies in what a centre crop to 224 of 256 keeps.
_SMALLEST = 1e-4
_CROP = 224 / 256
#: Images that make up for a worker's start.
_WORTH_A_WORKER = 12


@dataclass(frozen=True)
class Job:
    """One image."""

    split: str
    defect_type: str
    index: int

    @property
    def stem(self) -> str:
        """File name without extension, as Unity Perception numbers its camera's images."""
        return "step0.camera_solo" + (f"_{self.index}" if self.index else "")


@dataclass(frozen=True)
class Rendered:
    """One image and its truth."""

    image: NDArray[np.uint8]  # (H, W, 3) sRGB
    owner: NDArray[np.uint8]  # (H, W) instance each pixel shows, 0 for none
    mask: NDArray[np.uint8]  # (H, W) 255 where the part is wrong
    instances: dict[int, str]  # label of each


def load_scene(name: str) -> type[Scene]:
    """The class of a scene.

    Raises:
        ConfigError: there is no scene of that name.
    """
    if name not in SCENES:
        raise ConfigError(f"scene={name!r} is not known: choose one of {', '.join(SCENES)}")
    scene: type[Scene] = importlib.import_module(f"{__package__}.{_PREFIX}{name}").Scene
    return scene


@lru_cache(maxsize=2)
def design_scene(name: str, size: int, seed: int) -> Scene:
    """The scene of this name, for images of `size` pixels."""
    return load_scene(name)(size, seed)


def render_dataset(
    root: Path,
    scene: str,
    *,
    train: int = 300,
    test_good: int = 50,
    test_per_defect: int | Mapping[str, int] = 12,
    size: int = 320,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Render specimens of one design as a dataset in MVTec layout: train, test, ground_truth.

    `<root>/unity_solo/<split>_<defect_type>` holds the same images once more as Unity Perception datasets with
    segmentations and labels. `root` appears when all is done, not before. The files depend on nothing but the
    arguments, and not on `workers`.

    Args:
        root: folder to make; it may exist if it is empty.
        scene: one of `SCENES`.
        train, test_good, test_per_defect: numbers of images; the last for each defect type, or by its name, others 0.
        size: width and height in pixels.
        seed: of the design and of every specimen.
        workers: processes; by default one for each core at hand, as far as there are images for them. They are
            spawned, so a script that asks for several needs the usual `if __name__ == "__main__"`.
        progress: told (images done, images in all).

    Returns:
        `root`.

    Raises:
        ConfigError: a setting that cannot work.
        DataError: `root` is in the way.
    """
    root = Path(root).absolute()
    defects = defect_counts(scene, test_per_defect)
    _check(root, {"train": train, "test_good": test_good, **defects}, size, workers)
    design = design_scene(scene, size, seed)
    jobs = [Job("train", "good", i) for i in range(train)] + [Job("test", "good", i) for i in range(test_good)]
    jobs += [Job("test", defect_type, i) for defect_type, count in defects.items() for i in range(count)]
    with drafting(root) as scratch:
        draft = scratch / root.name
        draft.mkdir()
        run_many(partial(_write, (scene, size, seed), draft), jobs, _WORTH_A_WORKER, workers, progress)
        groups = [(job.split, job.defect_type) for job in jobs]
        for split, defect_type in dict.fromkeys(groups):
            folder = draft / "unity_solo" / f"{split}_{defect_type}"
            unity_solo.write_definitions(folder, design.labels(), groups.count((split, defect_type)), seed)
        if root.exists():
            root.rmdir()
        draft.rename(root)  # same file system: at once or not at all
    return root


def defect_counts(scene: str, wanted: int | Mapping[str, int]) -> dict[str, int]:
    """Images of each defect type of a scene, in its order.

    Raises:
        ConfigError: there is no such scene, or it has no such defect type.
    """
    known = list(design_scene(scene, SIZES[0], 0).defects)
    if isinstance(wanted, int):
        return dict.fromkeys(known, wanted)
    for name in wanted:
        if name not in known:
            raise ConfigError(f"defect type {name!r}: {scene} has {', '.join(known)}")
    return {name: wanted.get(name, 0) for name in known}


def _check(root: Path, counts: Mapping[str, int], size: int, workers: int | None) -> None:
    for name, count in counts.items():
        if count < 0:
            raise ConfigError(f"{name}={count} is negative: give 0 or more images")
    if not any(counts.values()):
        raise ConfigError("train, test_good and the defect types are all 0: ask for at least one image")
    if not SIZES[0] <= size <= SIZES[1]:
        raise ConfigError(f"size={size} is out of range: choose {SIZES[0]}..{SIZES[1]}")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers}: give at least 1, or leave it out for one for each core")
    check_absent(root)


def check_absent(root: Path) -> None:
    """See that a dataset may be rendered at `root`.

    Raises:
        DataError: something is there.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: exists and is not an empty folder: remove it or choose another")


def _write(design: tuple[str, int, int], draft: Path, job: Job) -> None:
    scene = design_scene(*design)
    rendered = render_one(scene, design[2], job)
    image = _encode(cv2.cvtColor(rendered.image, cv2.COLOR_RGB2BGR))
    files = {draft / job.split / job.defect_type / f"{job.stem}.png": image}
    if job.defect_type != "good":
        files[draft / "ground_truth" / job.defect_type / f"{job.stem}_mask.png"] = _encode(rendered.mask)
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    folder = draft / "unity_solo" / f"{job.split}_{job.defect_type}"
    unity_solo.write_sequence(folder, job.index, image, rendered.owner, rendered.instances, scene.labels(), scene.fov)


def _encode(image: Any) -> bytes:
    return bytes(cv2.imencode(".png", image)[1])


def render_one(scene: Scene, seed: int, job: Job, spoil: bool = True) -> Rendered:
    """Render one image; with `spoil` False the same specimen and exposure before it became defective.

    The mask is 255 on every pixel that shows a wrong instance or would show it on the good specimen: of a missing
    object its footprint, of a misplaced one where it is and where it should be, of a mark its own pixels. Shadows
    are not part of it.
    """
    # Generators of their own, so that a defect changes nothing else about its specimen or its exposure.
    stream = np.random.SeedSequence([seed, zlib.crc32(f"{job.split}/{job.defect_type}".encode()), job.index])
    parts, faults, exposure = (np.random.default_rng(child) for child in stream.spawn(3))
    specimen = scene.specimen(parts)
    light, camera = Light.draw(exposure), Camera.draw(exposure)
    mask = np.zeros((scene.size, scene.size), np.uint8)
    if spoil and job.defect_type != "good":
        specimen, mask = _spoiled(scene, specimen, job.defect_type, camera, faults)
    image, owner = scene.render(specimen, light, camera)
    instances = {item.instance: scene.slots[item.slot].label for item in specimen.items}
    instances |= {i: mark.label for i, mark in enumerate(specimen.marks, start=len(scene.slots) + 1)}
    return Rendered(image, owner, mask, instances)


def _spoiled(
    scene: Scene, good: Specimen, defect_type: str, camera: Camera, rng: np.random.Generator
) -> tuple[Specimen, NDArray[np.uint8]]:
    """A defective version of a good specimen, and its mask (H, W): the first drawn that can be seen."""
    before = scene.owners(good, camera)
    edge = round(scene.size * (1 - _CROP) / 2)
    for _ in range(50):
        spoiled, wrong = scene.defects[defect_type](good, rng)
        wrong_ids = np.array(sorted(wrong))
        mask = np.isin(before, wrong_ids) | np.isin(scene.owners(spoiled, camera), wrong_ids)
        inside = mask[edge:-edge, edge:-edge].sum()
        if inside == mask.sum() and inside >= max(2, _SMALLEST * mask.size):
            return spoiled, mask.astype(np.uint8) * 255
    raise ConfigError(f"size={scene.size} is too small to show {defect_type}: choose a larger one")
