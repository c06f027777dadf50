"""`oddpatch predict`: inspect images with a finished run."""

import json
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oddpatch.cli.common import Trust, split_names, tell, warn_of_left_out
from oddpatch.errors import ConfigError, DataError
from oddpatch.files import shown
from oddpatch.wording import counted

if TYPE_CHECKING:
    from oddpatch.inference.outputs import Save

ALL_GOOD, SOME_ANOMALOUS, ERROR = 0, 1, 2


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

    from oddpatch.inference.detector import AnomalyDetector
    from oddpatch.inference.outputs import Save, Tally, to_record
    from oddpatch.inference.outputs import save as write
    from oddpatch.inference.sources import Files

    kinds = _kinds(save)
    source = Files(sources, all_files)
    if not source.paths:
        raise DataError("; ".join(source.errors.values()))
    detector = AnomalyDetector.load(
        run, device=device, engine=engine, threshold=_number(threshold), pixel_threshold=pixel_threshold,
        target_fpr=target_fpr, min_area=min_area, merge_distance=merge_distance,
        max_pixels=max_pixels, trust=trust or (),
    )  # fmt: skip
    if detector.image_threshold is None:
        raise ConfigError(f"{run} has no threshold: {detector.scorer.calibration.absent}, or give --threshold VALUE")
    if kinds - {Save.map} and detector.pixel_threshold is None:
        raise ConfigError(f"--save={save}: the run has no pixel threshold: give --pixel-threshold VALUE, or save map")
    terminal = sys.stdout.isatty() and not json_lines
    warn_of_left_out(source.left_out)
    tally = Tally()
    results = detector.stream(source, batch_size, partial(write, out, kinds) if kinds else None)
    with (
        Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar,
        closing(results),
    ):
        for frame, result in bar.track(results, len(source), description="inspecting"):
            tally.add(frame, result)
            bar.console.file.flush()
            _tell(to_record(frame, result), terminal)
    if (little := tally.partly_inspected(detector.scorer.settings)) is not None:
        tell(f"warning: {little}", err=True)
    if terminal:
        counts = {**tally.counts, "left out": len(source.left_out)}
        summed = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        tell(f"{counted(tally.images, 'image')}: {summed}" + (f"; saved in {out}" if kinds else ""))
    failed = tally.counts["failed"] or (strict and source.left_out)
    raise typer.Exit(ERROR if failed else SOME_ANOMALOUS if tally.counts["anomalous"] else ALL_GOOD)


def _kinds(text: str) -> "set[Save]":
    from oddpatch.inference.outputs import Save

    for name in split_names(text):
        if name not in set(Save):
            raise ConfigError(f"--save={text}: {name!r} is not known: choose among {', '.join(Save)}")
    return {Save(name) for name in split_names(text)}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _tell(record: dict[str, Any], terminal: bool) -> None:
    if not terminal:
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()
    elif "error" in record:
        typer.secho(f"error      {shown(record['error'])}", fg="red")
    else:
        p_value = "" if record["p_value"] is None else f"  p {record['p_value']:.3f}"
        regions = f"  {counted(len(record['regions']), 'region')}" if record["regions"] else ""
        color = "yellow" if record["is_anomalous"] else None
        verdict = "anomalous" if record["is_anomalous"] else "good"
        line = f"{verdict:<9}  {record['score']:9.4g}{p_value}  {shown(record['path'])}{regions}"
        typer.secho(line, fg=color)
