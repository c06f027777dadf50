import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from narrowing import stand_in

from oddpatch.errors import ConfigError, DataError
from oddpatch.scenes import SCENES, dataset, load_scene, render_dataset
from oddpatch.scenes.dataset import Job, design_scene, render_one
from oddpatch.scenes.unity_solo import palette

SIZE = 128
COUNTS: dict[str, Any] = {"train": 3, "test_good": 2, "test_per_defect": 2, "size": SIZE, "seed": 5}
DEFECTS = [
    ("pcb", "missing_objects"),
    ("pcb", "misplaced_objects"),
    ("pcb", "solder_bridge"),
    ("pcb", "scratch"),
    ("toolbox", "missing_objects"),
    ("toolbox", "misplaced_objects"),
]


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    return render_dataset(tmp_path_factory.mktemp("rendering") / "board", "pcb", **COUNTS, workers=1)


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    return cv2.dilate(mask, np.ones((2 * pixels + 1,) * 2, np.uint8)) > 0


def read(path: Path) -> np.ndarray:
    image = np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else 4)


@pytest.mark.slow
def test_same_bytes_whatever_the_workers(board, tmp_path):
    again = render_dataset(tmp_path / "again", "pcb", **COUNTS, workers=2)
    assert digests(again) == digests(board)


def test_seed_changes_the_design_and_the_specimens(board):
    first, second = (design_scene("toolbox", SIZE, seed) for seed in (0, 1))
    assert [slot.look for slot in first.slots] != [slot.look for slot in second.slots]
    jobs = [Job("train", "good", 0), Job("train", "good", 1), Job("test", "good", 0)]
    images = [render_one(first, 0, job).image for job in jobs]
    images.append(render_one(first, 1, jobs[0]).image)  # of the same design
    assert len({image.tobytes() for image in images}) == 4


def test_layout_and_names(board):
    assert sorted(path.name for path in board.iterdir()) == ["ground_truth", "test", "train", "unity_solo"]
    stems = ["step0.camera_solo", "step0.camera_solo_1", "step0.camera_solo_2"]
    defect_types = ["misplaced_objects", "missing_objects", "scratch", "solder_bridge"]
    assert sorted(path.name for path in (board / "train/good").iterdir()) == [f"{stem}.png" for stem in stems]
    assert sorted(path.name for path in (board / "test").iterdir()) == sorted(["good", *defect_types])
    assert sorted(path.name for path in (board / "ground_truth").iterdir()) == defect_types
    for defect_type in defect_types:
        images = sorted(path.name for path in (board / "test" / defect_type).iterdir())
        masks = sorted(path.name for path in (board / "ground_truth" / defect_type).iterdir())
        assert images == [f"{stem}.png" for stem in stems[:2]]
        assert masks == sorted(f"{stem}_mask.png" for stem in stems[:2])


def test_images_and_masks_as_mvtec_stores_them(board):
    for path in [*board.glob("train/*/*.png"), *board.glob("test/*/*.png")]:
        image = read(path)
        assert image.shape == (SIZE, SIZE, 3)
        assert image.dtype == np.uint8
        assert 40 < image.mean() < 200
        assert (image == 255).mean() < 0.02
    for path in board.glob("ground_truth/*/*.png"):
        mask = read(path)
        assert mask.shape == (SIZE, SIZE)
        assert set(np.unique(mask)) == {0, 255}
        edge = SIZE // 16
        assert not mask.sum() - mask[edge:-edge, edge:-edge].sum(dtype=np.int64), "outside a crop to 224 of 256"


@pytest.mark.parametrize(("scene", "defect_type"), DEFECTS)
@pytest.mark.parametrize("index", range(3))
def test_mask_is_where_the_part_is_wrong(scene, defect_type, index):
    design, job = design_scene(scene, SIZE, 5), Job("test", defect_type, index)
    bad, good = render_one(design, 5, job), render_one(design, 5, job, spoil=False)
    mask = bad.mask > 0
    assert 2 <= mask.sum() < 0.25 * mask.size
    assert not good.mask.any()
    assert not (bad.owner != good.owner)[~mask].any(), "an object changed outside the mask"
    changed = (bad.image != good.image).any(-1)
    # Marks cast no shadow: only the lens spreads them. Objects do, so that their surroundings change with them.
    spread = 3 if defect_type in ("solder_bridge", "scratch") else int(0.08 * SIZE)
    assert not (changed & ~grown(bad.mask, spread)).any(), "the image changed outside the mask"
    visibly = np.abs(bad.image.astype(int) - good.image).max(-1) > 2
    assert visibly[mask].mean() > 0.7, "much of the mask shows no change"


@pytest.mark.parametrize("scene", ["pcb", "toolbox"])
def test_mask_of_a_missing_object_is_its_footprint(scene):
    design, job = design_scene(scene, SIZE, 5), Job("test", "missing_objects", 0)
    bad, good = render_one(design, 5, job), render_one(design, 5, job, spoil=False)
    gone = set(good.instances) - set(bad.instances)
    assert gone
    assert np.array_equal(bad.mask > 0, np.isin(good.owner, list(gone)))
    assert not np.isin(bad.owner, list(gone)).any()


def test_mask_of_a_misplaced_object_is_where_it_is_and_where_it_should_be():
    design = design_scene("toolbox", SIZE, 5)
    for index in range(4):
        job = Job("test", "misplaced_objects", index)
        bad, good = render_one(design, 5, job), render_one(design, 5, job, spoil=False)
        assert bad.instances == good.instances
        moved = [i for i in good.instances if not np.array_equal(bad.owner == i, good.owner == i)]
        assert np.array_equal(bad.mask > 0, np.isin(bad.owner, moved) | np.isin(good.owner, moved))


def test_mark_is_labelled_and_its_instance_is_the_mask():
    design = design_scene("pcb", SIZE, 5)
    for defect_type in ("solder_bridge", "scratch"):
        rendered = render_one(design, 5, Job("test", defect_type, 0))
        marks = [i for i, label in rendered.instances.items() if label == defect_type]
        assert np.array_equal(rendered.mask > 0, np.isin(rendered.owner, marks))


def test_board_has_many_kinds_of_components():
    for seed in range(3):
        assert len({slot.label for slot in design_scene("pcb", SIZE, seed).slots}) >= 8
    assert len({slot.label for slot in design_scene("toolbox", SIZE, 0).slots}) >= 6


def test_solo_counts_equal_the_pixels(board):
    solo = board / "unity_solo" / "test_scratch"
    for sequence in solo.glob("sequence.*"):
        frame = json.loads((sequence / "step0.frame_data.json").read_text())
        (capture,) = frame["captures"]
        assert capture["filename"] == "step0.camera.png"
        assert capture["dimension"] == [SIZE, SIZE]
        annotations = {entry["@type"].rsplit(".", 1)[1]: entry for entry in capture["annotations"]}
        metrics = {entry["id"]: entry["values"] for entry in frame["metrics"]}
        instance = annotations["InstanceSegmentationAnnotation"]
        pixels = read(sequence / instance["filename"])
        semantic = annotations["SemanticSegmentationAnnotation"]
        classes = read(sequence / semantic["filename"])
        assert pixels.shape == classes.shape == (SIZE, SIZE, 4)
        colour_of_label = {entry["labelName"]: entry["pixelValue"] for entry in semantic["instances"]}
        assert "scratch" in colour_of_label
        visible = {entry["instanceId"]: entry["visiblePixels"] for entry in metrics["RenderedObjectInfo"]}
        assert set(visible) == {entry["instanceId"] for entry in instance["instances"]}
        covered = 0
        for entry in instance["instances"]:
            here = (pixels == entry["color"]).all(-1)
            assert here.sum() == visible[entry["instanceId"]] > 0
            assert (classes[here] == colour_of_label[entry["labelName"]]).all()
            covered += here.sum()
        assert (pixels[..., :3] == 0).all(-1).sum() == SIZE * SIZE - covered
        for count in metrics["ObjectCount"]:
            found = [entry for entry in instance["instances"] if entry["labelId"] == count["labelId"]]
            assert count["count"] == len(found)
            assert {entry["labelName"] for entry in found} <= {count["labelName"]}


def test_solo_scratch_label_is_the_mask(board):
    sequence = board / "unity_solo/test_scratch/sequence.1"
    frame = json.loads((sequence / "step0.frame_data.json").read_text())
    semantic = frame["captures"][0]["annotations"][1]
    (colour,) = [entry["pixelValue"] for entry in semantic["instances"] if entry["labelName"] == "scratch"]
    mask = read(board / "ground_truth/scratch/step0.camera_solo_1_mask.png") > 0
    assert np.array_equal((read(sequence / semantic["filename"]) == colour).all(-1), mask)


def test_solo_folder_is_a_dataset_of_its_own(board):
    for group, count in (("train_good", 3), ("test_good", 2), ("test_scratch", 2)):
        solo = board / "unity_solo" / group
        metadata = json.loads((solo / "metadata.json").read_text())
        assert metadata["totalSequences"] == metadata["totalFrames"] == count == len(list(solo.glob("sequence.*")))
        definitions = json.loads((solo / "annotation_definitions.json").read_text())["annotationDefinitions"]
        assert {entry["id"] for entry in definitions} == {"instance segmentation", "semantic segmentation"}
        assert json.loads((solo / "sensor_definitions.json").read_text())["sensorDefinitions"][0]["id"] == "camera"
        assert json.loads((solo / "metric_definitions.json").read_text())["metricDefinitions"]
    images = sorted((board / "train/good").glob("*.png"))
    for number, image in enumerate(images):
        copy = board / "unity_solo/train_good" / f"sequence.{number}" / "step0.camera.png"
        assert image.read_bytes() == copy.read_bytes()


def test_solo_has_the_fields_of_the_real_thing(board):
    real = Path(__file__).parents[2] / "../shared/data/unity_solo"
    if not real.exists():
        pytest.skip("the sample of Unity Perception is not at ../shared/data/unity_solo")
    ours = board / "unity_solo/test_scratch"

    def fields(node: object, prefix: str = "") -> set[str]:
        if isinstance(node, dict):
            return {f"{prefix}.{key}" for key in node} | {
                field for key, value in node.items() for field in fields(value, f"{prefix}.{key}")
            }
        if isinstance(node, list):
            return {field for value in node for field in fields(value, prefix)}
        return set()

    name = "sequence.0/step0.frame_data.json"
    theirs, mine = (json.loads((root / name).read_text()) for root in (real, ours))
    for kind in ("InstanceSegmentationAnnotation", "SemanticSegmentationAnnotation"):
        pair = [
            fields(entry)
            for frame in (theirs, mine)
            for entry in frame["captures"][0]["annotations"]
            if entry["@type"].endswith(kind)
        ]
        assert pair[0] == pair[1]
    for kind in ("RenderedObjectInfo", "ObjectCount"):
        pair = [fields(entry) for frame in (theirs, mine) for entry in frame["metrics"] if entry["id"] == kind]
        assert pair[0] == pair[1]
    assert set(theirs) == set(mine)
    assert set(theirs["captures"][0]) == set(mine["captures"][0])
    for name in ("metadata.json", "sensor_definitions.json"):
        assert fields(json.loads((real / name).read_text())) == fields(json.loads((ours / name).read_text()))


def test_refuses_a_folder_with_something_in_it(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not an empty folder"):
        render_dataset(tmp_path, "toolbox", **COUNTS, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_leaves_nothing_behind_when_stopped(tmp_path, error):
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append([path.name for path in tmp_path.iterdir()])
        if done == 2:
            raise error

    with pytest.raises(error):
        render_dataset(tmp_path / "board", "pcb", **COUNTS, workers=1, progress=stop)
    assert "board" not in seen[-1], "the folder appeared before it was complete"
    assert list(tmp_path.iterdir()) == []


def test_takes_an_empty_folder_and_tells_progress(tmp_path):
    told = []
    (tmp_path / "tray").mkdir()
    counts = {**COUNTS, "train": 1, "test_good": 0, "test_per_defect": 1}
    root = render_dataset(tmp_path / "tray", "toolbox", **counts, progress=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [path.name for path in tmp_path.iterdir()] == ["tray"]
    assert not (root / "test/good").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": -1}, "train=-1"),
        ({"size": 20}, "size=20"),
        ({"workers": 0}, "workers=0"),
        ({"train": 0, "test_good": 0, "test_per_defect": 0}, "all 0"),
    ],
)
def test_wrong_settings(tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        render_dataset(tmp_path / "board", "pcb", **{**COUNTS, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_scenes_are_found_by_their_modules():
    assert set(SCENES) >= {"pcb", "toolbox"}
    for name in SCENES:
        assert {"missing_objects", "misplaced_objects"} <= set(design_scene(name, SIZE, 5).defects)
    with pytest.raises(ConfigError, match="choose one of pcb, toolbox"):
        load_scene("kitchen")


def test_a_defect_that_no_specimen_shows_is_refused():
    scene = stand_in(
        size=8, owners=lambda specimen, camera: np.zeros((8, 8), np.int64),
        defects={"crack": lambda good, rng: (good, {99})},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="size=8 is too small to show crack: choose a larger one"):
        dataset._spoiled(scene, stand_in(), "crack", stand_in(), np.random.default_rng(0))  # noqa: SLF001 - the step alone: what leads to it takes seconds


def test_more_instances_than_colours_are_refused():
    with pytest.raises(ValueError, match="1000 instances are more than the palette has colours for"):
        palette(1000)
