"""Masks out of segmentations: against pixel counts that the real files state, and against plain numpy."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REAL_DATA
from PIL import Image

from oddpatch.datatools import masks as module
from oddpatch.datatools.masks import label_job, masks_by_colour, masks_by_label
from oddpatch.datatools.unity import Capture, read_recording
from oddpatch.errors import ConfigError, DataError
from oddpatch.scenes import render_dataset

SOLO, LEGACY = REAL_DATA / "unity_solo", REAL_DATA / "unity_legacy"
SPELT = ("semantic_segmentation", "sementic_segmantation")  # the real files differ from their JSON

real = [
    pytest.mark.real,
    pytest.mark.skipif(not SOLO.is_dir() or not LEGACY.is_dir(), reason="needs the real Unity samples"),
]


def read(path):
    return np.asarray(Image.open(path))


class TestRealSolo:
    pytestmark = real

    def test_label_has_the_pixels_the_json_counts(self, tmp_path):
        report = masks_by_label(SOLO, tmp_path, ["Crate"])
        assert report.pixels == [35950 + 47768]
        mask = read(report.masks[0])
        truth = read(SOLO / "sequence.0/step0.camera.semantic segmentation.png")
        assert report.masks == [tmp_path / "sequence.0/step0.camera_mask.png"]
        assert set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(mask > 0, (truth == [0, 255, 43, 255]).all(-1))
        assert "sequence.1" in report.problems[0]  # the real file names no segmentation

    def test_instances(self, tmp_path):
        report = masks_by_label(SOLO, tmp_path, ["Crate"], instances=True)
        assert dict(zip([p.name for p in report.masks], report.pixels, strict=True)) == {
            "step0.camera_instance3_mask.png": 35950,
            "step0.camera_instance2_mask.png": 47768,
        }
        assert len(masks_by_label(SOLO, tmp_path / "all", [], instances=True).masks) == 3

    def test_label_without_semantic_colour_comes_from_the_instances(self, tmp_path):
        assert masks_by_label(SOLO, tmp_path, ["Crate", "Character"]).pixels == [35950 + 47768 + 16777]
        assert masks_by_label(SOLO, tmp_path / "b", ["Box"]).pixels == [0]  # defined, not seen

    def test_unknown_label_lists_the_known(self, tmp_path):
        with pytest.raises(DataError, match="'Crat' is not known; known are Box, Character, Crate, Cube, Terrain"):
            masks_by_label(SOLO, tmp_path, ["Crat"])


class TestRealLegacy:
    pytestmark = real

    def test_misspelt_file_lists_what_is_there(self, tmp_path):
        expected = r"semantic_segmentation_000.png: no such file.*sementic_segmantation_000.png \(48093 bytes\)"
        with pytest.raises(DataError, match=expected):
            masks_by_label(LEGACY, tmp_path / "out", ["car"])
        assert not (tmp_path / "out").exists()

    def test_empty_file(self, tmp_path):
        with pytest.raises(DataError, match=r"instance_segmantation_000.png: the file is empty \(0 bytes\)"):
            masks_by_label(LEGACY, tmp_path, ["car"], rename=(SPELT[0], "instance_segmantation"))

    def test_class_indices(self, tmp_path):
        report = masks_by_label(LEGACY, tmp_path, ["car", "bus"], rename=SPELT)
        for k, path in enumerate(report.masks):
            truth = read(LEGACY / f"annotations/sementic_segmantation_00{k}.png")
            np.testing.assert_array_equal(read(path) > 0, np.isin(truth, [13, 15]))
        assert len(report.masks) == 2

    def test_skip_goes_on_and_says_so(self, tmp_path):
        root = tmp_path / "legacy"
        shutil.copytree(LEGACY, root)
        (root / "annotations").chmod(0o755)
        shutil.copy(
            LEGACY / "annotations/sementic_segmantation_000.png", root / "annotations/semantic_segmentation_000.png"
        )
        report = masks_by_label(root, tmp_path / "out", ["road"], skip=True)
        assert report.pixels == [4034]
        assert "semantic_segmentation_001.png: no such file" in report.problems[0]


def test_legacy_colours_and_instances(tmp_path):
    """The form real versions write: colours as floats, instance colours as bytes, labels told by the boxes."""
    folder = tmp_path / "Dataset1"
    folder.mkdir()
    semantic = np.tile(np.array([0, 0, 0, 255], np.uint8), (4, 6, 1))
    semantic[1, 2:4] = [255, 128, 0, 255]
    instance = np.zeros((4, 6, 4), np.uint8)
    instance[1, 2], instance[1, 3] = [1, 0, 0, 255], [2, 0, 0, 255]
    for name, array in (("semantic", semantic), ("instance", instance)):
        Image.fromarray(array.astype(np.uint8)).save(tmp_path / f"{name}.png")
    colour = {"r": 1.0, "g": 128 / 255, "b": 0.0, "a": 1.0}
    definitions = [
        {"id": "s", "spec": [{"label_name": "nail", "pixel_value": colour}]},
        {"id": "i", "spec": [{"label_id": 1, "label_name": "nail"}]},
        {"id": "b", "spec": [{"label_id": 1, "label_name": "nail"}]},
    ]
    values = [{"instance_id": k, "color": {"r": k, "g": 0, "b": 0, "a": 255}} for k in (1, 2)]
    boxes = [{"instance_id": k, "label_name": "nail"} for k in (1, 2)]
    annotations = [
        {"annotation_definition": "s", "filename": "semantic.png"},
        {"annotation_definition": "i", "filename": "instance.png", "values": values},
        {"annotation_definition": "b", "values": boxes},
    ]
    captures = [{"filename": "rgb.png", "format": "PNG", "annotations": annotations}]
    (folder / "annotation_definitions.json").write_text(json.dumps({"annotation_definitions": definitions}))
    (folder / "captures_000.json").write_text(json.dumps({"captures": captures}))
    assert masks_by_label(tmp_path, tmp_path / "a", ["nail"]).pixels == [2]
    assert masks_by_label(tmp_path, tmp_path / "b", ["nail"], instances=True).pixels == [1, 1]
    (folder / "annotation_definitions.json").unlink()
    with pytest.raises(DataError, match=r"annotation_definitions\.json: not found, but .*Dataset1 has captures_"):
        masks_by_label(tmp_path, tmp_path / "c", ["nail"])


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("r") / "pcb"
    return render_dataset(root, "pcb", train=2, test_good=0, test_per_defect=0, size=96, workers=1) / "unity_solo"


def test_every_label_of_rendered_captures_agrees_with_the_renderer(rendered, tmp_path):
    recording = read_recording(rendered)
    for label in sorted({instance.label for instance in recording.captures[0].instances}):
        assert masks_by_label(rendered, tmp_path / label, [label]).problems == []


def test_wrong_count_is_reported(rendered, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(rendered, copy)
    path = next(copy.rglob("*frame_data.json"))
    frame = json.loads(path.read_text())
    info = frame["metrics"][0]["values"][0]
    info["visiblePixels"] += 1
    path.write_text(json.dumps(frame))
    label = next(
        i["labelName"]
        for i in frame["captures"][0]["annotations"][0]["instances"]
        if i["instanceId"] == info["instanceId"]
    )
    assert "but the renderer counted" in masks_by_label(copy, tmp_path / "out", [label]).problems[0]


def test_a_capture_without_instance_segmentation_is_said(rendered, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(rendered, copy)
    path = min(copy.rglob("*frame_data.json"))
    frame = json.loads(path.read_text())
    annotations = frame["captures"][0]["annotations"]
    annotations[:] = [one for one in annotations if "Semantic" in one["@type"]]
    path.write_text(json.dumps(frame))
    report = masks_by_label(copy, tmp_path / "out", [], instances=True, dry_run=True)
    (problem,) = report.problems
    assert problem.startswith(str(path.parent / "step0.camera.png"))
    assert "names no instance segmentation" in problem


def test_colours_with_tolerance_against_numpy(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 8, (20, 30, 3), np.uint8)
    (tmp_path / "in/sub").mkdir(parents=True)
    Image.fromarray(rgb).save(tmp_path / "in/sub/a.png")
    report = masks_by_colour(tmp_path / "in", tmp_path / "out", [(1, 2, 3), (6, 6, 6)], tolerance=2)
    near = [(np.abs(rgb.astype(int) - c) <= 2).all(-1) for c in ([1, 2, 3], [6, 6, 6])]
    np.testing.assert_array_equal(read(tmp_path / "out/sub/a_mask.png") > 0, near[0] | near[1])
    assert report.pixels == [int((near[0] | near[1]).sum())]
    with pytest.raises(DataError, match="--force"):
        masks_by_colour(tmp_path / "in", tmp_path / "out", [(1, 2, 3)])
    with pytest.raises(ConfigError, match="300"):
        masks_by_colour(tmp_path / "in", tmp_path / "out", [(1, 300, 3)])


@pytest.mark.parametrize(("defect", "background"), [((0, 0, 0), (255, 255, 255)), ((255, 255, 0), (60, 0, 80))])
def test_masks_of_other_colours_are_written_anew_under_their_names(tmp_path, defect, background):
    wanted = np.random.default_rng(0).random((12, 10)) < 0.2
    (tmp_path / "ground_truth/hole").mkdir(parents=True)
    for name in ("a_mask", "b"):
        picture = np.where(wanted[..., None], defect, background).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / f"ground_truth/hole/{name}.png")
    report = masks_by_colour(tmp_path / "ground_truth", tmp_path / "new", [defect])
    assert report.masks == [tmp_path / f"new/hole/{name}_mask.png" for name in ("a", "b")]
    assert all(np.array_equal(read(path), np.where(wanted, 255, 0)) for path in report.masks)


def test_linked_folders_and_what_is_left_out(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "elsewhere/a.png")
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/b").touch()
    for _ in range(2):  # what it wrote is not among it
        report = masks_by_colour(tmp_path / "in", tmp_path / "in/out", [(0, 0, 0)], force=True)
        assert report.masks == [tmp_path / "in/out/linked/a_mask.png"]
        assert report.problems == [f"1 left out, no suffix: {tmp_path}/in/b"]


def test_dry_run_writes_nothing(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    assert masks_by_colour(tmp_path / "a.png", tmp_path / "out", [(0, 0, 0)], dry_run=True).pixels == [16]
    assert not (tmp_path / "out").exists()


def test_segmentations_of_two_sizes_are_refused(tmp_path):
    for name, size in (("a", 8), ("b", 9)):
        Image.fromarray(np.zeros((size, 8, 3), np.uint8)).save(tmp_path / f"{name}.png")
    sources: Any = [(tmp_path / "a.png", []), (tmp_path / "b.png", [])]
    job = module._Job(tmp_path / "out.png", sources, colour=True)  # noqa: SLF001 - the step alone: what leads to it takes seconds
    with pytest.raises(DataError, match=r"a\.png and .*b\.png differ in size: render them again"):
        job.mask()


def test_a_capture_without_a_segmentation_is_refused():
    capture = Capture(Path("a.png"), None, {}, None, [])
    with pytest.raises(DataError, match=r"a\.png: has no segmentation: add a segmentation labeler .*--skip"):
        label_job(capture, ["crack"], Path("mask.png"))
