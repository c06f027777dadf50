"""Few-shot: the handful of good images that papers fit to (`data.shots`)."""

import random
from collections.abc import Callable, Sequence

from oddpatch.data.layout import Sample
from oddpatch.errors import ConfigError
from oddpatch.wording import counted


def block(samples: Sequence[Sample], shots: int, seed: int) -> list[Sample]:
    """Block `seed` of the list: the first `shots`, for the next seed the following ones (AnomalyDINO)."""
    if (seed + 1) * shots > len(samples):
        last = len(samples) // shots - 1
        raise ConfigError(
            f"data.shots_seed={seed} asks for good images {seed * shots} to {(seed + 1) * shots - 1} and there are "
            f"{len(samples)}: set it to at most {last}, or data.shots_rule=shuffle"
        )
    return list(samples[seed * shots : (seed + 1) * shots])


def shuffle(samples: Sequence[Sample], shots: int, seed: int) -> list[Sample]:
    """The first `shots` of the list once it is shuffled, in its order."""
    chosen = random.Random(seed).sample(range(len(samples)), shots)
    return [samples[position] for position in sorted(chosen)]


RULES: dict[str, Callable[[Sequence[Sample], int, int], list[Sample]]] = {"block": block, "shuffle": shuffle}


def check_shots(shots: int | None, seed: int, rule: str) -> None:
    """Raise a `ConfigError` if a setting cannot work."""
    if shots is not None and (not isinstance(shots, int) or shots < 1):
        raise ConfigError(f"data.shots={shots!r} must be a whole number of at least 1, or null for all good images")
    if not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"data.shots_seed={seed!r} must be a whole number of at least 0")
    if rule not in RULES:
        raise ConfigError(f"data.shots_rule={rule!r} is not known: choose {' or '.join(RULES)}")


def choose(samples: Sequence[Sample], shots: int, seed: int, rule: str) -> list[Sample]:
    """So many of the good images, in their order.

    Raises:
        ConfigError: there are too few.
    """
    if shots > len(samples):
        raise ConfigError(f"data.shots={shots} and there are {counted(len(samples), 'good image')}: lower it")
    return RULES[rule](samples, shots, seed)
