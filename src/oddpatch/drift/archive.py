"""Results of `oddpatch predict`, part by part: whether they are the run's, and what a monitor says of them."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from oddpatch.drift.monitor import Drift, DriftMonitor
from oddpatch.errors import DataError
from oddpatch.factory import restore_calibration
from oddpatch.inference.artifact import is_artifact, load_artifact
from oddpatch.inference.records import Record
from oddpatch.metrics.good_scores import GoodScores

#: Records that are compared with the run at once.
CHUNK = 4096


@dataclass(frozen=True)
class Watched:
    """What a monitor said of results.

    Attributes:
        monitor: as it is after them.
        alarms: in their order.
        names: of the parts, by number.
        times: when they were inspected, in seconds since the epoch; none if the results do not say.
        values: (parts,) of each stream, NaN where a part was not inspected; of "rejected" 0 or 1.
    """

    monitor: DriftMonitor
    alarms: list[Drift] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    times: "array[float]" = field(default_factory=lambda: array("d"))
    values: "dict[str, array[float]]" = field(default_factory=dict)


def load_good_scores(run: Path, trust: Sequence[str] = ()) -> tuple[GoodScores, list[dict[str, Any]]]:
    """The calibration of a run, a checkpoint or an artifact, and how it was renewed, see `oddpatch calibrate`.

    Raises:
        CheckpointError, ConfigError: see `oddpatch.factory.restore`.
    """
    if is_artifact(run):
        scorer = load_artifact(run)
        return scorer.calibration, scorer.metadata["calibrations"]
    calibration, about = restore_calibration(run, trust)
    return calibration.good_scores, about.get("calibrations", [])


def watch(records: Iterable[Record], good: GoodScores, source: object, **settings: Any) -> Watched:
    """Show results to a monitor, in their order.

    Args:
        records: as `oddpatch.inference.records.read_records` gives them.
        good: calibration of the run that they are of.
        source: their file, for messages.
        settings: of `DriftMonitor`.

    Raises:
        ConfigError: see `DriftMonitor`.
        DataError: they are of another run, calibration or threshold, or not in the order of their times; or there are
            none.
    """
    watched: Watched | None = None
    for chunk in _chunks(iter(records)):
        inspected = [record for record in chunk if "error" not in record]
        if watched is None:
            # Where none was inspected there is no threshold to compare; all of them are rejected.
            threshold = inspected[0].get("threshold") if inspected else None
            watched = Watched(DriftMonitor(good, threshold, **settings))
        _check(inspected, good, watched.monitor.threshold, source)
        for record in chunk:
            _show(record, watched, source)
    if watched is None:
        raise DataError(f"{source} holds no result: give results of oddpatch predict")
    return watched


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    while chunk := list(islice(records, CHUNK)):
        yield chunk


def _check(inspected: list[Record], good: GoodScores, threshold: float | None, source: object) -> None:
    """See that the run would give the p-values of these results."""
    told = np.array([[_float(record.get(name)) for name in ("score", "p_value")] for record in inspected]).reshape(
        -1, 2
    )
    expected = good.p_values(told[:, 0]) if good.calibrated else told[:, 1]
    for record, (_, p_value), known in zip(inspected, told, expected, strict=True):
        if not abs(p_value - known) <= 1e-9:
            raise DataError(
                f"{source}: {record['path']} has a p-value of {p_value:.6g}, where this run gives {known:.6g} for its "
                "score: give the run, and the version of its calibration, that it was predicted with, or predict again"
            )
        if record.get("threshold") != threshold:
            raise DataError(
                f"{source} holds results at thresholds of {threshold} and, of {record['path']}, "
                f"{record.get('threshold')}: predict again at one threshold"
            )


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _show(record: Record, watched: Watched, source: object) -> None:
    name, monitor = record["path"], watched.monitor
    try:
        alarms = monitor.add(record)
    except DataError as error:
        raise DataError(f"{source}: {name}: {error}") from None
    if "time" in record or watched.times:
        when = _float(record.get("time"))
        if len(watched.times) != len(watched.names) or not when >= max(watched.times[-1:], default=when):
            raise DataError(
                f"{source}: {name} is earlier than the one before it, or one of the two has no time: put records in "
                "the order in which the parts were made"
            )
        watched.times.append(when)
    watched.names.append(name)
    watched.alarms.extend(alarms)
    failed = "error" in record
    rejected = float(failed or bool(record.get("is_anomalous")))
    for stream in (*monitor.streams, "rejected"):
        value = rejected if stream == "rejected" else float("nan") if failed else float(record[stream])
        watched.values.setdefault(stream, array("d")).append(value)
