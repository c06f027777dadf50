"""Output for inspected images: a record for JSON, counts, pictures and maps."""

from collections import Counter
from collections.abc import Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import tifffile
from numpy.typing import NDArray
from PIL import Image

from oddpatch.data.decoding import to_uint8
from oddpatch.data.inspected import ENOUGH
from oddpatch.errors import DataError
from oddpatch.figures.overlay import heatmap, overlay
from oddpatch.files import replacing, shown
from oddpatch.inference.detector import Detection
from oddpatch.inference.sources import Frame


class Save(StrEnum):
    """What can be saved of each image."""

    heatmap = "heatmap"
    overlay = "overlay"
    mask = "mask"
    map = "map"


def save(folder: Path, kinds: Collection[Save], frame: Frame, image: NDArray[Any], detection: Detection) -> None:
    """Write `FOLDER/OUTPUT_KIND.png` (`.tiff` for a map) for each kind, each file whole or not at all.

    >>> from functools import partial
    >>> from oddpatch import AnomalyDetector
    >>> from oddpatch.inference.sources import Files
    >>> write = partial(save, Path("inspected"), {Save.overlay})
    >>> _ = list(AnomalyDetector.load("housing").stream(Files(["part.png"]), save=write))
    >>> [path.name for path in Path("inspected").iterdir()]
    ['part_overlay.png']

    Args:
        folder: where to.
        kinds: what to write; nothing where the method gives no map.
        frame: names the files.
        image: (3, H, W) in [0, 1] or uint8.
        detection: what was found.

    Raises:
        ResourceError: a file cannot be written; a `NameTooLongError` if others of shorter names can.
    """
    if detection.anomaly_map is None:
        return
    base = folder / frame.output
    if Save.map in kinds:
        with replacing(base.with_name(f"{base.name}_map.tiff"), "wb") as file:
            tifffile.imwrite(file, detection.anomaly_map, compression=None)
    pictures: dict[str, Any] = {}
    if Save.heatmap in kinds and detection.normalized_map is not None:
        pictures["heatmap"] = heatmap(detection.normalized_map)
    if Save.overlay in kinds:
        pictures["overlay"] = overlay(to_uint8(image), detection.normalized_map, detection.regions)
    if Save.mask in kinds:
        pictures["mask"] = detection.mask
    for name, picture in pictures.items():
        with replacing(base.with_name(f"{base.name}_{name}.png"), "wb") as file:
            Image.fromarray(picture).save(file, "PNG")


def to_record(frame: Frame, result: Detection | DataError) -> dict[str, Any]:
    """One image's line of JSON; `latency_ms` is the time spent on it, without waiting and saving."""
    if isinstance(result, DataError):
        return {"path": frame.name, "error": str(result)}
    return {
        "path": frame.name,
        "score": result.score,
        "threshold": result.threshold,
        "p_value": result.p_value,
        "anomaly_score": result.anomaly_score,
        "is_anomalous": result.is_anomalous,
        "regions": [region.to_dict() for region in result.regions],
        "inspected": round(result.inspected, 4),
        **result.light._asdict(),
        **({} if result.aligned is None else {"aligned": result.aligned}),
        **(
            {}
            if result.product is None and result.reason is None
            else {"product": result.product, "reason": result.reason}
        ),
        "latency_ms": round(1000 * result.seconds, 2),
    }


class Tally:
    """Counts of what was found in a stream of images.

    Attributes:
        counts: of images that are good, anomalous, and failed: could not be inspected.
        failures: the errors of the first of these.
    """

    #: Errors that are kept.
    FAILURES = 20

    def __init__(self) -> None:
        self.counts = Counter({"good": 0, "anomalous": 0, "failed": 0})
        self.failures: list[str] = []
        self._inspected = self._few = 0
        self._least = (1.0, "")

    def add(self, path: str, is_anomalous: bool | None, inspected: float) -> None:
        """Count an image that was inspected, a share of its area."""
        self.counts["anomalous" if is_anomalous else "good"] += 1
        self._inspected += 1
        self._few += inspected < ENOUGH
        self._least = min(self._least, (inspected, path))

    def add_failure(self, error: str) -> None:
        """Count an image that could not be inspected."""
        self.counts["failed"] += 1
        if len(self.failures) < self.FAILURES:
            self.failures.append(error)

    def partly_inspected(self, settings: Mapping[str, Any]) -> str | None:
        """One line if a crop, or where an image lies, left out much of some images; a region of interest is meant to.

        Args:
            settings: of the preprocessing, see `Scorer`.
        """
        if settings["roi"] or not self._few:
            return None
        remedy = "fit again with data.crop=null" if settings["fit"] == "crop" else "they lie in part off the reference"
        share, name = self._least
        return (
            f"{self._few} of {self._inspected} images were inspected in part, {shown(name)} to {share:.1%} of its "
            f"area: {remedy}"
        )
