"""Masks beside images are told from images, and no file is opened unless a name calls for it."""

import numpy as np
import pytest
from PIL import Image

from oddpatch.data import beside
from oddpatch.data.beside import masks_beside, masks_named
from oddpatch.errors import DataError


def photo(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(path)
    return path


def mask(path, values=(0, 255), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full((40, 50), values[0], np.uint8)
    array[10:20, 5:25] = values[1]
    Image.fromarray(array).convert(mode).save(path)
    return path


@pytest.mark.parametrize(
    "name", ["x_mask.png", "x.mask.png", "x_gt.bmp", "x_GT.png", "x-label.tif", "x_seg.png", "x_mask.jpg"]
)  # fmt: skip
def test_a_mask_is_known_by_name_and_values(tmp_path, name):
    image, found = photo(tmp_path / "x.jpg"), mask(tmp_path / name)
    assert masks_beside([image, found]) == {found: image}


@pytest.mark.parametrize(("values", "mode"), [((0, 0), "L"), ((0, 1), "L"), ((0, 255), "RGB"), ((0, 255), "1")])
def test_of_any_mode(tmp_path, values, mode):
    image, found = photo(tmp_path / "x.png"), mask(tmp_path / "x_mask.png", values, mode)
    assert masks_beside([image, found]) == {found: image}


def test_soft_edges_are_allowed(tmp_path):
    image, found = photo(tmp_path / "x.png"), tmp_path / "x_mask.png"
    array = np.zeros((40, 50), np.uint8)
    array[10:20, 5:25] = 255
    array[20, 5:25] = 120
    Image.fromarray(array).save(found)
    assert masks_beside([image, found]) == {found: image}


def test_the_same_stem_with_another_extension(tmp_path):
    image, found = photo(tmp_path / "x.jpg"), mask(tmp_path / "x.png")
    assert masks_beside([image, found]) == {found: image}


def test_photographs_stay_images_whatever_their_names(tmp_path):
    files = [photo(tmp_path / name, n) for n, name in enumerate(["x.png", "x_label.png", "x.bmp", "y.png", "z.jpg"])]
    files.append(mask(tmp_path / "alone_mask.png"))  # there is no image `alone`
    assert masks_beside(files) == {}


def test_only_in_one_folder(tmp_path):
    assert masks_beside([photo(tmp_path / "a/x.jpg"), mask(tmp_path / "b/x_mask.png")]) == {}


def test_a_file_that_cannot_be_read_is_no_mask(tmp_path):
    image = photo(tmp_path / "x.jpg")
    (tmp_path / "x_mask.png").write_bytes(b"no image")
    assert masks_beside([image, tmp_path / "x_mask.png"]) == {}


def test_nothing_is_opened_without_a_candidate(tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "read_image", None)
    assert masks_beside([tmp_path / f"{n}.png" for n in range(100)]) == {}


def test_by_suffix_and_extension(tmp_path):
    files = [tmp_path / name for name in ("x.jpg", "x.png", "y.jpg", "y.PNG", "z.jpg")]
    assert masks_named(files, "", "png") == {files[1]: files[0], files[3]: files[2]}
    files = [tmp_path / name for name in ("x.png", "x-m.png")]
    assert masks_named(files, "-m", "") == {files[1]: files[0]}
    with pytest.raises(DataError, match=r"q-m\.png: is named like a mask, but there is no image q\.\* beside it"):
        masks_named([*files, tmp_path / "q-m.png"], "-m", "")
