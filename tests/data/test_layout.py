"""Finding images and masks: good layouts, odd names, and what people get wrong."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oddpatch.data.layout import BESIDE, NESTED, OUTSIDE, categories, fingerprint, scan, scan_types
from oddpatch.errors import DataError

BOTTLE_ROOT = Path(__file__).parents[2] / "../shared/data/mvtec"


def make(root, *paths):
    """Empty files: scanning opens none."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


@pytest.fixture
def root(tmp_path):
    return make(
        tmp_path,
        "part/train/good/b.png",
        "part/train/good/a.png",
        "part/test/good/a.png",
        "part/test/hole/a.png",
        "part/test/hole/b.png",
        "part/test/crack/a.png",
        "part/ground_truth/hole/a_mask.png",
        "part/ground_truth/hole/b_mask.png",
        "part/ground_truth/crack/a_mask.png",
    )


def fails(root, message):
    with pytest.raises(DataError, match=message) as error:
        scan(root, "part")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_samples_in_order_with_their_masks(root):
    layout = scan(root, "part")
    part = root / "part"
    assert [s.path for s in layout.train] == [part / "train/good/a.png", part / "train/good/b.png"]
    assert {(s.label, s.defect_type, s.mask_path) for s in layout.train} == {(0, "good", None)}
    assert [sample[:4] for sample in layout.test] == [
        (part / "test/crack/a.png", 1, "crack", part / "ground_truth/crack/a_mask.png"),
        (part / "test/good/a.png", 0, "good", None),
        (part / "test/hole/a.png", 1, "hole", part / "ground_truth/hole/a_mask.png"),
        (part / "test/hole/b.png", 1, "hole", part / "ground_truth/hole/b_mask.png"),
    ]
    assert layout.warnings == []


def test_order_is_not_the_file_systems(tmp_path):
    names = [f"{number * 7919 % 100:03d}.png" for number in range(100)]
    make(tmp_path, *(f"part/train/good/{name}" for name in names))
    assert [s.path.name for s in scan(tmp_path, "part").train] == sorted(names)


def test_categories_come_from_the_folders(root):
    make(root, "another/train/good/a.png", "notes/readme.txt", ".hidden/train/good/a.png")
    assert categories(root) == ["another", "part"]


@pytest.mark.real
def test_real_bottle():
    if not BOTTLE_ROOT.is_dir():
        pytest.skip("the real images are not here")
    layout = scan(BOTTLE_ROOT, "bottle")
    assert categories(BOTTLE_ROOT) == ["bottle"]
    assert (len(layout.train), len(layout.test), layout.warnings) == (209, 83, [])
    masks = [(s, s.mask_path) for s in layout.test if s.mask_path]
    assert len(masks) == 63
    assert all(s.label == 1 and mask.name == f"{s.path.stem}_mask.png" for s, mask in masks)
    assert all(mask.parent.name == s.defect_type == s.path.parent.name for s, mask in masks)


@pytest.mark.parametrize("paths", [[], ["part/test/good/a.png"]])
def test_good_images_alone_are_normal(tmp_path, paths):
    layout = scan(make(tmp_path, "part/train/good/a.png", *paths), "part")
    assert len(layout.test) == len(paths)
    assert layout.warnings == []


def test_no_masks_at_all_is_normal(tmp_path):
    layout = scan(make(tmp_path, "part/train/good/a.png", "part/test/hole/a.png"), "part")
    assert [(s.label, s.mask_path) for s in layout.test] == [(1, None)]
    assert layout.warnings == []


def test_some_masks_missing_is_a_warning(root):
    (root / "part/ground_truth/hole/b_mask.png").unlink()
    layout = scan(root, "part")
    assert [s.mask_path is None for s in layout.test] == [False, True, False, True]
    assert len(layout.warnings) == 1
    assert "no mask for 1 of 2 images (b.png)" in layout.warnings[0]


def test_a_type_without_masks_is_a_warning(root):
    (root / "part/ground_truth/crack/a_mask.png").unlink()
    assert ["no mask for 1 of 1 image (" in text for text in scan(root, "part").warnings] == [True]


def test_masks_one_folder_deeper(tmp_path):
    root = make(
        tmp_path,
        "part/train/good/a.png",
        "part/test/good/a.png",
        "part/test/hole/a.png",
        "part/ground_truth/defective/hole/a_mask.png",
    )
    assert scan(root, "part").test[1].mask_path == root / "part/ground_truth/defective/hole/a_mask.png"


def test_images_and_masks_one_folder_deeper(tmp_path):
    root = make(
        tmp_path,
        "part/train/good/a.png",
        "part/test/good/a.png",
        "part/test/defective/hole/a.png",
        "part/test/defective/crack/a.png",
        "part/ground_truth/defective/hole/a_mask.png",
    )
    test = scan(root, "part").test
    assert [(s.defect_type, s.mask_path is not None) for s in test] == [
        ("crack", False),
        ("good", False),
        ("hole", True),
    ]


def test_masks_of_good_images_are_not_read(root):
    make(root, "part/ground_truth/good/a_mask.png", "part/ground_truth/good/zzz.png")
    assert scan(root, "part").test[1].mask_path is None


def test_litter_is_ignored(root):
    for folder in ("train/good", "test/hole", "ground_truth/hole", "test", "ground_truth", "."):
        make(root, *(f"part/{folder}/{name}" for name in (".DS_Store", "._a.png", "Thumbs.db")))
    make(root, "part/test/__MACOSX/a.png", "part/test/.ipynb_checkpoints/a.png", "part/licence.txt")
    layout = scan(root, "part")
    assert (len(layout.train), len(layout.test), layout.warnings) == (2, 4, [])


def test_suffixes_in_any_case_and_of_other_kinds(tmp_path):
    root = make(
        tmp_path,
        "part/train/good/a.JPG",
        "part/train/good/b.TiFf",
        "part/test/hole/a.BMP",
        "part/ground_truth/hole/a_mask.PNG",
    )
    layout = scan(root, "part")
    assert len(layout.train) == 2
    assert layout.test[0].mask_path is not None


def test_images_left_out_are_said(root):
    make(root, "part/train/good/more/c.png", "part/test/hole/more/c.png", "part/train/c.png", "part/test/empty/x.txt")
    layout = scan(root, "part")
    part = root / "part"
    assert layout.warnings == [
        f"{part}: 2 left out, {NESTED}: test/hole/more/c.png, train/good/more/c.png",
        f"{part}: 1 left out, {OUTSIDE}: train/c.png",
        f"{part}: 1 left out, unknown suffix: test/empty/x.txt",
        f"{part / 'test/empty'} holds no image that can be read (but 1 left out, unknown suffix: "
        f"{part / 'test/empty/x.txt'})",
    ]
    assert set(layout.left_out) == {
        (part / "train/good/more/c.png", NESTED), (part / "test/hole/more/c.png", NESTED),
        (part / "train/c.png", OUTSIDE), (part / "test/empty/x.txt", "unknown suffix"),
    }  # fmt: skip


def test_images_beside_train_and_test_are_said(root):
    make(root, "part/a.png", "part/b.JPG", "part/roi.png", "part/license.txt")
    layout = scan(root, "part", used=["roi.png"])
    assert layout.warnings == [f"{root / 'part'}: 2 left out, {BESIDE}: a.png, b.JPG"]
    assert set(layout.left_out) == {(root / "part/a.png", BESIDE), (root / "part/b.JPG", BESIDE)}


def test_a_fingerprint_is_that_of_a_copy_and_of_no_other_images(root, tmp_path_factory):
    def of(folder):
        return fingerprint(scan(folder, "part").test, folder / "part")

    copy = tmp_path_factory.mktemp("copy") / "moved"
    shutil.copytree(root, copy)
    assert of(copy) == of(root)
    make(copy, "part/train/good/more.png")
    assert of(copy) == of(root)
    (copy / "part/test/good/a.png").write_bytes(b"another")
    other = of(copy)
    make(copy, "part/test/good/b.png")
    assert len({of(root), other, of(copy)}) == 3


@pytest.mark.parametrize("folder", ["train/good", "train", "test", "test/hole", "ground_truth", "ground_truth/hole"])
def test_files_that_are_not_read_are_said(root, folder):
    make(root, f"part/{folder}/d", f"part/{folder}/.e.png", f"part/{folder}/f.xyz")
    (root / f"part/{folder}/gone").symlink_to("nowhere")
    layout = scan(root, "part")
    said = {item.path.relative_to(root / "part" / folder).as_posix(): item.reason for item in layout.left_out}
    assert said == {"d": "no suffix", ".e.png": "hidden", "f.xyz": "unknown suffix", "gone": "broken link"}
    assert [line for line in layout.warnings if "1 left out, no suffix" in line]


def test_the_rest_of_a_wrapper_is_said(root):
    make(root, "part/test/defective/dent/a.png", "part/test/defective/a/b/c.png", "part/test/defective/x")
    left_out = {item.path.relative_to(root / "part/test/defective").as_posix() for item in scan(root, "part").left_out}
    assert left_out == {"a/b/c.png", "x"}


def test_links_are_followed(root):
    part = root / "part"
    for name in ("train/good", "test/hole", "test/good", "ground_truth/hole"):
        (root / "elsewhere" / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).rename(root / "elsewhere" / name)
        (part / name).symlink_to(root / "elsewhere" / name)
    layout = scan(root, "part")
    assert (len(layout.train), len(layout.test), layout.warnings) == (2, 4, [])
    assert [s.mask_path is not None for s in layout.test] == [True, False, True, True]


def test_loops_end(root):
    (root / "part/train/good/self").symlink_to(root / "part/train")
    (root / "part/test/hole/up").symlink_to(root / "part")
    layout = scan(root, "part")
    assert (len(layout.train), len(layout.test)) == (2, 4)
    assert [line for line in layout.warnings if "link back to a folder that holds it" in line]


@pytest.mark.parametrize("name", ["test", "ground_truth"])
def test_a_broken_link_in_place_of_a_folder(root, name):
    (root / "part" / name).rename(root / name)
    (root / "part" / name).symlink_to("nowhere")
    fails(root, f"part/{name}: broken link: mend it")


@pytest.mark.parametrize("name", ["train", "train/good", "."])
def test_training_images_behind_a_broken_link(root, name):
    (root / "part" / name).rename(root / "away")
    (root / "part" / name).symlink_to("nowhere")
    fails(root, "broken link")


def test_a_folder_that_cannot_be_read(root, monkeypatch):
    scandir, closed = os.scandir, ["hole"]

    def refuse(folder):
        if Path(folder).name in closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    layout = scan(root, "part")
    assert [s.defect_type for s in layout.test] == ["crack", "good"]
    assert layout.warnings[0] == (
        f"{root / 'part'}: 2 left out, cannot be read (Permission denied): ground_truth/hole, test/hole"
    )
    for closed[0] in ("train", "test", "ground_truth", "good"):
        fails(root, r"cannot be read \(Permission denied\)|no image that can be read \(but .*Permission denied")


# Good by other names


@pytest.mark.parametrize("name", ["OK", "Good", "normal", "ok", "NORMAL", "defect_free", "no-defect"])
def test_good_by_other_names(root, name):
    for split in ("train", "test"):
        (root / f"part/{split}/good").rename(root / f"part/{split}/{name}")
    make(root, f"part/ground_truth/{name}/zzz.png")
    layout = scan(root, "part")
    assert categories(root) == ["part"]
    assert [s.path.parent.name for s in layout.train] == [name, name]
    assert [(s.label, s.defect_type) for s in layout.test] == [(1, "crack"), (0, "good"), (1, "hole"), (1, "hole")]
    assert {s.defect_type for s in layout.train} == {"good"}
    assert layout.warnings == []


def test_defects_are_not_good_by_name(root):
    make(root, "part/test/not_good/a.png", "part/test/goods/a.png", "part/test/broken/a.png")
    assert sum(s.label for s in scan(root, "part").test) == 6


def test_two_spellings_of_good_together(root):
    make(root, "part/test/OK/b.png")
    fails(root, r"test/good and .*test/OK are of the same type: merge or rename one|test/OK and .*test/good are of")
    (root / "part/test/OK/b.png").unlink()
    make(root, "part/train/Good/b.png")
    fails(root, "both hold good parts by their names: merge them, or rename one")


def test_types_alone(root):
    make(root, "labelled/OK/a.png", "labelled/hole/b.png", "labelled/hole/c.xyz", "labelled/hole/deep/d.png")
    found = scan_types(root / "labelled")
    assert [(s.path.name, s.label, s.defect_type) for s in found.test] == [("a.png", 0, "good"), ("b.png", 1, "hole")]
    assert found.warnings == [
        f"{root / 'labelled'}: 1 left out, {NESTED}: hole/deep/d.png",
        f"{root / 'labelled'}: 1 left out, unknown suffix: hole/c.xyz",
    ]


# Masks among images


def picture(path, colours):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, colours, (20, 30)).astype(np.uint8) * (255 // (colours - 1))
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("folder", ["train/good", "test/good", "test/hole"])
@pytest.mark.parametrize("name", ["x_mask.png", "x.bmp"])
def test_masks_among_images_are_refused_with_a_command(root, folder, name):
    picture(root / f"part/{folder}/x.png", 200)
    picture(root / f"part/{folder}/{name}", 2)
    message = fails(root, "looks like the mask of x.png beside it")
    assert f"`oddpatch data convert beside {root}/part {root}/sorted` and set data.root={root}/sorted" in message


def test_masks_among_labelled_images_are_refused(root):
    picture(root / "labelled/hole/x.png", 200)
    picture(root / "labelled/hole/x_mask.png", 2)
    with pytest.raises(DataError, match="move the masks out of"):
        scan_types(root / "labelled")


# Bad input


def test_missing_root(tmp_path):
    message = fails(tmp_path / "nowhere", "no such data folder")
    assert str(tmp_path / "nowhere") in message


def test_missing_category_lists_those_there(root):
    make(root, "other/train/good/a.png")
    with pytest.raises(DataError, match="no such category; there are other, part"):
        scan(root, "prt")


def test_root_that_is_itself_a_category_by_a_relative_path(root, monkeypatch):
    monkeypatch.chdir(root / "part")
    with pytest.raises(DataError, match=f"set data.root={root} and data.category=part"):
        scan(".", "part")


def test_root_that_is_itself_a_category(root):
    with pytest.raises(DataError, match=r"itself a category: set data\.root=.* and data\.category=part"):
        scan(root / "part", "part")


def test_missing_and_empty_train_good(tmp_path):
    make(tmp_path, "part/train/fine/a.png")
    fails(tmp_path, "train/good: no such folder")
    make(tmp_path, "part/train/good/a.txt")
    (tmp_path / "part/train/fine/a.png").unlink()
    fails(tmp_path, r"holds no image that can be read \(but 1 left out, unknown suffix: .*a.txt\)")


def test_defects_among_the_training_images(root):
    make(root, "part/train/hole/a.png", "part/train/hole/deep/a.png")
    fails(root, "train/hole holds 2 images not marked as good")


def test_mask_without_image(root):
    make(root, "part/ground_truth/hole/c_mask.png")
    fails(root, r"c_mask\.png: there is no image c\.\*")


def test_masks_of_a_misspelt_type(root):
    (root / "part/ground_truth/hole").rename(root / "part/ground_truth/hloe")
    fails(root, r"hloe holds masks, but there are no images in .*test.hloe; test has crack, hole")


def test_masks_without_test_images(tmp_path):
    fails(make(tmp_path, "part/train/good/a.png", "part/ground_truth/hole/a_mask.png"), "test has no defect type")


@pytest.mark.parametrize("name", ["groundtruth", "Ground-Truth", "masks", "GT", "something"])
def test_misnamed_ground_truth(root, name):
    (root / "part/ground_truth").rename(root / "part" / name)
    fails(root, f"{name} looks like masks, which are read from .*ground_truth: rename it")


def test_other_folders_do_not_matter(root):
    make(root, "part/validation/good/a.png", "part/masks_of_something/a.png")
    assert len(scan(root, "part").test) == 4


def test_misnamed_test_folder_is_said(tmp_path):
    layout = scan(make(tmp_path, "part/train/good/a.png", "part/Testing/good/a.png"), "part")
    assert "nothing to test on (there is Testing)" in layout.warnings[0]


@pytest.mark.parametrize("folder", ["test", "ground_truth"])
def test_files_outside_a_type(root, folder):
    make(root, f"part/{folder}/a.png")
    fails(root, f"{folder} holds 1 image outside a folder of a type")


def test_type_found_twice(root):
    make(root, "part/test/defective/hole/a.png")
    fails(root, "are of the same type")


@pytest.mark.parametrize("second", ["a.png", "a_mask.tif"])
def test_two_masks_for_one_image(root, second):
    make(root, f"part/ground_truth/hole/{second}")
    message = fails(root, "has two masks")
    assert second in message
    assert "a_mask.png" in message


def test_one_mask_for_two_images(root):
    make(root, "part/test/hole/a.jpg")
    message = fails(root, "could be the mask of")
    assert "a.jpg" in message
    assert "a.png" in message


def test_ten_thousand_files_are_quick(tmp_path):
    import time

    make(tmp_path, *(f"part/train/good/{number:05d}.png" for number in range(5000)))
    make(tmp_path, *(f"part/test/hole/{number:05d}.png" for number in range(2500)))
    make(tmp_path, *(f"part/ground_truth/hole/{number:05d}_mask.png" for number in range(2500)))
    start = time.process_time()
    scan(tmp_path, "part")
    assert time.process_time() - start < 2


def test_a_folder_without_types_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=f"expected {tmp_path}/good and {tmp_path}/TYPE"):
        scan_types(tmp_path)
