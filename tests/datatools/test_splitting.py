"""Splits: stratified, seeded, complete."""

import csv
import json
import os

import pytest
from conftest import make_dataset

from oddpatch.data.layout import scan
from oddpatch.data.splits import follow
from oddpatch.datatools.splitting import (
    apply_split,
    split_by_share,
    split_few_shot,
    split_folds,
    summary,
    write_split,
)  # fmt: skip
from oddpatch.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def category(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_dataset(root, good=12, test_good=8, defects=5)  # 20 good, 5 spot, 5 stain
    return next(p.parent for p in root.rglob("train"))


def test_share_is_kept_in_every_type(category):
    assigned = split_by_share(category, 0.8, seed=3)
    assert summary(assigned) == {
        "train": {"good": 16, "spot": 4, "stain": 4},
        "test": {"good": 4, "spot": 1, "stain": 1},
    }
    assert len({a.path for a in assigned}) == 30
    assert all((category / a.mask).is_file() for a in assigned if a.defect_type != "good")
    assert assigned == split_by_share(category, 0.8, seed=3) != split_by_share(category, 0.8, seed=4)
    with pytest.raises(ConfigError, match="such as"):
        split_by_share(category, 1.0)


@pytest.mark.parametrize(
    ("total", "share", "train"), [(7, 0.8, 6), (8, 0.8, 6), (5, 0.5, 2), (4, 0.1, 1), (3, 0.95, 2)]
)
def test_a_share_is_rounded_to_the_nearest_image(tmp_path, total, share, train):
    make_dataset(tmp_path, good=total, test_good=0, defects=0)
    found = summary(split_by_share(tmp_path / "tile", share))
    assert found == {"train": {"good": train}, "test": {"good": total - train}}


@pytest.mark.parametrize(
    ("total", "parts"),
    [(10, (6, 2, 2)), (5, (3, 1, 1)), (4, (2, 1, 1)), (3, (1, 1, 1)), (2, (1, 0, 1)), (1, (1, 0, 0))],
)
def test_a_validation_share_leaves_something_to_train_and_to_test_on(tmp_path, total, parts):
    make_dataset(tmp_path, good=total, test_good=0, defects=0)
    found = summary(split_by_share(tmp_path / "tile", 0.6, validation_share=0.2))
    names = ("train", "validation", "test")
    assert found == {name: {"good": count} for name, count in zip(names, parts, strict=True) if count}
    with pytest.raises(ConfigError, match=r"validation_share=0.4: choose 0 or a share below 0.4"):
        split_by_share(tmp_path / "tile", 0.6, validation_share=0.4)


def test_few_shot_is_nested_and_keeps_the_test(category):
    sets = [{a.path for a in split_few_shot(category, k, 1) if a.part == "train"} for k in (1, 4, 12)]
    assert [len(s) for s in sets] == [1, 4, 12]
    assert sets[0] < sets[1] < sets[2]
    assert summary(split_few_shot(category, 4))["test"] == {"good": 8, "spot": 5, "stain": 5}
    with pytest.raises(ConfigError, match=r"1\.\.12"):
        split_few_shot(category, 13)


def test_folds_are_even(category):
    found = summary(split_folds(category, 4, seed=0))
    for defect_type, total in (("good", 20), ("spot", 5), ("stain", 5)):
        sizes = [found[f"fold{k}"][defect_type] for k in range(4)]
        assert sum(sizes) == total
        assert max(sizes) - min(sizes) <= 1
    totals = [sum(found[f"fold{k}"].values()) for k in range(4)]
    assert max(totals) - min(totals) <= 1
    with pytest.raises(ConfigError, match="folds=1"):
        split_folds(category, 1)


def test_manifest_and_links(category, tmp_path):
    assigned = split_by_share(category, 0.8)
    write_split(tmp_path / "s.csv", assigned, category, {}, force=False)
    assert len(list(csv.DictReader((tmp_path / "s.csv").open()))) == 30
    write_split(tmp_path / "s.json", assigned, category, {"seed": 0}, force=False)
    assert json.loads((tmp_path / "s.json").read_text())["seed"] == 0
    with pytest.raises(DataError, match="--force"):
        write_split(tmp_path / "s.json", assigned, category, {}, force=False)
    apply_split(assigned, category, tmp_path / "out" / "tile")
    found = scan(tmp_path / "out", "tile")
    assert len(found.train) == 16
    assert [s.defect_type for s in found.test].count("good") == 4
    assert all(s.mask_path for s in found.test if s.label)
    apply_split(split_folds(category, 5), category, tmp_path / "out" / "fold1", fold=1)
    assert len(scan(tmp_path / "out", "fold1").train) == 16


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_names_that_are_not_utf8_are_found_again(tmp_path, suffix):
    category = make_dataset(tmp_path / "data")
    names = "train/good/000.png test/spot/000.png ground_truth/spot/000_mask.png test/stain ground_truth/stain"
    for path in [category / name for name in names.split()]:
        path.rename(path.with_name(os.fsdecode(b"caf\xe9" + os.fsencode(path.name))))
    assigned = split_by_share(category, 0.8)
    manifest = tmp_path / f"split.{suffix}"
    write_split(manifest, assigned, category, {}, force=False)
    manifest.read_text(encoding="utf-8")
    found = follow(scan(tmp_path / "data", category.name), category, manifest)
    assert not found.warnings
    assert {s.path for s in found.test} == {category / a.path for a in assigned if a.part == "test"}
    apply_split(assigned, category, tmp_path / "links/tile")
    made = scan(tmp_path / "links", "tile")
    assert len(made.test) == len(found.test)
    assert len(made.train) == len(found.train)
    assert {s.defect_type for s in made.test} == {"good", "spot", "caf\\udce9stain"}
