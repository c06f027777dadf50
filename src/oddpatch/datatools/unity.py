"""Reading what Unity Perception writes: captures, and which colour of a segmentation means which label.

* SOLO: `*.frame_data.json` beside its images; colours per label and per instance are given in every frame.
  https://docs.unity3d.com/Packages/com.unity.perception@1.0/manual/Schema/SoloSchema.html
* Legacy: `captures_*.json` with `annotation_definitions.json` in one folder, file names relative to its parent.
  https://docs.unity3d.com/Packages/com.unity.perception@0.9/manual/Schema/Synthetic_Dataset_Schema.html
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oddpatch.data.walk import LeftOut, walk
from oddpatch.errors import DataError
from oddpatch.files import inside, parse_json

Value = int | tuple[int, int, int]  # class index, or RGB
Rename = Callable[[str], str]
Find = Callable[[Any], Path]  # the file of a name in a JSON file


@dataclass(frozen=True)
class Instance:
    """One labelled object in a capture."""

    number: str
    label: str
    value: Value
    visible_pixels: int | None  # as the renderer counted them


@dataclass(frozen=True)
class Capture:
    """One image of a camera with its segmentations."""

    image: Path
    semantic: Path | None
    values: Mapping[str, Value]  # of the labels the semantic segmentation shows
    instance: Path | None
    instances: list[Instance]


@dataclass
class Recording:
    """All captures below a folder, and every label that is defined or seen there."""

    captures: list[Capture] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    left_out: list[LeftOut] = field(default_factory=list)  # broken links and the like


def read_recording(root: Path, rename: Rename = str) -> Recording:
    """Read all Unity Perception output below a folder, in the order of paths.

    Args:
        root: folder that holds SOLO or legacy output, at any depth.
        rename: applied to each file name that the JSON gives, for files that were renamed since.

    Raises:
        DataError: there is none, or a JSON file is damaged or lacks what its format asks for.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder: give the folder that Unity Perception wrote")
    files, left_out = walk(root, all_files=True)
    frames = [path for path in files if path.name.endswith("frame_data.json")]
    legacy = [path for path in files if fnmatchcase(path.name, "captures_*.json")]
    if not frames and not legacy:
        raise DataError(f"{root}: holds neither *frame_data.json (SOLO) nor captures_*.json (legacy Unity Perception)")
    recording = Recording(left_out=left_out)

    def find(path: Path, name: Any) -> Path:
        renamed = rename(_text(name))
        found = inside(path.parent, renamed, path)
        # Relative to the JSON; of the legacy format to the dataset, its parent, though some tools flatten that.
        return found if path not in legacy or found.is_file() else inside(path.parent.parent, renamed, path)

    for path in frames:
        with _parsed(path) as frame:
            recording.captures += _solo(frame, partial(find, path))
    for path in sorted({path.parent / "annotation_definitions.json" for path in legacy}):
        if not path.is_file():
            raise DataError(f"{path}: not found, but {path.parent} has captures_*.json, whose labels it defines")
    for path in (path for path in files if path.name == "annotation_definitions.json"):
        with _parsed(path) as content:
            recording.labels |= _defined(content)
    for path in legacy:
        with _parsed(path.parent / "annotation_definitions.json") as definitions, _parsed(path) as content:
            recording.captures += _legacy(content, definitions, partial(find, path))
    for capture in recording.captures:
        recording.labels.update(capture.values, (instance.label for instance in capture.instances))
    return recording


def read_segmentation(path: Path, colour: bool = False) -> NDArray[np.generic]:
    """Decode a segmentation: (H, W) class indices, or (H, W, 3) uint8 RGB. Alpha is dropped.

    With `colour`, grey and palette images are taken as colours too.

    Raises:
        DataError: the file is missing (the message lists what is there instead), empty or damaged.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file, though the JSON names it; {_there(path)}")
    if not path.stat().st_size:
        raise DataError(f"{path}: the file is empty (0 bytes): render it again, or remove its capture; {_there(path)}")
    try:
        with Image.open(path) as image:
            image.load()
            if not colour and (image.mode in ("L", "P") or image.mode.startswith("I")):
                return np.asarray(image)
            return np.asarray(image.convert("RGBA"))[..., :3]
    except Exception as error:  # decoders meet damaged bytes with errors of nearly any type
        raise DataError(f"{path}: cannot be decoded ({' '.join(str(error).split())}): render it again") from error


def select(segmentation: NDArray[np.generic], value: Value, path: Path, tolerance: int = 0) -> NDArray[np.bool_]:
    """(H, W): where a segmentation has a class index or colour.

    Raises:
        DataError: the segmentation holds colours but an index is asked for, or the other way round.
    """
    if isinstance(value, int):
        if segmentation.ndim != 2:
            raise DataError(f"{path}: is a colour image, but class index {value} is asked for: see the definitions")
        return np.asarray(segmentation == value)
    if segmentation.ndim != 3:
        raise DataError(f"{path}: holds class indices, but the colour {value} is asked for: see the definitions")
    distance = np.abs(segmentation.astype(np.int16) - np.array(value, np.int16))  # (H, W, 3)
    return np.asarray((distance <= tolerance).all(axis=-1))


def _there(path: Path) -> str:
    """What lies where a file was expected, the most similar names first."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file() and entry.name != path.name)
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:3]
    sizes = [f"{name} ({(path.parent / name).stat().st_size} bytes)" for name in near]
    return f"{path.parent} has {', '.join(sizes) or 'no files'}" + (", ..." if len(names) > len(near) else "")


@contextmanager
def _parsed(path: Path) -> Iterator[Any]:
    """What a JSON file holds, for a block that looks into it."""
    try:
        yield parse_json(path.read_text(encoding="utf-8-sig"))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: is not what Unity Perception writes: {error!r} is missing or of another type"
        ) from error
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path}: is not valid JSON ({error}): render it again") from error


def _text(given: Any) -> str:
    """A label or the name of a file."""
    if not isinstance(given, str):
        raise TypeError(f"a text in place of {given!r:.100}")
    return given


def _value(given: Any) -> Value:
    """A class index, `[r, g, b, a]` of bytes, or `{"r": ...}` of bytes or of floats up to 1."""
    if isinstance(given, int):
        return given
    if isinstance(given, dict):
        colour = [given[channel] for channel in "rgb"]
        if all(c <= 1 for c in colour) and (given.get("a", 1) <= 1):
            colour = [round(255 * c) for c in colour]
        given = colour
    r, g, b = (int(c) for c in given[:3])
    return r, g, b


def _solo(frame: Any, find: Find) -> Iterator[Capture]:
    counted = {
        (metric.get("sensorId", ""), str(info["instanceId"])): int(info["visiblePixels"])
        for metric in frame.get("metrics", [])
        if metric["@type"].endswith("RenderedObjectInfoMetric")
        for info in metric.get("values", [])
    }
    for capture in frame["captures"]:
        if "filename" not in capture:
            continue  # a sensor that makes no images
        kinds = {annotation["@type"].rsplit(".", 1)[-1]: annotation for annotation in capture.get("annotations", [])}
        semantic, instance = (kinds.get(f"{name}SegmentationAnnotation") for name in ("Semantic", "Instance"))
        instances = [
            Instance(
                str(entry["instanceId"]),
                _text(entry["labelName"]),
                _value(entry["color"]),
                counted.get((capture["id"], str(entry["instanceId"]))),
            )
            for entry in (instance or {}).get("instances", [])
        ]
        yield Capture(
            find(capture["filename"]),
            find(semantic["filename"]) if semantic else None,
            {_text(e["labelName"]): _value(e["pixelValue"]) for e in (semantic or {}).get("instances", [])},
            find(instance["filename"]) if instance else None,
            instances,
        )


def _defined(content: Any) -> set[str]:
    """Label names of the definitions; key points and other annotators have specs of another kind."""
    definitions = content.get("annotationDefinitions", content.get("annotation_definitions", []))
    return {
        _text(spec["label_name"]) for entry in definitions for spec in entry.get("spec") or [] if "label_name" in spec
    }


def _legacy(content: Any, definitions: Any, find: Find) -> Iterator[Capture]:
    specs = {str(entry["id"]): entry for entry in definitions["annotation_definitions"]}
    for capture in content["captures"]:
        annotations = capture.get("annotations") or []
        names = {  # an instance's label comes from the boxes
            str(value["instance_id"]): _text(value["label_name"])
            for annotation in annotations
            for value in annotation.get("values") or []
            if "label_name" in value and "instance_id" in value
        }
        semantic, values, instance, instances = None, {}, None, []
        for annotation in annotations:
            if not annotation.get("filename"):
                continue
            spec = specs.get(str(annotation["annotation_definition"]), {}).get("spec") or []
            if any("pixel_value" in entry for entry in spec):
                semantic = find(annotation["filename"])
                values = {_text(entry["label_name"]): _value(entry["pixel_value"]) for entry in spec}
            coloured = [value for value in annotation.get("values") or [] if "color" in value]
            if coloured:
                instance = find(annotation["filename"])
                numbers = [str(value["instance_id"]) for value in coloured]
                instances = [
                    Instance(number, names.get(number, "unknown"), _value(value["color"]), None)
                    for number, value in zip(numbers, coloured, strict=True)
                ]
        if semantic or instance or str(capture.get("format", "")).upper() in ("PNG", "JPG", "JPEG"):
            yield Capture(find(capture["filename"]), semantic, values, instance, instances)
