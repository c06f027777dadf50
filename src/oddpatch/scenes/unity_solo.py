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
#: Name and description of what a data set defines, by its type.
_KINDS = {
    "RGBCamera": ("camera", "The main camera"),
    "InstanceSegmentationAnnotation": (
        "instance segmentation",
        "Produces an instance segmentation image: each labelled object in a colour of its own.",
    ),
    "SemanticSegmentationAnnotation": (
        "semantic segmentation",
        "Generates a semantic segmentation image: each object in the colour of its label.",
    ),
    "ObjectCountMetric": ("ObjectCount", "Produces object counts for each label."),
    "RenderedObjectInfoMetric": (
        "RenderedObjectInfo",
        "Produces label id, instance id and visible pixel count for each object that takes up at least one pixel.",
    ),
}
_ANNOTATIONS = ("InstanceSegmentationAnnotation", "SemanticSegmentationAnnotation")
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
    for entry in seen:
        entry["color"] = colours[entry["instanceId"]].tolist()
    visible = sorted({entry["labelName"] for entry in seen})
    shown = [{"labelName": name, "pixelValue": label_colours[labels.index(name) + 1].tolist()} for name in visible]

    sequence = folder / f"sequence.{number}"
    sequence.mkdir(parents=True)
    (sequence / "step0.camera.png").write_bytes(image)
    picture = {"imageFormat": "Png", "dimension": [float(owner.shape[1]), float(owner.shape[0])]}
    annotations = []
    for kind, rgba, found in zip(
        _ANNOTATIONS, (colours[owner], label_colours[label_of[owner]]), (seen, shown), strict=True
    ):
        name = f"step0.camera.{_KINDS[kind][0]}.png"
        encoded = cv2.imencode(".png", cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA), _FAST)[1]
        (sequence / name).write_bytes(encoded.tobytes())
        annotations.append({**_described(kind, sensorId="camera"), **picture, "filename": name, "instances": found})
    capture = {
        **_described("RGBCamera"),
        "position": [0.0, 1.0, 0.0],
        "rotation": [0.70710678, 0.0, 0.0, 0.70710678],  # straight down
        "velocity": [0.0, 0.0, 0.0],
        "acceleration": [0.0, 0.0, 0.0],
        "filename": "step0.camera.png",
        **picture,
        "projection": "Orthographic",
        "matrix": [2000.0 / fov, 0.0, 0.0, 0.0, 2000.0 / fov, 0.0, 0.0, 0.0, -1.0],
        "annotations": annotations,
    }
    values = {
        "RenderedObjectInfoMetric": [
            {name: entry[name] for name in ("labelId", "instanceId", "color")}
            | {"visiblePixels": int(counts[entry["instanceId"]])}
            for entry in seen
        ],
        "ObjectCountMetric": [
            {"labelId": k, "labelName": name, "count": sum(entry["labelId"] == k for entry in seen)}
            for k, name in enumerate(labels, start=1)
        ],
    }
    metrics = [
        {**_described(kind, sensorId="camera", annotationId=""), "values": found} for kind, found in values.items()
    ]
    frame = {"frame": number, "sequence": number, "step": 0, "captures": [capture], "metrics": metrics}
    (sequence / "step0.frame_data.json").write_text(json.dumps(frame), encoding="utf-8")


def _described(kind: str, **more: str) -> dict[str, Any]:
    name, description = _KINDS[kind]
    return {"@type": _TYPE + kind, "id": name, **more, "description": description}


def write_definitions(folder: Path, labels: Sequence[str], sequences: int, seed: int) -> None:
    """Write the four definition files at the top of a SOLO dataset."""
    colours = palette(len(labels))
    specs = (
        [{"label_id": k, "label_name": name} for k, name in enumerate(labels, start=1)],
        [{"label_name": name, "pixel_value": colours[k].tolist()} for k, name in enumerate(labels, start=1)],
    )
    annotators = [{**_described(kind), "spec": spec} for kind, spec in zip(_ANNOTATIONS, specs, strict=True)]
    camera = {
        **_described("RGBCamera", modality="camera"),
        "firstCaptureFrame": 0.0,
        "captureTriggerMode": "Scheduled",
        "simulationDeltaTime": 0.0166,
        "framesBetweenCaptures": 0,
        "manualSensorsAffectTiming": False,
    }
    camera["definition"] = camera.pop("description")
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
    files = {
        "annotation_definitions": {"annotationDefinitions": annotators},
        "sensor_definitions": {"sensorDefinitions": [camera]},
        "metric_definitions": {
            "metricDefinitions": [_described("ObjectCountMetric"), _described("RenderedObjectInfoMetric")]
        },
        "metadata": metadata,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
