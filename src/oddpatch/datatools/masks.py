"""Binary masks out of colour segmentations: by colour, or by the label names of Unity Perception output."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.pairing import MASK_SUFFIX
from oddpatch.data.walk import Walk, summary, walk
from oddpatch.datatools.unity import Capture, Instance, Recording, Value, read_recording, read_segmentation, select
from oddpatch.datatools.writing import Output, check_targets, png, write_all
from oddpatch.errors import ConfigError, DataError
from oddpatch.files import inside
from oddpatch.pool import Progress, tracked
from oddpatch.wording import counted, some


@dataclass
class MaskReport:
    """What was, or with `dry_run` would be, written."""

    masks: list[Path] = field(default_factory=list)
    pixels: list[int] = field(default_factory=list)  # defect pixels of each mask
    problems: list[str] = field(default_factory=list)  # one line each


def masks_by_colour(
    source: Path,
    target: Path,
    colours: Sequence[tuple[int, int, int]],
    tolerance: int = 0,
    *,
    force: bool = False,
    dry_run: bool = False,
    skip: bool = False,
    progress: Progress | None = None,
) -> MaskReport:
    """Write `STEM_mask.png` for each image `STEM.*` or `STEM_mask.*` of `source`, 255 where any of `colours` is.

    Args:
        source: a segmentation image, or a folder of them; sub-folders are kept.
        tolerance: largest difference per channel that still counts as the colour.
        skip: leave images that cannot be read out instead of stopping.

    Raises:
        ConfigError: no colour, or one out of range.
        DataError: nothing to read, an image cannot be read, or a mask is there already.
    """
    if not colours or any(not 0 <= c <= 255 for colour in colours for c in colour) or not 0 <= tolerance <= 255:
        raise ConfigError(f"colours {list(colours)} and tolerance={tolerance}: give R,G,B and a tolerance of 0..255")
    files, left_out = Walk([source], []) if source.is_file() else walk(source)
    base = source.parent if source.is_file() else source
    jobs: list[_Job] = []
    for path in files:
        if target not in path.parents or source.is_file():
            name = path.relative_to(base).with_name(f"{path.stem.removesuffix(MASK_SUFFIX)}{MASK_SUFFIX}.png")
            jobs.append(_Job(target / name, [(path, list(colours))], tolerance, colour=True))
    if not jobs:
        raise DataError(f"{source}: no such image, or a folder without any: give a segmentation or a folder of them")
    outside = [item for item in left_out if target not in item.path.parents]
    return _run(jobs, MaskReport(problems=summary(outside)), force, dry_run, skip, progress)


def masks_by_label(
    source: Path,
    target: Path,
    labels: Sequence[str],
    *,
    instances: bool = False,
    rename: tuple[str, str] | None = None,
    force: bool = False,
    dry_run: bool = False,
    skip: bool = False,
    progress: Progress | None = None,
) -> MaskReport:
    """Write `STEM_mask.png` for each capture below `source`, 255 where any of `labels` is.

    A label that the semantic segmentation does not colour is taken from the instance segmentation. Pixels are
    compared with what the renderer counted, where it did; a difference is among the report's `problems`.

    Args:
        source: folder of Unity Perception output, SOLO or legacy.
        labels: label names; empty means every instance with `instances`.
        instances: one mask `STEM_instanceN_mask.png` for each instance instead.
        rename: (old, new) part of the file names in the JSON, where the files were renamed.

    Raises:
        DataError: an unknown label, no segmentation, a missing, empty or damaged file, or a mask is there already.
    """
    recording = read_recording(source, (lambda name: name.replace(*rename)) if rename else str)
    check_labels(recording, labels, source)
    if not labels and not instances:
        raise ConfigError(f"no label is given: choose among {', '.join(sorted(recording.labels))}")
    jobs: list[_Job] = []
    report = MaskReport(problems=summary(recording.left_out))
    for capture in recording.captures:
        if capture.instance is None and (instances or capture.semantic is None):
            kind = "instance segmentation" if instances else "segmentation"
            report.problems.append(f"{capture.image}: the JSON names no {kind} for it, so it has no mask")
            continue
        base = source if source in capture.image.parents else capture.image.parent
        stem = target / capture.image.relative_to(base).with_suffix("")
        if not instances:
            jobs.append(label_job(capture, labels, Path(f"{stem}{MASK_SUFFIX}.png")))
            continue
        for item in capture.instances:
            if capture.instance and (not labels or item.label in labels):
                name = f"{stem.name}_instance{item.number}{MASK_SUFFIX}.png"
                path = inside(stem.parent, name, capture.image)
                jobs.append(_Job(path, [(capture.instance, [item.value])], expected=item.visible_pixels))
    if not jobs:
        raise DataError(
            f"{source}: no instance of {', '.join(labels) or 'any label'} in {len(recording.captures)} captures"
        )
    return _run(jobs, report, force, dry_run, skip, progress)


def check_labels(recording: Recording, labels: Sequence[str], source: Path) -> None:
    """Refuse labels that the recording does not know.

    Raises:
        DataError: naming the known ones.
    """
    for label in labels:
        if label not in recording.labels:
            known = ", ".join(sorted(recording.labels)) or "none"
            raise DataError(f"{source}: label {label!r} is not known; known are {known}")


@dataclass(frozen=True)
class _Job:
    path: Path
    sources: list[tuple[Path, list[Value]]]
    tolerance: int = 0
    expected: int | None = None  # pixels
    colour: bool = False  # grey and palette images are colours too

    def mask(self) -> NDArray[np.bool_]:
        """(H, W) where any of the values is, over all sources."""
        found: list[NDArray[np.bool_]] = []
        for path, values in self.sources:
            segmentation = read_segmentation(path, self.colour)
            picked = [select(segmentation, value, path, self.tolerance) for value in values]
            found.append(np.any(picked, axis=0) if picked else np.zeros(segmentation.shape[:2], np.bool_))
        if len({mask.shape for mask in found}) > 1:
            raise DataError(f"{self.sources[0][0]} and {self.sources[1][0]} differ in size: render them again")
        return np.asarray(np.any(found, axis=0))


def label_job(capture: Capture, labels: Sequence[str], path: Path) -> _Job:
    """Where each label of one capture is to be read from.

    Raises:
        DataError: the capture has no segmentation.
    """
    if capture.semantic is None and capture.instance is None:
        raise DataError(
            f"{capture.image}: has no segmentation: add a segmentation labeler to the camera, or leave such captures "
            "out by --skip"
        )
    in_semantic = [label for label in labels if capture.semantic and label in capture.values]
    rest: list[Instance] = [i for i in capture.instances if i.label in labels and i.label not in in_semantic]
    sources: list[tuple[Path, list[Value]]] = []
    if capture.semantic and (in_semantic or not rest):
        sources.append((capture.semantic, [capture.values[label] for label in in_semantic]))
    if capture.instance and (rest or not sources):
        sources.append((capture.instance, [i.value for i in rest]))
    counted = [i.visible_pixels for i in capture.instances if i.label in labels]
    known = [count for count in counted if count is not None]
    return _Job(path, sources, expected=sum(known) if known and len(known) == len(counted) else None)


def _run(
    jobs: list[_Job], report: MaskReport, force: bool, dry_run: bool, skip: bool, progress: Progress | None
) -> MaskReport:
    """Read every segmentation before the first mask is written: bad input leaves nothing behind."""
    check_targets([Output(job.path, job.sources[0][0]) for job in jobs], force)
    outputs: list[Output] = []
    for job in tracked(jobs, progress):
        try:
            mask = job.mask()
        except DataError as error:
            if not skip:
                raise
            report.problems.append(str(error))
            continue
        pixels = int(mask.sum())
        if job.expected is not None and job.expected != pixels:
            report.problems.append(f"{job.path}: {counted(pixels, 'pixel')}, but the renderer counted {job.expected}")
        report.masks.append(job.path)
        report.pixels.append(pixels)
        outputs.append(Output(job.path, content=partial(bytes, png(mask))))
    if not dry_run:
        write_all(outputs)
    if not outputs:
        raise DataError(f"none of {len(jobs)} segmentations can be used: {some(report.problems, 1)}")
    return report
