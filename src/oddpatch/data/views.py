"""Further views of each training image: turned, flipped, of another brightness (`data.views`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from oddpatch.data.dataset import DatasetWrapper, Item, MVTecDataset
from oddpatch.data.transforms import to_unit
from oddpatch.errors import ConfigError
from oddpatch.settings import check_types

#: Of an image (3, H, W), uint8 or floating point in [0, 1], another one of its size.
View = Callable[[Tensor], Tensor]

_BORDERS = {"mirror": cv2.BORDER_REFLECT_101, "black": cv2.BORDER_CONSTANT}
_FLIPS = {"horizontal": 2, "vertical": 1}


class Views:
    """The views of a training image: itself, then what the settings add, each of them made of the image itself.

    Args:
        rotations: angles in degrees, counter-clockwise about the centre.
        random_rotations: so many more, by angles drawn from 0 to `max_angle`.
        max_angle: in degrees.
        flips: "horizontal", "vertical".
        brightness: so many copies, multiplied by factors drawn from `brightness_range`.
        brightness_range: lowest and highest factor.
        border: what a turned image shows beyond its border: "mirror" or "black".
        seed: of what is drawn, for each image by itself.

    Raises:
        ConfigError: a setting cannot work.
    """

    def __init__(
        self,
        rotations: Sequence[float] = (),
        random_rotations: int = 0,
        max_angle: float = 345.0,
        flips: Sequence[str] = (),
        brightness: int = 0,
        brightness_range: Sequence[float] = (0.8, 1.2),
        border: str = "mirror",
        seed: int = 0,
    ) -> None:
        for name, count in (("random_rotations", random_rotations), ("brightness", brightness), ("seed", seed)):
            if not isinstance(count, int) or count < 0:
                raise ConfigError(f"data.views.{name}={count!r} must be a whole number of at least 0")
        if border not in _BORDERS or not set(flips) <= _FLIPS.keys():
            raise ConfigError(
                f"data.views: border={border!r} must be {' or '.join(_BORDERS)}, flips={list(flips)} of "
                f"{' and '.join(_FLIPS)}"
            )
        if len(brightness_range) != 2 or not 0 < brightness_range[0] <= brightness_range[1]:
            raise ConfigError(f"data.views.brightness_range={list(brightness_range)}: give two rising factors above 0")
        self.rotations, self.random_rotations, self.max_angle = list(rotations), random_rotations, max_angle
        self.flips, self.brightness, self.range = list(flips), brightness, (brightness_range[0], brightness_range[1])
        self.border, self.seed = border, seed
        if len(self) == 1:
            raise ConfigError("data.views adds no view: set rotations, random_rotations, flips or brightness, or null")

    def __len__(self) -> int:
        return 1 + len(self.rotations) + self.random_rotations + len(self.flips) + self.brightness

    @property
    def moves(self) -> bool:
        """Whether a view shows the part in another place."""
        return len(self) > 1 + self.brightness

    def of(self, index: int) -> list[View]:
        """Those of training image `index`, the first of which is the image as it is."""
        drawn = np.random.default_rng((self.seed, index))
        angles = [*self.rotations, *drawn.uniform(0, self.max_angle, self.random_rotations).tolist()]
        factors = drawn.uniform(self.range[0], self.range[1], self.brightness).tolist()
        return [
            lambda image: image,
            *(lambda image, angle=angle: rotate(image, angle, self.border) for angle in angles),
            *(lambda image, axis=_FLIPS[flip]: image.flip(axis) for flip in self.flips),
            *(lambda image, factor=factor: (to_unit(image) * factor).clamp(0, 1) for factor in factors),
        ]


def make_views(settings: Mapping[str, Any] | None) -> Views | None:
    """The views that these settings describe; None for none."""
    check_types(Views, settings or {}, "data.views")
    try:
        return Views(**settings) if settings else None
    except TypeError as error:
        raise ConfigError(f"data.views={dict(settings or {})}: {error}") from error


def rotate(image: Tensor, angle: float, border: str) -> Tensor:
    """An image (3, H, W) turned about its centre, sampled bilinearly."""
    height, width = image.shape[1:]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    turned = cv2.warpAffine(pixels, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=_BORDERS[border])
    return torch.from_numpy(turned).permute(2, 0, 1).contiguous()


class ViewedImages(DatasetWrapper):
    """A dataset that gives all views of each image, one after another, with the index of the image."""

    def __init__(self, dataset: MVTecDataset, views: Views) -> None:
        super().__init__(dataset)
        self.views = views

    def __getitems__(self, indices: Sequence[int]) -> list[Item | None]:
        """The items of a batch."""
        return [item for index in indices for item in self.dataset.attempt(index, self._items) or [None]]

    def _items(self, index: int) -> list[Item | None]:
        original, _ = self.dataset.decode(index)
        path = self.dataset.samples[index].path
        others = self.dataset.preprocess.prepare_views(path, self.views.of(index)[1:])
        return [original, *(Item(o, original.mask, original.label, index, original.path) for o in others)]
