"""A space to search in, from overrides: `a,b`, `range(1,9,2)`, `interval(0,1)`, `int(tag(log,interval(1,9)))`."""

from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from oddpatch.errors import ConfigError
from oddpatch.sweep.plan import CATEGORY


def split(overrides: Iterable[Override]) -> tuple[dict[str, BaseDistribution], list[Override]]:
    """What is searched, by name, and the other overrides.

    Several categories are no choice to be made: every trial runs them all, and is worth their mean.

    Raises:
        ConfigError: nothing is to be searched.
    """
    space: dict[str, BaseDistribution] = {}
    others = []
    for override in overrides:
        if override.is_sweep_override() and override.key_or_group != CATEGORY:
            space[override.get_key_element()] = distribution(override)
        else:
            others.append(override)
    if not space:
        raise ConfigError(
            "there is nothing to search: give values to choose from, as 'model.num_features=range(50,300)'"
        )
    return space, others


def distribution(override: Override) -> BaseDistribution:
    """What a value is drawn from.

    Raises:
        ConfigError: it is given in a way that cannot be searched.
    """
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        low, high, is_log = value.start, value.end, "log" in value.tags
        if low is None or high is None or not low < high or (is_log and low <= 0):
            raise ConfigError(
                f"{override.input_line}: an interval goes from a lower to a higher value, above 0 for log"
            )
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=is_log)
        return FloatDistribution(low, high, log=is_log)
    texts = list(override.sweep_string_iterator())
    if isinstance(value, RangeSweep) and not value.shuffle:
        numbers = [float(text) for text in texts]  # the end of a range is not in it
        if all(text.lstrip("-").isdigit() for text in texts) and len(numbers) > 1:
            step = int(numbers[1] - numbers[0])
            if step > 0:
                return IntDistribution(int(numbers[0]), int(numbers[-1]), step=step)
    return CategoricalDistribution(texts)
