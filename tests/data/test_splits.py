"""Following split manifests: what is written is what is trained and tested on, by identity and completely."""

import csv
import json
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oddpatch.data.layout import GOOD, Layout, Sample, scan
from oddpatch.data.splits import follow, read_parts, take_share
from oddpatch.datatools.splitting import Assignment, split_by_share, split_few_shot, split_folds, write_split
from oddpatch.errors import ConfigError, DataError

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
PARTS = {"share": ["train", "test"], "shots": ["train", "test", "unused"], "folds": ["fold0", "fold1", "fold2"]}


def composed(name):
    return unicodedata.normalize("NFC", name)


def category(root, good=9, test_good=5, bad=4):
    base = root / "part"
    for name, count in (("train/good", good), ("test/good", test_good), ("test/hole", bad), ("ground_truth/hole", bad)):
        (base / name).mkdir(parents=True)
        for number in range(count):
            (base / name / (f"{number}_mask.png" if "truth" in name else f"{number}.png")).touch()
    return base


@pytest.fixture
def part(tmp_path):
    return category(tmp_path)


def followed(base, manifest, fold=None):
    return follow(scan(base.parent, base.name), base, manifest, fold)


def below(base, samples):
    return {sample.path.relative_to(base).as_posix() for sample in samples}


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_share(part, tmp_path, suffix):
    assigned = split_by_share(part, 0.8, seed=3)
    write_split(tmp_path / f"s.{suffix}", assigned, part, {"train_share": 0.8}, force=False)
    found = followed(part, tmp_path / f"s.{suffix}")
    good = {a.path for a in assigned if a.part == "train" and a.defect_type == GOOD}
    assert below(part, found.train) == good
    assert below(part, found.test) == {a.path for a in assigned if a.part == "test"}
    assert Counter(s.defect_type for s in found.test) == {GOOD: 3, "hole": 1}
    assert all(s.label == 0 for s in found.train)
    assert all(s.mask_path for s in found.test if s.label)
    assert found.warnings == []
    assert [s.path for s in found.train] == sorted(s.path for s in found.train)


def test_few_shot(part, tmp_path):
    write_split(tmp_path / "s.csv", split_few_shot(part, 4, 1), part, {}, force=False)
    found = followed(part, tmp_path / "s.csv")
    assert len(found.train) == 4
    assert below(part, found.test) == below(part, scan(part.parent, "part").test)


def test_validation_and_defective_training_images_where_they_are_wanted(part, tmp_path):
    assigned = split_by_share(part, 0.5, seed=3, validation_share=0.25)
    write_split(tmp_path / "s.json", assigned, part, {}, force=False)
    good, all_ = (
        follow(scan(part.parent, "part"), part, tmp_path / "s.json", with_defects=wanted) for wanted in (False, True)
    )
    for found in (good, all_):
        for name in ("validation", "test"):
            assert below(part, getattr(found, name)) == {a.path for a in assigned if a.part == name}
    assert below(part, all_.train) == {a.path for a in assigned if a.part == "train"}
    assert below(part, good.train) == {a.path for a in assigned if a.part == "train" and a.defect_type == GOOD}
    assert Counter(s.defect_type for s in all_.train) == {GOOD: 7, "hole": 2}


def test_folds_cover_every_image_once(part, tmp_path):
    write_split(tmp_path / "s.json", split_folds(part, 3, 0), part, {"folds": 3}, force=False)
    tested: Counter[str] = Counter()
    for fold in range(3):
        found = followed(part, tmp_path / "s.json", fold)
        assert not below(part, found.train) & below(part, found.test)
        assert len(found.train) + sum(s.defect_type == GOOD for s in found.test) == 14
        tested.update(below(part, found.test))
    assert set(tested.values()) == {1}
    assert len(tested) == 18
    for absent in (None, 3):
        with pytest.raises(ConfigError, match=r"folds 0, 1, 2: set data\.fold"):
            followed(part, tmp_path / "s.json", absent)


def test_a_fold_of_no_folds(part, tmp_path):
    write_split(tmp_path / "s.json", split_few_shot(part, 2), part, {}, force=False)
    with pytest.raises(ConfigError, match="has no folds"):
        followed(part, tmp_path / "s.json", 0)


def test_missing_files_are_named(part, tmp_path):
    write_split(tmp_path / "s.json", split_by_share(part, 0.5), part, {}, force=False)
    (part / "train/good/3.png").unlink()
    (part / "train/good/7.png").unlink()
    with pytest.raises(DataError, match=r"names 2 images .*\(train/good/3\.png, train/good/7\.png\)") as error:
        followed(part, tmp_path / "s.json")
    assert "\n" not in str(error.value)


def test_new_files_are_left_out_and_said(part, tmp_path):
    write_split(tmp_path / "s.json", split_by_share(part, 0.5), part, {}, force=False)
    (part / "train/good/new.png").touch()
    found = followed(part, tmp_path / "s.json")
    assert len(found.train) + len(found.test) == 16  # without the two defective images of the training part
    assert any("left out 1 image that it does not name (train/good/new.png)" in line for line in found.warnings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a manifest"),
        ("[]", "not a manifest"),
        ('{"files": [{"path": "a"}]}', "not a manifest"),
        ('{"files": [{"path": "a", "part": "val"}]}', "'val'"),
        ('{"files": [{"path": "a", "part": "test"}, {"path": "a", "part": "train"}]}', "names a twice"),
    ],
)
def test_what_is_no_manifest(tmp_path, text, message):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_parts(tmp_path / "s.json")
    assert str(tmp_path / "s.json") in str(error.value)
    with pytest.raises(DataError, match="no such file"):
        read_parts(tmp_path / "t.json")


def test_without_good_training_images(part, tmp_path):
    rows = [{"path": "test/hole/0.png", "part": "train"}, {"path": "test/good/0.png", "part": "test"}]
    (tmp_path / "s.json").write_text(json.dumps({"files": rows}))
    with pytest.raises(ConfigError, match="no good image to train on"):
        followed(part, tmp_path / "s.json")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_image_goes_where_the_manifest_says(data):
    kind = data.draw(st.sampled_from(sorted(PARTS)))
    types = data.draw(st.lists(NAMES, min_size=1, max_size=3, unique_by=composed))
    names = data.draw(st.lists(NAMES, min_size=2, max_size=6, unique_by=composed))
    base, samples, assigned = Path("/data/part"), [], []
    for defect_type in [GOOD, *(t for t in types if t != GOOD)]:
        for name in names:
            path = base / "test" / defect_type / f"{name}.png"
            samples.append(Sample(path, int(defect_type != GOOD), defect_type, None))
            part = data.draw(st.sampled_from(PARTS[kind]))
            assigned.append(Assignment(part, defect_type, path.relative_to(base).as_posix(), ""))
    fold = data.draw(st.integers(0, 2)) if kind == "folds" else None
    tested = f"fold{fold}" if kind == "folds" else "test"
    trained = {p for p in PARTS[kind] if p not in (tested, "unused")}
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / data.draw(st.sampled_from(["s.json", "s.csv"]))
        write_split(manifest, assigned, base, {}, force=False)
        wanted = {a.path for a in assigned if a.part in trained and a.defect_type == GOOD}
        there = {a.part for a in assigned}
        if not wanted or (kind == "folds" and tested not in there):
            with pytest.raises(ConfigError):
                follow(Layout([], samples, []), base, manifest, fold)
            return
        found = follow(Layout([], samples[::-1], []), base, manifest, fold)
    assert below(base, found.train) == wanted
    assert below(base, found.test) == {a.path for a in assigned if a.part == tested}
    assert len(found.train) + len(found.test) == len({s.path for s in [*found.train, *found.test]})


def test_csv_of_a_spreadsheet(part, tmp_path):
    """Columns in another order, more of them, and Windows line ends."""
    rows = [(a.path, "note", a.part) for a in split_by_share(part, 0.5)]
    with (tmp_path / "s.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\r\n").writerows([("path", "remark", "part"), *rows])
    assert len(followed(part, tmp_path / "s.csv").test) == 9


def test_the_validation_share_is_taken_of_each_defect_type():
    counts = {GOOD: 20, "hole": 8, "scratch": 4, "rare": 2}
    samples = [
        Sample(Path(f"/test/{kind}/{i}.png"), int(kind != GOOD), kind, None)
        for kind in counts
        for i in range(counts[kind])
    ]
    for share, wanted in ((0.5, (10, 4, 2, 1)), (0.25, (5, 2, 1, 1)), (0.01, (1, 1, 1, 1)), (0.99, (19, 7, 3, 1))):
        taken, left = take_share(samples, share)
        assert Counter(s.defect_type for s in taken) == dict(zip(counts, wanted, strict=True))
        assert sorted([*taken, *left]) == sorted(samples)
        assert [s for s in samples if s in taken] == taken
        assert take_share(samples[::-1], share)[0] == taken[::-1]


def test_a_manifest_that_names_a_file_twice_is_refused(tmp_path):
    rows = [{"path": "train/good/0.png", "part": part} for part in ("train", "test")]
    (tmp_path / "s.json").write_text(json.dumps({"files": rows}))
    with pytest.raises(DataError, match=r"s\.json: names train/good/0\.png twice: remove one"):
        read_parts(tmp_path / "s.json")


def test_one_image_of_a_type_cannot_be_shared_out():
    samples = [Sample(Path(f"test/hole/{i}.png"), 1, "hole", None) for i in range(2)]
    with pytest.raises(ConfigError, match=r"validation=0\.5 cannot share out 1 test image of type scratch: give"):
        take_share([*samples, Sample(Path("test/scratch/0.png"), 1, "scratch", None)], 0.5)
