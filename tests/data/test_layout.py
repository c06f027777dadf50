"""Finding images and masks: good layouts, odd names, and what people get wrong."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from oddpatch.data.layout import categories, pair_masks, scan
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
    assert layout.test == [
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
    masks = [s for s in layout.test if s.mask_path]
    assert len(masks) == 63
    assert all(s.label == 1 and s.mask_path.name == f"{s.path.stem}_mask.png" for s in masks)
    assert all(s.mask_path.parent.name == s.defect_type == s.path.parent.name for s in masks)


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
    assert "1 of 2 images have no mask (b.png)" in layout.warnings[0]


def test_a_type_without_masks_is_a_warning(root):
    (root / "part/ground_truth/crack/a_mask.png").unlink()
    assert ["1 of 1 images have no mask" in text for text in scan(root, "part").warnings] == [True]


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
        make(root, *(f"part/{folder}/{name}" for name in (".DS_Store", "._a.png", "Thumbs.db", "notes.txt")))
    make(root, "part/test/__MACOSX/a.png", "part/test/.cache/a.png")
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
    warnings = "\n".join(scan(root, "part").warnings)
    for text in ("train/good/more: 1 images", "hole/more: 1 images", "outside good/", "test/empty holds no image"):
        assert text in warnings


# Bad input


def test_missing_root(tmp_path):
    message = fails(tmp_path / "nowhere", "no such data folder")
    assert str(tmp_path / "nowhere") in message


def test_missing_category_lists_those_there(root):
    make(root, "other/train/good/a.png")
    with pytest.raises(DataError, match="no such category; there are other, part"):
        scan(root, "prt")


def test_root_that_is_itself_a_category(root):
    with pytest.raises(DataError, match=r"itself a category: set data\.root=.* and data\.category=part"):
        scan(root / "part", "part")


def test_missing_and_empty_train_good(tmp_path):
    make(tmp_path, "part/train/ok/a.png")
    fails(tmp_path, "train/good: no such folder")
    make(tmp_path, "part/train/good/a.txt")
    (tmp_path / "part/train/ok/a.png").unlink()
    fails(tmp_path, r"holds no image that can be read \(but a.txt\)")


def test_defects_among_the_training_images(root):
    make(root, "part/train/hole/a.png", "part/train/hole/deep/a.png")
    fails(root, "train/hole holds 2 images that are not said to be good")


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
    fails(root, f"{folder} holds 1 images outside a folder of their type")


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


# Pairing

FOLDER, MASKS = Path("images"), Path("masks")


def paired(images, masks):
    return {image: path.name for image, path in pair_masks(FOLDER, images, MASKS, masks).items()}


def test_dots_in_the_stem():
    images = ["step0.camera_solo_1.png", "step0.camera.png", "step0.png"]
    masks = ["step0.camera_solo_1_mask.png", "step0.camera_mask.png", "step0_mask.png"]
    assert paired(images, masks) == dict(zip(images, masks, strict=True))


def test_mask_in_the_stem():
    assert paired(["a.png", "a_mask.png"], ["a_mask.png", "a_mask_mask.png"]) == {
        "a.png": "a_mask.png",
        "a_mask.png": "a_mask_mask.png",
    }
    assert paired(["a.png", "a_mask.png"], ["a.png", "a_mask.png"]) == {"a.png": "a.png", "a_mask.png": "a_mask.png"}
    assert paired(["a_mask.png"], ["a_mask.png"]) == {"a_mask.png": "a_mask.png"}
    with pytest.raises(DataError, match=r"a_mask\.png could be the mask of a\.png or of a_mask\.png"):
        paired(["a.png", "a_mask.png"], ["a_mask.png"])


def test_both_namings_in_one_folder():
    assert paired(["a.png", "b.png"], ["a_mask.png", "b.tif"]) == {"a.png": "a_mask.png", "b.png": "b.tif"}


def test_composed_and_decomposed_letters_are_the_same():
    assert paired(["n\u0303.png"], ["\u00f1_mask.png"]) == {"n\u0303.png": "\u00f1_mask.png"}


def test_pairing_is_not_by_position():
    assert paired(["000.png", "001.png", "002.png"], ["001_mask.png", "002_mask.png"]) == {
        "001.png": "001_mask.png",
        "002.png": "002_mask.png",
    }


STEMS = st.one_of(
    st.sampled_from(["a", "a_mask", "a_mask_mask", "_mask", "000", "a.b", "a.png", "ground_truth", "good"]),
    st.text(st.sampled_from("ab_.-mask 1ñé漢\u0303"), min_size=1, max_size=8),
)


def clean(stem):
    return not stem.startswith(".") and not stem.endswith(".")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(stems=st.lists(STEMS.filter(clean), min_size=1, max_size=6, unique=True), suffix=st.sampled_from(["_mask", ""]))
def test_every_mask_finds_its_own_image_or_is_refused(stems, suffix):
    import unicodedata

    assume(len({unicodedata.normalize("NFC", stem) for stem in stems}) == len(stems))
    images, masks = [f"{stem}.jpg" for stem in stems], [f"{stem}{suffix}.png" for stem in stems]
    expected = dict(zip(images, masks, strict=True))
    # All images have their mask, so only names that every other naming explains as well are ambiguous: there are none,
    # as the longest stem of a chain a, a_mask, a_mask_mask tells which naming it is.
    assert paired(images, list(reversed(masks))) == expected


@settings(max_examples=200, deadline=None)
@given(
    images=st.sets(st.sampled_from(["a", "a_mask", "a_mask_mask", "b"])),
    masks=st.sets(st.sampled_from(["a", "a_mask", "a_mask_mask", "a_mask_mask_mask", "b", "b_mask"])),
)
def test_a_pairing_is_one_to_one_and_uses_every_mask(images, masks):
    names = sorted(f"{image}.png" for image in images)
    try:
        result = paired(names, sorted(f"{mask}.png" for mask in masks))
    except DataError:
        return
    assert len(result) == len(masks) == len(set(result.values()))
    for image, mask in result.items():
        stem = image.removesuffix(".png")
        assert mask in (f"{stem}.png", f"{stem}_mask.png")


def test_ten_thousand_files_are_quick(tmp_path):
    import time

    make(tmp_path, *(f"part/train/good/{number:05d}.png" for number in range(5000)))
    make(tmp_path, *(f"part/test/hole/{number:05d}.png" for number in range(2500)))
    make(tmp_path, *(f"part/ground_truth/hole/{number:05d}_mask.png" for number in range(2500)))
    start = time.process_time()
    scan(tmp_path, "part")
    assert time.process_time() - start < 2
