"""Turning image files, arrays and PIL images into tensors: one rule, used in training, test and prediction alike.

Images become (3, H, W) float32 RGB in [0, 1]:

* Integers are divided by the range of their type (255 or 65535), never by what an image happens to hold, so that
  images stay comparable. Files of signed or 32-bit integers are taken to hold 16-bit values, and refused if they do not.
* Floats are taken as they are, and refused outside [0, 1].
* Grey is repeated. Alpha is dropped and the colours kept as stored, palettes and CMYK become RGB (ICC profiles are not
  applied), the EXIF orientation is applied, and of several frames or pages the first is read.
* 16-bit colour PNG, PPM and TIFF, and float TIFF, keep their full depth. Other containers of deep colour (JPEG 2000,
  SGI, AVIF) are read at the 8 bits Pillow gives.

A file that is truncated or damaged is an error, never a partial image.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from oddpatch.errors import DataError

Array = NDArray[np.generic]

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_EXIF_ORIENTATION = 274
# Not pictures of pixels, or decoded by running another program (EPS): never opened.
_REFUSED_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
# Read by OpenCV but not by Pillow.
_OPENCV_SUFFIXES = frozenset({".exr", ".hdr", ".pic", ".sr"})


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case file suffixes, with their dot, of the formats that can be read."""
    formats = set(_pillow_formats())
    readable = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    return frozenset(readable | {".mpo"} | _OPENCV_SUFFIXES)


def is_image_name(name: str) -> bool:
    """Whether a file name is that of an image: a known suffix in any letter case, and not hidden."""
    return not name.startswith(".") and Path(name).suffix.lower() in image_suffixes()


def read_image(path: str | Path) -> Tensor:
    """Decode an image file.

    Returns:
        (3, H, W) float32 RGB in [0, 1], by the rule of this module.

    Raises:
        DataError: the file is missing, empty, truncated, not an image, too large to be trusted, or its values cannot
            be scaled.
    """
    with _naming(path):
        image = _open(path)
        return _rgb_tensor(image if isinstance(image, np.ndarray) else _pixels(image))


def to_rgb_float(image: Array | Image.Image, name: str = "image") -> Tensor:
    """The same rule for an image in memory.

    Args:
        image: PIL image, or array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of bool, uint8, uint16 or float.
        name: what to call the image in an error.

    Returns:
        (3, H, W) float32 RGB in [0, 1].

    Raises:
        DataError: shape, type or values are none of these.
    """
    with _naming(name):
        if isinstance(image, Image.Image):
            return _rgb_tensor(_pixels(_upright(image.copy())))
        if image.dtype.kind in "iu" and image.dtype not in (np.uint8, np.uint16):
            raise DataError(f"{image.dtype} has no known full scale: convert to uint8, uint16, or float in [0, 1]")
        return _rgb_tensor(image)


def read_mask(path: str | Path, threshold: float = 0.0) -> Tensor:
    """Decode a ground-truth mask of any mode: what is not zero is defect.

    * Colour: a pixel is defect if any channel is. Alpha counts only where it alone carries the picture, that is where
      the colours are the same everywhere and alpha is not.
    * Palettes: a pixel is defect if its colour is not black, as it looks. If the colours in use do not tell (none is
      black, or all are), its index decides: 0 is background.

    Args:
        path: mask file.
        threshold: fraction of full scale in [0, 1) a value must exceed; above 0 for masks with grey edges or JPEG noise.

    Returns:
        (H, W) uint8, 1 = defect.

    Raises:
        DataError: as `read_image`; float values outside [0, 1] only with a threshold above 0.
    """
    with _naming(path):
        image = _open(path)
        if isinstance(image, np.ndarray):
            mask = _array_mask(image, threshold)
        elif image.mode == "P":
            mask = _palette_mask(image, threshold)
        else:
            mask = _array_mask(_pixels(image), threshold)
    return torch.from_numpy(mask.astype(np.uint8))


@contextmanager
def _naming(name: str | Path) -> Iterator[None]:
    """Put the file's name before an error, and make one line of whatever a decoder raises."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}") from error.__cause__
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: {error} If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS") from error
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    # Decoders meet damaged bytes with errors of nearly any type.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: cannot be decoded ({reason}): replace or remove it") from error


@cache
def _pillow_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in _REFUSED_FORMATS)


def _open(path: str | Path) -> Image.Image | Array:
    """Decode a file upright: as an array where Pillow would lose depth, otherwise as a Pillow image."""
    data = Path(path).read_bytes()
    if not data:
        raise DataError("the file is empty (0 bytes): replace or remove it")
    if data.startswith(_TIFF_MAGIC):
        array = _deep_tiff(data)
        if array is not None:
            return array
    try:
        image = Image.open(io.BytesIO(data), formats=_pillow_formats())
    except UnidentifiedImageError:
        if Path(path).suffix.lower() in _OPENCV_SUFFIXES:
            return _opencv(data)
        raise DataError("not an image, or damaged beyond recognition: replace or remove it") from None
    if data.startswith(_PNG_MAGIC) and data[24] == 16 and data[25] != 0:  # bit depth 16, colour type not grey
        return _deep_png(data)
    if image.format == "PPM" and image.mode == "RGB" and (full_scale := image.tile[0].args[1]) > 255:
        return np.round(_opencv(data) * (65535 / full_scale)).astype(np.uint16)
    return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    """Decode fully (truncated files raise here) and turn by the EXIF orientation."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _turn(array: Array, orientation: int) -> Array:
    """Turn an array (H, W, ...) by an EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def _deep_png(data: bytes) -> Array:
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    # Some releases of OpenCV return the readable part of a broken PNG; checking the checksums costs no decoding.
    Image.open(io.BytesIO(data), formats=("PNG",)).verify()
    return _turn(_opencv(data), orientation)


def _deep_tiff(data: bytes) -> Array | None:
    """First page of a TIFF deeper than 8 bits, upright; None if Pillow reads it without loss."""
    import tifffile  # slow to import, and only deep TIFFs need it

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        if page.bitspersample <= 8:
            return None
        limit = 2 * (Image.MAX_IMAGE_PIXELS or float("inf"))  # as Pillow's own
        if page.imagewidth * page.imagelength > limit:
            raise Image.DecompressionBombError(f"{page.imagewidth * page.imagelength} pixels exceed {limit}.")
        try:
            array = page.asarray()
        except ValueError as error:
            # tifffile decodes few compressions by itself. OpenCV mixes up the channels of planar files.
            if "imagecodecs" not in str(error) or page.planarconfig == 2:
                raise
            array = _opencv(data)
        else:
            array = np.moveaxis(array, 0, -1) if page.planarconfig == 2 and array.ndim == 3 else array
            orientation = page.tags.get(_EXIF_ORIENTATION)
            array = _turn(array, orientation.value if orientation else 1)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and array.dtype.kind == "u":
            array = np.iinfo(array.dtype).max - array
    return _narrow(array)


def _opencv(data: bytes) -> Array:
    """Decode with OpenCV at full depth: (H, W), (H, W, 3) RGB or (H, W, 4) RGBA."""
    import cv2  # slow to import, and only rare files need it

    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise DataError("truncated, damaged or of an unknown kind: replace or remove it")
    return array[..., [2, 1, 0, 3][: array.shape[2]]] if array.ndim == 3 else array


def _narrow(array: Array) -> Array:
    """Integers wider than 8 bits as the 16-bit values they hold."""
    if array.dtype.kind not in "iu" or array.dtype in (np.uint8, np.uint16):
        return array
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise DataError(f"{array.dtype} values {low}..{high} do not fit 16 bits: save it as 8 or 16 bits unsigned")
    return array.astype(np.uint16)


def _pixels(image: Image.Image) -> Array:
    """Pixels of a decoded Pillow image: (H, W), or (H, W, C) with C = 2 grey + alpha, 3 RGB, 4 RGB + alpha."""
    mode = image.mode
    if mode.startswith("I"):
        array = np.asarray(image)
        return _narrow(array.astype(array.dtype.newbyteorder("=")))
    if mode == "La":
        raise DataError("grey with premultiplied alpha (mode La) is not supported: save it as grey")
    if mode in ("PA", "RGBa"):
        image = image.convert("RGBA")
    elif mode not in ("1", "L", "LA", "RGB", "RGBA", "F"):
        image = image.convert("RGB")
    return np.asarray(image)


def _rgb_tensor(array: Array) -> Tensor:
    """(H, W) or (H, W, 1..4) to (3, H, W) float32 in [0, 1]; channels stay last in memory."""
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"shape {array.shape} is not that of an image: give (H, W), (H, W, 3) or (H, W, 4)")
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] > 4:
        raise DataError(f"shape {array.shape} has {array.shape[2]} channels last: give (H, W), (H, W, 3) or (H, W, 4)")
    array = array[..., : 1 if array.shape[2] < 3 else 3]  # (H, W, 1|3) without alpha
    values = torch.from_numpy(_unit_range(array))
    return values.permute(2, 0, 1).expand(3, -1, -1)  # (3, H, W)


def _unit_range(array: Array) -> NDArray[np.float32]:
    """Scale by the range of the type, never by what the array holds."""
    if array.dtype == np.bool_:
        return array.astype(np.float32)
    if array.dtype in (np.uint8, np.uint16):
        return np.divide(array, np.float32(np.iinfo(array.dtype).max), dtype=np.float32)
    if array.dtype.kind != "f":
        raise DataError(f"values of type {array.dtype} are not supported: convert to uint8, uint16, or float in [0, 1]")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):  # also true of NaN
        raise DataError(f"float values {low:g}..{high:g} are outside [0, 1]: divide by the full scale of the sensor")
    return array.astype(np.float32)


def _array_mask(array: Array, threshold: float) -> NDArray[np.bool_]:
    if array.ndim == 3 and array.shape[2] in (2, 4):
        colour, alpha = array[..., :-1], array[..., -1]
        uniform = (colour == colour[0, 0]).all() and not (alpha == alpha[0, 0]).all()
        array = alpha if uniform else colour
    defect = array > _mask_level(array, threshold) if threshold > 0 else array != 0
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError("the mask holds values that are not finite: save it as 8-bit grey, 0 and 255")
    return defect.any(axis=-1) if defect.ndim == 3 else defect


def _mask_level(array: Array, threshold: float) -> float:
    if array.dtype.kind in "iu":
        return threshold * np.iinfo(array.dtype).max
    if array.dtype.kind == "f" and not (float(array.min()) >= 0 and float(array.max()) <= 1):
        raise DataError(f"float values outside [0, 1] have no full scale for mask_threshold={threshold}: set it to 0")
    return threshold


def _palette_mask(image: Image.Image, threshold: float) -> NDArray[np.bool_]:
    index = np.asarray(image)  # (H, W)
    colours = np.zeros((256, 3), np.uint8)
    stored = np.asarray(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    colours[: len(stored)] = stored
    visible = (colours > 255 * threshold).any(axis=1)  # (256,)
    used = visible[np.unique(index)]
    # Index 0 of an optimised palette may be the defect's white, so colour comes first wherever it tells two things apart.
    return visible[index] if used.any() and not used.all() else index != 0
