"""COCO: `*.json` of images, annotations and categories, as most labelling tools export them; polygons, RLE or boxes.

Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014. https://cocodataset.org/#format-data
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.headers import read_header
from oddpatch.data.layout import is_good
from oddpatch.data.walk import walk
from oddpatch.datatools.converting import Item, Options, Plan, good_items, unused
from oddpatch.datatools.writing import png
from oddpatch.errors import ConfigError, DataError
from oddpatch.files import inside, parse_json
from oddpatch.wording import counted

MIXED = "mixed"
_NOTE = "An image without annotations is good; defect_type is the category if all of an image share one, else 'mixed'."


def plan(source: Path, options: Options) -> list[Plan]:
    """One category, named like the folder. Heeds category, test_share and seed."""
    files = walk(source).files
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        by_name[path.name].append(path)
    good, items, boxes = [], [], 0
    for document in sorted(path for path in source.rglob("*.json") if path.is_file()):
        for path, annotations, size, names in _read(document, source, by_name):
            if not annotations:
                good.append(path)
                continue
            boxes += sum(not one.get("segmentation") for one in annotations)
            types = sorted({names[one["category_id"]] for one in annotations})
            kind = types[0] if len(types) == 1 else MIXED
            items.append(Item(path, "test", kind, path.name, _mask(annotations, size, path)))
    if not good and not items:
        raise DataError(f"{source}: no *.json with images, annotations and categories: is it an export of COCO JSON?")
    notes = [_NOTE, f"{options.test_share:g} of the good images, seed {options.seed}, are for testing."]
    if boxes:
        notes.append(f"{counted(boxes, 'annotation')} without a segmentation: the mask is the whole box.")
    items += good_items(good, options)
    return [Plan(options.category or source.resolve().name, items, notes, left_out=unused(source, items))]


def _read(
    document: Path, source: Path, by_name: Mapping[str, Sequence[Path]]
) -> list[tuple[Path, list[dict[str, Any]], tuple[int, int], dict[int, str]]]:
    """Each image of a document with its annotations, size (H, W) and all names of categories; none if it is no COCO."""
    try:
        content = parse_json(document.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
            return []
        types = {one["id"]: str(one["name"]) for one in content["categories"]}
        annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for one in content["annotations"]:
            if not is_good(types[one["category_id"]]):
                annotations[one["image_id"]].append(one)
        images = {
            one["id"]: (str(one["file_name"]), (int(one["height"]), int(one["width"]))) for one in content["images"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{document}: cannot be read as COCO JSON ({error!r}): export it again") from error
    strangers = annotations.keys() - images.keys()
    if strangers:
        raise DataError(
            f"{document}: an annotation is of image {min(strangers, key=str)}, which it lacks: export it again"
        )
    return [
        (_find(name, document, source, by_name), annotations[number], size, types)
        for number, (name, size) in images.items()
    ]


def _find(name: str, document: Path, source: Path, by_name: Mapping[str, Sequence[Path]]) -> Path:
    """The file: below the document's folder or the source, else the only one of this name in the source."""
    for base in (document.parent, source):
        if (path := inside(base, name, document)).is_file():
            return path
    found = by_name.get(Path(name).name, [])
    if len(found) != 1:
        told = "is not there" if not found else f"may be {found[0]} or {found[1]}"
        raise DataError(f"{document}: image {name} {told}: put the images beside it as it names them")
    return found[0]


def _mask(annotations: Sequence[Mapping[str, Any]], size: tuple[int, int], path: Path) -> Callable[[], bytes]:
    """Encodes where any annotation is, as a PNG."""
    header = read_header(path)
    if header is not None and header.size != size:
        raise DataError(
            f"{path}: has {header.size[0]} x {header.size[1]} pixels, but its JSON says {size[0]} x {size[1]}"
        )
    shapes = [one.get("segmentation") or [_corners(one["bbox"])] for one in annotations]
    try:
        masks = [mask for shape in shapes for mask in _masks(shape, size)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise DataError(f"{path}: a segmentation cannot be read ({error!r}): export it again") from error
    return lambda: png(np.any(masks, axis=0))


def _masks(shape: Any, size: tuple[int, int]) -> list[NDArray[np.bool_]]:
    """(H, W) where each polygon of a list is, or a run-length encoding."""
    if isinstance(shape, Mapping):
        if list(size) != list(shape["size"]):
            raise ValueError(f"of size {shape['size']}, not {list(size)}")
        return [_decode(shape["counts"], size)]
    if not all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in shape):
        raise ValueError("a polygon is three or more pairs x, y")
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ConfigError("the layout coco needs pycocotools: pip install 'oddpatch[coco]'") from error
    polygons = [np.asarray(polygon, float) for polygon in shape]
    if not all(np.abs(polygon).max() <= 10 * max(size) for polygon in polygons):  # also of NaN
        raise ValueError("a polygon is far outside the image")
    found = mask.frPyObjects([polygon.tolist() for polygon in polygons], *size)
    return [_decode(one["counts"].decode(), size) for one in found]


def _decode(counts: str | Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) of runs of zeros and ones in turn, down the columns; packed into a text, or not."""
    runs = _unpack(counts) if isinstance(counts, str) else counts
    if sum(runs) != size[0] * size[1]:  # before they take any memory
        raise ValueError(f"runs of {sum(runs)} pixels in all, of {size[0] * size[1]}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[::-1]).T


def _unpack(text: str) -> list[int]:
    """The runs of a packed text: five bits a letter, the lowest first; from the fourth on less the last but one."""
    runs: list[int] = []
    value = shift = 0
    for code in (ord(letter) - 48 for letter in text):
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:  # the last letter of a number; its highest bit is the sign
            value -= (code & 0x10) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def _corners(box: Sequence[float]) -> list[float]:
    left, top, width, height = box
    return [left, top, left + width, top, left + width, top + height, left, top + height]
