"""Waits between attempts."""

import random

from oddpatch.watch.pauses import pause


def test_pauses_double_up_to_a_limit_and_differ():
    random.seed(0)
    for failures, full in [(1, 1), (2, 2), (4, 8), (6, 32), (7, 60), (5000, 60)]:
        pauses = [pause(failures, 1.0, 60.0) for _ in range(200)]
        assert full / 2 <= min(pauses) < 0.6 * full
        assert 0.9 * full < max(pauses) <= full
