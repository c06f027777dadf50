"""A transform of pixel values by albumentations, as part of the preprocessing (`data.transform`)."""

import importlib.util
import os
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oddpatch.errors import ConfigError, DataError

PACKAGE = "albumentations"
#: Transforms of pixels that read other files.
READING = ("TextImage",)
#: Draws of a transform that are compared: one that gives the same image each time is not random.
DRAWS = 8


class PixelTransform:
    """Changes the values of pixels, and moves none of them: masks and maps stay where they are.

    The same image always gives the same: what a random transform draws for it is seeded by its pixels.

    Args:
        settings: `_target_`, the full name of one of albumentations' pixel transforms, and its arguments; or
            albumentations.Compose with a list of such, `transforms`.

    Attributes:
        settings: as plain values, with which it can be made again.
        random: whether it does something else with each image.

    Raises:
        ConfigError: it is no such transform, does not take these arguments, or albumentations is not installed.

    Examples:
        >>> import torch
        >>> from oddpatch.data.pixels import PixelTransform
        >>> inverted = PixelTransform({"_target_": "albumentations.InvertImg", "p": 1})
        >>> int(inverted(torch.full((3, 2, 2), 5, dtype=torch.uint8))[0, 0, 0]), inverted.random
        (250, False)
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        if importlib.util.find_spec(PACKAGE) is None:
            raise ConfigError(
                f"data.transform needs {PACKAGE}, which is not installed: pip install 'oddpatch[augment]'"
            )
        self.settings = _plain(settings)
        # A ramp with noise, large enough for blocks, spots and histograms to show.
        ramp = np.linspace(60, 180, 256)[None, :, None] + np.random.default_rng(0).normal(0, 15, (256, 256, 3))
        try:
            drawn = [self._apply(ramp.clip(0, 255).astype(np.uint8), seed) for seed in range(DRAWS)]
        except Exception as error:  # such as of those that need a second image
            raise ConfigError(f"data.transform: {self.name} cannot be used: {_line(error)}: choose another") from error
        self.random = _is_drawn(self.settings) or any(not np.array_equal(drawn[0], other) for other in drawn)

    @property
    def name(self) -> str:
        """Of its class, or of those that are composed."""
        return ", ".join(_names(self.settings))

    @property
    def warning(self) -> str:
        """What a random one means for thresholds; empty for any other."""
        if not self.random:
            return ""
        return (
            f"data.transform is random ({self.name}): images to fit to, to calibrate, to test and to predict are "
            "changed at random, each by its own draw, so that scores scatter and thresholds are higher: set p=1 and "
            "ranges of one value; to fit to altered images alone, set data.views"
        )

    def __call__(self, image: Tensor) -> Tensor:
        """Images (3, H, W) or (B, 3, H, W), floating point in [0, 1] or uint8, of the same shape and type.

        Raises:
            DataError: the transform fails on it.
        """
        if image.ndim == 4:
            return torch.stack([self(one) for one in image])
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())  # (H, W, 3)
        pixels = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
        seed = zlib.crc32(pixels.tobytes()) if self.random else 0
        try:
            changed = self._apply(pixels, seed)
        except Exception as error:  # of a transform, which may raise any
            raise DataError(f"data.transform={self.name} fails: {_line(error)}: set data.transform=null") from error
        changed = changed if changed.dtype == np.uint8 else changed.clip(0, 1)
        return torch.from_numpy(np.ascontiguousarray(changed.transpose(2, 0, 1))).to(image.device)

    def _apply(self, pixels: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
        # One for each image: several threads prepare images, and what a transform has drawn it keeps in itself.
        transform = _make(self.settings)
        transform.set_random_seed(seed)
        changed: np.ndarray[Any, Any] = transform(image=pixels)["image"]
        if changed.shape != pixels.shape or changed.dtype != pixels.dtype:
            raise DataError(f"it gives {changed.shape} {changed.dtype} of {pixels.shape} {pixels.dtype}")
        return changed


def _plain(settings: Any) -> dict[str, Any]:
    """Settings with `name` in place of `_target_`, as a checkpoint may hold them, of what can be made and no more."""
    if not isinstance(settings, Mapping) or not isinstance(settings.get("_target_", settings.get("name")), str):
        raise ConfigError(
            f"data.transform={settings!r}: give the name of a transform and its arguments, such as "
            "{_target_: albumentations.CLAHE, clip_limit: [2,2], p: 1}"
        )
    target = settings["_target_"] if "_target_" in settings else f"{PACKAGE}.{settings['name']}"
    package, _, name = target.rpartition(".")
    plain = {"name": name, **{key: value for key, value in settings.items() if key not in ("_target_", "name")}}
    known = package.partition(".")[0] == PACKAGE and (name == "Compose" or _is_known(name))
    if not known:
        raise ConfigError(
            f"data.transform: {target} is no transform of albumentations that changes pixels and moves none: choose "
            "one of its pixel-level transforms, such as albumentations.CLAHE"
        )
    if name == "Compose":
        if not isinstance(plain.get("transforms"), list | tuple) or plain.keys() - {"name", "transforms", "p"}:
            raise ConfigError("data.transform: albumentations.Compose takes transforms, a list, and p")
        plain["transforms"] = [_plain(one) for one in plain["transforms"]]
    else:
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}
    try:
        with warnings.catch_warnings(action="error", category=UserWarning):  # of an argument that it leaves out
            _make(plain)
    except Exception as error:  # a constructor may raise any
        raise ConfigError(f"data.transform: {target} cannot be made: {_line(error)}") from error
    return plain


def _make(plain: Mapping[str, Any]) -> Any:
    arguments = {key: value for key, value in plain.items() if key != "name"}
    if plain["name"] == "Compose":
        arguments["transforms"] = [_make(one) for one in plain["transforms"]]
    return getattr(_albumentations(), plain["name"])(**arguments)


def _is_known(name: str) -> bool:
    found = getattr(_albumentations(), name, None)
    image_only = _albumentations().ImageOnlyTransform
    own = isinstance(found, type) and issubclass(found, image_only) and found.__module__.startswith(f"{PACKAGE}.")
    return own and found is not image_only and name not in READING


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the network for a newer version
    import albumentations

    return albumentations


def _is_drawn(plain: Mapping[str, Any]) -> bool:
    """Whether it, or one that is composed, is left out at times; albumentations' default is half the time."""
    return plain.get("p", 1.0 if plain["name"] == "Compose" else 0.5) != 1 or any(
        _is_drawn(one) for one in plain.get("transforms", ())
    )


def _names(plain: Mapping[str, Any]) -> list[str]:
    if "transforms" in plain:
        return [name for one in plain["transforms"] for name in _names(one)]
    return [plain["name"]]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
