"""The check: each kind of trouble is planted and found, and clean data is called clean."""

import shutil

import numpy as np
import pytest
from conftest import REAL_DATA, write_image
from PIL import Image
from typer.testing import CliRunner

from oddpatch.commands.data import app
from oddpatch.data.layout import scan
from oddpatch.data.tools import checking
from oddpatch.data.tools.checking import check, mend
from oddpatch.data.tools.fingerprints import HASH_SIDE, Fingerprint, near_pairs, oddness, robust_z
from oddpatch.errors import DataError

BOTTLE = REAL_DATA / "mvtec" / "bottle"


def varied(path, rng, shift=0.0):
    """Blurred noise: pictures as different from another as photographs are."""
    grid = rng.integers(0, 256, (6, 6, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid).resize((64, 64), Image.Resampling.BICUBIC).point(lambda v: v + shift).save(path)


@pytest.fixture
def category(tmp_path):
    rng = np.random.default_rng(0)
    base = tmp_path / "data" / "part"
    for k in range(12):
        varied(base / f"train/good/{k}.png", rng)
    for k in range(3):
        varied(base / f"test/good/{k}.png", rng)
        varied(base / f"test/spot/{k}.png", rng)
        mask = np.zeros((64, 64), np.uint8)
        mask[4:9, 5:9] = 255
        (base / "ground_truth/spot").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(base / f"ground_truth/spot/{k}_mask.png")
    return base


def kinds(report):
    return {(f.kind, f.path) for f in report.findings}


def test_clean(category):
    report = check(category)
    assert report.findings == []
    assert report.counts["train/good"] == 12


def plant_trouble(base):
    (base / "train/good/0.png").write_bytes(b"")
    shutil.copy(base / "test/good/1.png", base / "train/good/copied.png")
    Image.open(base / "test/good/2.png").resize((96, 96)).save(base / "train/good/near.jpg", quality=90)
    Image.open(base / "train/good/3.png").convert("L").save(base / "train/good/3.png")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(base / "ground_truth/spot/0_mask.png")
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(base / "ground_truth/spot/1_mask.png")
    Image.fromarray(np.full((9, 9), 255, np.uint8)).save(base / "ground_truth/spot/2_mask.png")
    Image.fromarray(np.full((9, 9), 255, np.uint8)).save(base / "ground_truth/spot/gone_mask.png")


def test_all_trouble_at_once(category):
    plant_trouble(category)
    report = check(category)
    assert kinds(report) >= {
        ("unreadable", "train/good/0.png"),
        ("leak", "train/good/copied.png"),
        ("leak", "train/good/near.jpg"),
        ("size", "train/good/near.jpg"),
        ("mode", "train/good/3.png"),
        ("mask", "ground_truth/spot/0_mask.png"),
        ("mask", "ground_truth/spot/1_mask.png"),
        ("mask", "ground_truth/spot/2_mask.png"),
        ("mask", "ground_truth/spot/gone_mask.png"),
        ("layout", ""),
    }
    assert len(report.findings) == 10


def test_mend_does_the_safe_ones_into_a_copy(category, tmp_path):
    plant_trouble(category)
    before = {p: p.read_bytes() for p in category.rglob("*") if p.is_file()}
    mend(check(category), tmp_path / "mended/part")
    left = kinds(check(tmp_path / "mended/part"))
    assert left == {
        ("mode", "train/good/3.png"),
        ("mask", "ground_truth/spot/0_mask.png"),
        ("mask", "ground_truth/spot/2_mask.png"),
    }
    assert len(scan(tmp_path / "mended", "part").train) == 11
    assert {p: p.read_bytes() for p in category.rglob("*") if p.is_file()} == before
    with pytest.raises(DataError, match="--force"):
        mend(check(category), tmp_path / "mended/part")
    with pytest.raises(DataError, match="remove it yourself"):
        mend(check(category), category, force=True)


def test_dark_and_odd_training_images(tmp_path):
    rng = np.random.default_rng(1)
    for k in range(30):
        write_image(tmp_path / f"p/train/good/{k:02}.png", rng)
    write_image(tmp_path / "p/train/good/odd.png", rng, defect=True)
    Image.open(tmp_path / "p/train/good/05.png").point(lambda v: v // 3).save(tmp_path / "p/train/good/05.png")
    found = kinds(check(tmp_path / "p"))
    assert {("brightness", "train/good/05.png"), ("suspect", "train/good/odd.png")} <= found
    assert {path for _, path in found} == {"train/good/05.png", "train/good/odd.png"}


def test_near_pairs_against_brute_force():
    rng = np.random.default_rng(2)
    bits = rng.random((40, HASH_SIDE**2)) < 0.5
    bits[20:] = bits[:20] ^ (rng.random((20, HASH_SIDE**2)) < rng.random((20, 1)) * 0.2)
    flat = np.zeros((4, 4), np.float32)
    items = [Fingerprint(bits=row, thumbnail=flat) for row in bits]
    expected = {(i, j, int((bits[i] ^ bits[20 + j]).sum())) for i in range(20) for j in range(20)}
    assert set(near_pairs(items[:20], items[20:])) == {p for p in expected if p[2] <= 40}
    nearest = min(p[2] for p in expected)  # the limit itself is within
    found = near_pairs(items[:20], items[20:], hamming=nearest)
    assert set(found) == {p for p in expected if p[2] == nearest} != set()


def test_robust_z_is_z_for_a_normal_sample():
    values = np.random.default_rng(0).normal(3, 2, 20_000)
    np.testing.assert_allclose(robust_z(values), (values - 3) / 2, atol=0.1)
    assert oddness(np.random.default_rng(0).random((30, 8, 8)).astype(np.float32)).shape == (30,)


def test_exit_codes(category, monkeypatch):
    run = CliRunner().invoke
    assert run(app, ["check", str(category)]).exit_code == 0
    assert run(app, ["check", str(category.parent), "part", "--json"]).exit_code == 0
    plant_trouble(category)
    result = run(app, ["check", str(category)])
    assert result.exit_code == 1
    assert "10 findings" in result.output
    with pytest.raises(DataError, match="there are part"):
        checking.find_categories(category.parent, "nope")


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not BOTTLE.is_dir(), reason="needs MVTec bottle")
def test_leak_in_real_data(tmp_path):
    base = tmp_path / "bottle"
    for folder, step in (("train/good", 5), ("test/good", 2), ("test/broken_large", 3)):
        (base / folder).mkdir(parents=True)
        for path in sorted((BOTTLE / folder).iterdir())[::step]:
            (base / folder / path.name).symlink_to(path)
    assert check(base, workers=1).findings == []
    (base / "train/good/leak.png").symlink_to(BOTTLE / "test/good/002.png")
    Image.open(BOTTLE / "test/good/004.png").convert("RGB").resize((700, 700)).save(base / "train/good/near.jpg")
    (base / "train/good/bad.png").symlink_to(BOTTLE / "test/contamination/012.png")
    assert kinds(check(base, workers=1)) == {
        ("leak", "train/good/leak.png"),
        ("leak", "train/good/near.jpg"),
        ("size", "train/good/near.jpg"),
        ("suspect", "train/good/bad.png"),
    }
