"""How long to wait before something is tried again."""

import random


def pause(failures: int, first: float, most: float) -> float:
    """Seconds until the next attempt: doubled each time, and shortened at random, so that not all who lost one server
    knock at the same moment when it is back.

    Args:
        failures: attempts that failed so far, 1 or more.
        first: seconds after the first.
        most: seconds at most.
    """
    return min(most, first * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1.0)
