"""`oddpatch update`: add good images to a fitted PatchCore, as a new version beside the old one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oddpatch.cli.common import Trust, tell
from oddpatch.errors import ConfigError, DataError
from oddpatch.wording import counted

if TYPE_CHECKING:
    from oddpatch.data.walk import Walk
    from oddpatch.models.base import AnomalyModel
    from oddpatch.models.calibration import Calibration


def update(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of PatchCore.")],
    folder: Annotated[Path, typer.Argument(help="Folder of further good images, with all below it.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the new version. (default: RUN-v2, RUN-v3, ...)")] = None,
    coreset_size: Annotated[
        int | None, typer.Option(help="Patches in the new memory bank. (default: as many as now)")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images embedded at once.")] = 16,
    trust: Trust = None,
) -> None:
    """Add good images to a fitted PatchCore without the old ones, and write it as a new version."""
    from oddpatch.checkpoint import read_checkpoint, write_checkpoint
    from oddpatch.data.walk import summary
    from oddpatch.factory import CHECKPOINT, restore
    from oddpatch.inference.explain import memory_bank_of, train_images_of
    from oddpatch.temporary import drafting

    for name, value in (("--coreset-size", coreset_size), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: choose at least 1")
    target = new_version(run, out)
    images, left_out = good_images(folder)
    for line in summary(left_out):
        tell(f"warning: {line}", err=True)
    with drafting(target) as scratch:  # which is there when it is complete
        model, about = restore(run, trust or ())
        detector = memory_bank_of(model, run, "update")
        names = train_images_of(about, run)
        before = len(detector.memory_bank)
        take_in(model, images, len(names), batch_size)
        detector.extend(coreset_size)
        tell(recalibrate(model, about, images, batch_size))

        content = read_checkpoint(run / CHECKPOINT if run.is_dir() else run)
        content["state_dict"].update({f"model.{key}": value for key, value in model.state_dict().items()})
        content["oddpatch"] = describe_update(
            about,
            model.calibration,
            run,
            folder,
            [str(path.resolve()) for path in images],
            [f"{path}: {why}" for path, why in left_out],
        )
        write_checkpoint(content, scratch / "new" / CHECKPOINT)
        while target.exists():  # another process was faster
            target = new_version(run, out)
        (scratch / "new").rename(target)
    new = int((detector.source[:, 0] >= len(names)).sum())
    tell(
        f"{counted(len(images), 'image')} added, {counted(len(left_out), 'file')} left out; the memory bank held "
        f"{before} patches and holds {len(detector.memory_bank)}, of which {new} are new"
    )
    tell(f"written: {target}; test it with: python eval.py run={target}")


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


def good_images(folder: Path) -> "Walk":
    """The images in a folder and below it, by path, and what is left out.

    Raises:
        DataError: there is no such folder, no image in it, or a mask among them.
    """
    from oddpatch.data.beside import iter_masks_beside
    from oddpatch.data.walk import summary, walk

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


def take_in(model: "AnomalyModel", images: list[Path], first_index: int, batch_size: int) -> None:
    """Take image files into the detector, their indices following those of the images it was fitted to."""
    import torch

    for start in range(0, len(images), batch_size):
        batch = torch.stack([model.preprocess.load(path) for path in images[start : start + batch_size]])
        model.update(batch, torch.arange(start, start + len(batch)) + first_index)  # (B, 3, H, W), (B,)


def recalibrate(model: "AnomalyModel", about: dict[str, Any], new: list[Path], batch_size: int) -> str:
    """Score the good images anew that gave the thresholds, as those of the old bank do not hold for the new one.

    Where every image was fitted to, the `new` ones serve too. Thresholds are removed where files are missing, or where
    folds were fitted (calibration=cross).

    Returns:
        What was done, in one line.
    """
    import torch

    from oddpatch.metrics.thresholds import max_excluding

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
    absent = [path for path in paths if not path.is_file()]
    if calibration.method == "cross" or absent:
        reason = f"{absent[0]} is missing" if absent else "folds were fitted with calibration=cross"
        calibration.refuse(f"it was removed by an update, as {reason}: train again with calibration=leave_one_out")
        return f"thresholds removed: {reason}"
    scores, pixels = [], []
    for start in range(0, len(paths), batch_size):
        batch = torch.stack([model.preprocess.load(path) for path in paths[start : start + batch_size]])
        with torch.inference_mode():
            if calibration.method == "leave_one_out":
                place = torch.tensor(index[start : start + batch_size])
                prediction = model.detector.score_left_out(model.backbone(batch), place, model.preprocess.image_size)
            else:
                prediction = model(batch)
        scores.append(prediction.score)
        assert prediction.anomaly_map is not None, "PatchCore makes maps"
        pixels.append(torch.from_numpy(max_excluding(prediction.anomaly_map[:, 0].numpy(), calibration.min_area)))
    calibration.calibrate(torch.cat(scores), torch.cat(pixels), torch.tensor(index))
    return f"threshold {calibration.image.value:.4g}, set again on {len(paths)} good images left out of the memory bank"


def describe_update(
    about: dict[str, Any],
    calibration: "Calibration",
    run: Path,
    folder: Path,
    images: list[str],
    left_out: list[str],
) -> dict[str, Any]:
    """The description of the new checkpoint: the old one's, with the new images and where they came from."""
    from oddpatch.checkpoint import FORMAT, library_versions
    from oddpatch.environment import git_commit

    step = {"run": str(run.resolve()), "folder": str(folder.resolve()), "images": len(images), "left_out": left_out}
    return {
        **about,
        "format": FORMAT,
        "version": library_versions()["oddpatch"],
        "versions": library_versions(),
        "git_commit": git_commit(),
        "train_images": [*about["train_images"], *images],
        "num_fitted": about["num_fitted"] + len(images),
        "held_out": [*about["held_out"], *(images if calibration.method == "leave_one_out" else [])],
        "no_threshold": calibration.absent,
        "updates": [*about.get("updates", []), step],
    }
