"""Watching the parts of a line, one by one, for a change against what a model was calibrated on."""

import hashlib
import math
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.light import STATISTICS
from oddpatch.drift.martingale import (
    EXCESSES,
    SHIFTS,
    SPREADS,
    Evidence,
    allowed_share,
    bets_on,
    bets_on_rejection,
    urn_p_value,
)
from oddpatch.errors import ConfigError, DataError
from oddpatch.metrics.good_scores import GoodScores
from oddpatch.metrics.thresholds import Threshold

#: Parts that a rate of false alarms is of.
PARTS = 10_000
#: Latest values of a stream that are kept, for the median.
KEPT = 1000
REJECTED = "rejected"


class Drift(NamedTuple):
    """An alarm: the parts since some part are unlike what the model was calibrated on."""

    stream: str  # "score", "brightness", "sharpness", "aligned" or "rejected"
    part: int  # at which it was noticed, counted from 0
    since: int  # the part with which the change most likely began
    before: float  # median of the calibration; of "rejected" the highest share to be expected at the beginning
    now: float  # median since the change, of at most the latest 1000 accepted parts; of "rejected" the share since then

    @property
    def change(self) -> str:
        """What has become of the stream, in words."""
        what, was = ("rejected parts", "up to ") if self.stream == REJECTED else (f"the {self.stream}", "")
        return f"drift of {what}: {self.now:.4g} instead of {was}{self.before:.4g}"

    def __str__(self) -> str:
        return f"{self.change} since part {self.since + 1} (noticed at {self.part + 1})"


class DriftMonitor:
    """Sees parts in the order in which they were made, and says when they are no longer what they were.

    Each of several streams is tested for itself: the score and how the image was taken (brightness, sharpness, and the
    quality of the alignment where there is one) of *accepted* parts against those of the calibration, and the share of
    *rejected* parts, those called anomalous or not inspected, against the false alarms that are to be expected, those
    of a model of several products included, and the share of defects. Parts above the threshold are left out of the
    former, and so are good images of the calibration: what is left is exchangeable still, and defects are no drift.

    The probability that any stream raises a false alarm among t parts is at most `false_alarms` (1 + t / 10,000), if
    good images of the calibration and of the line are exchangeable (for scores left out of a fit, see docs/drift.md)
    and a part is defective, or cannot be inspected, with a probability of at most `defects`. A stream raises one alarm:
    once the cause is found, begin with a new monitor, on a new calibration where the line is right as it is.

    Args:
        good: of the model's calibration, such as `AnomalyDetector(...).scorer.calibration`.
        threshold: by which parts are called anomalous; None if they are not.
        defects: share of the parts that may be defective or not inspected without an alarm, in (0, 1).
        false_alarms: probability of a false alarm for every 10,000 parts, and for the beginning, in (0, 1).
        seed: of the draws by which values that are equal are put in order.

    Raises:
        ConfigError: a setting cannot work, or there is no calibration.

    Examples:
        >>> import numpy as np
        >>> from oddpatch.drift.monitor import DriftMonitor
        >>> from oddpatch.metrics.good_scores import GoodScores
        >>> scores = np.random.default_rng(0).normal(size=(3, 200))
        >>> good = GoodScores(np.sort(scores[0]), np.empty(0), float("nan"), 0.01, None)
        >>> monitor = DriftMonitor(good, threshold=3.0)
        >>> line = np.concatenate([scores[1], scores[2] + 1]).tolist()  # something happens at part 200
        >>> alarms = [alarm for score in line for alarm in monitor.add({"score": score, "is_anomalous": score > 3})]
        >>> [(drift.stream, 190 < drift.since < 210) for drift in alarms]
        [('score', True)]
    """

    def __init__(
        self,
        good: GoodScores,
        threshold: float | None,
        defects: float = 0.05,
        false_alarms: float = 0.01,
        seed: int = 0,
    ) -> None:
        if not good.calibrated:
            raise ConfigError(f"there is nothing to compare parts with: {good.absent}")
        for name, value in (("defects", defects), ("false_alarms", false_alarms)):
            if not 0 < value < 1:
                raise ConfigError(f"{name}={value} must lie between 0 and 1, such as 0.05")
        self.defects, self.false_alarms, self.seed, self.threshold = defects, false_alarms, seed, threshold
        draw = np.random.default_rng(seed)
        accepted = good.image_scores < (math.inf if threshold is None else threshold)
        if not accepted.any():
            raise ConfigError(
                f"no good image of the calibration scores below threshold={threshold}: choose a higher one"
            )
        columns = {"score": good.image_scores, **good.statistics}
        self.streams = {name: Stream(values[accepted], draw) for name, values in columns.items()}
        self.rejected = Share(
            defects, good.image_scores, threshold, good.product_ratios, good.product_at(good.target_fpr)
        )
        #: All of them, by name.
        self.watched: dict[str, Stream | Share] = {**self.streams, REJECTED: self.rejected}
        #: Good images of the calibration that accepted parts are compared with.
        self.num_images = int(accepted.sum())
        #: R_t from which on it is an alarm.
        self.alarm_at = PARTS / false_alarms * len(self.watched)
        #: Parts so far, of these not inspected, and called anomalous.
        self.parts, self.failed, self.anomalous = 0, 0, 0
        #: The alarm of each stream that has raised one.
        self.drifted: dict[str, Drift] = {}
        self._draw = draw
        digest = hashlib.sha256(str((threshold, *columns)).encode())
        for values in columns.values():
            digest.update(np.ascontiguousarray(values, np.float64).tobytes())
        self._calibration = digest.hexdigest()

    def add(self, record: Mapping[str, Any]) -> list[Drift]:
        """Look at the next part.

        Args:
            record: what `oddpatch.inference.outputs.to_record` gives: the field "error", or "is_anomalous", "score" and
                those of `oddpatch.data.light.STATISTICS` that the calibration has.

        Returns:
            Alarms that it raises, mostly none.

        Raises:
            DataError: a field is missing or not a number.
        """
        part = self.parts
        failed = "error" in record
        values: dict[str, float] = {}
        if not failed:
            values = {name: _number(record, name) for name in self.streams}
            anomalous = record.get("is_anomalous")
            if not isinstance(anomalous, bool | None):
                raise DataError(f"is_anomalous={anomalous!r} of a part is neither true nor false")
        rejected = failed or bool(anomalous)
        self.parts += 1
        self.failed += failed
        self.anomalous += rejected and not failed
        score = values.get("score", math.inf)
        alarms = (
            [self._alarm(REJECTED, self.rejected)]
            if self.rejected.add(rejected, score, record.get("reason") is not None, part, self.alarm_at)
            else []
        )
        # A score on the threshold is accepted, but no good image on it is compared with.
        if not rejected and (self.threshold is None or score < self.threshold):
            alarms += [
                self._alarm(name, self.streams[name])
                for name, value in values.items()
                if self.streams[name].add(value, part, self.alarm_at, *self._draw.random(2))
            ]
        self.drifted |= {drift.stream: drift for drift in alarms}
        return alarms

    @property
    def false_alarm_probability(self) -> float:
        """The most that the probability of a false alarm among the parts so far can be."""
        return min(self.false_alarms * (1 + self.parts / PARTS), 1.0)

    def _alarm(self, name: str, stream: "Stream | Share") -> Drift:
        return Drift(name, self.parts - 1, stream.since, stream.before, stream.level(stream.since))

    def state(self) -> dict[str, Any]:
        """All that was seen, in plain values for JSON, of bounded size."""
        return {
            "calibration": self._calibration,
            "settings": [self.defects, self.false_alarms, self.seed],
            "parts": [self.parts, self.failed, self.anomalous],
            "drifted": [list(drift) for drift in self.drifted.values()],
            "draw": self._draw.bit_generator.state,
            "streams": {name: stream.state() for name, stream in self.watched.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where a monitor of the same calibration, threshold and settings was, see `state`.

        Raises:
            ConfigError: it is the state of another one, or none.
        """
        try:
            same = state["calibration"] == self._calibration
            if not same or list(state["settings"]) != [self.defects, self.false_alarms, self.seed]:
                raise ConfigError(
                    "the state is that of a monitor of another calibration, threshold or settings: begin with a new one"
                )
            for name, stream in self.watched.items():
                stream.restore(state["streams"][name])
            self.parts, self.failed, self.anomalous = (int(number) for number in state["parts"])
            self.drifted = {one[0]: Drift(*one) for one in state["drifted"]}
            self._draw.bit_generator.state = state["draw"]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"the state is not what a monitor gives ({error}): begin with a new one") from error


def _number(record: Mapping[str, Any], name: str) -> float:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        remedy = "predict again with this version" if name in STATISTICS else "give results of oddpatch predict"
        raise DataError(f"{name}={value!r} of a part is no number: {remedy}")
    return float(value)


class _Watched:
    """Evidence on one stream, and its latest values."""

    def __init__(self, bets: int, head_start: float) -> None:
        self.evidence = Evidence.at_start(bets, head_start=head_start)
        #: Highest R_t so far.
        self.highest = 0.0
        #: The part with which a change most likely began, if there was one.
        self.since = 0
        self.latest: deque[tuple[int, float]] = deque(maxlen=KEPT)

    def _see(self, value: float, bets: NDArray[np.float64], part: int, alarm_at: float) -> bool:
        self.latest.append((part, value))
        if self.highest >= alarm_at:  # it has said so
            return False
        self.evidence = self.evidence.after(bets, part)
        self.since = int(self.evidence.since[self.evidence.sums.argmax()])
        self.highest = max(self.highest, float(self.evidence.value))
        return self.highest >= alarm_at

    def _values_since(self, since: int) -> list[float]:
        return [value for part, value in self.latest if part >= since]

    def state(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "evidence": [column.tolist() for column in self.evidence],
            "highest": self.highest,
            "since": self.since,
            "latest": [list(one) for one in self.latest],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from these."""
        sums, runs, since = (np.array(column) for column in state["evidence"])
        if not len(sums) == len(runs) == len(since) == len(self.evidence.sums):
            raise ValueError("other bets")
        self.evidence = Evidence(sums.astype(float), runs.astype(float), since.astype(np.int64))
        self.highest, self.since = float(state["highest"]), int(state["since"])
        self.latest = deque(((int(part), float(value)) for part, value in state["latest"]), KEPT)


class Stream(_Watched):
    """Values of accepted parts against n values of the calibration.

    Args:
        values: (n,).
        draw: puts equal ones in order.
    """

    def __init__(self, values: NDArray[np.float64], draw: np.random.Generator) -> None:
        super().__init__(len(SHIFTS) + len(SPREADS), head_start=PARTS)
        ties = draw.random(len(values))
        order = np.lexsort((ties, values))
        self._values, self._ties = values[order], ties[order]
        self._counts = np.zeros(len(values) + 1, np.int64)
        #: Median of the calibration.
        self.before = float(np.median(values))

    def add(self, value: float, part: int, alarm_at: float, tie: float, uniform: float) -> bool:
        """Whether it raises an alarm."""
        first, last = (int(np.searchsorted(self._values, value, side)) for side in ("left", "right"))
        gap = first + int(np.searchsorted(self._ties[first:last], tie))
        p_value = urn_p_value(self._counts, np.array(gap), np.array(uniform))
        self._counts[gap] += 1
        return self._see(value, bets_on(p_value), part, alarm_at)

    def level(self, since: int = 0) -> float:
        """Median of the values since a part, of those that are kept; NaN if there are none."""
        values = self._values_since(since)
        return float(np.median(values)) if values else math.nan

    def state(self) -> dict[str, Any]:
        """See `_Watched`."""
        return {**super().state(), "counts": self._counts.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `_Watched`."""
        counts = np.array(state["counts"], np.int64)
        if counts.shape != self._counts.shape:
            raise ValueError("another number of images")
        super().restore(state)
        self._counts = counts


class Share(_Watched):
    """Whether parts are rejected, against the share of defects and the false alarms to be expected.

    Args:
        defects: share of the parts that may be defective.
        scores: (n,) of good images.
        threshold: above which parts are rejected; None where only those are that cannot be inspected.
        ratios: (m,) of good images, where the model is of several products, see `oddpatch.models.products`.
        stranger: above which a part belongs to no product, and is rejected, too.
    """

    def __init__(
        self,
        defects: float,
        scores: NDArray[np.float64],
        threshold: float | None,
        ratios: NDArray[np.float64],
        stranger: Threshold | None,
    ) -> None:
        super().__init__(len(EXCESSES), head_start=0)
        self._defects = defects
        self._level = math.inf if threshold is None else float(scores[scores <= threshold].max())
        #: See `allowed_share`. Where scores do not decide, no good part is rejected.
        self._above = 0 if threshold is None else 1 + int((scores > self._level).sum())
        self._weight = 1 + len(scores)
        #: The same of the ratios: a good part is rejected for its score or as a stranger, so both are allowed.
        self._strange = 0 if stranger is None else 1 + int((ratios > stranger.value).sum())
        self._strange_weight = 1 + len(ratios)
        self.before = self._allowed()

    def _allowed(self) -> float:
        share = allowed_share(self._defects, np.array(self._above), np.array(self._weight))
        strangers = (1 - self._defects) * self._strange / self._strange_weight
        return min(float(share) + strangers, 1 - 1e-9)  # where all may be rejected, there is nothing to bet on

    def add(self, rejected: bool, score: float, stranger: bool, part: int, alarm_at: float) -> bool:
        """Whether it raises an alarm; the score of a part that was not inspected is infinite."""
        bets = bets_on_rejection(np.array(rejected), np.array(self._allowed()))
        self._above += score > self._level
        self._weight += 1
        if stranger or not rejected:  # what is rejected for another reason may be no good part, and says nothing here
            self._strange += stranger
            self._strange_weight += 1
        return self._see(float(rejected), bets, part, alarm_at)

    def level(self, since: int = 0) -> float:
        """Share of the parts since a part, of those that are kept; NaN if there are none."""
        values = self._values_since(since)
        return float(np.mean(values)) if values else math.nan

    def state(self) -> dict[str, Any]:
        """See `_Watched`."""
        counts = [self._above, self._weight, self._strange, self._strange_weight]
        return {**super().state(), "counts": counts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `_Watched`."""
        super().restore(state)
        self._above, self._weight, self._strange, self._strange_weight = (int(count) for count in state["counts"])
