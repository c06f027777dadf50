"""Unity captures to MVTec layout: naming and pairing by property, the rest on rendered captures."""

from pathlib import Path, PurePath

import numpy as np
import pytest
from conftest import REAL_DATA
from hypothesis import given
from hypothesis import strategies as st
from narrowing import present
from PIL import Image

from oddpatch.data.layout import scan
from oddpatch.data.pairing import MASK_SUFFIX, pair_masks
from oddpatch.datatools.converting import write_plan
from oddpatch.datatools.from_unity import capture_names, plan_unity
from oddpatch.datatools.unity import read_recording
from oddpatch.errors import DataError
from oddpatch.scenes import render_dataset

folders = st.sampled_from(["solo", "solo_1", "Solo", "solo_sequence1", "a", "a_b", "b"])
sequences = st.integers(0, 3).map("sequence.{}".format)
files = st.sampled_from(["step0.camera.png", "step1.camera.png", "step0.camera_mask.png", "step0.png"])
captures = st.lists(
    st.tuples(st.lists(folders, max_size=2), st.lists(sequences, max_size=1), files).map(
        lambda parts: PurePath(*parts[0], *parts[1], parts[2])
    ),
    min_size=1,
    max_size=15,
    unique=True,
)


@given(captures, st.randoms())
def test_names_are_unique_independent_of_order_and_pair_with_their_masks(paths, random):
    try:
        names = capture_names(paths)
    except DataError:
        assert len(paths) > 1
        return
    shuffled = list(paths)
    random.shuffle(shuffled)
    assert capture_names(shuffled) == names
    images = list(names.values())
    assert len({name.casefold() for name in images}) == len(paths)
    masks = [f"{PurePath(name).stem}{MASK_SUFFIX}.png" for name in images]
    paired = pair_masks(Path("i"), sorted(images), Path("m"), sorted(masks))
    assert {image: mask.name for image, mask in paired.items()} == dict(zip(images, masks, strict=True))


def test_names_are_unitys():
    paths = [PurePath(f"solo{k}/sequence.0/step0.camera.png") for k in ("", "_1", "_2")]
    assert list(capture_names(paths).values()) == [f"step0.camera_solo{k}.png" for k in ("", "_1", "_2")]
    paths = [PurePath(f"sequence.{k}/step0.camera.png") for k in range(2)]
    assert list(capture_names(paths).values()) == ["step0.camera_solo.png", "step0.camera_solo_1.png"]
    with pytest.raises(DataError, match="rename one folder"):
        capture_names([PurePath("a/b/x.png"), PurePath("a_b/x.png")])


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("r") / "pcb"
    return render_dataset(root, "pcb", train=3, test_good=2, test_per_defect=2, size=96, workers=1)


def test_folders_tell(rendered, tmp_path):
    """The captures beside a rendered dataset give the same dataset back."""
    source = rendered / "unity_solo"
    write_plan(plan_unity(source, "pcb"), tmp_path, source, "unity")
    for split in ("train", "test"):
        made = {p.relative_to(tmp_path / "pcb"): p for p in (tmp_path / "pcb" / split).rglob("*.png")}
        truth = {p.relative_to(rendered): p for p in (rendered / split).rglob("*.png")}
        assert made.keys() == truth.keys()
        assert all(made[name].read_bytes() == truth[name].read_bytes() for name in truth)


def test_labels_tell(rendered, tmp_path):
    source = rendered / "unity_solo"
    recording = read_recording(source)
    everywhere = set.intersection(*({i.label for i in c.instances} for c in recording.captures))
    defect = next(label for label in sorted(recording.labels - everywhere) if _share(recording, label))
    plan = plan_unity(source / "test_good" / "..", "pcb", defects=[defect], test_share=0.0)
    expected = {c.image.resolve() for c in recording.captures if any(i.label == defect for i in c.instances)}
    assert {item.source.resolve() for item in plan.items if item.split == "test"} == expected
    assert {item.defect_type for item in plan.items} == {"good", defect}


def _share(recording, label):
    return 0 < sum(any(i.label == label for i in c.instances) for c in recording.captures) < len(recording.captures)


def test_nothing_tells(rendered):
    with pytest.raises(DataError, match="nothing tells whether it is good"):
        plan_unity(rendered / "unity_solo" / "train_good", "pcb")
    with pytest.raises(DataError, match="'nail' is not known"):
        plan_unity(rendered / "unity_solo", "pcb", defects=["nail"])


@pytest.fixture
def partly_segmented(rendered, tmp_path):
    """Captures of which one good one has no segmentation."""
    import json
    import shutil

    shutil.copytree(rendered / "unity_solo", tmp_path / "captures")
    frame = sorted(tmp_path.glob("captures/train_good/**/*frame_data.json"))[0]
    content = json.loads(frame.read_text())
    for capture in content["captures"]:
        capture["annotations"] = []
    frame.write_text(json.dumps(content))
    return tmp_path / "captures", frame.parent


def test_captures_without_segmentation_are_skipped_if_asked_and_counted(partly_segmented):
    source, folder = partly_segmented
    label = sorted(read_recording(source).labels)[0]
    with pytest.raises(DataError, match="or leave such captures out by --skip"):
        plan_unity(source, "pcb", defects=[label])
    plan = plan_unity(source, "pcb", defects=[label], skip=True)
    (left_out,) = plan.left_out
    assert (left_out.path.parent, left_out.reason) == (folder, "no segmentation")
    assert len(plan.items) == len(read_recording(source).captures) - 1
    assert plan_unity(source, "pcb", skip=True).left_out == []  # folders tell: none is needed


def test_good_by_other_names(rendered, tmp_path):
    for path in (rendered / "unity_solo").iterdir():
        (tmp_path / path.name.replace("train_good", "train_OK")).symlink_to(path)
    with pytest.raises(DataError, match="OK and good both mean good parts by their names"):
        plan_unity(tmp_path, "pcb")
    (tmp_path / "test_good").rename(tmp_path / "test_OK")
    kinds = {(item.split, item.defect_type) for item in plan_unity(tmp_path, "pcb").items}
    assert {("train", "good"), ("test", "good")} <= kinds
    assert not {kind for _, kind in kinds} & {"OK"}


@pytest.mark.real
@pytest.mark.skipif(not (REAL_DATA / "unity_solo").is_dir(), reason="needs the real Unity sample")
def test_real_sample(tmp_path):
    for kind, folder in (("good", "sequence.1"), ("crate_seen", "sequence.0")):
        (tmp_path / kind / "solo").mkdir(parents=True)
        (tmp_path / kind / "solo" / folder).symlink_to(REAL_DATA / "unity_solo" / folder)
    plan = plan_unity(tmp_path, "crates", masks=["Crate"])
    write_plan(plan, tmp_path / "out", tmp_path, "unity")
    found = scan(tmp_path / "out", "crates")
    assert [s.path.name for s in found.train + found.test] == ["step0.camera_solo.png"] * 2
    assert (np.asarray(Image.open(present(found.test[0].mask_path))) > 0).sum() == 35950 + 47768


@pytest.mark.real
@pytest.mark.skipif(not (REAL_DATA / "unity_solo").is_dir(), reason="needs the real Unity sample")
def test_real_sample_as_it_is():
    plan = plan_unity(REAL_DATA / "unity_solo", "crates", defects=["Crate"], skip=True)
    assert len(plan.items) + len(plan.left_out) == len(read_recording(REAL_DATA / "unity_solo").captures)
    assert {item.reason for item in plan.left_out} == {"no segmentation"}
