"""One place for the newest frame: every frame is accounted for, whatever comes in which order."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oddpatch.watch.slot import Counts, Slot

STEPS = st.lists(st.sampled_from(["put", "skip", "drop", "take"]), max_size=60)


def total(counts):
    return counts.dropped + counts.skipped + counts.waiting + counts.taken


@given(steps=STEPS, closes=st.booleans())
def test_every_frame_is_in_one_place_at_any_moment(steps, closes):
    slot: Slot[int] = Slot()
    number, newest, place = 0, None, 0
    expected = {"put": 0, "skip": 0, "drop": 0, "take": 0}
    for step in steps:
        if step == "take":
            if newest is None:
                continue
            assert slot.take() == newest  # never an older one
            newest, place = None, 0
        elif step == "put":
            slot.put(number)
            newest, place = number, 1
        else:
            getattr(slot, step)()
        expected[step] += 1
        number += step != "take"
        counts = slot.counts
        assert counts.arrived == number == total(counts)
        assert (counts.waiting, counts.skipped, counts.taken) == (place, expected["skip"], expected["take"])
    slot.close() if closes else slot.end()
    assert slot.counts.arrived == total(slot.counts)
    if closes:
        slot.put(number)  # the thread that reads may be a moment late
        assert slot.counts.arrived == number + 1 == total(slot.counts)
        assert slot.counts.waiting == 0
        assert slot.take() is None
    else:
        assert slot.take() == newest


@pytest.mark.parametrize("keep_all", [True, False])
def test_two_threads(keep_all):
    slot: Slot[int] = Slot(keep_all)
    taken = []

    def put():
        for number in range(2000):
            slot.put(number)
        slot.end()

    thread = threading.Thread(target=put)
    thread.start()
    while (item := slot.take()) is not None:
        taken.append(item)
        counts = slot.counts
        assert counts.arrived == total(counts)
    thread.join()
    assert taken == sorted(set(taken))
    assert taken[-1] == 1999
    assert slot.counts == Counts(2000, 2000 - len(taken), 0, 0, len(taken))
    assert not keep_all or len(taken) == 2000


def test_closing_wakes_who_puts_and_who_takes():
    for slot, work in ((Slot(True), lambda slot: [slot.put(1), slot.put(2)]), (Slot(), lambda slot: slot.take())):
        thread = threading.Thread(target=work, args=(slot,))
        thread.start()
        slot.close()
        thread.join(10)
        assert not thread.is_alive()
        assert slot.counts.arrived == total(slot.counts)


def test_the_error_of_the_source_comes_after_its_last_frame():
    slot: Slot[str] = Slot()
    slot.put("last")
    slot.end(ValueError("broken"))
    assert slot.take() == "last"
    with pytest.raises(ValueError, match="broken"):
        slot.take()
