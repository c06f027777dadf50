"""Amazon Lookout for Vision: manifests of one JSON object a line, with the images and masks that they name.

https://docs.aws.amazon.com/lookout-for-vision/latest/developer-guide/manifest-file-segmentation.html
The service ended on 2025-10-31; what its buckets held is expected below the source, in folders of any depth.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.decoding import read_image, to_uint8
from oddpatch.data.layout import GOOD
from oddpatch.datatools.converting import Item, Options, Plan, good_items, unused
from oddpatch.datatools.writing import png
from oddpatch.errors import DataError
from oddpatch.files import inside, parse_json
from oddpatch.wording import counted

ANOMALY, MIXED = "anomaly", "mixed"
_NOTE = "defect_type is the class that the mask shows, 'mixed' of several, and 'anomaly' where there is no mask."


class _Line(NamedTuple):
    path: Path
    is_good: bool
    mask: Path | None
    colours: dict[str, tuple[int, int, int]]  # of what is anomalous, by class


def plan(source: Path, options: Options) -> list[Plan]:
    """One category, named like the folder. Heeds category, test_share and seed.

    Manifests whose names have `train` or `test` in them say what is for testing; anomalous images always are.
    """
    items: list[Item] = []
    masks: list[Path] = []
    undecided: list[Path] = []
    for manifest in sorted(source.rglob("*.manifest")):
        split = next((part for part in ("train", "test") if part in manifest.name.lower()), None)
        for line in _lines(manifest, source):
            masks += [line.mask] if line.mask else []
            if not line.is_good:
                kind, mask = _shown(line)
                items.append(Item(line.path, "test", kind, line.path.name, mask))
            elif split:
                items.append(Item(line.path, split, GOOD, line.path.name))
            else:
                undecided.append(line.path)
    if not items and not undecided:
        raise DataError(f"{source}: no *.manifest with a line for each image: copy the manifests of the datasets there")
    notes = [_NOTE]
    if undecided:
        items += good_items(undecided, options)
        notes.append(
            f"{counted(len(undecided), 'good image')} in manifests without train or test in their names: "
            f"{options.test_share:g} of them, seed {options.seed}, are for testing."
        )
    return [Plan(options.category or source.resolve().name, items, notes, left_out=unused(source, items, masks))]


def _lines(manifest: Path, source: Path) -> Iterator[_Line]:
    for number, text in enumerate(manifest.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not text.strip():
            continue
        place = f"{manifest}, line {number}"
        try:
            content = parse_json(text)
            label = next(filter(None, (_of_type(content, key, "image-classification") for key in content)), None)
            if label is None:
                raise DataError(
                    f"{place}: does not say whether the image is normal: remove the line, or label the image"
                )
            path = _find(content["source-ref"], source, place)
            mask, colours = None, {}
            for key in content:
                if (about := _of_type(content, key, "semantic-segmentation")) is not None:
                    mask = _find(content[key.removesuffix("-metadata")], source, place)
                    colours = _colours(about["internal-color-map"])
            yield _Line(path, label["class-name"] == "normal", mask, colours)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{place}: is not as Lookout for Vision writes it ({error!r}): correct it") from error


def _of_type(content: Mapping[str, Any], key: str, kind: str) -> Mapping[str, Any] | None:
    """What `key` says of a label, whose name is the labelling job's, if it is of this kind."""
    about = content[key]
    return about if isinstance(about, dict) and about.get("type") == f"groundtruth/{kind}" else None


def _colours(mapped: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[int, int, int]]:
    found = {}
    for one in mapped.values():
        if one["class-name"].upper() != "BACKGROUND":
            red, green, blue = bytes.fromhex(one["hex-color"].removeprefix("#"))
            found[one["class-name"]] = (red, green, blue)
    return found


def _find(address: str, source: Path, place: str) -> Path:
    """The file of s3://BUCKET/KEY: below `source` by as much of the key as there is."""
    parts = PurePosixPath(address.removeprefix("s3://")).parts
    for start in range(len(parts)):
        if (path := inside(source, Path(*parts[start:]), place)).is_file():
            return path
    raise DataError(f"{place}: {address} is not there: copy it by `aws s3 cp` into {source}")


def _shown(line: _Line) -> tuple[str, Callable[[], bytes] | None]:
    """The defect type, and what encodes the mask as a PNG."""
    if line.mask is None:
        return ANOMALY, None
    picture = to_uint8(read_image(line.mask))  # (H, W, 3)
    areas: dict[str, NDArray[np.bool_]] = {
        name: (picture == np.array(colour, np.uint8)).all(axis=2) for name, colour in line.colours.items()
    }
    shown = [name for name, area in areas.items() if area.any()]
    if not shown:
        raise DataError(f"{line.mask}: shows none of {', '.join(areas) or 'no class'}, in the colours of the manifest")
    whole = np.any([areas[name] for name in shown], axis=0)  # (H, W)
    return shown[0] if len(shown) == 1 else MIXED, lambda: png(whole)
