"""A fitted model that compares patches by another distance than it was fitted with."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from oddpatch.data.decoding import to_uint8
from oddpatch.factory import restore
from oddpatch.figures.distances import draw_distances
from oddpatch.inference.update import rescore
from oddpatch.models.anomaly_model import AnomalyModel
from oddpatch.models.base import DISTANCES

log = logging.getLogger(__name__)

#: Good images scored at once.
BATCH = 16


def measure_by(model: AnomalyModel, about: dict[str, Any], distance: str) -> None:
    """Have a fitted model compare patches by `distance`, and set its thresholds again, as they are of the other one.

    The good images that set them are scored by the new distance, each left out as before, so that the promise is that
    of the run. Where that cannot be done there is no threshold, and the log says why.

    Args:
        model: that was restored.
        about: its checkpoint's description.
        distance: "euclidean" or "cosine"; that of the run leaves the model as it is.

    Raises:
        ConfigError: the method does not score by the distance to good patches, or there is no such distance.
        DataError: one of the good images cannot be read.
    """
    before = model.detector.distance
    model.detector.measure(distance)
    if distance == before:
        return
    calibration = model.calibration
    calibration.f1_threshold.fill_(float("nan"))  # of labelled images, which are not named
    if not calibration.calibrated:
        return
    index = sorted(calibration.image_index.tolist())
    paths = [Path(about["config"]["data"]["root"]) / about["train_images"][number] for number in index]
    if reason := rescore(model, index, paths, BATCH):
        calibration.refuse(f"that of the run is of distance={before}, and cannot be set again, as {reason}")
        return
    log.warning(
        "threshold %.4g of distance=%s, set again on the %d good images that set that of the run: %s is no longer "
        "what the run was tested with",
        calibration.image.value,
        distance,
        len(paths),
        before,
    )


class Comparison(NamedTuple):
    """The maps of one image by both distances."""

    maps: dict[str, NDArray[np.float32]]  # (h, w) by distance, that of the run first
    scores: dict[str, float]
    picture: Path  # the file written


@torch.inference_mode()
def compare_distances(run: Path, image: Path, distance: str, out: Path | None = None, trust: Any = ()) -> Comparison:
    """Draw an image's anomaly maps by the distance of the run and by another one, side by side.

    >>> compare_distances(Path("housing"), Path("part.png"), "cosine").picture
    PosixPath('part-distances.png')

    Args:
        run: folder of a finished run.
        image: file to inspect.
        distance: "euclidean" or "cosine".
        out: picture to write; None for `IMAGE-distances.png` in the current folder.
        trust: see `oddpatch.factory.restore`.

    Raises:
        ConfigError: see `measure_by`.
        CheckpointError, DataError: the run or the image cannot be read.
        ResourceError: the picture cannot be written.
    """
    model, _ = restore(run, trust)
    detector, preprocess = model.detector, model.preprocess
    own = detector.distance
    detector.measure(distance)  # refuses before the image is read
    preprocessed, _ = preprocess.prepare(image)  # (3, H, W)
    features = model.features(preprocessed[None])
    found = {distance: detector(features, preprocess.image_size)}
    if distance == own:
        other = next(name for name in DISTANCES if name != own)
        detector.measure(other)
        found[other] = detector(features, preprocess.image_size)
    else:
        found = {str(own): restore(run, trust)[0].detector(features, preprocess.image_size), **found}
    maps = {name: prediction.anomaly_map[0, 0].numpy() for name, prediction in found.items()}
    scores = {name: float(prediction.score) for name, prediction in found.items()}
    out = out or Path(f"{image.stem}-distances.png")
    draw_distances(to_uint8(preprocess.to_image(preprocessed)), image.name, maps, scores).save(out)
    return Comparison(maps, scores, out)
