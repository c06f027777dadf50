"""Registration of images to a reference image, so that what lies at a pixel is the same place of the part in each.

One transformation is found for the whole image, from what most of it agrees on: a part that is missing or out of its
place stays so.
"""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oddpatch.data.decoding import read_image
from oddpatch.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]
Points = tuple[Floats, NDArray[np.float32]]  # (N, 2) as x and y, and descriptors (N, 128)
ALIGNMENTS = ("homography", "translation")
#: Images are compared at this length of the longer side, in pixels, or at their own if that is less.
WORKING_SIDE = 640
#: Rendered boards register at 0.82 and more, other parts and mirrored images below 0.2 (docs/data.md).
MIN_QUALITY = 0.6
_URI = "data:image/png;base64,"
_BLOCKS = 8  # along each side of the image, for the quality
_RATIO = 0.8  # of the distances to the best and the second match (Lowe, IJCV 2004)
_POINTS = 600  # of highest contrast
_REFINEMENTS = 5  # steps, from a start that the points give
_TOLERANCE = 2.0  # working pixels by which matched points may disagree


class Registration(NamedTuple):
    """Where an image lies on the reference."""

    matrix: Floats  # (3, 3), from the image's pixel (x, y, 1) to the reference's
    quality: float  # at most 1, see `Alignment.measure`

    @property
    def told(self) -> float:
        """The quality as records and calibrations hold it, of four digits."""
        return round(self.quality, 4)


class Alignment:
    """Finds where images lie on a reference image, and moves them there.

    Args:
        reference: the image, as `encode` gives it: it travels with a model, so no file is needed later.
        size: (height, width) of the reference before it was encoded.
        method: "homography" (SIFT points, MAGSAC++, refined by ECC: shift, turn, scale and tilt) or "translation"
            (phase correlation of the gradients; the image must have the size of the reference).
        min_quality: images that register with less are refused.

    Raises:
        ConfigError: a setting cannot work, or the reference shows nothing to register to.
    """

    def __init__(
        self, reference: str, size: tuple[int, int], method: str = "homography", min_quality: float = MIN_QUALITY
    ) -> None:
        if method not in ALIGNMENTS:
            raise ConfigError(f"align.method={method!r}: choose one of {', '.join(ALIGNMENTS)}")
        if not 0 <= min_quality <= 1:
            raise ConfigError(f"align.min_quality={min_quality}: choose 0..1")
        self.reference = reference
        self.size = (int(size[0]), int(size[1]))
        self.method = method
        self.min_quality = min_quality
        self._grey = decode(reference)  # (h, w) uint8
        self._gradient = _gradient(self._grey)
        self._features: Points | None = None
        if self._gradient.std() == 0:
            raise ConfigError("align.reference is of one colour throughout: choose an image with the part in it")

    def settings(self) -> dict[str, Any]:
        """Plain values that build the same alignment: `Alignment(**settings)`."""
        return {
            "reference": self.reference,
            "size": list(self.size),
            "method": self.method,
            "min_quality": self.min_quality,
        }

    def __repr__(self) -> str:
        return f"{self.method} to a reference of {self.size[0]}x{self.size[1]}, min_quality={self.min_quality}"

    def register(self, image: "NDArray[Any] | Tensor") -> Registration:
        """Where an image (3, H, W) in [0, 1] lies on the reference.

        Raises:
            DataError: it registers with less than `min_quality`.
        """
        found = self.measure(image)
        if found.quality < self.min_quality:
            raise DataError(
                f"registers to the reference image with quality {found.quality:.2f}, below "
                f"min_quality={self.min_quality:g}: take the picture again, choose another reference, or lower it"
            )
        return found

    def measure(self, image: "NDArray[Any] | Tensor") -> Registration:
        """As `register`, but whatever the quality.

        The quality is the correlation of the gradient magnitudes of the moved image and of the reference, in
        8x8 blocks, as the median over blocks weighted by the contrast of the reference: what half of the part fits.
        0 if nothing was found.
        """
        return self._measure(_to_grey(image), (image.shape[-2], image.shape[-1]), None)

    def measure_reference(self, other: "Alignment") -> Registration:
        """As `measure` of the reference of another alignment, whose points are found once."""
        return self._measure(other._grey, other.size, other._points)

    def _measure(self, grey: NDArray[np.uint8], size: tuple[int, int], points: Points | None) -> Registration:
        if self.method == "homography":
            between = self._homography(grey, points or _features(grey))
        else:
            between = self._translation(grey, size)
        # No camera sees a mirror image of the part: that would be chance, or its back.
        if between is None or not np.isfinite(between).all() or np.linalg.det(between / between[2, 2]) < 1e-9:
            return Registration(np.eye(3), 0.0)
        between, quality = self._refined(grey, between)
        matrix = np.linalg.inv(_scaling(self.size, self._grey.shape)) @ between @ _scaling(size, grey.shape)
        return Registration(matrix / matrix[2, 2], quality)

    @property
    def _points(self) -> Points:
        """Of the reference, found when they are first needed."""
        if self._features is None:
            self._features = _features(self._grey)
        return self._features

    def _homography(self, grey: NDArray[np.uint8], found_in: Points) -> Floats | None:
        import cv2

        points, descriptors = found_in
        targets, known = self._points
        if min(len(points), len(targets)) < 4:
            return None
        # Descriptors are whole numbers below 256, so that float32 holds their products without rounding.
        distances = (descriptors**2).sum(1)[:, None] + (known**2).sum(1) - 2 * (descriptors @ known.T)
        nearest = distances.argmin(axis=1)
        closest, second = np.sqrt(np.partition(distances, 1, axis=1)[:, :2]).T
        kept = np.flatnonzero(closest < _RATIO * second)
        if len(kept) < 4:
            return None
        found, _ = cv2.findHomography(
            points[kept], targets[nearest[kept]], cv2.USAC_MAGSAC, _TOLERANCE, maxIters=5000, confidence=0.9999
        )
        return None if found is None else np.asarray(found, np.float64)

    def _translation(self, grey: NDArray[np.uint8], size: tuple[int, int]) -> Floats:
        import cv2

        if size != self.size:
            raise DataError(
                f"image of {size[0]}x{size[1]} pixels, the reference has {self.size[0]}x{self.size[1]}: "
                "align.method=translation needs one size, homography does not"
            )
        window = cv2.createHanningWindow(grey.shape[::-1], cv2.CV_32F)
        # OpenCV multiplies its arguments by the window in place where it need not pad them.
        (dx, dy), _ = cv2.phaseCorrelate(_gradient(grey), self._gradient.copy(), window)
        return np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1]], np.float64)

    def _refined(self, grey: NDArray[np.uint8], between: Floats) -> tuple[Floats, float]:
        """A homography made to fit the pixels, where that is better than fitting the points alone; and its quality.

        Evangelidis and Psarakis, TPAMI 2008: brightness and contrast do not matter to it.
        """
        import cv2

        quality = self._quality(grey, between)
        if self.method != "homography" or quality < self.min_quality:
            return between, quality
        inverse = np.linalg.inv(between)
        try:
            _, fitted = cv2.findTransformECC(
                self._grey, grey, (inverse / inverse[2, 2]).astype(np.float32), cv2.MOTION_HOMOGRAPHY,
                (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, _REFINEMENTS, 1e-5), np.full_like(grey, 255), 5,
            )  # fmt: skip
            refined = np.linalg.inv(fitted.astype(np.float64))
        except (cv2.error, np.linalg.LinAlgError):  # it did not converge: the points have the last word
            return between, quality
        better = self._quality(grey, refined)
        return (refined, better) if better > quality else (between, quality)

    def _quality(self, grey: NDArray[np.uint8], between: Floats) -> float:
        import cv2

        target = (self._grey.shape[1], self._grey.shape[0])
        moved = _gradient(cv2.warpPerspective(grey, between, target, borderMode=cv2.BORDER_REPLICATE))
        covered = cv2.warpPerspective(np.ones_like(grey), between, target, flags=cv2.INTER_NEAREST)
        fits, contrasts = block_correlations(self._gradient, moved * covered)
        order = np.argsort(fits)
        total = np.cumsum(contrasts[order])
        return float(np.clip(fits[order][np.searchsorted(total, total[-1] / 2)], 0, 1))

    def warp(self, image: "NDArray[Any] | Tensor", registration: Registration) -> NDArray[Any]:
        """An image (C, H, W) of floats moved onto the reference: (C, *size), linear; the border is repeated outside."""
        import cv2

        moved = cv2.warpPerspective(
            np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0)), registration.matrix, self.size[::-1],
            flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        return np.asarray(moved).reshape(*self.size, -1).transpose(2, 0, 1)

    def warp_mask(
        self, mask: "NDArray[np.uint8] | Tensor", registration: Registration, outside: int = 0
    ) -> NDArray[np.uint8]:
        """A mask (H, W) uint8 moved onto the reference: (*size) with no new values but that `outside` the image."""
        import cv2

        moved = cv2.warpPerspective(
            np.asarray(mask), registration.matrix, self.size[::-1], flags=cv2.INTER_NEAREST, borderValue=outside
        )
        return np.asarray(moved, np.uint8)


def from_image(image: "NDArray[Any] | Tensor") -> Alignment:
    """An `Alignment` to an image (3, H, W) in [0, 1].

    Raises:
        ConfigError: it shows nothing to register to.
    """
    return Alignment(encode(_to_grey(image)), (image.shape[1], image.shape[2]))


def load_alignment(value: str | Path | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Settings of an `Alignment` from what a user gives: the path of the reference, or a mapping with it in it.

    Raises:
        ConfigError: an unknown or missing setting.
        DataError: the reference cannot be read.
    """
    if value is None:
        return None
    given: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {"reference": value}
    unknown = sorted(given.keys() - {"reference", "size", "method", "min_quality"})
    if unknown or not given.get("reference"):
        wrong = f"has no setting {unknown[0]!r}" if unknown else "names no reference"
        raise ConfigError(f"data.align {wrong}: give an image, or reference, method and min_quality")
    if not str(given["reference"]).startswith(_URI):
        image = read_image(given["reference"])
        given["reference"], given["size"] = encode(_to_grey(image)), [image.shape[1], image.shape[2]]
    return Alignment(**given).settings()


def encode(image: NDArray[Any]) -> str:
    """A grey image (H, W) of uint8 or bool as a data URI of a PNG: text that a checkpoint can hold."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return _URI + base64.b64encode(file.getvalue()).decode()


def decode(uri: str) -> NDArray[np.uint8]:
    """What `encode` was given, as uint8."""
    data = base64.b64decode(uri.removeprefix(_URI))
    return np.asarray(Image.open(io.BytesIO(data), formats=("PNG",))).astype(np.uint8)


def _to_grey(image: "NDArray[Any] | Tensor") -> NDArray[np.uint8]:
    """An image (3, H, W) in [0, 1] as 8-bit grey at working size."""
    import cv2

    grey = np.asarray(image, np.float32).mean(axis=0)
    height, width = grey.shape
    scale = min(1.0, WORKING_SIDE / max(height, width))
    if scale < 1:
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return np.asarray((grey * 255).round().clip(0, 255), np.uint8)


def _scaling(original: tuple[int, int], working: tuple[int, ...]) -> Floats:
    """From pixels of an image to those of its working size, both counted from the centre of the first pixel."""
    sy, sx = working[0] / original[0], working[1] / original[1]
    return np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]], np.float64)


def _features(grey: NDArray[np.uint8]) -> Points:
    import cv2

    points, descriptors = cv2.SIFT.create(nfeatures=_POINTS, enable_precise_upscale=True).detectAndCompute(grey, None)
    if not points:
        return np.empty((0, 2)), np.empty((0, 128), np.float32)
    return np.array([point.pt for point in points]), np.asarray(descriptors, np.float32)


def _gradient(grey: NDArray[Any]) -> NDArray[np.float32]:
    """Gradient magnitude at the scale of 0.6 % of the image: what is left of a picture in another light."""
    import cv2

    smooth = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), max(1.0, 0.006 * max(grey.shape)))
    gradient = cv2.magnitude(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    return np.asarray(gradient, np.float32)


def block_correlations(first: NDArray[np.float32], second: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Correlation of each block of two images (h, w), and the deviation of the first there; both (blocks,)."""
    starts = [_starts(side) for side in first.shape]

    def sums(values: Floats) -> Floats:
        return np.asarray(np.add.reduceat(np.add.reduceat(values, starts[0], axis=0), starts[1], axis=1))

    sizes = [np.diff(part, append=side) for part, side in zip(starts, first.shape, strict=True)]
    pixels = np.outer(*sizes)  # of each block

    def centred(values: Floats) -> Floats:
        means = sums(values) / pixels
        return values - means.repeat(sizes[0], axis=0).repeat(sizes[1], axis=1)

    a, b = centred(first.astype(np.float64)), centred(second.astype(np.float64))
    squares = sums(a * a)
    spread = np.sqrt(squares * sums(b * b))
    fits = np.divide(sums(a * b), spread, out=np.zeros_like(spread), where=spread > 0)
    return fits.ravel(), np.sqrt(squares / pixels).ravel()


def _starts(side: int) -> NDArray[np.int64]:
    """Where the blocks of a side begin that `np.array_split` gives, without empty ones."""
    size, longer = divmod(side, _BLOCKS)
    number = np.arange(_BLOCKS if size else longer)
    return number * size + np.minimum(number, longer)
