"""`oddpatch predict`: inspect images with a finished run."""

import importlib.util
import json
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oddpatch.cli.common import Trust, line_of, split_names, tell, warn_of_left_out
from oddpatch.errors import ConfigError, DataError
from oddpatch.wording import counted, listed

if TYPE_CHECKING:
    from oddpatch.inference.detector import AnomalyDetector, SaveFn
    from oddpatch.inference.outputs import Save, Tally
    from oddpatch.inference.records import Held, Record, Records
    from oddpatch.inference.sources import Files, Frame

ALL_GOOD, SOME_ANOMALOUS, ERROR = 0, 1, 2


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or a checkpoint.")],
    sources: Annotated[list[str], typer.Argument(help="Images, folders (with all below them), glob patterns, videos.")],
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
    distance: Annotated[
        str | None,
        typer.Option(help="Of patches: euclidean or cosine; good images set thresholds again. (default: the run's)"),
    ] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="JSON lines on a terminal, too.")] = False,
    all_files: Annotated[bool, typer.Option("--all-files", help="Try every file, whatever its suffix.")] = False,
    max_pixels: Annotated[
        int | None, typer.Option(help="Refuse larger images. (default: the run's, else what fits into memory)", min=1)
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 2 if any file or folder was left out.")] = False,
    results: Annotated[
        Path | None, typer.Option(help="Write results to this file: .jsonl, .csv or .parquet (a folder of parts).")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out images that --results holds; failures are tried again.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds in which a file must have been read.", min=0.001)] = 60.0,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Inspect on a Ray cluster, such as HOST:6379, or auto.")
    ] = None,
    trust: Trust = None,
) -> None:
    """Inspect images: a record for each (path, score, p-value, decision, regions, share inspected, latency).

    Records are lines of JSON on stdout, or go to the file that --results names.

    Links are followed. What is left out (unknown suffixes, broken links, hidden files) is counted and named on stderr.

    Exit code 0: all good; 1: some anomalous; 2: an error, also if a file could not be read, or a source holds no image.

    Examples:
      oddpatch predict outputs/RUN part.png
      oddpatch predict outputs/RUN parts/ 'more/*.tif' --save overlay,map --out inspected | jq .is_anomalous
      oddpatch predict outputs/RUN archive/ --results archive.parquet --resume
    """
    from oddpatch.inference.detector import AnomalyDetector
    from oddpatch.inference.outputs import Save, Tally
    from oddpatch.inference.outputs import save as write
    from oddpatch.inference.records import open_records
    from oddpatch.inference.sources import Files

    kinds = _kinds(save)
    if resume and results is None:
        raise ConfigError("--resume goes on with a file of results: name it by --results FILE")
    if ray is not None and importlib.util.find_spec("pandas") is None:  # Ray Data's, and Ray may come without it
        raise ConfigError("--ray needs Ray Data: pip install 'oddpatch[sweep]'")
    file = open_records(results, resume) if results is not None else None
    source = Files(sources, all_files)
    if ray is not None and source.videos:
        raise ConfigError(f"{source.videos[0]}: --ray inspects images: inspect the video without it")
    if not source.paths:
        raise DataError("; ".join(source.errors.values()))
    load = partial(
        AnomalyDetector.load, run, device=device, engine=engine, distance=distance, threshold=_number(threshold),
        pixel_threshold=pixel_threshold, target_fpr=target_fpr, min_area=min_area, merge_distance=merge_distance,
        max_pixels=max_pixels, timeout=timeout, trust=trust or (),
    )  # fmt: skip
    detector = load()
    if detector.image_threshold is None:
        raise ConfigError(f"{run} has no threshold: {detector.scorer.calibration.absent}, or give --threshold VALUE")
    if kinds - {Save.map} and detector.pixel_threshold is None:
        raise ConfigError(f"--save={save}: the run has no pixel threshold: give --pixel-threshold VALUE, or save map")
    if file is not None and (others := file.thresholds - {detector.image_threshold}):
        raise ConfigError(
            f"{results} holds results at a threshold of {others.pop()}, and that of {run} is "
            f"{detector.image_threshold}: name another file by --results"
        )
    terminal = sys.stdout.isatty() and not json_lines
    warn_of_left_out(source.left_out)
    tally = Tally()
    saving = partial(write, out, kinds) if kinds else None
    with file or nullcontext(), _progress(source.total()) as step, ExitStack() as stack:
        held: list[tuple[str, Held]] = []

        def leave_out(name: str, one: "Held") -> None:
            held.append((name, one))
            step()

        frames = _wanted(source, file, leave_out)
        if ray is None:
            records = _here(detector, frames, batch_size, saving)
        else:
            from oddpatch.inference.ray import inspect

            records = inspect(list(frames), load, ray, batch_size, saving, gpu=not device.startswith("cpu"))
        stack.enter_context(closing(records))
        for record in records:
            if "error" in record:
                tally.add_failure(record["error"])
            else:
                tally.add(record["path"], record["is_anomalous"], record["inspected"])
            if file is not None:
                file.write(record)
            step()
            if file is None:
                _tell(record, terminal)
    for name, one in held:
        tally.add(name, one.is_anomalous, one.inspected)
    if (little := tally.partly_inspected(detector.scorer.settings)) is not None:
        tell(f"warning: {little}", err=True)
    if tally.failures and file is not None:
        _list_failures(tally, results)
    if terminal or file is not None:
        counts = {**tally.counts, "left out": len(source.left_out)}
        summed = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        places = [str(place) for place in (results, out if kinds else None) if place is not None]
        resumed = f" ({len(held)} held already)" if held else ""
        tell(
            f"{counted(sum(tally.counts.values()) - len(source.errors), 'image')}{resumed}: {summed}"
            + (f"; saved in {listed(places)}" if places else ""),
            err=not terminal,
        )
    failed = tally.counts["failed"] or (strict and source.left_out)
    raise typer.Exit(ERROR if failed else SOME_ANOMALOUS if tally.counts["anomalous"] else ALL_GOOD)


def _wanted(source: "Files", file: "Records | None", leave_out: "Callable[[str, Held], object]") -> "Iterator[Frame]":
    """The images that a file of results does not hold; `leave_out` is given those that it does."""
    from oddpatch.inference.records import key

    held = {} if file is None else dict(file.held)
    for frame in source:
        if (one := held.get(key(frame.name))) is None:
            yield frame
        else:
            leave_out(frame.name, one)


def _here(
    detector: "AnomalyDetector", frames: "Iterator[Frame]", batch_size: int, save: "SaveFn | None"
) -> "Generator[Record, None, None]":
    from oddpatch.inference.outputs import to_record

    with closing(detector.stream(frames, batch_size, save, maps=False)) as results:
        for frame, result in results:
            yield to_record(frame, result)


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, with the rate and the time left; gives a function to call after each image."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("inspecting"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=total, rate="")

        def step() -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=1, rate="" if speed is None else f"{speed:.3g} images/s")
            bar.console.file.flush()

        yield step


def _list_failures(tally: "Tally", results: Path | None) -> None:
    """The first failures on stderr; each is in the file of results, too."""
    failed = tally.counts["failed"]
    for error in tally.failures:
        tell(f"failed: {error}", err=True)
    more = f", {failed - len(tally.failures)} more of them" if failed > len(tally.failures) else ""
    tell(f"{counted(failed, 'image')} failed{more}: see `error` in {results}; --resume tries them again", err=True)


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
        typer.secho(line_of(record, f"{'error':<9}"), fg="red")
    elif record["is_anomalous"]:
        typer.secho(line_of(record, "anomalous"), fg="yellow")
    else:
        typer.secho(line_of(record, f"{'good':<9}"))
