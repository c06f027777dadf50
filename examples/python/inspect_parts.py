"""Inspect images with an artifact of `oddpatch export`: python inspect_parts.py model.onnx part.png more/*.png."""

import sys

from oddpatch import AnomalyDetector

detector = AnomalyDetector.load(sys.argv[1])  # torch is not loaded
for path in sys.argv[2:]:
    result = detector(path)
    boxes = [region.box for region in result.regions]  # left, top, width, height in the pixels of the file
    print(f"{path}: score {result.score:.6g}, anomalous: {result.is_anomalous}, regions: {boxes}")
