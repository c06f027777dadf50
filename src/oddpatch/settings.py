"""Settings checked before anything is made of them."""

import math
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from oddpatch.errors import ConfigError

#: Seeds that every generator takes.
SEEDS = range(2**32)
_NAMES: dict[type, str] = {
    int: "a whole number", float: "a number", bool: "true or false", list: "a list of them", type(None): "null"
}  # fmt: skip
_UNIONS, _LISTS = (typing.Union, types.UnionType), (list, tuple, Sequence)


def require_one_of(choices: Collection[str], **settings: object) -> None:
    """Raise a `ConfigError` for a setting that is none of some names."""
    for name, value in settings.items():
        if value not in choices:
            raise ConfigError(f"{name}={value!r}: choose one of {', '.join(choices)}")


def require_at_least(least: int, **settings: float | None) -> None:
    """Raise a `ConfigError` for a number that is too low; None is none."""
    for name, value in settings.items():
        if value is not None and value < least:
            raise ConfigError(f"{name}={value}: choose at least {least}")


def check_types(target: Any, settings: Mapping[str, Any], name: str) -> None:
    """Refuse texts and other values where one of our constructors is annotated to take numbers or truth values only.

    Args:
        target: a class, or a function.
        settings: plain values by parameter.
        name: of the part of the config, which stands before a setting's name.

    Raises:
        ConfigError: a value is of another type, or not a number (NaN).
    """
    if not str(target.__module__).startswith("oddpatch."):
        return
    constructor = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    hints = typing.get_type_hints(constructor)
    for key, value in settings.items():
        if key not in hints or (allowed := _flat(hints[key])) is None or _fits(value, hints[key]):
            continue
        told = allowed - {int} if float in allowed else allowed
        wanted = " or ".join(text for kind, text in _NAMES.items() if kind in told)
        if typing.get_origin(hints[key]) in _LISTS:
            wanted = "a list of numbers" + (f", as [{value}]" if _fits([value], hints[key]) else "")
        raise ConfigError(f"{name}.{key}={value!r} must be {wanted}".removeprefix("."))


def check_seed(seed: Any) -> int:
    """A seed that can be used.

    Raises:
        ConfigError: it is no whole number, or out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed not in SEEDS:
        raise ConfigError(f"seed={seed!r} must be a whole number of 0 to {SEEDS[-1]}")
    return seed


def check_area(area: int, image_size: tuple[int, int], name: str) -> None:
    """Raise a `ConfigError` unless a number of pixels is smaller than an anomaly map (H, W)."""
    height, width = image_size
    if not 0 <= area < height * width:
        raise ConfigError(f"{name}={area}: choose 0 to {height * width - 1}, as a map has {height} x {width} pixels")


def _flat(hint: Any) -> set[type] | None:
    """The number types, bool, NoneType and list that an annotation allows; None if it allows more than these."""
    if hint in (int, bool, type(None)):
        return {hint}
    if hint is float:
        return {int, float}
    origin = typing.get_origin(hint)
    if origin not in (*_UNIONS, *_LISTS):
        return None
    parts = [_flat(part) for part in typing.get_args(hint) if part is not Ellipsis]
    outer: set[type] = set() if origin in _UNIONS else {list}
    return None if None in parts else outer.union(*filter(None, parts))


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return any(_fits(value, part) for part in parts)
    if origin in _LISTS:
        listed = isinstance(value, Sequence) and not isinstance(value, str)  # of OmegaConf, too
        return listed and all(any(_fits(one, part) for part in parts) for one in value)
    if value is None or isinstance(value, bool):
        return type(value) is hint
    allowed = (int, float) if hint is float else (hint,)
    return isinstance(value, allowed) and not (isinstance(value, float) and math.isnan(value))
