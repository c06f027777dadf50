"""Names that a dataset's own files give lead nowhere but into the dataset, and into the target."""

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oddpatch.data.layout import scan
from oddpatch.data.splits import follow
from oddpatch.datatools.converting import Item, Options, Plan, make_plans, write_plan
from oddpatch.datatools.from_unity import plan_unity
from oddpatch.datatools.masks import masks_by_label
from oddpatch.errors import DataError


def picture(path, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(path)
    return path


def refused(call, *told):
    with pytest.raises(DataError) as error:
        call()
    assert "\n" not in str(error.value)
    for text in told:
        assert text in str(error.value)


@pytest.fixture
def visa(tmp_path):
    """VisA with one object, and a secret beside it; writes the owner's list with one row changed."""
    base = tmp_path / "visa"
    for path in ("Images/Normal/0.png", "Images/Normal/1.png", "Images/Anomaly/2.png", "Masks/Anomaly/2.png"):
        picture(base / "candle/Data" / path)
    picture(tmp_path / "secret.png")

    def write(**changed):
        row = {"object": "candle", "split": "test", "label": "anomaly", "image": "candle/Data/Images/Anomaly/2.png"}
        row |= {"mask": "candle/Data/Masks/Anomaly/2.png", **changed}
        (base / "split_csv").mkdir(exist_ok=True)
        good = "candle,train,normal,candle/Data/Images/Normal/0.png,\n"
        text = ",".join(row[name] for name in ("object", "split", "label", "image", "mask"))
        (base / "split_csv/1cls.csv").write_text(f"object,split,label,image,mask\n{good}{text}\n")
        return base

    return write


def convert(base, target):
    for plan in make_plans("visa", base, Options()):
        write_plan(plan, target, base, "visa")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"image": "../secret.png"}, "leads out of"),
        ({"image": "/etc/hostname"}, "leads out of"),
        ({"image": "candle/../../secret.png"}, "leads out of"),
        ({"mask": "../secret.png"}, "leads out of"),
        ({"mask": "/etc/hostname"}, "leads out of"),
        ({"split": "../.."}, "neither train nor test"),
        ({"split": "/tmp"}, "neither train nor test"),
        ({"split": ""}, "neither train nor test"),
        ({"image": "candle/Data/link.png"}, "leads out of"),
        ({"image": "a\0b"}, ""),
    ],
)
def test_visa_reads_and_writes_nothing_outside(visa, tmp_path, changed, told):
    base = visa(**changed)
    (base / "candle/Data/link.png").symlink_to(tmp_path / "secret.png")
    before = sorted(tmp_path.rglob("*"))
    refused(lambda: convert(base, tmp_path / "out"), "1cls.csv", told)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == []


@pytest.mark.parametrize("content", [b"", b"object\ncandle\n", b"\xff\xfe", b"object,split,label,image,mask\ncandle\n"])
def test_a_damaged_list_is_one_line(visa, tmp_path, content):
    base = visa()
    (base / "split_csv/1cls.csv").write_bytes(content)
    refused(lambda: convert(base, tmp_path / "out"))


def test_the_owners_list_in_order_is_followed(visa, tmp_path):
    convert(visa(), tmp_path / "out")
    assert len(scan(tmp_path / "out", "candle").test) == 1


@pytest.mark.parametrize(
    ("split", "kind", "name"),
    [("../..", "good", "x.png"), ("train", "../../..", "x.png"), ("train", "good", "../../../../x.png")],
)
def test_no_plan_writes_outside_its_category(tmp_path, split, kind, name):
    image = picture(tmp_path / "source/0.png")
    plan = Plan("part", [Item(image, split, kind, name)])
    refused(lambda: write_plan(plan, tmp_path / "out", tmp_path / "source", "folder"), "leads out of")
    plan = Plan("../part", [Item(image, "train", "good", "0.png")])
    refused(lambda: write_plan(plan, tmp_path / "out", tmp_path / "source", "folder"), "leads out of")
    assert not (tmp_path / "out").exists()


def test_lists_and_boxes_of_deeppcb_that_are_no_text_are_one_line(tmp_path):
    picture(tmp_path / "group/0_temp.jpg")
    picture(tmp_path / "group/0_test.jpg")
    (tmp_path / "group_not").mkdir()
    for content in (b"\xff\xfe", "1 2 3 4 ²\n".encode(), b"1 2 3 4 " + b"9" * 5000, b"99999999999999999999 2 3 4 1"):
        (tmp_path / "group_not/0.txt").write_bytes(content)
        refused(lambda: make_plans("deeppcb", tmp_path, Options()), "0.txt")
    (tmp_path / "group_not/0.txt").write_text("1 2 3 4 1\n")
    (tmp_path / "trainval.txt").write_bytes(b"\xff")
    (tmp_path / "test.txt").write_text("../../0.jpg x\n")
    refused(lambda: make_plans("deeppcb", tmp_path, Options()), "trainval.txt")


def solo(folder, **changed):
    """A capture of Unity Perception with one instance."""
    picture(folder / "step0.camera.png")
    picture(folder / "step0.instance.png")
    instance = {"instanceId": 1, "labelName": "Crate", "color": [90, 90, 90, 255], **changed.pop("instance", {})}
    annotation = {
        "@type": "x.InstanceSegmentationAnnotation",
        "filename": "step0.instance.png",
        "instances": [instance],
    }
    capture = {"id": "camera", "filename": "step0.camera.png", "annotations": [annotation], **changed}
    (folder / "step0.frame_data.json").write_text(json.dumps({"captures": [capture]}))


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/hostname", "../secret.png"])
def test_unity_names_lie_beside_their_json(tmp_path, name):
    picture(tmp_path / "secret.png")
    folder = tmp_path / "solo/good/solo"
    solo(folder, filename=name)
    refused(lambda: plan_unity(tmp_path / "solo", "part"), "frame_data.json", "leads out of")
    refused(lambda: masks_by_label(tmp_path / "solo", tmp_path / "masks", ["Crate"]), "leads out of")
    solo(folder, annotations=[{"@type": "x.SemanticSegmentationAnnotation", "filename": name, "instances": []}])
    refused(lambda: plan_unity(tmp_path / "solo", "part"), "leads out of")


@pytest.mark.parametrize("number", ["../../../x", "a\0b"])
def test_a_mask_of_an_instance_stays_in_its_folder(tmp_path, number):
    solo(tmp_path / "solo", instance={"instanceId": number})
    refused(lambda: masks_by_label(tmp_path / "solo", tmp_path / "masks", ["Crate"], instances=True), "leads out of")
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "1", '{"captures": 1}'])
def test_malformed_captures_are_one_line(tmp_path, text):
    solo(tmp_path / "solo")
    (tmp_path / "solo/step0.frame_data.json").write_text(text)
    refused(lambda: plan_unity(tmp_path, "part"), "frame_data.json")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.json", "[" * 100_000),
        ("s.json", "[]"),
        ("s.json", '{"files": [1]}'),
        ("s.json", '{"files": [{"path": 1, "part": "train"}]}'),
        ("s.json", '{"files": [{"path": "../../secret.png", "part": "train"}]}'),
        ("s.json", '{"files": [{"path": "/etc/hostname", "part": "test"}]}'),
        ("s.csv", "path,part\n"),
        ("s.csv", "path,part\n../../secret.png,train\n"),
        ("s.csv", "part\ntrain\n"),
        ("s.csv", "path,part\n" + "x" * 200_000 + ",train\n"),
    ],
)
def test_a_manifest_names_images_of_its_category_only(tmp_path, name, text):
    picture(tmp_path / "secret.png")
    picture(tmp_path / "data/part/train/good/0.png")
    (tmp_path / name).write_text(text)
    with pytest.raises((DataError, ValueError)) as error:
        follow(scan(tmp_path / "data", "part"), tmp_path / "data/part", tmp_path / name)
    assert isinstance(error.value, ValueError)  # a DataError or a ConfigError, both are one line
    assert "\n" not in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("value", [["scratch"], {"a": 1}, None, 7, True])
@pytest.mark.parametrize("key", ["labelName", "filename"])
def test_labels_and_names_of_unity_are_texts(tmp_path, key, value):
    picture(tmp_path / "a.png")
    entry = {"instanceId": 1, "labelName": "scratch", "color": [1, 2, 3, 4], "pixelValue": [1, 2, 3, 4]}
    for kind in ("Semantic", "Instance"):
        annotation = {"@type": f"x.{kind}SegmentationAnnotation", "filename": "a.png", "instances": [entry]}
        place: Any = entry if key == "labelName" else annotation
        capture = {"@type": "x", "id": "c", "filename": "a.png", "annotations": [annotation]}
        path = tmp_path / "0.frame_data.json"
        path.write_text(json.dumps({"captures": [capture]}))
        assert len(plan_unity(tmp_path, "new", defects=["scratch"]).items) == 1
        sound, place[key] = place[key], value
        path.write_text(json.dumps({"captures": [capture]}))
        refused(lambda: plan_unity(tmp_path, "new", defects=["scratch"]), str(path), "is not what Unity Perception")
        place[key] = sound


@pytest.mark.parametrize("name", ["x" * 300, "\0"])
def test_names_that_no_file_can_have(tmp_path, name):
    picture(tmp_path / "good/a.png")
    path = tmp_path / "good/captures_0.json"
    path.write_text(json.dumps({"captures": [{"filename": name, "format": "PNG"}]}))
    (tmp_path / "good/annotation_definitions.json").write_text('{"annotation_definitions": []}')
    refused(lambda: plan_unity(tmp_path, "new"), str(path))
