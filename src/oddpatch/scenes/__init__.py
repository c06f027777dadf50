"""Synthetic inspection datasets in MVTec layout, rendered deterministically: for when there is no data yet.

A scene is a module `scene_<name>.py` of this package with a class `Scene`; there is no list to add it to.
"""

from oddpatch.scenes.dataset import SCENES, check_absent, defect_counts, load_scene, render_dataset

__all__ = ["SCENES", "check_absent", "defect_counts", "load_scene", "render_dataset"]
