"""`oddpatch predict`: inspect images with a finished run."""

import json
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from oddpatch.cli.common import Trust
from oddpatch.errors import ConfigError, DataError, NameTooLongError
from oddpatch.files import shown
from oddpatch.wording import counted

if TYPE_CHECKING:
    from torch import Tensor

    from oddpatch.inference.detector import AnomalyDetector, Detection

ALL_GOOD, SOME_ANOMALOUS, ERROR = 0, 1, 2


class Save(StrEnum):
    """What can be saved of each image."""

    heatmap = "heatmap"
    overlay = "overlay"
    mask = "mask"
    map = "map"


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or a checkpoint.")],
    sources: Annotated[list[str], typer.Argument(help="Images, folders (with all below them) or glob patterns.")],
    save: Annotated[str, typer.Option(help="What to save of each image: heatmap,overlay,mask,map (float TIFF).")] = "",
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path("predictions"),
    threshold: Annotated[
        str, typer.Option(help="Image threshold: auto, conformal, validation, or a raw score.")
    ] = "auto",
    pixel_threshold: Annotated[
        float | None, typer.Option(help="Anomaly value from which on pixels are anomalous. (default: the run's)")
    ] = None,
    target_fpr: Annotated[float | None, typer.Option(help="Wanted rate of false alarms. (default: the run's)")] = None,
    min_area: Annotated[int, typer.Option(help="Pixels that an anomalous region must have.", min=1)] = 1,
    merge_distance: Annotated[int, typer.Option(help="Regions at most so many pixels apart count as one.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Images scored at once.", min=1)] = 8,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 ...")] = "cpu",
    engine: Annotated[str | None, typer.Option(help="torch or openvino. (default: the run's)")] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="JSON lines on a terminal, too.")] = False,
    all_files: Annotated[bool, typer.Option("--all-files", help="Try every file, whatever its suffix.")] = False,
    max_pixels: Annotated[
        int | None, typer.Option(help="Refuse larger images. (default: the run's, else what fits into memory)", min=1)
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 2 if any file or folder was left out.")] = False,
    trust: Trust = None,
) -> None:
    """Inspect images: a line of JSON for each (path, score, p-value, decision, regions, share inspected, latency).

    Links are followed. What is left out (unknown suffixes, broken links, hidden files) is counted and named on stderr.

    Exit code 0: all good; 1: some anomalous; 2: an error, also if a file could not be read, or a source holds no image.

    Examples:
      oddpatch predict outputs/RUN part.png
      oddpatch predict outputs/RUN parts/ 'more/*.tif' --save overlay,map --out inspected | jq .is_anomalous
    """
    from rich.console import Console
    from rich.progress import Progress

    from oddpatch.data.walk import summary
    from oddpatch.inference.detector import AnomalyDetector
    from oddpatch.inference.sources import find_images

    wanted = _saves(save)
    paths, left_out, errors = find_images(sources, all_files)
    if not paths:
        raise DataError("; ".join(errors.values()))
    detector = AnomalyDetector.load(
        run, device=device, engine=engine, threshold=_number(threshold), pixel_threshold=pixel_threshold,
        target_fpr=target_fpr, min_area=min_area, merge_distance=merge_distance,
        max_pixels=max_pixels, trust=trust or (),
    )  # fmt: skip
    if detector.image_threshold is None:
        raise ConfigError(f"{run} has no threshold: {detector.model.calibration.absent}, or give --threshold VALUE")
    if wanted - {Save.map} and detector.pixel_threshold is None:
        raise ConfigError(f"--save={save}: the run has no pixel threshold: give --pixel-threshold VALUE, or save map")
    names = output_names(paths)
    terminal = sys.stdout.isatty() and not json_lines
    for line in summary(left_out):
        typer.echo(f"warning: {line}", err=True)
    for source, error in errors.items():
        _tell({"path": source, "error": error}, sys.stdout, terminal)
    shares: list[tuple[float, Path]] = []
    counts = {"good": 0, "anomalous": 0, "failed": len(errors), "left out": len(left_out)}
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("inspecting", total=len(paths))
        for path, image, result, latency in inspect(detector, paths, batch_size):
            record = describe(path, result, latency)
            if not isinstance(result, str):
                shares.append((result.inspected, path))
                try:
                    _save(out / names[path], image, result, wanted)
                except NameTooLongError as error:  # of this file alone
                    result, record = str(error), describe(path, str(error), latency)
            counts["failed" if isinstance(result, str) else "anomalous" if result.is_anomalous else "good"] += 1
            bar.console.file.flush()
            _tell(record, sys.stdout, terminal)
            bar.advance(task)
    if (little := partly_inspected(detector, shares)) is not None:
        typer.echo(f"warning: {little}", err=True)
    if terminal:
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        typer.echo(f"{counted(len(paths), 'image')}: {said}" + (f"; saved in {out}" if wanted else ""))
    failed = counts["failed"] or (strict and left_out)
    raise typer.Exit(ERROR if failed else SOME_ANOMALOUS if counts["anomalous"] else ALL_GOOD)


def partly_inspected(detector: "AnomalyDetector", shares: list[tuple[float, Path]]) -> str | None:
    """One line if a crop, or where an image lies, left out much of some images; a region of interest is meant to."""
    from oddpatch.data.inspected import ENOUGH

    preprocess = detector.model.preprocess
    few = [] if preprocess.roi else sorted(pair for pair in shares if pair[0] < ENOUGH)
    if not few:
        return None
    remedy = "fit again with data.crop=null" if preprocess.frame.fit == "crop" else "they lie in part off the reference"
    return (
        f"{len(few)} of {len(shares)} images were inspected in part, {shown(few[0][1])} to {few[0][0]:.1%} of its "
        f"area: {remedy}"
    )


def inspect(
    detector: "AnomalyDetector", paths: list[Path], batch_size: int
) -> Iterator[tuple[Path, "Tensor | None", "Detection | str", float]]:
    """(path, image (3, H, W), what is said of it, seconds) of each file; an error's text for one that cannot be used.

    The seconds are those from opening the file to the decision, a batch's shared evenly among its images.
    """
    for first in range(0, len(paths), batch_size):
        batch = paths[first : first + batch_size]
        start = time.perf_counter()
        images: dict[Path, Tensor] = {}
        results: dict[Path, Detection | str] = {}
        for path in batch:
            try:
                images[path] = detector.read(path)
            except DataError as error:
                results[path] = str(error)
        results.update(_inspect_each(detector, images))
        latency = (time.perf_counter() - start) / len(batch)
        for path in batch:
            yield path, images.get(path), results[path], latency


def _inspect_each(detector: "AnomalyDetector", images: dict[Path, "Tensor"]) -> dict[Path, "Detection | str"]:
    """Inspect a batch; if one of its images cannot be used, each alone, so that the others can."""
    try:
        return dict(zip(images, detector.inspect(list(images.values())), strict=True)) if images else {}
    except DataError as error:
        if len(images) == 1:
            return dict.fromkeys(images, str(error))
    return {path: _inspect_each(detector, {path: image})[path] for path, image in images.items()}


def describe(path: Path, result: "Detection | str", latency: float) -> dict[str, Any]:
    """One image's line of JSON."""
    if isinstance(result, str):
        return {"path": str(path), "error": result}
    return {
        "path": str(path),
        "score": result.score,
        "p_value": result.p_value,
        "anomaly_score": result.anomaly_score,
        "is_anomalous": result.is_anomalous,
        "regions": [region.to_dict() for region in result.regions],
        "inspected": round(result.inspected, 4),
        "latency_ms": round(1000 * latency, 2),
    }


def output_names(paths: list[Path]) -> dict[Path, Path]:
    """A name below the output folder for each image, without its suffix: its path below what all have in common.

    Two images that differ in suffix alone keep it, so that neither's results are written over the other's.
    """
    folders = [path.resolve().parent for path in paths]
    common = Path(*_common(folders))
    names = {path: folder.relative_to(common) / path.stem for path, folder in zip(paths, folders, strict=True)}
    counts: dict[Path, int] = {}
    for name in names.values():
        counts[name] = counts.get(name, 0) + 1
    return {
        path: name if counts[name] == 1 else name.with_name(path.name.replace(".", "_")) for path, name in names.items()
    }


def _common(folders: list[Path]) -> tuple[str, ...]:
    parts = [folder.parts for folder in folders]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return tuple(shared)


def _saves(text: str) -> set[Save]:
    known = ", ".join(Save)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in set(Save):
            raise ConfigError(f"--save={text}: {name!r} is not known: choose among {known}")
    return {Save(name) for name in names}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _save(base: Path, image: "Tensor | None", detection: "Detection", wanted: set[Save]) -> None:
    """Write what is wanted of one image, each file whole or not at all.

    Raises:
        ResourceError: a file cannot be written; a `NameTooLongError` if others of shorter names can.
    """
    from oddpatch.data.decoding import to_uint8
    from oddpatch.figures.overlay import heatmap, overlay
    from oddpatch.files import replacing

    assert image is not None
    if detection.anomaly_map is None or not wanted:
        return
    if Save.map in wanted:
        import tifffile

        with replacing(base.with_name(f"{base.name}_map.tiff"), "wb") as file:
            tifffile.imwrite(file, detection.anomaly_map, compression=None)
    pictures: dict[str, Any] = {}
    if Save.heatmap in wanted and detection.normalized_map is not None:
        pictures["heatmap"] = heatmap(detection.normalized_map)
    if Save.overlay in wanted:
        pictures["overlay"] = overlay(to_uint8(image), detection)
    if Save.mask in wanted:
        pictures["mask"] = detection.mask
    for name, picture in pictures.items():
        from PIL import Image

        with replacing(base.with_name(f"{base.name}_{name}.png"), "wb") as file:
            Image.fromarray(picture).save(file, "PNG")


def _tell(record: dict[str, Any], file: TextIO, terminal: bool) -> None:
    if not terminal:
        file.write(json.dumps(record) + "\n")
        file.flush()
    elif "error" in record:
        typer.secho(f"error      {shown(record['error'])}", fg="red")
    else:
        p_value = "" if record["p_value"] is None else f"  p {record['p_value']:.3f}"
        regions = f"  {counted(len(record['regions']), 'region')}" if record["regions"] else ""
        color = "yellow" if record["is_anomalous"] else None
        verdict = "anomalous" if record["is_anomalous"] else "good"
        line = f"{verdict:<9}  {record['score']:9.4g}{p_value}  {shown(record['path'])}{regions}"
        typer.secho(line, fg=color)
