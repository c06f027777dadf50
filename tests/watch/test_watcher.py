"""Events: two thresholds, what was judged, how it stands."""

import threading
import time

import numpy as np
import pytest
from narrowing import present
from patience import wait_until
from scoring import green_detector
from test_capture import Scripted, picture

from oddpatch.data.decoding import to_uint8
from oddpatch.drift.monitor import DriftMonitor
from oddpatch.errors import ConfigError
from oddpatch.watch.events import Status, Verdict
from oddpatch.watch.sources import Picture
from oddpatch.watch.watcher import Thresholds, Watch, find_thresholds


def level(value):
    """A picture of score `value`."""
    image = picture()
    image[:, :, 1] = round(value * 2.55)
    return image


def test_verdicts_are_strictly_above():
    thresholds = Thresholds(40.0, 60.0)
    assert [thresholds.verdict(score) for score in (0, 40.0, 40.1, 60.0, 60.1)] == [
        Verdict.ACCEPT, Verdict.ACCEPT, Verdict.WARN, Verdict.WARN, Verdict.REJECT,
    ]  # fmt: skip


def test_warnings_begin_at_five_times_the_rate():
    # 100 good images with the scores 0, 0.5, ..., 49.5: the k-th smallest with k = ceil(101 (1 - rate)).
    detector = green_detector(target_fpr=0.02)
    assert find_thresholds(detector) == Thresholds(warn=(91 - 1) / 2, reject=(99 - 1) / 2)
    assert find_thresholds(detector, warn=0.2) == Thresholds((81 - 1) / 2, 49.0)
    assert find_thresholds(detector, warn_score=12.5) == Thresholds(12.5, 49.0)
    assert find_thresholds(green_detector(target_fpr=0.3)).warn == (51 - 1) / 2  # no more than every other one
    assert find_thresholds(green_detector(threshold=10.0)) == Thresholds(10.0, 10.0)  # below what 5 % would give
    assert find_thresholds(green_detector(threshold=10.0, good=())) == Thresholds(10.0, 10.0)
    assert find_thresholds(green_detector(threshold=10.0, good=()), warn_score=5.0) == Thresholds(5.0, 10.0)


@pytest.mark.parametrize(
    ("detector", "settings", "told"),
    [
        ({"good": ()}, {}, "there is no threshold: it was fitted with calibration=none"),
        ({"good": (), "threshold": 3.0}, {"warn": 0.1}, "warn=0.1 needs a threshold from good images"),
        ({}, {"warn": 0.1, "warn_score": 3.0}, "give one of them"),
        ({}, {"warn_score": 60.0}, "warnings from 60 on, but parts are rejected from 49.5 on: warn earlier"),
        ({}, {"warn": 1.5}, "warn=1.5: the rate of good parts"),
    ],
)
def test_thresholds_that_cannot_work(detector, settings, told):
    with pytest.raises(ConfigError, match=told):
        find_thresholds(green_detector(**detector), **settings)


def test_events_and_status():
    steps = [level(5), "broken", level(46), level(80), "passed"]
    with Watch(green_detector(target_fpr=0.02), Scripted(steps, keep_all=True)) as watch:
        events = list(watch)
        status = watch.status()
    assert [event.verdict for event in events] == [Verdict.ACCEPT, Verdict.FAILED, Verdict.WARN, Verdict.REJECT]
    assert [event.number for event in events] == [0, 1, 2, 3]
    assert len({event.id for event in events}) == 4
    assert events[1].record == {"path": "script#000001", "error": "script#000001: broken"}
    assert (events[1].image, events[1].detection) == (None, None)
    assert events[3].record["score"] == pytest.approx(80)
    assert events[3].record["is_anomalous"] is True
    np.testing.assert_array_equal(to_uint8(present(events[2].image)), level(46))
    assert isinstance(status, Status)
    assert (status.arrived, status.dropped, status.skipped, status.waiting) == (5, 1, 0, 0)
    assert status.verdicts == {Verdict.ACCEPT: 1, Verdict.FAILED: 1, Verdict.WARN: 1, Verdict.REJECT: 1}
    assert status.connection == "ended"
    again = Watch(green_detector(), Scripted([level(5)]))
    with again:
        assert next(iter(again)).id not in {event.id for event in events}


def test_a_part_of_no_product_is_rejected_whatever_its_score():
    detector = green_detector(target_fpr=0.02, ratios={5: 0.2, 80: 0.2, 6: 0.9})  # by score
    with Watch(detector, Scripted([level(5), level(80), level(6)], keep_all=True)) as watch:
        events = list(watch)
    assert [event.verdict.value for event in events] == ["accept", "reject", "reject"]
    assert [event.record["is_anomalous"] for event in events] == [False, True, True]
    assert events[2].record["reason"] == "belongs to no product"
    assert watch.status().verdicts == {Verdict.ACCEPT: 1, Verdict.REJECT: 2}


def test_a_frame_that_cannot_be_inspected_stops_nothing():
    wide = np.zeros((16, 64, 3), np.uint8)
    with Watch(green_detector(widest=32), Scripted([level(5), wide, level(5)], keep_all=True)) as watch:
        assert [event.verdict.value for event in watch] == ["accept", "failed", "accept"]


def test_a_slow_model_never_falls_behind():
    class Live(Scripted):
        def pictures(self, stop):
            while not stop.wait(0.005):
                yield Picture(level(5), time.time())

    with Watch(green_detector(seconds=0.05), Live()) as watch:
        delays = [event.delay for event, _ in zip(watch, range(40), strict=False)]
        status = watch.status()
    assert status.dropped > status.verdicts[Verdict.ACCEPT]
    # The wait for the frame before, and its own: no more at the end than at the beginning.
    assert np.median(delays[20:]) < 2 * np.median(delays[:20])
    assert np.median(delays) < 0.2
    assert status.arrived == status.dropped + status.waiting + sum(status.verdicts.values())
    assert status.delays["p50"] == pytest.approx(np.median(delays), rel=0.2)
    assert 5 < status.rates["judged"] < status.rates["arrived"] < 250


def test_status_adds_up_while_it_runs():
    detector = green_detector()
    detector.scorer.free.clear()
    with Watch(detector, Scripted([level(5)] * 10)) as watch:
        events = iter(watch)
        judging = threading.Thread(target=lambda: list(events))
        judging.start()
        wait_until(lambda: watch.status().arrived == 10)
        status = watch.status()
        assert status.waiting in (1, 2)  # one being judged, the newest behind it
        assert status.arrived == status.dropped + status.waiting
        detector.scorer.free.set()
        judging.join(30)
        status = watch.status()
        assert status.waiting == 0
        assert status.arrived == status.dropped + sum(status.verdicts.values())


def test_drift_is_an_alarm_of_its_own():
    # 100 good images of the scores 0, 0.5, ..., 49.5, then 600 parts of which none scores above 10.
    detector = green_detector(target_fpr=0.02)
    monitor = DriftMonitor(detector.scorer.calibration, detector.image_threshold)
    watch = Watch(detector, Scripted([level(value % 11) for value in range(600)], keep_all=True), drift=monitor)
    with watch:
        events = list(watch)
    (told,) = [event for event in events if event.drift]
    assert told.verdict is Verdict.ACCEPT
    assert [drift.stream for drift in told.drift] == ["score"]
    assert told.to_dict()["drift"][0]["before"] > told.to_dict()["drift"][0]["now"]
    assert watch.status().drift == told.drift
