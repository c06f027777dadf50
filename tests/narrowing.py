"""What a test knows of a value and a type checker does not."""

from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


def present(value: T | None) -> T:
    """A value that is there."""
    assert value is not None
    return value


def pixels(image: object) -> NDArray[Any]:
    """An image that is an array."""
    assert isinstance(image, np.ndarray)
    return image


def stand_in(**attributes: Any) -> Any:
    """An object with these attributes, in place of one that takes more to make."""
    return SimpleNamespace(**attributes)
