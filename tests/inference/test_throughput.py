"""Streams that pass threads: in order, no further ahead than asked, and without a thread left behind."""

import random
import threading
import time
from itertools import count, islice

import pytest

from oddpatch.inference.throughput import Overlap, Room


def test_results_come_in_the_order_of_the_items():
    rng = random.Random(0)
    pauses = [rng.uniform(0, 0.003) for _ in range(60)]

    def slowly(number):
        time.sleep(pauses[number])
        return number * number

    for workers, ahead in ((1, 1), (3, 2), (4, 100)):
        with Overlap(workers) as overlap:
            assert list(overlap.map(slowly, range(60), ahead)) == [number * number for number in range(60)]


def test_steps_run_side_by_side():
    third_read, first_written = threading.Event(), threading.Event()

    def read(number):
        if number == 2:
            third_read.set()
        return number

    def score(numbers):
        for number in numbers:
            assert third_read.wait(30)  # before the first is scored
            if number == 1:
                assert first_written.wait(30)  # while the second is scored
            yield number

    def write(number):
        first_written.set()
        return number

    with Overlap(2) as overlap:
        read_ahead = overlap.map(read, range(5), ahead=4)
        assert list(overlap.map(write, score(read_ahead), ahead=4)) == [0, 1, 2, 3, 4]


def test_a_source_without_end_is_read_no_further_than_asked():
    taken = []

    def source():
        for number in count():
            taken.append(number)
            yield number

    with Overlap(2) as overlap:
        steps = overlap.map(lambda number: -number, source(), ahead=3)
        results = overlap.map(lambda number: -number, steps, ahead=3)
        for number in range(50):
            assert next(results) == number
            # Each step keeps what it may, and holds one more that it cannot put down.
            assert len(taken) <= number + 1 + 2 * (3 + 1)


@pytest.mark.parametrize("where", ["work", "items"])
def test_an_error_is_raised_when_it_is_its_turn(where):
    def items():
        yield from range(5)
        if where == "items":
            raise LookupError("the camera is gone")
        yield from range(5, 9)

    def work(number):
        if number == 5:
            raise LookupError("the camera is gone")
        return number

    with Overlap(3) as overlap:
        results = overlap.map(work, overlap.map(work, items(), ahead=2), ahead=2)
        assert list(islice(results, 5)) == [0, 1, 2, 3, 4]
        with pytest.raises(LookupError, match="the camera is gone"):
            next(results)


def test_no_thread_is_left_where_a_stream_is_left():
    before = set(threading.enumerate())
    for error in (None, KeyboardInterrupt):
        try:
            with Overlap(3) as overlap:
                steps = overlap.map(abs, count(), ahead=2)
                assert list(islice(overlap.map(abs, steps, ahead=2), 5)) == [0, 1, 2, 3, 4]
                if error is not None:
                    raise error
        except KeyboardInterrupt:
            pass
        for thread in set(threading.enumerate()) - before:
            thread.join(30)
        assert set(threading.enumerate()) <= before


def test_a_source_that_gives_nothing_more_holds_nobody_up():
    gone, others = threading.Event(), {*threading.enumerate()}

    def source():
        yield 1
        gone.wait()

    with Overlap(2) as overlap:
        results = overlap.map(abs, overlap.map(abs, source(), ahead=2), ahead=2)
        assert next(results) == 1  # though the source is waited for
    for feeder in {*threading.enumerate()} - others:
        if feeder.name.startswith("ThreadPool"):
            feeder.join(5)  # on its way out, it may be the last to hear
            assert not feeder.is_alive()
    gone.set()


def test_room_is_shared_and_what_is_too_large_gets_all_of_it():
    room, held, most = Room(10), 0, 0
    lock = threading.Lock()

    def use(amount):
        nonlocal held, most
        with room.taking(amount):
            with lock:
                held += min(amount, 10)
                most = max(most, held)
            time.sleep(0.001)
            with lock:
                held -= min(amount, 10)
        return amount

    amounts = [random.Random(1).randrange(1, 15) for _ in range(40)]
    with Overlap(4) as overlap:
        assert list(overlap.map(use, amounts, ahead=8)) == amounts
    assert held == 0
    assert most <= 10
