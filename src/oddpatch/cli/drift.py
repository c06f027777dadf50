"""`oddpatch drift`: whether results are still those of the line that a run was calibrated on."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oddpatch.cli.common import Trust, tell
from oddpatch.errors import ConfigError
from oddpatch.wording import counted

if TYPE_CHECKING:
    from oddpatch.drift.archive import Watched

NO_DRIFT, DRIFTED = 0, 1


def drift(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, a checkpoint, or an artifact.")],
    predictions: Annotated[
        Path,
        typer.Argument(help="What predict --results wrote with it: .jsonl, .csv or .parquet, parts in their order."),
    ],
    defects: Annotated[float, typer.Option(help="Share of the parts that may be defective without an alarm.")] = 0.05,
    false_alarms: Annotated[float, typer.Option(help="Probability of a false alarm for every 10,000 parts.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of the draws that put equal values in order.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option(help="Picture of all streams to write (.png).")] = None,
    trust: Trust = None,
) -> None:
    """Test whether parts drift away from the good images that a run was calibrated on, and say in what and since when.

    Tested are score, brightness, sharpness and alignment of accepted parts, and the share of rejected ones: those
    called anomalous or not inspected.

    Exit code 0: no drift; 1: drift; 2: an error.

    Examples:
      oddpatch predict outputs/RUN parts/ --results parts.jsonl
      oddpatch drift outputs/RUN parts.jsonl --out drift.png
    """
    from oddpatch.drift.archive import load_good_scores, watch
    from oddpatch.inference.records import read_records

    if out is not None and out.suffix != ".png":
        raise ConfigError(f"--out={out}: the picture is a PNG: choose a name that ends with .png")
    good, history = load_good_scores(run, trust or ())
    watched = watch(
        read_records(predictions), good, predictions, defects=defects, false_alarms=false_alarms, seed=seed
    )  # fmt: skip
    if out is not None:
        from oddpatch.figures.drift import draw_drift

        monitor = watched.monitor
        alarms = {alarm.stream: (alarm.since, alarm.part) for alarm in watched.alarms}
        draw_drift(watched.values, good, monitor.threshold, monitor.rejected.before, alarms).save(out)
    if as_json:
        typer.echo(json.dumps(_describe(watched, history), indent=2))
    else:
        _print(watched, history)
        if out is not None:
            tell(f"written: {out}")
    raise typer.Exit(DRIFTED if watched.alarms else NO_DRIFT)


def _describe(watched: "Watched", history: list[dict[str, Any]]) -> dict[str, Any]:
    monitor = watched.monitor
    return {
        "parts": monitor.parts,
        "anomalous": monitor.anomalous,
        "failed": monitor.failed,
        "threshold": monitor.threshold,
        "calibrated_on": monitor.num_images,
        "calibrations": history,
        "defects": monitor.defects,
        "false_alarms": monitor.false_alarms,
        "false_alarm_probability": monitor.false_alarm_probability,
        "seed": monitor.seed,
        "streams": {
            name: {
                "before": stream.before,
                "latest": stream.level(),
                "evidence": stream.highest / monitor.alarm_at,
                "drift": _about(watched, monitor.drifted[name]) if name in monitor.drifted else None,
            }
            for name, stream in monitor.watched.items()
        },
    }


def _about(watched: "Watched", alarm: Any) -> dict[str, Any]:
    told = {"since": watched.names[alarm.since], "part": watched.names[alarm.part]}
    times = {f"{name}_time": watched.times[getattr(alarm, name)] for name in told} if watched.times else {}
    numbers = {f"{name}_number": getattr(alarm, name) + 1 for name in told}
    return {**told, **numbers, **times, "before": alarm.before, "now": alarm.now}


def _print(watched: "Watched", history: list[dict[str, Any]]) -> None:
    monitor = watched.monitor
    tell(
        f"{counted(monitor.parts, 'part')}: {monitor.parts - monitor.anomalous - monitor.failed} accepted, "
        f"{monitor.anomalous} anomalous, {monitor.failed} not inspected"
    )
    below = "" if monitor.threshold is None else f" below the threshold of {monitor.threshold:.4g}"
    tell(f"compared with {counted(monitor.num_images, 'good image')}{below}")
    for step in history[-1:]:
        tell(f"calibrated {step['when']} on {step['folder']}")
    typer.echo()
    tell(f"{'':<12}{'calibration':>13}{'latest':>10}{'evidence':>11}  drift")
    for name, stream in monitor.watched.items():
        before = f"<= {stream.before:.4g}" if name == "rejected" else f"{stream.before:.4g}"
        drifted = monitor.drifted.get(name)
        told = "-" if drifted is None else f"since part {drifted.since + 1}, noticed at {drifted.part + 1}"
        share = min(stream.highest / monitor.alarm_at, 1)
        tell(f"{name:<12}{before:>13}{stream.level():>10.4g}{share:>11.2g}  {told}")
    typer.echo()
    for alarm in watched.alarms:
        when = f", {_utc(watched.times[alarm.since])}" if watched.times else ""
        tell(alarm.change)
        tell(f"  since about part {alarm.since + 1}, {watched.names[alarm.since]}{when}")
    tell("evidence is the highest so far, 1 an alarm; a false alarm among these parts")
    tell(f"has a probability of at most {monitor.false_alarm_probability:.2g}")


def _utc(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
