"""Thresholds set again on confirmed good images: a new version of a run beside it, the model itself being the same."""

import filecmp
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from oddpatch.checkpoint import read_checkpoint, written_by
from oddpatch.data.walk import Walk
from oddpatch.errors import ConfigError, DataError
from oddpatch.factory import checkpoint_of, restore
from oddpatch.inference.update import new_version, put_version, score_good
from oddpatch.metrics.good_scores import NO_PRODUCT
from oddpatch.models.calibration import FEWEST, Calibration
from oddpatch.temporary import drafting
from oddpatch.wording import listed


class Recalibration(NamedTuple):
    """What `calibrate` has done."""

    folder: Path  # of the new version
    told: str  # the new threshold and what it promises
    #: Images that the run calls anomalous so far, or that stand out among the others, each with the reason; and the
    #: products of which there is none.
    doubtful: list[str]
    history: list[dict[str, Any]]  # every renewal, this one last


def calibrate(
    run: Path,
    found: Walk,
    folder: Path,
    out: Path | None = None,
    batch_size: int = 16,
    trust: Sequence[str] = (),
) -> Recalibration:
    """Set a run's thresholds on good images that it was not fitted to, and write it as a new version beside it.

    Promise and rate are those of the run; the guarantee is that of calibration=holdout. A threshold of labelled images
    stays.

    >>> from oddpatch.inference.update import good_images
    >>> folder = Path("data/tile/test/good")
    >>> calibrate(Path("housing"), good_images(folder), folder).folder.name
    'housing-v2'

    Args:
        run: folder of a finished run, or its checkpoint.
        found: the images, and what was left out beside them, as `oddpatch.inference.update.good_images` gives them.
        folder: where they were found.
        out: folder of the new version; None for RUN-v2, RUN-v3, ...
        batch_size: images scored at once.
        trust: see `oddpatch.factory.restore`.

    Raises:
        ConfigError: a setting cannot work, or `out` exists.
        CheckpointError: the run cannot be read.
        DataError: an image cannot be read or was fitted to, or there are too few.
        ResourceError: the new version cannot be written; nothing is left of it.
    """
    if batch_size < 1:
        raise ConfigError(f"--batch-size={batch_size}: choose at least 1")
    images = found.files
    if len(images) < FEWEST:
        raise DataError(
            f"{folder} holds {len(images)} good images, a threshold takes at least {FEWEST}: add good images"
        )
    target = new_version(run, out)
    with drafting(target) as scratch:  # which is there when it is complete
        model, about = restore(run, trust)
        calibration = model.calibration
        held_out = about["held_out"] if calibration.method == "holdout" else []
        config = about["config"]
        root = Path(config["data"]["root"])
        for image, fitted in _fitted_to(images, [root / name for name in {*about["train_images"]} - {*held_out}]):
            raise DataError(
                f"{image} was fitted to ({fitted}), so its score says nothing of new parts: leave it out of {folder}"
            )
        before = next(iter(calibration.thresholds().values()), None)
        limit = model.good_scores.product_at(model.good_scores.target_fpr)
        good = score_good(model, images, batch_size)
        names = [*about["train_images"], *(str(path.resolve()) for path in images)]
        calibration.method = "holdout"
        index = torch.arange(len(about["train_images"]), len(names))
        calibration.calibrate(good.scores, good.pixels, index, good.statistics)
        if model.products is not None:
            model.products.calibrate(good.ratios)

        content = read_checkpoint(checkpoint_of(run))
        content["state_dict"].update(
            {
                f"model.{key}": value
                for key, value in model.state_dict().items()
                if key.startswith(("calibration.", "products."))
            }
        )
        step = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": str(run.resolve()),
            "folder": str(folder.resolve()),
            "images": len(images),
            "left_out": [f"{path}: {why}" for path, why in found.left_out],
            "before": before,
            "after": calibration.image.value,
        }
        history = [*about.get("calibrations", []), step]
        content["oddpatch"] = {
            **about,
            **written_by(),
            "config": {**config, "calibration": {**config["calibration"], "method": "holdout"}},
            "train_images": names,
            "held_out": [*held_out, *names[len(about["train_images"]) :]],
            "calibrations": history,
        }
        target = put_version(content, scratch, run, target, out)
    doubtful = [
        f"{image} scores {score:.4g}, above the threshold so far of {before:.4g}: is it good"
        for image, score in zip(images, good.scores.tolist(), strict=True)
        if before is not None and score > before
    ]
    if model.products is not None:
        doubtful += [
            f"{image} {NO_PRODUCT} so far: is it good"
            for image, ratio in zip(images, good.ratios.tolist(), strict=True)
            if limit is not None and ratio > limit.value
        ]
        seen = {model.products.names[product] for product in good.products.tolist()}
        if missing := [name for name in model.products.names if name not in seen]:
            doubtful.insert(
                0, f"no image is of {listed(missing)}, and the thresholds are for all products: is that meant"
            )
    return Recalibration(target, calibration.in_words(), doubtful or _doubt(calibration, names), history)


def _doubt(calibration: Calibration, names: Sequence[str]) -> list[str]:
    doubt = calibration.doubt(names)
    return [] if doubt is None else [doubt]


def _fitted_to(images: Sequence[Path], fitted: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Images that were fitted to, by name or content, each with the training image; that of files that are there."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in fitted:
        if path.is_file():
            by_size[path.stat().st_size].append(path)
    for image in images:
        for path in by_size[image.stat().st_size]:
            if filecmp.cmp(image, path, shallow=False):
                yield image, path
