"""`AnomalyDetector`: a finished run as a function of an image."""

import math
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.decoding import read_file
from oddpatch.data.geometry import LARGE_FRAME
from oddpatch.data.light import Light, measure
from oddpatch.engines import ENGINES
from oddpatch.errors import ConfigError, DataError, NameTooLongError
from oddpatch.inference.artifact import is_artifact, load_artifact
from oddpatch.inference.regions import Region, find_regions
from oddpatch.inference.scorer import ImageLike, Prepared, Preparing, Scored, Scorer
from oddpatch.inference.sources import Frame
from oddpatch.inference.throughput import Overlap
from oddpatch.metrics.good_scores import NO_PRODUCT
from oddpatch.metrics.thresholds import anomaly_score, check_target_fpr

if TYPE_CHECKING:
    from torch import device

    from oddpatch.models.anomaly_model import AnomalyModel

Given = TypeVar("Given", bound=ImageLike)  # so that a list of paths is a list of images


@dataclass(frozen=True, slots=True)
class Detection:
    """The result for one image; everything in the size and pixels of the image that was given.

    Examples:
        >>> from oddpatch import AnomalyDetector
        >>> detection = AnomalyDetector.load("housing")("part.png")
        >>> detection.is_anomalous, detection.p_value < 0.2, detection.anomaly_map.shape
        (True, True, (48, 48))
    """

    score: float  # raw distance, larger is more anomalous
    is_anomalous: bool | None  # above the threshold, or for the `reason`; None where the run has no threshold
    p_value: float | None  # probability that a good image scores as high; None without calibration
    anomaly_score: float | None  # the score on a scale from 0 to 1, 0.5 at the threshold; None without calibration
    anomaly_map: NDArray[np.float32] | None  # (H, W), NaN where the crop left the image out; None: no map
    normalized_map: NDArray[np.float32] | None  # (H, W) on a scale from 0 to 1, 0.5 at the pixel threshold
    regions: list[Region]  # above the pixel threshold, most anomalous first
    mask: NDArray[np.uint8] | None  # (H, W), 255 on the anomalous regions
    inspected: float  # share of the image that was looked at: less than 1 with a crop or a region of interest
    aligned: float | None  # quality with which it registered to the reference, of at most 1; None: without data.align
    light: Light  # its brightness and sharpness
    seconds: float  # spent on it: decoding, its share of its batch, the decision; not waiting
    threshold: float | None = None  # which the score was compared with
    product: str | None = None  # of several; None if it belongs to none of them, or the model is of one
    reason: str | None = None  # why it is anomalous whatever its score: "belongs to no product"


#: Rows of a map that are normalised at a time, which stay in the cache: all at once they take three times as long.
_ROWS = 32
#: Is called with each frame, its image (3, H, W) in [0, 1] or uint8, and what was found, by several threads at once.
SaveFn = Callable[[Frame, NDArray[Any], Detection], None]


#: Devices as torch names them, of the kinds that it computes on.
_DEVICE = re.compile(r"(cpu|cuda|xpu|mps)(:\d+)?")
#: Settings of thresholds, see `AnomalyDetector`.
THRESHOLDS = ("threshold", "pixel_threshold", "target_fpr")


def check_thresholds(
    threshold: float | str = "auto", pixel_threshold: float | None = None, target_fpr: float | None = None
) -> None:
    """See that thresholds can be had of some run; arguments are those of `AnomalyDetector`.

    Raises:
        ConfigError: a value is none.
    """
    if isinstance(threshold, str) and threshold not in ("auto", "conformal", "validation"):
        raise ConfigError(f"threshold={threshold!r}: choose auto, conformal, validation or a number")
    for name, value in (("threshold", threshold), ("pixel_threshold", pixel_threshold)):
        if isinstance(value, float) and math.isnan(value):  # nothing lies above it
            raise ConfigError(f"{name}=nan is no score: give a number")
    if target_fpr is not None:
        check_target_fpr(target_fpr)


def _check_place(device: str, engine: str | None) -> None:
    """See that there is such a device, by its name, and such an engine, before torch is loaded, which takes seconds."""
    if not _DEVICE.fullmatch(device):
        raise ConfigError(f"device={device!r}: choose cpu, cuda, or cuda:1 for the second GPU")
    if engine not in (None, *ENGINES):
        raise ConfigError(f"engine={engine!r}: choose one of {', '.join(ENGINES)}")


class AnomalyDetector:
    """A fitted model with its preprocessing and thresholds; the numbers are those of the run's own test.

    Args:
        model: a fitted model, or another `Scorer`. It stays as it is: detectors of one model do not disturb each other.
        threshold: image threshold: "conformal" (from good images left out of the fit), "validation" (F1-max of
            labelled images), "auto" (the first of these that the run has; none if it has none), or a raw score.
        pixel_threshold: raw anomaly value above which pixels are anomalous; None for the run's.
        target_fpr: wanted rate of false alarms, for the conformal thresholds; None for the run's.
        min_area: pixels of the image that a region must have.
        merge_distance: regions of an image with at most so many pixels between them count as one.
        device: where a model computes.
        max_pixels: larger images are refused; None for the run's limit.
        timeout: seconds in which a file must have been read, or it is an error of that image; None waits for ever.

    Raises:
        ConfigError: the run does not have the threshold asked for, a value cannot work, or the device does not exist.
    """

    def __init__(
        self,
        model: "AnomalyModel | Scorer",
        threshold: float | str = "auto",
        pixel_threshold: float | None = None,
        target_fpr: float | None = None,
        min_area: int = 1,
        merge_distance: int = 0,
        device: "str | device" = "cpu",
        max_pixels: int | None = None,
        timeout: float | None = None,
    ) -> None:
        check_thresholds(threshold, pixel_threshold, target_fpr)
        if isinstance(model, Scorer):
            self.scorer: Scorer = model
        else:  # of torch, which whoever has one has loaded
            from oddpatch.inference.torch_scorer import TorchScorer

            self.scorer = TorchScorer(model, device)
        self.min_area, self.merge_distance = min_area, merge_distance
        self.max_pixels, self.timeout = max_pixels, timeout
        calibration = self.scorer.calibration
        if target_fpr is not None and not calibration.calibrated:
            raise ConfigError(f"target_fpr={target_fpr} needs a threshold from good images: {calibration.absent}")
        self.target_fpr = calibration.target_fpr if target_fpr is None else target_fpr
        self.image_threshold = self._resolve(threshold)
        self._typical, self._typical_pixel = (
            float(np.median(scores)) if len(scores) else math.nan
            for scores in (calibration.image_scores, calibration.pixel_scores)
        )
        #: Of several products: the ratio above which an image belongs to none, see `oddpatch.models.products`.
        self.product_threshold = calibration.product_at(self.target_fpr)
        pixel = calibration.pixel_at(self.target_fpr)
        self.pixel_threshold = pixel.value if pixel_threshold is None and pixel is not None else pixel_threshold

    def _resolve(self, threshold: float | str) -> float | None:
        if not isinstance(threshold, str):
            return float(threshold)
        calibration = self.scorer.calibration
        known = calibration.thresholds(self.target_fpr)
        if threshold == "auto":
            return next(iter(known.values()), None)
        if threshold not in known:
            remedy = {"conformal": calibration.absent, "validation": "train again with +data.validation=FOLDER"}
            raise ConfigError(
                f"threshold={threshold!r}: the run has {' and '.join(known) or 'no threshold'}; {remedy[threshold]}, "
                "or give a number"
            )
        return known[threshold]

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        device: "str | device" = "cpu",
        engine: str | None = None,
        distance: str | None = None,
        trust: Sequence[str] = (),
        **settings: Any,
    ) -> Self:
        """The detector of a finished run, of a checkpoint file, or of an artifact, for which torch is not loaded.

        Args:
            run: the run's folder, a checkpoint, or what `oddpatch export` wrote (.onnx, .xml).
            device: where to compute; an artifact does on the CPU.
            engine: of a run "torch" or "openvino", in place of its own; an artifact has one only.
            distance: "euclidean" or "cosine", in place of the run's own: good images set the thresholds again.
            trust: packages of your own whose classes and functions the checkpoint may name: their code runs.
            settings: further arguments of `AnomalyDetector`.

        Raises:
            CheckpointError: there is none, or it cannot be read.
            ConfigError: see `AnomalyDetector`; or the engine is not installed, or does not run such an artifact; or the
                method does not score by a distance to good patches.
        """
        check_thresholds(**{name: settings[name] for name in THRESHOLDS if name in settings})
        if is_artifact(Path(run)):
            if str(device) != "cpu":
                raise ConfigError(f"device={str(device)!r}: an artifact is run on the CPU: choose cpu, or load the run")
            if distance is not None:
                raise ConfigError(f"{run} compares patches as its run did: for another distance load the run's folder")
            return cls(load_artifact(Path(run), engine), **settings)
        _check_place(str(device), engine)
        from oddpatch.inference.torch_scorer import TorchScorer, usable

        place = usable(device)  # before a model is loaded for it
        from oddpatch.factory import restore

        model, about = restore(Path(run), trust, **({} if engine is None else {"engine": engine}))
        if distance is not None:
            from oddpatch.inference.distance import measure_by

            measure_by(model, about, distance)
        return cls(TorchScorer(model, place, own=True), **settings)

    @overload
    def __call__(self, image: ImageLike) -> Detection: ...
    @overload
    def __call__(self, image: list[Given]) -> list[Detection]: ...

    def __call__(self, image: ImageLike | list[Given]) -> Detection | list[Detection]:
        """Inspect one image or a list of images.

        Args:
            image: path, PIL image, array (H, W), (H, W, 3) or (H, W, 4) of uint8, uint16 or float in [0, 1], or
                tensor (3, H, W) of the same types; or a list of any of these, of any sizes.

        Raises:
            DataError: an image cannot be read, or has values outside these ranges.
        """
        if not isinstance(image, list):  # threads would cost more than they save
            (frame,) = _frames([image])
            return _found(self.inspect(frame))
        with closing(self.stream(image)) as results:
            return [_found(result) for _, result in results]

    def inspect(self, frame: Frame, save: SaveFn | None = None, maps: bool = True) -> Detection | DataError:
        """Inspect one frame at once, in this thread: what was found, or the error of this frame.

        Args:
            frame: of a source, see `oddpatch.inference.sources`.
            save: is called with what was found, as by `stream`.
            maps: see `stream`.
        """
        return self._finish(save, maps, self._score([self._prepare(save is not None, frame)])[0])[1]

    def stream(
        self,
        images: Iterable[Frame | ImageLike],
        batch_size: int = 16,
        save: SaveFn | None = None,
        workers: int | None = None,
        maps: bool = True,
    ) -> Generator[tuple[Frame, Detection | DataError], None, None]:
        """Inspect a stream of images, in order: each with what was found, or the error of this image alone.

        Decoding, inference and what follows it run side by side in threads, a few batches ahead of the consumer; no
        more is held in memory. Close the iterator (`contextlib.closing`) where it is left early: that ends the threads.

        >>> from oddpatch.inference.sources import Files
        >>> for frame, result in AnomalyDetector.load("housing").stream(Files(["part.png"])):
        ...     print(frame.name, result if isinstance(result, DataError) else result.is_anomalous)
        part.png True

        Args:
            images: a source (see `oddpatch.inference.sources`), or images as for `__call__`; it may be without end.
            batch_size: images scored at once. 1 for a camera: a batch waits until it is full.
            save: writes what is wanted of each image.
            workers: threads; None for one per core.
            maps: False where nobody looks at the maps and the mask of a `Detection`: they are None, unless `save` is
                given, and an image without anomalous pixels costs less. All else is the same to the last bit.

        Raises:
            Exception: whatever `images` or `save` raise, except a `DataError` or `NameTooLongError` of `save`, which
                is that of its image.
        """
        adapted = self.scorer.settings.get("adapted") or {}
        # Side by side, several would take several times the memory.
        if math.prod(adapted.get("size", ())) >= LARGE_FRAME:
            for frame in _frames(images):
                yield frame, self.inspect(frame, save, maps or save is not None)
            return
        with Overlap(workers, isinstance(self.scorer, Preparing) and self.scorer.leaves_python) as overlap:
            ahead = batch_size + overlap.workers
            steps = overlap.map(partial(self._prepare, save is not None), _frames(images), ahead)
            finish = partial(self._finish, save, maps or save is not None)
            yield from overlap.map(finish, self._batches(steps, batch_size), ahead)

    def _prepare(self, keep: bool, frame: Frame) -> "_Step":
        """Decode and prepare an image; unless they are to be kept, only the shape of its own pixels is left."""
        given = frame.image
        try:
            if isinstance(given, DataError):
                raise given
            if self.timeout is not None and isinstance(given, str | Path):
                given = read_file(given, self.timeout)
            start = time.perf_counter()
            image = self.scorer.prepare(given, self.max_pixels)
            light = measure(image.original)
        except DataError as error:
            return _Step(frame, error)
        if not keep:  # most of the memory of what waits for its batch
            shape = np.broadcast_to(np.zeros((), image.original.dtype), image.original.shape)
            image = replace(image, original=shape)
        return _Step(frame, image, time.perf_counter() - start, light)

    def _batches(self, steps: Iterator["_Step"], batch_size: int) -> Iterator["_Step"]:
        while batch := list(islice(steps, batch_size)):
            yield from self._score(batch)

    def _score(self, batch: list["_Step"]) -> list["_Step"]:
        """Score the images of a batch; what could not be prepared stays as it is."""
        start = time.perf_counter()
        images = [step.image for step in batch if isinstance(step.image, Prepared)]
        try:
            scored, calibration = self.scorer.score(images) if images else [], self.scorer.calibration
        except DataError as error:
            if len(images) > 1:  # it is that of some of them
                return [alone for step in batch for alone in self._score([step])]
            return [
                step._replace(image=DataError(f"{step.frame.name}: {error}"))
                if isinstance(step.image, Prepared)
                else step
                for step in batch
            ]
        scores = [one.score for one in scored]
        p_values = calibration.p_values(scores).tolist() if calibration.calibrated else [None] * len(scores)
        share = (time.perf_counter() - start) / max(len(images), 1)
        found = zip(scored, p_values, strict=True)
        steps = []
        for step in batch:
            if isinstance(step.image, Prepared):
                one, p_value = next(found)
                step = step._replace(seconds=step.seconds + share, scored=one, p_value=p_value)
                if not _is_finite(one):  # which no threshold would reject
                    told = "its score or map is NaN or infinite: check the weights of the backbone and its precision"
                    step = step._replace(image=DataError(f"{step.frame.name}: {told}"))
            steps.append(step)
        return steps

    def _finish(self, save: SaveFn | None, maps: bool, step: "_Step") -> tuple[Frame, Detection | DataError]:
        frame, image = step.frame, step.image
        if isinstance(image, DataError):
            return frame, image
        try:
            detection = self._judge(image, step, maps)
            if save is not None:
                save(frame, image.original, detection)
        except DataError as error:
            return frame, DataError(f"{frame.name}: {error}")
        except NameTooLongError as error:  # of the files of this image alone
            return frame, DataError(str(error))
        return frame, detection

    def _judge(self, image: Prepared, step: "_Step", maps: bool) -> Detection:
        start = time.perf_counter()
        score, small_map = step.scored.score, step.scored.anomaly_map
        calibration, threshold = self.scorer.calibration, self.image_threshold
        anomaly = None
        if calibration.calibrated and threshold is not None:
            anomaly = float(anomaly_score(score, self._typical, threshold))
        anomaly_map = normalized = mask = None
        regions: list[Region] = []
        if small_map is not None and self.pixel_threshold is not None:
            height, width = image.original.shape[1:]
            if self.min_area > height * width:
                raise DataError(
                    f"min_area={self.min_area}, but the image has {height} x {width} pixels, so that no region would "
                    f"be reported: choose up to {height * width}"
                )
        if small_map is not None and (maps or _may_exceed(small_map, self.pixel_threshold)):
            anomaly_map = self.scorer.lay_out(small_map, image)  # (H, W)
        if anomaly_map is not None and self.pixel_threshold is not None:
            regions, mask = find_regions(anomaly_map, self.pixel_threshold, self.min_area, self.merge_distance)
            if maps and len(calibration.pixel_scores):
                normalized = np.empty_like(anomaly_map)
                for top in range(0, len(anomaly_map), _ROWS):
                    rows = slice(top, top + _ROWS)
                    normalized[rows] = anomaly_score(anomaly_map[rows], self._typical_pixel, self.pixel_threshold)
        if not maps:
            anomaly_map = mask = None
        is_anomalous = None if threshold is None else score > threshold
        product = calibration.products[step.scored.product] if calibration.products else None
        reason = None
        if self.product_threshold is not None and step.scored.ratio > self.product_threshold.value:
            is_anomalous, product, reason = True, None, NO_PRODUCT
        seconds = step.seconds + time.perf_counter() - start
        aligned = image.registration.told if image.registration else None
        return Detection(
            score, is_anomalous, step.p_value, anomaly, anomaly_map, normalized, regions, mask, image.inspected,
            aligned, step.light, seconds, threshold, product, reason,
        )  # fmt: skip


class _Step(NamedTuple):
    """How far an image has come."""

    frame: Frame
    image: Prepared | DataError
    seconds: float = 0.0
    light: Light = Light(math.nan, math.nan)
    scored: Scored = Scored(math.nan, None)
    p_value: float | None = None


def _is_finite(scored: Scored) -> bool:
    values = [scored.score] if scored.anomaly_map is None else [scored.score, scored.anomaly_map.sum(dtype=np.float64)]
    return bool(np.isfinite(values).all()) and not math.isnan(scored.ratio)


def _may_exceed(small_map: NDArray[np.float32], threshold: float | None) -> bool:
    """Whether a pixel of the map laid out may be above the threshold: what lies between pixels is above none of them,
    but for rounding."""
    if threshold is None:
        return False
    return not small_map.max() + 1e-5 * np.abs(small_map).max() < threshold  # where it is not a number, too


def _frames(images: Iterable[Frame | ImageLike]) -> Iterator[Frame]:
    for number, image in enumerate(images):
        if isinstance(image, Frame):
            yield image
        else:
            name = str(image) if isinstance(image, str | Path) else f"image {number}"
            yield Frame(name, image, output=PurePath(f"image-{number}"))


def _found(result: Detection | DataError) -> Detection:
    if isinstance(result, DataError):
        raise result
    return result
