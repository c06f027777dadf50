"""Adding good images to a fitted PatchCore: a new version beside the old one, without the images of that one."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oddpatch.checkpoint import read_checkpoint, write_checkpoint, written_by
from oddpatch.data.beside import iter_masks_beside
from oddpatch.data.walk import Walk, summary, walk
from oddpatch.errors import ConfigError, DataError
from oddpatch.factory import CHECKPOINT, checkpoint_of
from oddpatch.inference.explain import restore_memory_bank
from oddpatch.inference.throughput import in_order
from oddpatch.metrics.thresholds import max_excluding
from oddpatch.models.anomaly_model import AnomalyModel
from oddpatch.models.calibration import Calibration
from oddpatch.settings import require_at_least
from oddpatch.temporary import drafting


class Update(NamedTuple):
    """What `update` has done."""

    folder: Path  # of the new version
    added: int  # images
    before: int  # patches in the memory bank
    after: int
    new: int  # patches of the added images among those
    thresholds: str  # what was done about them, in one line


def update(
    run: Path,
    found: Walk,
    folder: Path,
    out: Path | None = None,
    coreset_size: int | None = None,
    batch_size: int = 16,
    trust: Sequence[str] = (),
) -> Update:
    """Add good images to a fitted PatchCore and write it as a new version; the old one stays as it is.

    >>> folder = Path("parts/good")
    >>> update(Path("housing"), good_images(folder), folder).folder.name
    'housing-v2'

    Args:
        run: folder of a finished run of PatchCore.
        found: the images, and what was left out beside them, as `good_images` gives them.
        folder: where they were found.
        out: folder of the new version; None for RUN-v2, RUN-v3, ...
        coreset_size: patches in the new memory bank; None for as many as now.
        batch_size: images embedded at once.
        trust: see `oddpatch.factory.restore`.

    Raises:
        ConfigError: a setting cannot work, `out` exists, or the run is of another method.
        CheckpointError: the run cannot be read, or does not say where its patches come from.
        DataError: an image cannot be read.
        ResourceError: the new version cannot be written; nothing is left of it.
    """
    require_at_least(1, **{"--coreset-size": coreset_size, "--batch-size": batch_size})
    images = found.files
    target = new_version(run, out)
    with drafting(target) as scratch:  # which is there when it is complete
        model, detector, about = restore_memory_bank(run, trust, "update")
        before = len(detector.memory_bank)
        start = first_new = len(about["train_images"])
        for batch, _ in _batches(model, images, batch_size):
            model.update(batch, torch.arange(start, start := start + len(batch)))  # (B, 3, h, w), (B,)
        detector.extend(coreset_size)
        thresholds = recalibrate(model, about, images, batch_size)

        content = read_checkpoint(checkpoint_of(run))
        content["state_dict"].update({f"model.{key}": value for key, value in model.state_dict().items()})
        content["oddpatch"] = describe_update(about, model.calibration, run, folder, found)
        target = put_version(content, scratch, run, target, out)
    new = int((detector.source[:, 0] >= first_new).sum())
    return Update(target, len(images), before, len(detector.memory_bank), new, thresholds)


def _batches(model: AnomalyModel, paths: Sequence[Path], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Image files, prepared, (B, 3, h, w) each, and their statistics (B, k); the next are read meanwhile."""
    with closing(in_order(model.preprocess.prepare, paths, batch_size)) as images:
        while batch := list(islice(images, batch_size)):
            statistics = torch.tensor([placement.statistics for _, placement in batch], dtype=torch.float64)
            yield torch.stack([image for image, _ in batch]), statistics


class Scored(NamedTuple):
    """Good images as a `Calibration` keeps them."""

    scores: Tensor  # (n,)
    pixels: Tensor  # (n,), or (0,) where the method makes no maps
    statistics: Tensor  # (n, k)
    ratios: Tensor  # (n,) where there are several products, or (0,)
    products: Tensor  # (n,) which of them they are of, or (0,)


@torch.inference_mode()
def score_good(
    model: AnomalyModel, paths: Sequence[Path], batch_size: int, left_out: Sequence[int] | None = None
) -> Scored:
    """Score good images.

    Args:
        model: fitted.
        paths: of the files.
        batch_size: images scored at once.
        left_out: which training images they are, to be scored as if they had not been fitted to; None for new images.

    Raises:
        DataError: an image cannot be read.
    """
    scores, pixels, statistics, ratios, products = [], [], [], [], []
    places = torch.tensor(left_out or [0] * len(paths)).split(batch_size)
    for (batch, measured), place in zip(_batches(model, paths, batch_size), places, strict=True):
        features = model.features(batch)
        if left_out is None:
            prediction = model.detector(features, model.preprocess.image_size)
        else:
            prediction = model.detector.score_left_out(features, place, model.preprocess.image_size)
        if model.products is not None:
            ratio, product = model.products.match(features, None if left_out is None else place)
            ratios.append(ratio)
            products.append(product)
        scores.append(prediction.score)
        if (maps := prediction.anomaly_map) is not None:
            pixels.append(torch.from_numpy(max_excluding(maps[:, 0].float().numpy(), model.calibration.min_area)))
        statistics.append(measured)
    columns = (scores, pixels, statistics, ratios, products)
    return Scored(*(torch.cat(values) if values else torch.empty(0) for values in columns))


def put_version(content: dict[str, Any], scratch: Path, run: Path, target: Path, out: Path | None) -> Path:
    """Write a checkpoint into a folder in `scratch`, and move that to `target`, or to the next free version."""
    write_checkpoint(content, scratch / "new" / CHECKPOINT)
    while target.exists():  # another process was faster
        target = new_version(run, out)
    (scratch / "new").rename(target)
    return target


def new_version(run: Path, out: Path | None) -> Path:
    """A folder that does not exist yet: `out`, or the run's name with the next free version.

    Raises:
        ConfigError: `out` exists.
    """
    if out is not None:
        if out.exists():
            raise ConfigError(f"--out={out} exists and is not overwritten: choose a new folder")
        return out
    base = run.resolve() if run.is_dir() else run.resolve().parent.parent
    stem, _, number = base.name.rpartition("-v")
    stem, version = (stem, int(number)) if stem and number.isdigit() else (base.name, 1)
    while (target := base.with_name(f"{stem}-v{version + 1}")).exists():
        version += 1
    return target


def good_images(folder: Path) -> Walk:
    """The images in a folder and below it, by path, and what is left out.

    Raises:
        DataError: there is no such folder, no image in it, or a mask among them.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: give the folder of the new good images")
    found = walk(folder)
    if not found.files:
        but = f" ({'; '.join(summary(found.left_out))})" if found.left_out else ""
        raise DataError(f"{folder} holds no image{but}: give the folder of the new good images")
    for mask, image in iter_masks_beside(found.files):
        raise DataError(
            f"{mask} looks like the mask of {image.name} beside it and would be taken for a good part: move the masks "
            f"out of {folder}"
        )
    return found


def recalibrate(model: AnomalyModel, about: dict[str, Any], new: list[Path], batch_size: int) -> str:
    """Score again the good images that gave the thresholds, as those of the old bank do not hold for the new one.

    Where every image was fitted to, the `new` ones serve too. Thresholds are removed where files are missing, or where
    folds were fitted (calibration=cross).

    Returns:
        What was done, in one line.
    """
    calibration = model.calibration
    if not calibration.thresholds():
        return "the run has no threshold, and neither has the new version"
    calibration.f1_threshold.fill_(float("nan"))
    root, names = Path(about["config"]["data"]["root"]), about["train_images"]
    if not calibration.calibrated:
        calibration.refuse("validation images that set it were scored by the memory bank before the update")
        return f"threshold removed: {calibration.absent}"
    index = sorted(calibration.image_index.tolist())  # not those that could not be read
    paths = [root / names[number] for number in index]
    if calibration.method == "leave_one_out":
        index, paths = [*index, *range(len(names), len(names) + len(new))], [*paths, *new]
    if reason := rescore(model, index, paths, batch_size):
        calibration.refuse(f"it was removed by an update, as {reason}: train again with calibration=leave_one_out")
        return f"thresholds removed: {reason}"
    return f"threshold {calibration.image.value:.4g}, set again on {len(paths)} good images left out of the memory bank"


def rescore(model: AnomalyModel, index: list[int], paths: Sequence[Path], batch_size: int) -> str:
    """Set thresholds on good images as the run did, by their scores now; left as they are if that cannot be done.

    Args:
        model: fitted, and changed since its thresholds were set.
        index: which training images they are.
        paths: of their files.
        batch_size: images scored at once.

    Returns:
        Why it cannot be done; empty if it was.
    """
    calibration = model.calibration
    if absent := [path for path in paths if not path.is_file()]:
        return f"{absent[0]} is missing"
    left_out = calibration.method == "leave_one_out"
    if calibration.method == "cross" or (left_out and not model.detector.leaves_out):
        return "folds were fitted with calibration=cross"
    good = score_good(model, paths, batch_size, index if left_out else None)
    calibration.calibrate(good.scores, good.pixels, torch.tensor(index), good.statistics)
    if model.products is not None:
        model.products.calibrate(good.ratios)
    return ""


def describe_update(
    about: dict[str, Any], calibration: Calibration, run: Path, folder: Path, found: Walk
) -> dict[str, Any]:
    """The description of the new checkpoint: the old one's, with the new images and where they came from."""
    images, left_out = [str(path.resolve()) for path in found.files], [f"{path}: {why}" for path, why in found.left_out]
    step = {"run": str(run.resolve()), "folder": str(folder.resolve()), "images": len(images), "left_out": left_out}
    return {
        **about,
        **written_by(),
        "train_images": [*about["train_images"], *images],
        "num_fitted": about["num_fitted"] + len(images),
        "held_out": [*about["held_out"], *(images if calibration.method == "leave_one_out" else [])],
        "no_threshold": calibration.absent,
        "updates": [*about.get("updates", []), step],
    }
