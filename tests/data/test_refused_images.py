"""Images that a step after decoding refuses: the error begins with the file."""

import numpy as np
import pytest
import torch
from conftest import write_image
from narrowing import stand_in

from oddpatch.cache.features import FeatureCache
from oddpatch.data import video
from oddpatch.data.datamodule import MVTecDataModule
from oddpatch.data.layout import Sample
from oddpatch.data.transforms import Preprocess
from oddpatch.datatools import aligning
from oddpatch.errors import ConfigError, DataError

MEAN, STD = [0.5] * 3, [0.5] * 3


@pytest.fixture
def path(tmp_path):
    write_image(tmp_path / "a.png", np.random.default_rng(0))
    return tmp_path / "a.png"


def refuse(*args):
    raise DataError("it does not register to the reference")


@pytest.mark.parametrize("load", [lambda p, path: p.load(path), lambda p, path: p.prepare_views(path, [torch.clone])])
def test_an_image_that_cannot_be_aligned_is_named(path, monkeypatch, load):
    monkeypatch.setattr(Preprocess, "register", refuse)
    with pytest.raises(DataError, match=r"a\.png: it does not register to the reference$"):
        load(Preprocess(32, 32, MEAN, STD), path)


def test_an_image_that_cannot_be_measured_is_named(path):
    with pytest.raises(DataError, match=r"a\.png: it does not register to the reference$"):
        aligning._place(stand_in(measure=refuse), ("train", Sample(path, 0, "good", None)))  # noqa: SLF001 - the step alone: what leads to it takes seconds


def test_a_video_that_cannot_be_inspected_is_named(monkeypatch):
    pytest.importorskip("av")
    monkeypatch.setattr(video, "open_video", refuse)
    with pytest.raises(DataError, match=r"^clip\.mp4: it does not register"):
        video.check_video("clip.mp4")


def test_all_categories_of_a_folder_without_any_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"^data\.category=all: .* holds no folder with train/good in it"):
        MVTecDataModule(tmp_path, "all", MEAN, STD).folders()


def test_a_cache_below_a_file_is_refused(path):
    with pytest.raises(
        ConfigError, match=r"a\.png/cache cannot be made \(Not a directory\): set cache\.folder to another"
    ):
        FeatureCache(path / "cache", 1)
