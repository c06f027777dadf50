"""Turning image files, arrays and PIL images into tensors: one rule, used in training, test and prediction alike.

Images become (3, H, W) float32 RGB in [0, 1], as tensors, or as arrays where torch is not to be loaded:

* 8-bit integers are divided by 255, deeper ones by the full scale of the sensor (1023, 4095, ...) if it is given, else
  by 65535; never by what an image happens to hold, so that images stay comparable. `find_full_scale` of
  `oddpatch.data.headers` finds it for a set. Signed and 32-bit integers count as deeper ones.
* Floats are taken as they are, and refused outside [0, 1].
* Grey is repeated. Alpha is dropped and the colours kept as stored, palettes and CMYK become RGB (ICC profiles are not
  applied), and the EXIF orientation is applied. A file of several frames or pages is refused.
* 16-bit colour PNG, PPM and TIFF, and float TIFF, keep their full depth. Other containers of deep colour (JPEG 2000,
  SGI, AVIF, HEIC, JPEG XL) are read at the 8 bits Pillow gives.
* HEIC and JPEG XL are read where a plugin of Pillow is installed.

A file that is truncated or damaged is an error, never a partial image, as far as its format can tell: checksums, sizes,
the number of rows and strips, and marks of the end are checked (PNG, TIFF, JPEG, JPEG 2000). Where a byte was changed
and nothing in the format says so, as in BMP, PPM, GIF, WebP and inside JPEG and JPEG 2000, other pixels are read.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from oddpatch.data.deep import PNG_MAGIC, Array, open_lazily, read_deep, read_with_opencv, refuse_several
from oddpatch.data.jpeg import JPEG_MAGIC, check_complete, check_tiles, find_end
from oddpatch.data.png import check_rows, read_plain_png
from oddpatch.data.reading import FileContent, read_bytes, read_within
from oddpatch.errors import DataError
from oddpatch.limits import free_memory

if TYPE_CHECKING:
    from torch import Tensor

# Not pictures of pixels, or decoded by running another program (EPS): never opened.
_REFUSED_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
# Read by OpenCV but not by Pillow.
_OPENCV_SUFFIXES = frozenset({".exr", ".hdr", ".pic", ".sr"})
# What reads a suffix, where Pillow is too old or has no plugin for it.
_REMEDIES = {
    ".avif": "pip install -U pillow",
    **dict.fromkeys((".heic", ".heics", ".heif", ".heifs", ".hif"), "pip install pillow-heif"),
    ".jxl": "pip install pillow-jxl-plugin",
}
#: Bytes that decoding takes at its peak for each pixel of 8-bit colour.
_DECODING_BYTES = 16


@cache
def pixels_that_fit() -> int:
    """The largest image to decode, in pixels, unless a user says otherwise: what half of the free memory holds."""
    return int(free_memory() / 2 / _DECODING_BYTES)


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case file suffixes, with their dot, of the formats that can be read."""
    formats = set(pillow_formats())
    readable = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    return frozenset(readable | {".mpo"} | _OPENCV_SUFFIXES)


def is_image_name(name: str) -> bool:
    """Whether a file name is that of an image: a known suffix in any letter case, and not hidden."""
    return not name.startswith(".") and Path(name).suffix.lower() in image_suffixes()


def missing_plugin(name: str) -> str:
    """Command that makes files of this name readable; empty if they are, or if none is known."""
    suffix = Path(name).suffix.lower()
    return "" if suffix in image_suffixes() else _REMEDIES.get(suffix, "")


def read_image(
    path: str | Path, full_scale: int | None = None, max_pixels: int | None = None, keep_uint8: bool = False
) -> "Tensor":
    """Decode an image file.

    Args:
        path: of the file.
        full_scale: what the values of an image of more than 8 bits are divided by; None for 65535.
        max_pixels: larger images are refused; None for what fits into memory.
        keep_uint8: leave 8-bit images as they are, a quarter of the size.

    Returns:
        (3, H, W) float32 RGB in [0, 1], by the rule of this module; or uint8.

    Raises:
        DataError: the file is missing, empty, truncated, not an image, too large to be trusted, or its values cannot
            be scaled.
    """
    with naming(path):
        return _to_tensor(_rgb_array(pixels_of(open_upright(path, max_pixels)), full_scale, keep_uint8))


def read_planes(path: str | Path, full_scale: int | None = None, max_pixels: int | None = None) -> Array:
    """As `read_image` with `keep_uint8`, without torch: a view (3, H, W) that may be read only."""
    with naming(path):
        return _planes(_rgb_array(pixels_of(open_upright(path, max_pixels)), full_scale, keep_uint8=True))


def read_pixels(path: str | Path, max_pixels: int | None = None) -> Array:
    """An image file as it is stored, in its own type: (H, W), or (H, W, C) with C = 2 grey + alpha, 3 RGB, 4 RGBA.

    Raises:
        DataError: see `read_image`.
    """
    with naming(path):
        return pixels_of(open_upright(path, max_pixels))


def to_rgb_float(
    image: Array | Image.Image, name: str = "image", full_scale: int | None = None, keep_uint8: bool = False
) -> "Tensor":
    """The same rule for an image in memory.

    Args:
        image: PIL image, or array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of bool, uint8, uint16 or float.
        name: what to call the image in an error.
        full_scale: see `read_image`.
        keep_uint8: see there.

    Returns:
        (3, H, W) float32 RGB in [0, 1], or uint8.

    Raises:
        DataError: shape, type or values are none of these.
    """
    with naming(name):
        return _to_tensor(_rgb_array(_in_memory(image), full_scale, keep_uint8))


def to_rgb_planes(image: Array | Image.Image, full_scale: int | None = None) -> Array:
    """As `to_rgb_float` with `keep_uint8`, without torch: a view (3, H, W) that may be read only."""
    with naming("image"):
        return _planes(_rgb_array(_in_memory(image), full_scale, keep_uint8=True))


def _in_memory(image: Array | Image.Image) -> Array:
    if isinstance(image, Image.Image):
        return pixels_of(_upright(image.copy()))
    if image.dtype.kind == "i" or (image.dtype.itemsize > 2 and image.dtype.kind == "u"):
        raise DataError(f"{image.dtype} has no known full scale: convert to uint8, uint16, or float in [0, 1]")
    return image.copy() if image.dtype == np.uint8 else image  # who gave it may write the next one there


def to_array(image: Any) -> Array | Image.Image | None:
    """An image in memory as `to_rgb_float` takes it: a tensor (3, H, W) or (1, H, W) as an array; None for no image.

    Raises:
        DataError: a tensor of another shape.
    """
    if hasattr(image, "detach"):  # a tensor: who has one has loaded torch, and nobody else should
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise DataError(f"tensor {tuple(image.shape)}: give (3, H, W), or an array (H, W, 3)")
        return np.asarray(image.detach().cpu().permute(1, 2, 0).numpy())
    return image if isinstance(image, Image.Image | np.ndarray) else None


def stored_pixels(image: "Array | Image.Image | Tensor") -> Array:
    """(H, W) or (H, W, 3) of an image in memory, upright and without alpha, in its own type: a file that holds it is
    read as the image itself."""
    given = to_array(image)
    array = pixels_of(_upright(given.copy())) if isinstance(given, Image.Image) else np.asarray(given)
    if array.ndim == 3:
        array = array[..., 0] if array.shape[2] < 3 else array[..., :3]
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    return array.astype(np.uint8) * np.uint8(255) if array.dtype == np.bool_ else array


def to_uint8(image: "Tensor | Array") -> NDArray[np.uint8]:
    """(H, W, 3) for showing, of an image (3, H, W) in [0, 1] or uint8."""
    array = image if isinstance(image, np.ndarray) else image.cpu().numpy()
    array = (array * 255).round() if array.dtype.kind == "f" else array
    return np.asarray(array.transpose(1, 2, 0), np.uint8)


def read_file(path: str | Path, seconds: float) -> FileContent:
    """An image file that is read, though not decoded, within some seconds; every function here takes it as a path.

    Raises:
        DataError: it took longer, or it cannot be read.
    """
    with naming(path):
        return read_within(path, seconds)


@contextmanager
def naming(name: str | Path) -> Iterator[None]:
    """Put the file's name before an error, and make one line of whatever a decoder raises."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}") from error.__cause__
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image, or damaged beyond recognition: replace or remove it") from None
    # Decoders meet damaged bytes with errors of nearly any type.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: cannot be decoded ({reason}): replace or remove it") from error


@cache
def pillow_formats() -> tuple[str, ...]:
    """Names of the formats that Pillow may open."""
    Image.init()
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with suppress(ImportError):
        importlib.import_module("pillow_jxl")  # registers itself
    return tuple(name for name in Image.ID if name not in _REFUSED_FORMATS)


def open_upright(path: str | Path, max_pixels: int | None = None) -> Image.Image | Array:
    """Decode a file upright: as an array where Pillow would lose depth, otherwise as a Pillow image."""
    data = read_bytes(path)
    if not data:
        raise DataError("the file is empty (0 bytes): replace or remove it")
    limit = max_pixels or pixels_that_fit()
    plain = read_plain_png(data, limit)
    if plain is not None:
        return plain
    deep = read_deep(data, limit)
    if deep is not None:
        return _checked(deep)
    end = find_end(data) if data.startswith(JPEG_MAGIC) else None
    check_tiles(data)
    try:
        image = open_lazily(data, pillow_formats(), limit)
        refuse_several(image)
        image.load()
        if data.startswith(PNG_MAGIC):
            check_rows(data, image)
        elif end is not None:
            check_complete(data, image, end)
        return _upright(image)
    except UnidentifiedImageError:
        if Path(path).suffix.lower() in _OPENCV_SUFFIXES:
            return _checked(read_with_opencv(data))
        raise


def _checked(array: Array) -> Array:
    """What was decoded, if it is (H, W) or (H, W, C): scientific formats hold other shapes too."""
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"holds an array of shape {array.shape}, which is no image: save it as (H, W) or (H, W, 3)")
    return array


def _upright(image: Image.Image) -> Image.Image:
    """Decode fully (truncated files raise here) and turn by the EXIF orientation."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


def pixels_of(image: Image.Image | Array) -> Array:
    """Pixels of a decoded image: (H, W), or (H, W, C) with C = 2 grey + alpha, 3 RGB, 4 RGB + alpha."""
    if isinstance(image, np.ndarray):
        return image
    mode = image.mode
    if mode.startswith("I"):
        array = np.asarray(image)
        return array.astype(array.dtype.newbyteorder("="))
    if mode == "La":
        raise DataError("grey with premultiplied alpha (mode La) is not supported: save it as grey")
    if mode in ("PA", "RGBa"):
        image = image.convert("RGBA")
    elif mode not in ("1", "L", "LA", "RGB", "RGBA", "F"):
        image = image.convert("RGB")
    return np.asarray(image)


def _to_tensor(array: Array) -> "Tensor":
    """An image (H, W, 1|3) as (3, H, W); channels stay last in memory."""
    import torch

    return torch.from_numpy(array).permute(2, 0, 1).expand(3, -1, -1)


def _planes(array: Array) -> Array:
    """An image (H, W, 1|3) as (3, H, W); channels stay last in memory."""
    return np.broadcast_to(array.transpose(2, 0, 1), (3, *array.shape[:2]))


def _rgb_array(array: Array, full_scale: int | None, keep_uint8: bool = False) -> Array:
    """(H, W) or (H, W, 1..4) to (H, W, 1|3) float32 in [0, 1]."""
    if array.ndim not in (2, 3) or 0 in array.shape or array.shape[2:] > (4,):
        raise DataError(f"an array of shape {array.shape} is not an image: give (H, W), (H, W, 3) or (H, W, 4)")
    if array.ndim == 2:
        array = array[..., None]
    array = array[..., : 1 if array.shape[2] < 3 else 3]  # (H, W, 1|3) without alpha
    # torch takes arrays only in the machine's byte order, without negative strides, and warns of read-only ones.
    array = np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
    if keep_uint8 and array.dtype == np.bool_:
        array = np.where(array, np.uint8(255), np.uint8(0))
    keep = keep_uint8 and array.dtype == np.uint8
    return array if keep else _unit_range(array, full_scale)


def _unit_range(array: Array, full_scale: int | None) -> NDArray[np.float32]:
    """Scale by the range of the type or of the sensor, never by what the array holds."""
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):  # also true of NaN
            raise DataError(f"float values {low:g}..{high:g} are not all in [0, 1]: divide by the sensor's full scale")
        return array.astype(np.float32)
    if array.dtype in (np.bool_, np.uint8):
        return _divided(array, 1 if array.dtype == np.bool_ else 255)
    if array.dtype.kind not in "iu":
        raise DataError(f"{array.dtype} has no known full scale: convert to uint8, uint16, or float in [0, 1]")
    scale = full_scale or 65535
    low, high = int(array.min()), int(array.max())
    if low < 0:
        raise DataError(f"{array.dtype} values {low}..{high} are not all 0 or more: save it as 8 or 16 bits unsigned")
    if high > scale:
        wider = max(2 ** high.bit_length() - 1, 65535) if full_scale is None else 2 ** high.bit_length() - 1
        raise DataError(
            f"values up to {high} are beyond the full scale of {scale}: set data.full_scale={wider} and fit again"
        )
    return _divided(array, scale)


def _divided(array: Array, scale: int) -> NDArray[np.float32]:
    floats = array.astype(np.float32)
    floats /= np.float32(scale)
    return floats
