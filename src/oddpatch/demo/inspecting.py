"""What the page computes: images inspected by `AnomalyDetector`, counted at a threshold, and drawn."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from oddpatch.data.decoding import to_uint8
from oddpatch.errors import DataError
from oddpatch.figures.canvas import ALARM
from oddpatch.figures.explanation import NORMAL, close_up
from oddpatch.figures.overlay import Picture, overlay
from oddpatch.inference.detector import AnomalyDetector, Detection
from oddpatch.inference.outputs import Tally, to_record
from oddpatch.inference.sources import Frame

#: Longer side of the pictures of the gallery, in pixels.
THUMBNAIL = 320
#: Images scored at once; the numbers do not depend on it.
BATCH = 8


class Item(NamedTuple):
    """An image to be inspected."""

    name: str  # to be shown
    path: Path
    label: int | None  # 0 good, 1 defective; None where it is not known
    kind: str  # such as the type of the defect


@dataclass(frozen=True, eq=False)
class Inspected:
    """What was found on an image."""

    item: Item
    record: dict[str, Any]  # as `oddpatch predict` writes it; with the name that is shown, and so its errors
    image: Picture | None = None  # (h, w, 3) small; None where it could not be inspected
    level: NDArray[np.float32] | None = None  # (h, w) the normalized map; None where there is none

    @property
    def score(self) -> float:
        """Of an image that was inspected."""
        return float(self.record["score"])

    @property
    def reason(self) -> str | None:
        """Why it is anomalous whatever its score."""
        return self.record.get("reason")

    def is_anomalous(self, threshold: float) -> bool:
        """What is said of it at a threshold."""
        return self.score > threshold or self.reason is not None


class Confusion(NamedTuple):
    """How images of which the truth is known are judged."""

    found: int  # defective, called anomalous
    missed: int
    false_alarms: int  # good, called anomalous
    passed: int


def inspect(detector: AnomalyDetector, items: Iterable[Item]) -> Generator[Inspected, None, None]:
    """Inspect images in order, as `oddpatch predict` does; close the generator where it is left early."""
    items = list(items)
    small: dict[PurePath, tuple[Picture, NDArray[np.float32] | None]] = {}

    def keep(frame: Frame, image: NDArray[Any], detection: Detection) -> None:
        level = detection.normalized_map
        small[frame.output] = (shrink(to_uint8(image)), None if level is None else shrink(level))

    frames = (Frame(str(item.path), item.path, output=PurePath(str(number))) for number, item in enumerate(items))
    with closing(detector.stream(frames, BATCH, keep)) as results:
        for item, (frame, result) in zip(items, results, strict=True):
            yield Inspected(item, _named(item, to_record(frame, result)), *small.pop(frame.output, ()))


def _named(item: Item, record: dict[str, Any]) -> dict[str, Any]:
    renamed = {**record, "path": item.name}
    if "error" in record:
        renamed["error"] = record["error"].replace(str(item.path), item.name)
    return renamed


def shrink(image: NDArray[Any]) -> NDArray[Any]:
    """An image (H, W) or (H, W, C) with a longer side of `THUMBNAIL` at most."""
    scale = THUMBNAIL / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def confusion(found: Iterable[Inspected], threshold: float) -> Confusion:
    """Counts of what is said at a threshold; images without a label are left out."""
    counts = np.zeros((2, 2), int)  # [defective, called anomalous]
    for one in found:
        if one.item.label is not None and "score" in one.record:
            counts[one.item.label, int(one.is_anomalous(threshold))] += 1
    return Confusion(int(counts[1, 1]), int(counts[1, 0]), int(counts[0, 1]), int(counts[0, 0]))


def verdict(one: Inspected, threshold: float) -> str:
    """What is said of an image at a threshold; "missed" or "false alarm" where it is known to be wrong."""
    alarm = one.is_anomalous(threshold)
    if one.item.label is None or bool(one.item.label) == alarm:
        return "anomalous" if alarm else "good"
    return "false alarm" if alarm else "missed"


def thumbnail(one: Inspected, span: tuple[float, float]) -> Picture:
    """The small image under its heat; `span` are the values where the colours begin and end."""
    assert one.image is not None
    return overlay(one.image, one.level, [], span)


class Look(NamedTuple):
    """One image in its own size."""

    image: Picture  # (H, W, 3)
    detection: Detection


def look(detector: AnomalyDetector, item: Item) -> Look:
    """Inspect one image once more, for all that is found on it.

    Raises:
        DataError: it cannot be inspected.
    """
    kept: list[Look] = []
    frame = Frame(item.name, item.path)
    with closing(detector.stream([frame], 1, lambda _, image, found: kept.append(Look(to_uint8(image), found)))) as one:
        for _, result in one:
            if isinstance(result, DataError):
                raise DataError(str(result).replace(str(item.path), item.name))
    return kept[0]


def by_score(found: Sequence[Inspected]) -> list[Inspected]:
    """Those that were inspected, the most anomalous first."""
    inspected = (one for one in found if "score" in one.record)
    return sorted(inspected, key=lambda one: (one.reason is None, -one.score))


def partly_inspected(found: Iterable[Inspected], detector: AnomalyDetector) -> str | None:
    """One line if much of some images was not inspected, as `oddpatch predict` has it."""
    tally = Tally()
    for one in found:
        tally.add(one.item.name, one.record["is_anomalous"], one.record["inspected"])
    return tally.partly_inspected(detector.scorer.settings)


class Nearest(NamedTuple):
    """An anomalous patch beside the nearest one of the good images, both enlarged with their surroundings."""

    distance: float
    patch: Picture
    normal: Picture | None  # None where the good image is not on this machine
    train_image: str


class Memory:
    """The good patches that a run of PatchCore keeps.

    Args:
        run: its folder.

    Raises:
        ConfigError: it is of another method.
        CheckpointError: it cannot be read.
    """

    def __init__(self, run: Path) -> None:
        from oddpatch.inference.explain import restore_memory_bank

        self._model, self._detector, about = restore_memory_bank(run, (), "explain")
        self._names: list[str] = about["train_images"]
        self._root = Path(about["config"]["data"]["root"])

    def nearest(self, path: Path, count: int = 3) -> list[Nearest]:
        """Of the most anomalous patches of an image, none beside another, as `oddpatch explain` finds them."""
        from oddpatch.inference.explain import find_matches, most_anomalous

        preprocess = self._model.preprocess
        image = preprocess.load(path)  # (3, H, W)
        matches = find_matches(self._model, self._detector, image, self._names)
        shown = to_uint8(preprocess.to_image(image))
        found = []
        for match in most_anomalous(matches, count, self._detector.patch_size * matches[0].patch.width):
            there = self._root / match.train_image
            normal = None
            if there.is_file():
                normal = close_up(to_uint8(preprocess.to_image(preprocess.load(there))), match.normal, NORMAL)
            found.append(Nearest(match.distance, close_up(shown, match.patch, ALARM), normal, match.train_image))
        return found
