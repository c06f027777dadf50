"""Settings checked before anything is made of them."""

import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from oddpatch.errors import ConfigError

#: Seeds that every generator takes.
SEEDS = range(2**32)
_NAMES: dict[type, str] = {
    int: "a whole number", float: "a number", bool: "true or false", list: "a list of them", type(None): "null"
}  # fmt: skip


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
        if key not in hints or (allowed := _flat(hints[key])) is None or _fits(value, allowed):
            continue
        wanted = " or ".join(text for kind, text in _NAMES.items() if kind in allowed - _implied(allowed))
        raise ConfigError(f"{name}.{key}={value!r} must be {wanted}" if name else f"{key}={value!r} must be {wanted}")


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
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [_flat(part) for part in typing.get_args(hint)]
        return None if None in parts else set().union(*(part for part in parts if part))
    if hint in (int, float, bool, type(None)):
        return {hint}
    if typing.get_origin(hint) in (list, tuple, Sequence):
        inner = [_flat(part) for part in typing.get_args(hint) if part is not Ellipsis]
        return None if None in inner else {list}.union(*(part for part in inner if part))
    return None


def _implied(allowed: set[type]) -> set[type]:
    return {int} if float in allowed else set()


def _fits(value: Any, allowed: set[type]) -> bool:
    if isinstance(value, list | tuple):
        return list in allowed and all(_fits(one, allowed) for one in value)
    if value is None or isinstance(value, bool):
        return type(value) in allowed
    if isinstance(value, int):
        return bool(allowed & {int, float})
    return isinstance(value, float) and float in allowed and not math.isnan(value)
