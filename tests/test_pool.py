"""Work shared out among processes gives what one process gives, in the same order."""

import os

import cv2
import pytest

from oddpatch import pool
from oddpatch.pool import run_many


def square(number):
    if number == 13:
        raise ValueError("13")
    return number**2, cv2.getNumThreads(), os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers):
    told, threads = [], cv2.getNumThreads()
    found = run_many(square, range(10), 100, workers, lambda done, total: told.append((done, total)))
    assert [value for value, _, _ in found] == [number**2 for number in range(10)]
    assert told == [(done, 10) for done in range(1, 11)]
    assert {used for _, used, _ in found} == {1}
    assert (os.getpid() in {process for _, _, process in found}) == (workers == 1)
    assert cv2.getNumThreads() == threads
    with pytest.raises(ValueError, match="13"):
        run_many(square, range(20), 100, workers)


def test_no_more_workers_start_than_there_is_work_for(monkeypatch):
    monkeypatch.setattr(pool, "cores", lambda: 2)
    here = os.getpid()
    assert {process for _, _, process in run_many(square, range(9), 5)} == {here}
    assert here not in {process for _, _, process in run_many(square, range(10), 5)}
