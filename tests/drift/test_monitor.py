"""The monitor against a plain reimplementation, and what it says of lines that change in one way or another."""

import json
import math
from bisect import bisect_left
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from narrowing import present

from oddpatch.drift.martingale import EXCESSES, SHIFTS, SPREADS
from oddpatch.drift.monitor import KEPT, Drift, DriftMonitor, Stream
from oddpatch.errors import ConfigError, DataError
from oddpatch.metrics.good_scores import GoodScores

RNG = np.random.default_rng


def good_scores(n=200, seed=0, aligned=False, **changes):
    rng = RNG(seed)
    statistics = {"brightness": rng.normal(0.5, 0.01, n), "sharpness": rng.normal(0.02, 0.001, n)}
    statistics |= {"aligned": rng.beta(50, 2, n).round(4)} if aligned else {}
    return GoodScores(np.sort(rng.normal(3, 1, n)), np.empty(0), math.nan, 0.01, None, statistics=statistics, **changes)


def records(count, seed, good=None, threshold=5.5, score=0.0, brightness=0.0, defects=0.0):
    """Good parts of the line of `good_scores`, with shifts in standard deviations, and a share of defects."""
    rng = RNG(seed)
    for _ in range(count):
        value = rng.normal(3 + score, 1) + 20 * (rng.random() < defects)
        yield {
            "score": value, "is_anomalous": bool(value > threshold),
            "brightness": rng.normal(0.5 + 0.01 * brightness, 0.01), "sharpness": rng.normal(0.02, 0.001),
            "aligned": float(rng.beta(50, 2)),
        }  # fmt: skip


def watch(monitor, *parts):
    return [alarm for some in parts for record in some for alarm in monitor.add(record)]


# -- against a plain reimplementation ---------------------------------------------------------------------------------


def reference(known, values, draws, threshold, defects, alarm_at):
    """Parts at which the score and the share of rejected parts raise alarms, by lists and loops.

    `draws` gives the numbers that the monitor draws: one for each good image below the threshold, then two for each
    part below it.
    """
    normal = NormalDist()
    pairs = sorted((value, float(draws.random())) for value in known if value < threshold)
    n, m = len(known), len(pairs)
    fell = [0] * (m + 1)
    sums, shares = [10_000.0] * (len(SHIFTS) + len(SPREADS)), [0.0] * len(EXCESSES)
    alarms: dict[str, int] = {}
    level = max(value for value in known if value <= threshold)
    for part, value in enumerate(values):
        out = value > threshold
        higher = sum(other > level for other in [*known, *values[:part]])
        allowed = defects + (1 - defects) * (1 + higher) / (1 + n + part)
        for k, excess in enumerate(EXCESSES):
            share = allowed + (1 - allowed) * excess
            shares[k] = (1 + shares[k]) * (share / allowed if out else (1 - share) / (1 - allowed))
        if sum(shares) / len(shares) >= alarm_at:
            alarms.setdefault("rejected", part)
        if value >= threshold:
            continue
        tie, uniform = float(draws.random()), float(draws.random())
        gap = bisect_left(pairs, (value, tie))
        seen = sum(fell) + m + 1
        above = sum(fell[gap + 1 :]) + m - gap
        p_value = (above + (1 - uniform) * (1 + fell[gap])) / seen
        fell[gap] += 1
        z = -normal.inv_cdf(min(p_value, 1 - 1e-16))
        bets = [math.exp(d * z - d * d / 2) for d in SHIFTS]
        bets += [normal.pdf(z / s) / s / normal.pdf(z) for s in SPREADS]
        sums = [(1 + old) * bet for old, bet in zip(sums, bets, strict=True)]
        if sum(sums) / len(sums) >= alarm_at:
            alarms.setdefault("score", part)
    return alarms


@pytest.mark.parametrize("decimals", [None, 1])
def test_alarms_are_those_of_a_plain_reimplementation(decimals):
    rng = RNG(3)
    known, line = (
        rng.normal(3, 1, 60),
        np.concatenate([rng.normal(3, 1, 400), rng.normal(4, 1, 300), rng.normal(9, 1, 200)]),
    )
    if decimals is not None:  # ties
        known, line = known.round(decimals), line.round(decimals)
    threshold = 6.05
    monitor = DriftMonitor(GoodScores(np.sort(known), np.empty(0), math.nan, 0.01, None), threshold, seed=5)
    rejected = line > threshold
    found = watch(
        monitor, ({"score": x, "is_anomalous": bool(out)} for x, out in zip(line.tolist(), rejected, strict=True))
    )
    expected = reference(np.sort(known), line.tolist(), RNG(5), threshold, 0.05, 10_000 / 0.01 * 2)
    assert {drift.stream: drift.part for drift in found} == expected
    assert expected.keys() == {"score", "rejected"}


# -- what it says -----------------------------------------------------------------------------------------------------


def test_a_steady_line_with_defects_raises_no_alarm():
    monitor = DriftMonitor(good_scores(aligned=True), 5.5)
    assert watch(monitor, records(5000, 1, defects=0.02)) == []
    assert 60 < monitor.anomalous < 160
    assert monitor.parts == 5000


@pytest.mark.parametrize("stream", ["score", "brightness"])
@pytest.mark.parametrize("by", [-1, 1])
def test_a_shift_is_noticed_and_dated(stream, by):
    monitor = DriftMonitor(good_scores(), 5.5)
    (drift,) = watch(monitor, records(1000, 1, defects=0.02), records(200, 2, **{stream: by}, defects=0.02))
    assert drift.stream == stream
    assert 980 <= drift.since <= 1020
    assert 1005 < drift.part < 1150
    before = np.median(good_scores().statistics.get(stream, [3.0]))
    assert drift.before == pytest.approx(before, abs=0.2 * (stream == "score") + 0.001)
    assert np.sign(drift.now - drift.before) == by
    assert monitor.drifted == {stream: drift}


def test_a_line_that_was_another_from_the_first_part_on_is_noticed():
    (drift,) = watch(DriftMonitor(good_scores(), 5.5), records(300, 2, brightness=1))
    assert drift.stream == "brightness"
    assert drift.since < 10


def test_a_camera_that_shows_one_picture_for_ever_is_noticed():
    frozen = next(records(1, 7))
    alarms = watch(DriftMonitor(good_scores(), 5.5), records(500, 1), [frozen] * 300)
    assert {drift.stream for drift in alarms} >= {"score", "brightness", "sharpness"}


@pytest.mark.parametrize("record", [{"error": "cannot be read"}, {"score": 90.0, "is_anomalous": True}])
def test_a_line_whose_parts_are_all_rejected_is_noticed_though_none_is_compared(record):
    record = {**next(records(1, 0)), **record}
    (drift,) = watch(DriftMonitor(good_scores(), 5.5), records(300, 1), [record] * 20)
    assert (drift.stream, drift.since, drift.now) == ("rejected", 300, 1.0)
    above = int((good_scores().image_scores > 5.5).sum())
    assert drift.before == pytest.approx(0.05 + 0.95 * (1 + above) / 201)
    assert "drift of rejected parts: 1 instead of up to 0.05" in str(drift)
    assert "since part 301" in str(drift)


def test_memory_is_bounded_and_a_state_goes_on_to_the_last_bit():
    whole, first, second = (DriftMonitor(good_scores(aligned=True), 5.5) for _ in range(3))
    line = [*records(3 * KEPT, 1), *records(300, 2, score=0.7)]
    expected = watch(whole, line)
    alarms = watch(first, line[: 2 * KEPT + 7])
    text = json.dumps(first.state())
    assert len(text) < 250_000
    second.restore(json.loads(text))
    assert alarms + watch(second, line[2 * KEPT + 7 :]) == expected != []
    assert json.dumps(second.state()) == json.dumps(whole.state())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: {**state, "calibration": "another"}, "of another calibration"),
        (lambda state: {**state, "settings": [0.1, 0.01, 0]}, "of another calibration, threshold or settings"),
        (lambda state: {}, "not what a monitor gives"),
        (lambda state: {**state, "streams": {}}, "not what a monitor gives"),
        (lambda state: {**state, "draw": {}}, "not what a monitor gives"),
    ],
)
def test_the_state_of_another_monitor_is_refused(change, told):
    monitor = DriftMonitor(good_scores(), 5.5)
    with pytest.raises(ConfigError, match=told):
        monitor.restore(change(DriftMonitor(good_scores(), 5.5).state()))
    for other in (DriftMonitor(good_scores(seed=1), 5.5), DriftMonitor(good_scores(), 5.0)):
        with pytest.raises(ConfigError, match="another calibration"):
            monitor.restore(other.state())


def test_a_state_with_other_bets_is_refused():
    state = DriftMonitor(good_scores(), 5.5).state()
    state["streams"]["score"]["evidence"] = [column[:-1] for column in state["streams"]["score"]["evidence"]]
    with pytest.raises(ConfigError, match=r"not what a monitor gives \(other bets\): begin with a new one"):
        DriftMonitor(good_scores(), 5.5).restore(state)


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="nothing to compare parts with: train again"):
        DriftMonitor(GoodScores(np.empty(0), np.empty(0), math.nan, 0.01, "train again"), None)
    refused: list[dict[str, Any]] = [{"defects": 0.0}, {"false_alarms": 1.0}]
    for setting in refused:
        with pytest.raises(ConfigError, match="must lie between 0 and 1"):
            DriftMonitor(good_scores(), 5.5, **setting)
    with pytest.raises(ConfigError, match="no good image of the calibration scores below threshold=-9"):
        DriftMonitor(good_scores(), -9.0)
    record = next(records(1, 0))
    for name, value in (("score", "high"), ("brightness", None), ("sharpness", math.nan), ("is_anomalous", "no")):
        with pytest.raises(DataError, match=name):
            DriftMonitor(good_scores(), 5.5).add({**record, name: value})


def test_a_record_that_is_refused_leaves_the_monitor_as_it_was():
    monitor = DriftMonitor(good_scores(), 5.5)
    watch(monitor, records(10, 0))
    before = json.dumps(monitor.state())
    with pytest.raises(DataError):
        monitor.add({"score": 1.0, "is_anomalous": False})
    assert json.dumps(monitor.state()) == before


def test_an_alarm_in_words():
    drift = Drift("brightness", 99, 80, 0.5, 0.25)
    assert str(drift) == "drift of the brightness: 0.25 instead of 0.5 since part 81 (noticed at 100)"


def test_good_parts_that_are_taken_for_strangers_are_expected_as_those_of_a_high_score_are():
    rng = RNG(2)
    good = GoodScores(
        np.sort(rng.normal(3, 1, 100)), np.empty(0), math.nan, 0.1, None, products=("nut", "bolt"),
        product_ratios=np.sort(rng.normal(0.7, 0.05, 100)),
    )  # fmt: skip
    threshold, limit = present(good.image_at(0.1)).value, present(good.product_at(0.1)).value

    def line(count, shift=0.0):
        for _ in range(count):
            score, ratio = rng.normal(3, 1), rng.normal(0.7 + shift, 0.05)
            strange = bool(ratio > limit or rng.random() < 0.05)  # 5 % are what a line may have
            told = {"reason": "belongs to no product"} if strange else {}
            yield {"score": score, "is_anomalous": bool(score > threshold) or strange, **told}

    monitor = DriftMonitor(good, threshold)
    assert watch(monitor, line(1500)) == []
    again = DriftMonitor(good, threshold)
    again.restore(json.loads(json.dumps(monitor.state())))
    assert [alarm.stream for alarm in watch(again, line(300, shift=0.1))] == ["rejected"]


def test_a_state_of_another_calibration_is_not_gone_on_from():
    values = np.arange(5.0)
    state = Stream(values, np.random.default_rng(0)).state()
    with pytest.raises(ValueError, match="another number of images"):
        Stream(values[:4], np.random.default_rng(0)).restore(state)
