"""Writes what Unity Perception would have written: the SOLO dataset format, version 0.10.

A dataset folder holds four definition files and `sequence.N/`, each with the image, the semantic and the instance
segmentation in RGBA, and `step0.frame_data.json`, which names the colour of every label and instance.
https://docs.unity3d.com/Packages/com.unity.perception@1.0/manual/Schema/SoloSchema.html
"""

import colorsys
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_TYPE = "type.unity.com/unity.solo."
_SEMANTIC = "Generates a semantic segmentation image: each object in the colour of its label."
_INSTANCE = "Produces an instance segmentation image: each labelled object in a colour of its own."
_COUNT = "Produces object counts for each label."
_INFO = "Produces label id, instance id and visible pixel count for each object that takes up at least one pixel."
_FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]


def palette(count: int, start: float = 0.0) -> NDArray[np.uint8]:
    """(count + 1, 4) RGBA: opaque black for nothing, then `count` different colours."""
    colours: list[tuple[int, ...]] = [(0, 0, 0, 255)]
    for i in range(count):
        # Steps of the golden ratio keep neighbours apart; value and saturation part those that come round near.
        rgb = colorsys.hsv_to_rgb((start + i * 0.618034) % 1.0, 1.0 - 0.25 * (i // 16 % 3), 1.0 - 0.12 * (i // 48 % 5))
        colours.append((*(round(255 * v) for v in rgb), 255))
    if len(set(colours)) != len(colours):
        raise ValueError(f"{count} instances are more than the palette has colours for")
    return np.array(colours, np.uint8)


def write_sequence(
    folder: Path,
    number: int,
    image: bytes,
    owner: NDArray[np.uint8],
    instances: Mapping[int, str],
    labels: Sequence[str],
    fov: float,
) -> None:
    """Write `folder/sequence.<number>` with one step of one camera.

    Args:
        image: the photograph, an encoded PNG file.
        owner: (H, W) the instance each pixel shows, 0 for none.
        instances: label of each instance; those that no pixel shows are left out, as Unity does.
        labels: all labels; ids count from 1.
        fov: width of the view in mm.
    """
    counts = np.bincount(owner.ravel(), minlength=max(instances, default=0) + 1)
    seen: list[dict[str, Any]] = [
        {"instanceId": i, "labelId": labels.index(label) + 1, "labelName": label}
        for i, label in sorted(instances.items())
        if counts[i]
    ]
    label_of = np.zeros(len(counts), np.uint8)
    for entry in seen:
        label_of[entry["instanceId"]] = entry["labelId"]
    colours, label_colours = palette(len(counts) - 1, 0.15), palette(len(labels))
    sequence = folder / f"sequence.{number}"
    sequence.mkdir(parents=True)
    (sequence / "step0.camera.png").write_bytes(image)
    _write(sequence / "step0.camera.instance segmentation.png", colours[owner])
    _write(sequence / "step0.camera.semantic segmentation.png", label_colours[label_of[owner]])
    for entry in seen:
        entry["color"] = colours[entry["instanceId"]].tolist()
    frame = _frame(number, owner.shape, seen, labels, label_colours, counts, fov)
    (sequence / "step0.frame_data.json").write_text(json.dumps(frame), encoding="utf-8")


def _write(path: Path, rgba: NDArray[np.uint8]) -> None:
    encoded = cv2.imencode(".png", cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA), _FAST)[1]
    path.write_bytes(encoded.tobytes())


def _frame(
    number: int,
    shape: tuple[int, ...],
    seen: list[dict[str, Any]],
    labels: Sequence[str],
    label_colours: NDArray[np.uint8],
    counts: NDArray[np.int64],
    fov: float,
) -> dict[str, Any]:
    """The content of `step0.frame_data.json`."""
    dimension = [float(shape[1]), float(shape[0])]
    visible = sorted({entry["labelName"] for entry in seen})
    semantic = {
        **_header("SemanticSegmentationAnnotation", "semantic segmentation", _SEMANTIC, sensorId="camera"),
        "imageFormat": "Png",
        "dimension": dimension,
        "filename": "step0.camera.semantic segmentation.png",
        "instances": [
            {"labelName": name, "pixelValue": label_colours[labels.index(name) + 1].tolist()} for name in visible
        ],
    }
    instance = {
        **_header("InstanceSegmentationAnnotation", "instance segmentation", _INSTANCE, sensorId="camera"),
        "imageFormat": "Png",
        "dimension": dimension,
        "filename": "step0.camera.instance segmentation.png",
        "instances": seen,
    }
    capture = {
        **_header("RGBCamera", "camera", "The main camera"),
        "position": [0.0, 1.0, 0.0],
        "rotation": [0.70710678, 0.0, 0.0, 0.70710678],  # straight down
        "velocity": [0.0, 0.0, 0.0],
        "acceleration": [0.0, 0.0, 0.0],
        "filename": "step0.camera.png",
        "imageFormat": "Png",
        "dimension": dimension,
        "projection": "Orthographic",
        "matrix": [2000.0 / fov, 0.0, 0.0, 0.0, 2000.0 / fov, 0.0, 0.0, 0.0, -1.0],
        "annotations": [instance, semantic],
    }
    count = [
        {"labelId": k, "labelName": name, "count": sum(entry["labelId"] == k for entry in seen)}
        for k, name in enumerate(labels, start=1)
    ]
    info = [
        {
            "labelId": entry["labelId"],
            "instanceId": entry["instanceId"],
            "color": entry["color"],
            "visiblePixels": int(counts[entry["instanceId"]]),
        }
        for entry in seen
    ]
    sensor = {"sensorId": "camera", "annotationId": ""}
    metrics = [
        {**_header("RenderedObjectInfoMetric", "RenderedObjectInfo", _INFO, **sensor), "values": info},
        {**_header("ObjectCountMetric", "ObjectCount", _COUNT, **sensor), "values": count},
    ]
    return {"frame": number, "sequence": number, "step": 0, "captures": [capture], "metrics": metrics}


def _header(kind: str, name: str, description: str, **more: str) -> dict[str, Any]:
    return {"@type": _TYPE + kind, "id": name, **more, "description": description}


def write_definitions(folder: Path, labels: Sequence[str], sequences: int, seed: int) -> None:
    """Write the four definition files at the top of a SOLO dataset."""
    spec = [{"label_id": k, "label_name": name} for k, name in enumerate(labels, start=1)]
    colours = palette(len(labels))
    semantic_spec = [{"label_name": name, "pixel_value": colours[k].tolist()} for k, name in enumerate(labels, start=1)]
    instance = _header("InstanceSegmentationAnnotation", "instance segmentation", _INSTANCE)
    semantic = _header("SemanticSegmentationAnnotation", "semantic segmentation", _SEMANTIC)
    camera = {
        **_header("RGBCamera", "camera", "The main camera", modality="camera"),
        "firstCaptureFrame": 0.0,
        "captureTriggerMode": "Scheduled",
        "simulationDeltaTime": 0.0166,
        "framesBetweenCaptures": 0,
        "manualSensorsAffectTiming": False,
    }
    camera["definition"] = camera.pop("description")
    annotators = [instance, semantic]
    metadata = {
        "unityVersion": "none: rendered by oddpatch",
        "perceptionVersion": "0.10.0-preview.1",
        "renderPipeline": "oddpatch",
        "simulationStartTime": "1/1/1970 12:00:00 AM",  # the same run writes the same bytes
        "scenarioRandomSeed": seed,
        "scenarioActiveRandomizers": [],
        "totalFrames": sequences,
        "totalSequences": sequences,
        "sensors": ["camera"],
        "metricCollectors": ["ObjectCount", "RenderedObjectInfo"],
        "simulationEndTime": "1/1/1970 12:00:00 AM",
        "annotators": [{"name": entry["id"], "type": entry["@type"]} for entry in annotators],
    }
    metrics = [
        _header("ObjectCountMetric", "ObjectCount", _COUNT),
        _header("RenderedObjectInfoMetric", "RenderedObjectInfo", _INFO),
    ]
    files = {
        "annotation_definitions": {
            "annotationDefinitions": [{**instance, "spec": spec}, {**semantic, "spec": semantic_spec}]
        },
        "sensor_definitions": {"sensorDefinitions": [camera]},
        "metric_definitions": {"metricDefinitions": metrics},
        "metadata": metadata,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
