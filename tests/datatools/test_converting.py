"""Converters: made-up sources in each published layout, and the real DeepPCB group."""

import csv
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import REAL_DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from narrowing import present
from PIL import Image

from oddpatch.data.layout import scan
from oddpatch.datatools.converting import KINDS, Options, deviations, make_plans, write_plan
from oddpatch.errors import ConfigError, DataError

DEEPPCB = REAL_DATA / "deeppcb" / "PCBData"


def picture(path, value=90, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size[::-1], value, np.uint8)).save(path)


def convert(kind, source, target, **options):
    plans = make_plans(kind, source, Options(**options))
    for plan in plans:
        write_plan(plan, target, source, kind)
    return {plan.category: scan(target, plan.category) for plan in plans}


def tally(samples):
    return {t: sum(s.defect_type == t for s in samples) for t in sorted({s.defect_type for s in samples})}


@pytest.fixture
def deeppcb(tmp_path):
    base = tmp_path / "PCBData/group1"
    for k, text in enumerate(["1 2 3 4 1\n", "1,1,2,2,3\n5 0 9 1 3", "0 0 1 1 6\n3 3 4 4 1\n", "6 4 2 3 2"]):
        for kind in ("temp", "test"):
            picture(base / f"1/1{k}_{kind}.jpg")
        (base / "1_not").mkdir(exist_ok=True)
        (base / f"1_not/1{k}.txt").write_text(text)
    return tmp_path / "PCBData"


def test_deeppcb_boxes_and_types(deeppcb, tmp_path):
    found = convert("deeppcb", deeppcb, tmp_path / "out", test_share=0.25)["deeppcb"]
    assert len(found.train) == 3
    assert tally(found.test) == {"good": 1, "mixed": 1, "mousebite": 1, "open": 1, "short": 1}
    masks = {s.path.stem: np.asarray(Image.open(s.mask_path)) for s in found.test if s.label}
    expected = np.zeros((6, 8), np.uint8)
    expected[1:3, 1:3] = expected[0:2, 5:8] = 255  # corners included, clipped
    np.testing.assert_array_equal(masks["11_test"], expected)
    assert masks["13_test"].sum() == 255 * 2 * 5  # corners in any order
    assert (
        "boxes, not outlines" in json.loads((tmp_path / "out/deeppcb/oddpatch_manifest.json").read_text())["notes"][0]
    )


def test_deeppcb_by_the_owners_lists(deeppcb, tmp_path):
    (deeppcb / "trainval.txt").write_text("group1/1/10.jpg group1/1_not/10.txt\ngroup1/1/11.jpg group1/1_not/11.txt\n")
    (deeppcb / "test.txt").write_text("group1/1/13.jpg group1/1_not/13.txt\n")
    found = convert("deeppcb", deeppcb, tmp_path / "out")["deeppcb"]
    assert [s.path.name for s in found.train] == ["10_temp.jpg", "11_temp.jpg"]
    assert [s.path.name for s in found.test] == ["13_temp.jpg", "13_test.jpg"]
    assert "1000" in deviations(make_plans("deeppcb", deeppcb, Options())[0])[0]


@pytest.mark.parametrize("line", ["1 2 3 4", "1 2 3 4 7", "a 2 3 4 1", "90 90 99 99 1"])
def test_deeppcb_bad_boxes_name_the_file_and_leave_nothing(deeppcb, tmp_path, line):
    (deeppcb / "group1/1_not/10.txt").write_text(line)
    with pytest.raises(DataError, match=r"10(\.txt:1|_test\.jpg): "):
        convert("deeppcb", deeppcb, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_deeppcb_of_two_groups_with_one_name(deeppcb, tmp_path):
    for name in ("2/10_temp.jpg", "2/10_test.jpg"):
        picture(deeppcb / "group2" / name)
    (deeppcb / "group2/2_not").mkdir()
    (deeppcb / "group2/2_not/10.txt").write_text("1 2 3 4 1")
    with pytest.raises(DataError, match=r"10_temp\.jpg have one name: convert one group at a time"):
        make_plans("deeppcb", deeppcb, Options())


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_something_else_is_one_line(tmp_path, kind):
    picture(tmp_path / "somewhere/else.png")
    with pytest.raises(DataError, match=str(tmp_path)) as error:
        make_plans(kind, tmp_path, Options(category="absent"))
    assert "\n" not in str(error.value)


def test_visa(tmp_path):
    base = tmp_path / "VisA"
    rows = []
    for k in range(4):
        name = f"candle/Data/Images/Normal/{k}.JPG"
        picture(tmp_path / "x.jpg")
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x.jpg").rename(base / name)
        rows.append(["candle", "train" if k < 3 else "test", "normal", name, ""])
    image, mask = "candle/Data/Images/Anomaly/0.jpg", "candle/Data/Masks/Anomaly/0.png"
    picture(base / image)
    picture(base / mask, 3)
    drawn = convert("visa", base, tmp_path / "drawn", test_share=0.25)["candle"]
    assert (len(drawn.train), tally(drawn.test)) == (3, {"bad": 1, "good": 1})
    (base / "split_csv").mkdir()
    with (base / "split_csv/1cls.csv").open("w", newline="") as file:
        head = ["object", "split", "label", "image", "mask"]
        csv.writer(file).writerows([head, *rows, ["candle", "test", "anomaly", image, mask]])
    found = convert("visa", base, tmp_path / "out")["candle"]
    assert (len(found.train), tally(found.test)) == (3, {"bad": 1, "good": 1})
    assert np.unique(np.asarray(Image.open(found.test[0].mask_path))).tolist() == [255]
    assert any("1000" in line for line in deviations(make_plans("visa", base, Options())[0]))
    with pytest.raises(DataError, match="cashew"):
        make_plans("visa", base, Options(category="cashew"))


def test_btad(tmp_path):
    base = tmp_path / "BTech"
    for name in ("train/ok/0.bmp", "test/ok/1.bmp", "test/ko/2.bmp", "ground_truth/ko/2.png"):
        picture(base / "01" / name)
    found = convert("btad", base, tmp_path / "out")["01"]
    assert (len(found.train), tally(found.test)) == (1, {"good": 1, "ko": 1})
    assert found.test[1].mask_path.name == "2_mask.png"


def test_mpdd(tmp_path):
    base = tmp_path / "MPDD"
    for name in ("train/good/0.png", "test/good/1.png", "test/hole/2.png", "ground_truth/hole/2_mask.png"):
        picture(base / "tubes" / name)
    found = convert("mpdd", base, tmp_path / "out")["tubes"]
    assert (len(found.train), tally(found.test)) == (1, {"good": 1, "hole": 1})
    assert deviations(make_plans("mpdd", base, Options())[0]) == ["tubes train/*: 1 image, but the owner states 122"]


def test_kolektor_of_both_kinds(tmp_path):
    for k in range(3):
        picture(tmp_path / f"one/kos0{k}/Part0.jpg")
        picture(tmp_path / f"one/kos0{k}/Part0_label.bmp", 255 * (k == 2))
    found = convert("kolektor", tmp_path / "one", tmp_path / "out", test_share=0.5)["kolektorsdd"]
    assert [s.path.name for s in found.train + found.test if s.label] == ["kos02_Part0.jpg"]
    assert (len(found.train), tally(found.test)) == (1, {"defect": 1, "good": 1})
    for split in ("train", "test"):
        for k in range(2):
            picture(tmp_path / f"two/{split}/{k}.png")
            picture(tmp_path / f"two/{split}/{k}_GT.png", 255 * k)
    found = convert("kolektor", tmp_path / "two", tmp_path / "out")["kolektorsdd2"]
    assert (len(found.train), tally(found.test)) == (1, {"defect": 1, "good": 1})


def test_folder_of_ones_own(tmp_path):
    base = tmp_path / "mine"
    for name in ("ok/0.png", "ok/1.png", "scratch/a.png", "scratch/b.png", "gt/scratch/a.png"):
        picture(base / name)
    found = convert("folder", base, tmp_path / "out", good="ok", masks="gt", test_share=0.5)["mine"]
    assert (len(found.train), tally(found.test)) == (1, {"good": 1, "scratch": 2})
    assert [bool(s.mask_path) for s in found.test] == [False, True, False]
    (base / "ok").rename(base / "fine")
    with pytest.raises(DataError, match="fine, gt, scratch: set --good"):
        make_plans("folder", base, Options())


def tile(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3)).astype(np.uint8)).save(path)


def truth(path, defect):
    array = np.zeros((12, 16), np.uint8)
    array[2:5, 3:9] = 255 if defect else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def exported(tmp_path):
    """Images with masks beside them in folders by type: the masks of good images are black."""
    base = tmp_path / "photos"
    for n, name in enumerate(["good/0", "good/1", "good/2", "scratch/3", "scratch/4"]):
        tile(base / f"{name}.jpg", n)
        truth(base / f"{name}_mask.png", "scratch" in name)
    (base / "_classes.csv").touch()
    return base


def test_masks_beside_images_are_never_good_parts(exported, tmp_path):
    with pytest.raises(DataError, match=r"0_mask\.png looks like the mask of 0\.jpg beside it.*name the layout beside"):
        make_plans("folder", exported, Options())
    found = convert("beside", exported, tmp_path / "out", test_share=0.34)["photos"]
    assert [s.path.suffix for s in found.train] == [".jpg"] * 2
    assert tally(found.test) == {"good": 1, "scratch": 2}
    for sample in found.test:
        if sample.label:
            expected = np.asarray(Image.open(exported / f"scratch/{sample.path.stem}_mask.png"))
            np.testing.assert_array_equal(Image.open(sample.mask_path), expected)
    manifest = json.loads((tmp_path / "out/photos/oddpatch_manifest.json").read_text())
    assert manifest["left_out"] == ["_classes.csv: unknown suffix"]


def test_masks_beside_tell_where_no_folder_does(exported, tmp_path):
    flat = tmp_path / "export/train"
    flat.mkdir(parents=True)
    for path in sorted(exported.glob("*/*")):
        path.rename(flat / path.name)
    found = convert("beside", tmp_path / "export", tmp_path / "out", test_share=0.34)["export"]
    assert (len(found.train), tally(found.test)) == (2, {"defect": 2, "good": 1})
    assert all(s.mask_path for s in found.test if s.label)
    tile(flat / "x.jpg", 9)
    with pytest.raises(DataError, match=r"x\.jpg: has no mask beside it, so nothing tells whether it is good"):
        make_plans("beside", tmp_path / "export", Options())


def test_masks_of_the_same_stem_one_folder_deeper(tmp_path):
    """As magnetic tiles are packed: MT_TYPE/Imgs/STEM.jpg with STEM.png."""
    base = tmp_path / "tiles"
    for n, name in enumerate(["MT_Free/Imgs/0", "MT_Free/Imgs/1", "MT_Crack/Imgs/2"]):
        tile(base / f"{name}.jpg", n)
        truth(base / f"{name}.png", "Crack" in name)
    for options in ({}, {"mask_extension": "png"}):
        found = convert("beside", base, tmp_path / f"out{len(options)}", good="MT_Free", test_share=0, **options)
        assert (len(found["tiles"].train), tally(found["tiles"].test)) == (2, {"MT_Crack": 1})
        assert found["tiles"].test[0].mask_path.suffix == ".png"


def test_masks_inside_mvtec_layout_by_the_command_of_the_refusal(exported, tmp_path):
    base = tmp_path / "root/part"
    for split, kind in (("train", "good"), ("test", "scratch")):
        (base / split).mkdir(parents=True)
        (exported / kind).rename(base / split / kind)
    tile(base / "test/dent/7.png", 7)  # with its mask where it belongs
    truth(base / "ground_truth/dent/7_mask.png", True)
    with pytest.raises(DataError) as refused:
        scan(tmp_path / "root", "part")
    command = str(refused.value).split("`")[1].split()
    assert command[:4] == ["oddpatch", "data", "convert", "beside"]
    found = convert("beside", Path(command[4]), Path(command[5]))["part"]
    assert (len(found.train), tally(found.test), found.warnings) == (3, {"dent": 1, "scratch": 2}, [])
    assert all(s.mask_path for s in found.test)


def test_masks_beside_by_their_suffix(tmp_path):
    base = tmp_path / "mine"
    for n, name in enumerate(["ok/0", "ok/1", "hole/0"]):
        tile(base / f"{name}.png", n)
    tile(base / "hole/0-annotated.png", 5)  # no name that is known
    with pytest.raises(DataError, match="no mask is found beside an image: give --mask-suffix"):
        make_plans("beside", base, Options())
    found = convert("beside", base, tmp_path / "out", test_share=0, mask_suffix="-annotated")["mine"]
    assert (len(found.train), [bool(s.mask_path) for s in found.test]) == (2, [True])


def test_a_good_image_with_a_defect_in_its_mask_is_refused(exported):
    truth(exported / "good/1_mask.png", True)
    with pytest.raises(DataError, match=r"1_mask\.png: shows a defect, but .*good/1\.jpg is among the good images"):
        make_plans("beside", exported, Options())


def test_folder_names_what_it_does_not_use(tmp_path):
    base = tmp_path / "mine"
    for name in ("OK/0.png", "OK/1.png", "scratch/a.png", "scratch/deep/b.png", "top.png"):
        picture(base / name)
    (base / "linked").symlink_to(base / "scratch")
    (base / "scratch/gone.png").symlink_to("nowhere")
    (plan,) = make_plans("folder", base, Options(test_share=0))
    assert [(i.split, i.defect_type, i.name) for i in plan.items] == [
        ("train", "good", "0.png"), ("train", "good", "1.png"), ("test", "linked", "a.png"),
        ("test", "scratch", "a.png"),
    ]  # fmt: skip
    left_out = {path.relative_to(base).as_posix(): reason for path, reason in plan.left_out}
    unread = "not in a folder that the layout reads"
    assert left_out == {
        "linked/deep/b.png": unread, "scratch/deep/b.png": unread, "top.png": unread,
        "linked/gone.png": "broken link", "scratch/gone.png": "broken link",
    }  # fmt: skip
    picture(base / "normal/0.png")
    with pytest.raises(DataError, match="both hold good parts by their names"):
        make_plans("folder", base, Options())


def test_converters_are_found_by_name_and_never_replace(deeppcb, tmp_path):
    assert sorted(KINDS) == [
        "beside", "btad", "coco", "deeppcb", "folder", "kolektor", "lookout", "mpdd", "mvtec_ad2", "mvtec_loco", "visa",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="choose one of beside, btad"):
        make_plans("voc", tmp_path, Options())
    convert("deeppcb", deeppcb, tmp_path / "out")
    with pytest.raises(DataError, match="--force"):
        convert("deeppcb", deeppcb, tmp_path / "out")


@pytest.mark.real
@pytest.mark.skipif(not DEEPPCB.is_dir(), reason="needs the real DeepPCB group")
def test_real_deeppcb(tmp_path):
    (plan,) = make_plans("deeppcb", DEEPPCB, Options())
    write_plan(plan, tmp_path, DEEPPCB, "deeppcb", link=True)
    found = scan(tmp_path, "deeppcb")
    assert len(found.train) == 78
    assert sum(s.label == 0 for s in found.test) == 20
    defective = [s for s in found.test if s.label]
    assert len(defective) == 98
    assert all(s.mask_path for s in defective)
    first = next(s for s in defective if s.path.name == "12300060_test.jpg")
    boxes = np.loadtxt(DEEPPCB / "group12300/12300_not/12300060.txt", dtype=int)[:, :4]
    assert boxes[0].tolist() == [203, 232, 254, 266]
    expected = np.zeros((640, 640), bool)
    for x1, y1, x2, y2 in boxes:
        expected[y1 : y2 + 1, x1 : x2 + 1] = True
    np.testing.assert_array_equal(np.asarray(Image.open(present(first.mask_path))) > 0, expected)


def test_mvtec_ad2(tmp_path):
    base = tmp_path / "mvtec_ad_2"
    for name in (
        "train/good/000_regular.png", "train/good/001_regular.png", "validation/good/000_regular.png",
        "test_public/good/000_regular.png", "test_public/bad/000_regular.png", "test_public/bad/000_overexposed.png",
        "test_private/000_regular.png", "test_private_mixed/000_shift_1.png",
    ):  # fmt: skip
        picture(base / "vial" / name)
    for light in ("regular", "overexposed"):
        picture(base / f"vial/test_public/ground_truth/bad/000_{light}_mask.png", 255)
    found = convert("mvtec_ad2", base, tmp_path / "out")["vial"]
    assert (len(found.train), tally(found.test), found.warnings) == (2, {"bad": 2, "good": 1}, [])
    assert [s.mask_path.name for s in found.test if s.label] == ["000_overexposed_mask.png", "000_regular_mask.png"]
    assert (tmp_path / "out/vial/validation/good/000_regular.png").is_file()
    assert not list((tmp_path / "out").rglob("*private*"))
    lines = deviations(make_plans("mvtec_ad2", base, Options())[0])
    assert "vial train/good: 2 images, but the owner states 291" in lines
    (base / "vial/test_public/ground_truth/bad/000_regular_mask.png").unlink()
    with pytest.raises(DataError, match=r"bad/000_regular\.png: has no mask"):
        make_plans("mvtec_ad2", base, Options())
    with pytest.raises(DataError, match="no CATEGORY/test_public of can"):
        make_plans("mvtec_ad2", base, Options(category="can"))


def test_mvtec_loco(tmp_path):
    base = tmp_path / "mvtec_loco_anomaly_detection"
    box = base / "breakfast_box"
    for name in (
        "train/good/000.png", "validation/good/000.png", "test/good/000.png", "test/logical_anomalies/000.png",
        "test/structural_anomalies/000.png",
    ):  # fmt: skip
        picture(box / name)
    # A defect's value is that of its kind, and need not be 255.
    parts = np.zeros((2, 6, 8), np.uint8)
    parts[0, 1:3, 2:5], parts[1, 2:5, 4:7] = 251, 7
    for number, part in enumerate(parts):
        path = box / f"ground_truth/logical_anomalies/000/{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(part).save(path)
    picture(box / "ground_truth/structural_anomalies/000/000.png", 240)
    found = convert("mvtec_loco", base, tmp_path / "out")["breakfast_box"]
    wanted = {"good": 1, "logical_anomalies": 1, "structural_anomalies": 1}
    assert (len(found.train), tally(found.test), found.warnings) == (1, wanted, [])
    mask = next(s.mask_path for s in found.test if s.defect_type == "logical_anomalies")
    np.testing.assert_array_equal(np.asarray(Image.open(mask)), parts.any(0) * np.uint8(255))
    assert any("sPRO" in note for note in make_plans("mvtec_loco", base, Options())[0].notes)
    for path in (box / "ground_truth/structural_anomalies/000").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"structural_anomalies/000\.png: has no mask in"):
        make_plans("mvtec_loco", base, Options())


@settings(max_examples=30, deadline=None)
@given(
    stems=st.lists(st.text("ab0_. ", min_size=1, max_size=6).filter(lambda s: s.strip(". ")), min_size=2, unique=True),
    suffix=st.sampled_from([".png", ".jpg"]),
)
def test_converted_masks_belong_to_their_images(stems, suffix):
    """Whatever the names: each image has its own mask, recognised by its content, or the whole is refused."""
    stems = [stem.strip(". ") + "x" for stem in stems]
    if len(set(stems)) < len(stems):
        return
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "photos"
        picture(base / "good/a.png")
        for number, stem in enumerate(stems):
            picture(base / f"scratch/{stem}{suffix}", 10)
            mask = np.zeros((6, 8), np.uint8)
            mask.flat[number] = 255
            (base / "ground_truth/scratch").mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(base / f"ground_truth/scratch/{stem}_mask.png")
        try:
            found = convert("folder", base, Path(folder) / "out", test_share=0.0)["photos"]
        except DataError:
            return
        for sample in (s for s in found.test if s.label):
            number = stems.index(sample.path.stem)
            assert np.flatnonzero(np.asarray(Image.open(sample.mask_path))).tolist() == [number]


def test_names_that_are_not_utf8_are_kept(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    for k in range(5):
        picture(tmp_path / f"photos/ok/{name}{k}.png")
    picture(tmp_path / f"photos/{name}/{name}.png")
    picture(tmp_path / f"photos/masks/{name}/{name}.png")
    found = convert("folder", tmp_path / "photos", tmp_path / "out", good="ok", masks="masks")["photos"]
    assert tally(found.test) == {"caf\\udce9": 1, "good": 1}
    assert all(sample.path.is_file() for sample in found.train + found.test)
    assert sum(sample.mask_path is not None for sample in found.test) == 1
    manifest = json.loads((tmp_path / "out/photos/oddpatch_manifest.json").read_text(encoding="utf-8"))
    assert any(name in json.dumps(row, ensure_ascii=False) for row in manifest["files"])
