"""Collecting good images: names, splits, resumption."""

import csv
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from oddpatch.datatools import extracting
from oddpatch.datatools.extracting import extract_good, plan_names
from oddpatch.errors import ConfigError, DataError


@pytest.fixture
def source(tmp_path):
    base = tmp_path / "src"
    for k, name in enumerate(["a.png", "sub/b.PNG", "sub/deep/c.jpg", "d.png"]):
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 40 * (k % 3), np.uint8)).save(path)  # d repeats a
        os.utime(path, (1_000_000 + k, 1_000_000 + k))
    (base / "notes.txt").write_text("no image")
    return base


def listing(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_structure_times_suffix_and_hashes(source, tmp_path):
    report = extract_good(source, tmp_path / "out", suffix="_solo_16")
    assert listing(tmp_path / "out") == [
        "a_solo_16.png", "d_solo_16.png", "extracted.json", "sub/b_solo_16.PNG", "sub/deep/c_solo_16.jpg",
    ]  # fmt: skip
    assert (tmp_path / "out/sub/b_solo_16.PNG").stat().st_mtime == 1_000_001
    for entry in json.loads((tmp_path / "out/extracted.json").read_text())["files"]:
        assert hashlib.sha256((tmp_path / "out" / entry["path"]).read_bytes()).hexdigest() == entry["sha256"]
    assert [e["path"] for e in report.entries if e["repeat_of"]] == ["d_solo_16.png"]


def test_links_are_followed_and_the_rest_is_named(source, tmp_path):
    (source / "sub").rename(tmp_path / "elsewhere")
    (source / "sub").symlink_to(tmp_path / "elsewhere")
    (source / "gone.png").symlink_to("nowhere")
    (tmp_path / "elsewhere/up").symlink_to(source)
    report = extract_good(source, source / "out")
    assert [entry["source"] for entry in report.entries] == ["a.png", "d.png", "sub/b.PNG", "sub/deep/c.jpg"]
    assert {item.path.relative_to(source).as_posix(): item.reason for item in report.left_out} == {
        "notes.txt": "unknown suffix", "gone.png": "broken link", "sub/up": "link back to a folder that holds it",
    }  # fmt: skip
    assert extract_good(source, source / "out").left_out == report.left_out  # what it wrote is not among it


def test_masks_are_no_good_images(source, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)).save(source / "a.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(source / "a_mask.bmp")
    with pytest.raises(DataError, match=r"a_mask\.bmp looks like the mask of a\.png.*give a --pattern"):
        extract_good(source, tmp_path / "out")
    assert extract_good(source, tmp_path / "out", patterns=["*.png"]).copied == 2


def test_options(source, tmp_path):
    assert extract_good(source, tmp_path / "1", unique=True).copied == 3
    assert extract_good(source, tmp_path / "2", patterns=["sub/*"]).copied == 2
    assert extract_good(source, tmp_path / "3", limit=1).entries[0]["path"] == "a.png"
    assert extract_good(source, tmp_path / "4", dry_run=True).copied == 4
    assert not (tmp_path / "4").exists()
    extract_good(source, tmp_path / "5", manifest=tmp_path / "m.csv")
    assert len(list(csv.DictReader((tmp_path / "m.csv").open()))) == 4
    for wrong in ({"suffix": "a/b"}, {"limit": 0}, {"split": 1.0}):
        with pytest.raises(ConfigError):
            extract_good(source, tmp_path / "6", **wrong)
    with pytest.raises(DataError, match="none of 4 images"):
        extract_good(source, tmp_path / "6", patterns=["*.bmp"])


def test_names_that_differ_by_case_alone_are_refused(source, tmp_path):
    (source / "A.png").write_bytes((source / "a.png").read_bytes())
    with pytest.raises(DataError, match=r"A\.png and a\.png are one file on some systems: rename one"):
        extract_good(source, tmp_path / "out")


def test_interrupted_run_goes_on(source, tmp_path, monkeypatch):
    calls = []

    def failing(path, goal):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        place(path, goal)

    place = extracting.place
    monkeypatch.setattr(extracting, "place", failing)
    with pytest.raises(KeyboardInterrupt):
        extract_good(source, tmp_path / "out")
    monkeypatch.undo()
    assert len(listing(tmp_path / "out")) == 2
    report = extract_good(source, tmp_path / "out")
    assert (report.there, report.copied) == (2, 2)
    assert extract_good(source, tmp_path / "out").copied == 0


def test_never_replaces_without_force(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/d.png").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"d.png: exists and differs"):
        extract_good(source, tmp_path / "out")
    assert listing(tmp_path / "out") == ["d.png"]
    assert extract_good(source, tmp_path / "out", force=True).copied == 4
    (tmp_path / "m.json").write_text("{}")
    with pytest.raises(DataError, match="no manifest"):
        extract_good(source, tmp_path / "other", manifest=tmp_path / "m.json")


def test_target_inside_source_is_not_taken_in_again(source):
    extract_good(source, source / "out", suffix="_x")
    assert extract_good(source, source / "out", suffix="_x").copied == 0


words = st.text("abAB._-é 1", min_size=1, max_size=5).filter(lambda w: w.strip(". ") == w)
paths = st.lists(st.tuples(st.lists(words, max_size=2).map(tuple), words), min_size=1, max_size=12, unique=True)


@given(paths, st.sampled_from(["", "_solo_16", "x"]), st.sampled_from([None, 0.2, 0.8]), st.integers(0, 3))
def test_names_stay_apart_and_tell_their_origin(parts, suffix, split, seed):
    names = [Path(*folders, f"{word}.png") for folders, word in parts]
    try:
        targets = plan_names(names, suffix, split, seed)
    except DataError:
        assert len({str(n).casefold() for n in names}) < len(names)
        return
    assert len({str(t).casefold() for t in targets.values()}) == len(names)
    for name, target in targets.items():
        bare = target if split is None else Path(*target.parts[2:])
        assert bare.parent == name.parent
        assert bare.stem == name.stem + suffix
    if split is not None:
        assert sum(t.parts[0] == "train" for t in targets.values()) == round(split * len(names))
