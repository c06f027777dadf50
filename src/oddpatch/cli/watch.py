"""`oddpatch watch`: inspect what a camera sees, as it comes."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oddpatch.cli.common import Trust, line_of, tell
from oddpatch.ending import end_as_meant
from oddpatch.errors import ConfigError
from oddpatch.files import parse_json, replacing, shown
from oddpatch.temporary import unwritable
from oddpatch.wording import counted

if TYPE_CHECKING:
    from oddpatch.drift.monitor import DriftMonitor
    from oddpatch.inference.detector import AnomalyDetector
    from oddpatch.watch.capture import Crop
    from oddpatch.watch.events import Event, Sink, Status
    from oddpatch.watch.triggers import Trigger

#: Seconds for what waits to be sent when the watch ends: less than `GRACE` of oddpatch.ending.
CLOSING = 2.5
#: Parts after which what `--drift` has seen is written: after a crash no more than so many are forgotten.
KEPT_EVERY = 100
COLOURS = {"accept": "green", "warn": "yellow", "reject": "red", "failed": "magenta"}


def watch(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, a checkpoint, or an exported artifact.")],
    source: Annotated[
        str, typer.Argument(help="rtsp://..., http://..., /dev/video0 or 0, a video, a folder, or boards:")
    ],
    crop: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Look at this part of the picture only, in its pixels.")
    ] = None,
    every: Annotated[float | None, typer.Option(metavar="MS", help="Judge a frame every so many milliseconds.")] = None,
    when_still: Annotated[
        float | None, typer.Option(metavar="MS", help="Judge one frame of each stop, once still for so long.")
    ] = None,
    stillness: Annotated[
        float | None, typer.Option(help="Change, as part of the full scale, up to which it is still. (default: 0.04)")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Judge every frame of a video file, not at its own pace.")
    ] = False,
    threshold: Annotated[str, typer.Option(help="Reject above: auto, conformal, validation, or a raw score.")] = "auto",
    target_fpr: Annotated[
        float | None, typer.Option(help="Wanted rate of good parts rejected. (default: the run's)")
    ] = None,
    warn: Annotated[
        float | None, typer.Option(metavar="RATE", help="Wanted rate of good parts warned of. (default: 5 times that)")
    ] = None,
    warn_score: Annotated[float | None, typer.Option(help="Warn above this raw score instead.")] = None,
    pixel_threshold: Annotated[
        float | None, typer.Option(help="Anomaly value from which on pixels are anomalous. (default: the run's)")
    ] = None,
    min_area: Annotated[int, typer.Option(help="Pixels that an anomalous region must have.", min=1)] = 1,
    merge_distance: Annotated[int, typer.Option(help="Regions at most so many pixels apart count as one.", min=0)] = 0,
    give_up: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="End with an error after so long without a connection.")
    ] = None,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="Post every warning, rejection and failure there.")
    ] = None,
    mqtt: Annotated[str | None, typer.Option(metavar="URL", help="Publish them at this broker, mqtt://HOST.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep pictures of warnings and rejections there.")
    ] = None,
    pictures_mb: Annotated[
        int | None, typer.Option(help="Megabytes of all these pictures, at most. (default: 1000)")
    ] = None,
    drift: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Alarm if parts change; FILE keeps what was seen. For one frame of each part."
        ),
    ] = None,
    queue: Annotated[Path, typer.Option(metavar="DIR", help="Folder of alarms that wait to be sent.")] = Path("watch"),
    serve: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve a live page, /healthz and /metrics.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 ...")] = "cpu",
    engine: Annotated[str | None, typer.Option(help="torch or openvino. (default: the run's)")] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="JSON lines on a terminal, too.")] = False,
    trust: Trust = None,
) -> None:
    """Watch a camera: a line of JSON for each frame that is judged, with accept, warn, reject or failed.

    The newest frame is judged; those that came meanwhile are dropped and counted. A lost connection is made again.

    A secret in an address is named: 'rtsp://${CAMERA_USER}:${CAMERA_PASSWORD}@HOST/PATH' takes it from the environment.

    Ends with a summary on stderr when the source ends, at Ctrl-C and at SIGTERM. Exit code 0; 2: an error.

    Examples:
      oddpatch watch RUN 'rtsp://${CAMERA_USER}:${CAMERA_PASSWORD}@192.0.2.7/Streaming/Channels/101' --when-still 300
      oddpatch watch RUN /dev/video0 --crop 100,50,640,480 --every 500
      oddpatch watch RUN boards: --when-still 300
    """
    from oddpatch.inference.detector import AnomalyDetector
    from oddpatch.inference.outputs import Tally
    from oddpatch.watch import capture
    from oddpatch.watch.events import Verdict
    from oddpatch.watch.serving import Server, listen
    from oddpatch.watch.sinks import MEGABYTES, make_sinks
    from oddpatch.watch.sources import make_source
    from oddpatch.watch.watcher import Watch, check_warnings, find_thresholds

    # All that can be wrong without a model is told before it is loaded.
    if pictures_mb is not None and pictures is None:
        raise ConfigError(f"--pictures-mb {pictures_mb} belongs to --pictures: give that, too")
    cut, trigger = _crop(crop), _trigger(every, when_still, stillness)
    check_warnings(warn, warn_score)
    watched = make_source(source, fast)
    capture.check(watched, cut, trigger, give_up)
    before = None if drift is None else _seen(drift)
    listening = None if serve is None else listen(serve)
    sinks: list[Sink] = []
    watching, monitor = None, None
    seen, told = Tally(), None
    try:
        sinks += make_sinks(webhook, mqtt, pictures, MEGABYTES if pictures_mb is None else pictures_mb, queue)
        detector = AnomalyDetector.load(
            run, device=device, engine=engine, threshold=_number(threshold), target_fpr=target_fpr,
            pixel_threshold=pixel_threshold, min_area=min_area, merge_distance=merge_distance, trust=trust or (),
        )  # fmt: skip
        thresholds = find_thresholds(detector, warn, warn_score)
        drawn = pictures is not None or serve is not None
        monitor = None if drift is None else _monitor(detector, drift, before)
        watching = Watch(detector, watched, thresholds, cut, trigger, give_up=give_up, maps=drawn, drift=monitor)
        terminal = sys.stdout.isatty() and not json_lines
        tell(
            f"{watching.source}: rejected above {thresholds.reject:.4g}, "
            + (f"warned of above {thresholds.warn:.4g}" if thresholds.warn < thresholds.reject else "no warnings"),
            err=True,
        )
        if listening is not None:
            levels = {Verdict.WARN: thresholds.warn, Verdict.REJECT: thresholds.reject}
            sinks.append(Server(listening, watching.status, list(sinks), levels))
            tell(f"live page: {listening.url}", err=True)
        with watching, _status_line(watching.status):
            for event in watching:
                _tell(event, terminal)
                if "error" not in event.record:
                    seen.add(*(event.record[key] for key in ("path", "is_anomalous", "inspected")))
                if told is None and (told := seen.partly_inspected(detector.scorer.settings)) is not None:
                    tell(f"warning: {told}", err=True)  # at once: a watch ends late
                for sink in sinks:
                    sink.put(event)
                if monitor is not None and drift is not None and (event.drift or monitor.parts % KEPT_EVERY == 0):
                    _keep(monitor, drift)
    except KeyboardInterrupt:  # SIGTERM, too
        if watching is None:  # it had not begun
            raise
        end_as_meant()
    finally:
        until = time.monotonic() + CLOSING
        for sink in sinks:
            sink.close(max(until - time.monotonic(), 0.0))
        if listening is not None:
            listening.socket.close()
        if monitor is not None and drift is not None:
            _keep(monitor, drift)
    tell(summary(watching.status()), err=True)
    if (little := seen.partly_inspected(detector.scorer.settings)) != told:
        tell(f"warning: {little}", err=True)
    for sink in sinks:
        if counts := sink.counts():
            tell(f"{sink.name}: {', '.join(f'{count} {what}' for what, count in counts.items())}", err=True)


def summary(status: "Status") -> str:
    """What became of all frames."""
    verdicts = {verdict.value: count for verdict, count in status.verdicts.items() if count}
    failed = verdicts.pop("failed", 0)
    judged = ", ".join(f"{verdicts[name]} {name}" for name in ("accept", "warn", "reject") if name in verdicts)
    return (
        f"{status.source}: {counted(status.arrived, 'frame')} arrived: {sum(verdicts.values())} judged"
        + (f" ({judged})" if judged else "")
        + f", {status.dropped} dropped, {status.skipped} skipped, {failed} failed, {status.waiting} waiting; "
        + counted(status.reconnects, "reconnect")
        + "".join(f"; {drift.change}" for drift in status.drift)
    )


def _seen(file: Path) -> Any:
    """What a file of `--drift` holds, None if there is none yet; it can be written."""
    try:
        found = parse_json(file.read_text(encoding="utf-8")) if file.exists() else None
    except (ValueError, OSError) as error:
        raise _no_state(file, error) from error
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            return found
    except OSError as error:
        raise unwritable(file, error) from error


def _no_state(file: Path, error: Exception) -> ConfigError:
    return ConfigError(f"--drift {file} holds no such state ({error}): name another file, or remove it")


def _monitor(detector: "AnomalyDetector", file: Path, seen: Any) -> "DriftMonitor":
    """What watches for drift, having seen what was read from `file`."""
    from oddpatch.drift.monitor import DriftMonitor

    monitor = DriftMonitor(detector.scorer.calibration, detector.image_threshold)
    if seen is not None:
        try:
            monitor.restore(seen)
        except ConfigError as error:
            raise _no_state(file, error) from error
    for before in monitor.drifted.values():
        tell(f"{before.change}, found before: to begin again, remove {file}", err=True)
    return monitor


def _keep(monitor: "DriftMonitor", file: Path) -> None:
    with replacing(file) as opened:
        json.dump(monitor.state(), opened)


def _tell(event: "Event", terminal: bool) -> None:
    if not terminal:
        sys.stdout.write(json.dumps(event.to_dict()) + "\n")
        sys.stdout.flush()
        return
    typer.secho(line_of(event.record, f"{event.verdict.value:<7}"), fg=COLOURS[event.verdict.value])
    for alarm in event.drift:
        typer.secho(f"drift    {alarm}", fg="magenta")


@contextmanager
def _status_line(status: "Callable[[], Status]") -> Iterator[None]:
    """A line at the foot of a terminal that says how the watch stands."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def line() -> Text:
        now = status()
        rates = ", ".join(f"{name} {rate:.3g}/s" for name, rate in now.rates.items())
        delay = f", delay {1000 * now.delays['p50']:.0f} ms" if now.delays else ""
        error = f" ({shown(now.error)})" if now.error else ""
        return Text(f"{now.connection}{error}: {rates}{delay}, dropped {now.dropped}", style="dim", overflow="ellipsis")

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    # What goes to a pipe is not for the terminal.
    with Live(
        get_renderable=line, console=console, refresh_per_second=2, transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ):  # fmt: skip
        yield


def _crop(text: str | None) -> "Crop | None":
    from oddpatch.watch.capture import Crop

    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"--crop {text}: give X,Y,WIDTH,HEIGHT in pixels, such as 100,50,640,480")
    return Crop(*map(int, parts))


def _trigger(every: float | None, when_still: float | None, stillness: float | None) -> "Trigger | None":
    from oddpatch.watch.triggers import STILLNESS, Every, WhenStill

    if every is not None and when_still is not None:
        raise ConfigError(f"--every {every:g} --when-still {when_still:g}: give one of them")
    if stillness is not None and when_still is None:
        raise ConfigError(f"--stillness {stillness:g} belongs to --when-still: give that, too")
    if when_still is not None:
        return WhenStill(when_still / 1000, STILLNESS if stillness is None else stillness)
    return None if every is None else Every(every / 1000)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
