"""Masks find their images by name, whichever way they are named, or are refused."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from oddpatch.data.pairing import pair_masks
from oddpatch.errors import DataError

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
