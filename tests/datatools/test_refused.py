"""What a data tool cannot use is one line that names it, before anything is written."""

import json

import numpy as np
import pytest
from PIL import Image
from test_hostile_names import picture, solo

from oddpatch.datatools.checking import find_categories
from oddpatch.datatools.converting import Options, make_plans
from oddpatch.datatools.extracting import extract_good
from oddpatch.datatools.from_unity import plan_unity
from oddpatch.datatools.masks import masks_by_colour, masks_by_label
from oddpatch.datatools.splitting import split_by_share
from oddpatch.datatools.unity import read_recording, read_segmentation, select
from oddpatch.datatools.writing import Output, check_targets, join_masks
from oddpatch.errors import OddpatchError


def deeppcb(folder):
    """One pair, in order."""
    for name in ("g/0_temp.jpg", "g/0_test.jpg"):
        picture(folder / name)
    (folder / "g_not").mkdir()
    (folder / "g_not/0.txt").write_text("1 2 3 4 1\n")


def pair_without_test_image(folder):
    deeppcb(folder)
    (folder / "g/0_test.jpg").unlink()
    make_plans("deeppcb", folder, Options())


def pair_without_box(folder):
    deeppcb(folder)
    (folder / "g_not/0.txt").write_text("\n")
    make_plans("deeppcb", folder, Options())


def list_of_absent_images(folder):
    deeppcb(folder)
    for name in ("trainval.txt", "test.txt"):
        (folder / name).write_text("g/7.jpg g_not/7.txt\n")
    make_plans("deeppcb", folder, Options())


def visa_list_of_absent_images(folder):
    picture(folder / "candle/Data/Images/Normal/0.JPG")
    (folder / "split_csv").mkdir()
    (folder / "split_csv/1cls.csv").write_text(
        "object,split,label,image,mask\ncandle,train,normal,candle/Data/Images/Normal/1.JPG,\n"
    )
    make_plans("visa", folder, Options())


def two_masks_of_one_image(folder):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)).save(folder / "a.png")
    for name in ("a_mask.png", "a_mask.bmp"):
        picture(folder / name, 0)
    make_plans("beside", folder, Options())


def capture_elsewhere(folder):
    picture(folder / "rgb.png")
    (folder / "Dataset1").mkdir()
    (folder / "Dataset1/annotation_definitions.json").write_text('{"annotation_definitions": []}')
    captures = [{"filename": "rgb.png", "format": "PNG", "annotations": []}]
    (folder / "Dataset1/captures_000.json").write_text(json.dumps({"captures": captures}))
    plan_unity(folder / "Dataset1", "part")


def capture_without_image(folder):
    solo(folder / "solo/good")
    (folder / "solo/good/step0.camera.png").unlink()
    plan_unity(folder / "solo", "part")


def masks_without_label(folder):
    solo(folder / "solo")
    masks_by_label(folder / "solo", folder / "out", [])


def masks_of_no_instance(folder):
    solo(folder / "solo", annotations=[])
    masks_by_label(folder / "solo", folder / "out", [], instances=True)


def masks_of_no_segmentation(folder):
    solo(folder / "solo")
    (folder / "solo/step0.instance.png").write_bytes(b"")
    masks_by_label(folder / "solo", folder / "out", ["Crate"], skip=True)


def damaged_segmentation(folder):
    (folder / "a.png").write_bytes(b"no image")
    read_segmentation(folder / "a.png")


def masks_of_two_sizes(folder):
    picture(folder / "a.png")
    Image.new("L", (3, 4)).save(folder / "b.png")
    join_masks([folder / "a.png", folder / "b.png"])


COLOURS, INDICES = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (pair_without_test_image, r"0_test\.jpg: missing beside .*0_temp\.jpg: unpack the dataset again"),
        (pair_without_box, r"0\.txt: has no box, though its image is a defective one: remove the pair"),
        (list_of_absent_images, r"\.txt: names 7, of which there are no images: unpack the whole dataset"),
        (visa_list_of_absent_images, r"1\.JPG: missing, though .*1cls\.csv names it: unpack the dataset again"),
        (two_masks_of_one_image, r"a\.png has two masks, a_mask\.\w+ and a_mask\.\w+: remove one"),
        (lambda folder: make_plans("mpdd", folder / "no", Options()), "no: no such folder"),
        (lambda folder: Options(test_share=1.0), r"test_share=1\.0: choose a share of at least 0 and below 1"),
        (lambda folder: extract_good(folder / "no", folder / "out"), "no: no such folder"),
        (lambda folder: find_categories(folder, None), "holds no category, that is no folder with train/good in it"),
        (lambda folder: split_by_share(folder / "no", 0.5), "no: no such folder: give ROOT/CATEGORY"),
        (lambda folder: read_recording(folder / "no"), "no: no such folder: give the folder that Unity Perception"),
        (lambda folder: read_recording(folder), r"holds neither \*frame_data\.json .SOLO. nor captures_"),
        (capture_elsewhere, r"rgb\.png: lies outside of .*Dataset1: give the folder above it"),
        (capture_without_image, r"step0\.camera\.png: no such file, though the JSON names it: render it again"),
        (masks_without_label, "no label is given: choose among Crate"),
        (masks_of_no_instance, "no instance of any label in 1 captures"),
        (masks_of_no_segmentation, "none of 1 segmentations can be used: .*the file is empty"),
        (lambda folder: masks_by_colour(folder, folder / "out", [(1, 2, 3)]), "no such image, or a folder without any"),
        (damaged_segmentation, r"a\.png: cannot be decoded \(.*\): render it again"),
        (lambda folder: select(COLOURS, 3, folder), "is a colour image, but class index 3 is asked for"),
        (lambda folder: select(INDICES, (1, 2, 3), folder), r"holds class indices, but the colour \(1, 2, 3\) is"),
        (masks_of_two_sizes, r"b\.png: the mask is of another size than .*a\.png"),
        (
            lambda folder: check_targets([Output(folder / n, content=bytes) for n in ("a.png", "A.png")], force=False),
            r"A\.png: both .* would be written there: rename one",
        ),
    ],
)  # fmt: skip
def test_it_is_one_line(tmp_path, call, told):
    with pytest.raises(OddpatchError, match=told) as error:
        call(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
