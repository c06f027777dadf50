"""The check: each kind of trouble is planted and found, and clean data is called clean."""

import json
import shutil
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.ndimage
from conftest import REAL_DATA, write_image
from narrowing import pixels
from PIL import Image
from typer.testing import CliRunner

from oddpatch.cli.data import app
from oddpatch.cli.main import main
from oddpatch.data.layout import scan
from oddpatch.datatools import checking
from oddpatch.datatools.checking import check, mend
from oddpatch.datatools.fingerprints import Fingerprint, distances, fingerprint, near_pairs, oddness, robust_z, spacing
from oddpatch.datatools.shifts import shifts
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
        ("mask-empty", "ground_truth/spot/0_mask.png"),
        ("mask-values", "ground_truth/spot/1_mask.png"),
        ("mask-background", "ground_truth/spot/1_mask.png"),
        ("mask-size", "ground_truth/spot/2_mask.png"),
        ("mask-background", "ground_truth/spot/2_mask.png"),
        ("mask-without-image", "ground_truth/spot/gone_mask.png"),
        ("layout", ""),
    }
    assert len(report.findings) == 12


def test_mend_does_the_safe_ones_into_a_copy(category, tmp_path):
    plant_trouble(category)
    grey = np.zeros((64, 64), np.uint8)
    grey[5:9, 5:9], grey[6:8, 6:8] = 100, 200
    Image.fromarray(grey).save(category / "ground_truth/spot/0_mask.png")
    before = {p: p.read_bytes() for p in category.rglob("*") if p.is_file()}
    with pytest.raises(DataError, match=r"train: a mended copy would lack 3 of 14 images, more than 10%.*--force"):
        mend(check(category), tmp_path / "mended/part")
    assert not (tmp_path / "mended").exists()
    mend(check(category), tmp_path / "mended/part", force=True)
    left = kinds(check(tmp_path / "mended/part"))
    assert left == {
        ("mode", "train/good/3.png"),
        ("mask-background", "ground_truth/spot/1_mask.png"),
        ("mask-values", "ground_truth/spot/1_mask.png"),
        ("mask-size", "ground_truth/spot/2_mask.png"),
        ("mask-background", "ground_truth/spot/2_mask.png"),
    }
    rewritten = np.asarray(Image.open(tmp_path / "mended/part/ground_truth/spot/0_mask.png"))
    assert np.array_equal(rewritten, np.where(grey, 255, 0))
    assert len(scan(tmp_path / "mended", "part").train) == 11
    assert {p: p.read_bytes() for p in category.rglob("*") if p.is_file()} == before
    with pytest.raises(DataError, match="remove it yourself"):
        mend(check(category), category, force=True)


def test_mend_replaces_nothing_unless_forced(category, tmp_path):
    mend(check(category), tmp_path / "mended/part")
    with pytest.raises(DataError, match="--force"):
        mend(check(category), tmp_path / "mended/part")
    mend(check(category), tmp_path / "mended/part", force=True)


def test_mend_never_leaves_the_training_set_empty(category, tmp_path):
    for path in (category / "train/good").iterdir():
        path.write_bytes((category / "test/good/0.png").read_bytes())
    report = check(category)
    assert {f.path for f in report.findings if f.kind == "leak"} == {f"train/good/{k}.png" for k in range(12)}
    with pytest.raises(DataError, match="12 of 12 images, more than 10%"):
        mend(report, tmp_path / "mended/part")
    with pytest.raises(DataError, match="no image would be left"):
        mend(report, tmp_path / "mended/part", force=True)
    assert not (tmp_path / "mended").exists()


def linked(category, target):
    """The category with links in place of its folders of images."""
    for folder in ("train/good", "test/good", "test/spot", "ground_truth/spot"):
        (target / folder).parent.mkdir(parents=True, exist_ok=True)
        (target / folder).symlink_to(category / folder)
    return target


def test_links_are_looked_at_and_mended_as_copies(category, tmp_path):
    (category / "train/good/0.png").write_bytes(b"")
    report = check(linked(category, tmp_path / "linked/part"))
    assert report.counts == check(category).counts
    assert kinds(report) == {("unreadable", "train/good/0.png")}
    mend(report, tmp_path / "mended/part")
    mended = scan(tmp_path / "mended", "part")
    assert (len(mended.train), len(mended.test)) == (11, 6)
    assert not any(path.is_symlink() for path in (tmp_path / "mended").rglob("*"))


@pytest.mark.parametrize("empty", [True, False])
def test_a_check_that_looked_at_nothing_is_an_error(tmp_path, monkeypatch, empty, capfd):
    (tmp_path / "part/train/good").mkdir(parents=True)
    if not empty:
        (tmp_path / "part/train/good/a.unknown").write_bytes(b"")
        (tmp_path / "part/test").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match="no image below train or test, so nothing was checked") as error:
        check(tmp_path / "part")
    assert ("1 left out, unknown suffix" in str(error.value)) is not empty
    monkeypatch.setattr("sys.argv", ["oddpatch", "data", "check", str(tmp_path), "part"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "nothing was checked" in capfd.readouterr().err


def test_what_is_left_out_is_found_once(category):
    (category / "train/good/x.unknown").write_bytes(b"")
    (category / "test/spot/deeper").mkdir()
    shutil.copy(category / "test/spot/0.png", category / "test/spot/deeper/a.png")
    (category / "ground_truth/spot/broken.png").symlink_to(category / "gone.png")
    shutil.copy(category / "test/spot/0.png", category / "stray.png")
    left_out = {
        ("left-out", "stray.png"),
        ("left-out", "train/good/x.unknown"),
        ("left-out", "test/spot/deeper/a.png"),
        ("left-out", "ground_truth/spot/broken.png"),
    }
    assert kinds(check(category)) == left_out
    (category / "test/spot").rename(category / "test/dent")  # then loading refuses the whole
    found = kinds(check(category))
    assert ("left-out", "stray.png") in found
    assert ("layout", "") in found


def test_good_by_another_name(category):
    (category / "train/good").rename(category / "train/OK")
    (category / "test/good").rename(category / "test/Normal")
    assert check(category).findings == []
    shutil.copy(category / "test/Normal/1.png", category / "train/OK/copied.png")
    assert kinds(check(category)) == {("leak", "train/OK/copied.png")}


def texture(rng, size=96):
    """A plate under uneven light, with a texture of its own; (H, W) in 0..1."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    own = cv2.GaussianBlur(rng.normal(0, 1, (size, size)), (0, 0), 3)
    return np.clip(0.5 * (1 - x**2 - y**2) + 0.2 * own + rng.normal(0, 0.01, (size, size)), 0, 1)


def save(path, image, full_scale, dtype):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.round(image * full_scale).astype(dtype))


@pytest.mark.parametrize(
    ("full_scale", "dtype"),
    [(255, np.uint8), (51, np.uint8), (1023, np.uint16)],
    ids=["8 bits", "dark", "10 bits in 16"],
)
def test_near_duplicates_however_dark(tmp_path, full_scale, dtype):
    rng = np.random.default_rng(5)
    base = tmp_path / "plate"
    for k in range(24):
        save(base / f"train/good/{k:02}.png", texture(rng), full_scale, dtype)
    tested = [texture(rng) for _ in range(8)]
    for k, image in enumerate(tested):
        save(base / f"test/good/{k:02}.png", image, full_scale, dtype)
    assert check(base).findings == []
    step = 2 / 255 if dtype == np.uint8 else 8 / 1023
    moved = np.roll(tested[0], 1, axis=1)
    moved[:, 0] = moved[:, 1]
    save(base / "train/good/moved.png", moved, full_scale, dtype)
    save(
        base / "train/good/brighter.png",
        tested[1] + step * (255 / full_scale if full_scale < 255 else 1),
        full_scale,
        dtype,
    )
    eight = np.round(tested[2] * min(full_scale, 255)).astype(np.uint8)
    cv2.imwrite(str(base / "train/good/encoded.jpg"), eight, [cv2.IMWRITE_JPEG_QUALITY, 90])
    found = {path for kind, path in kinds(check(base)) if kind == "leak"}
    assert found == {f"train/good/{name}" for name in ("moved.png", "brighter.png", "encoded.jpg")}


def test_pictures_of_one_part_are_said_to_be_alike(tmp_path):
    rng = np.random.default_rng(6)
    part = texture(rng, 256)
    for split, count in (("train", 12), ("test", 6)):
        for k in range(count):
            noisy = np.clip(part + rng.normal(0, 0.005, part.shape), 0, 1)
            save(tmp_path / f"p/{split}/good/{k:02}.png", noisy, 255, np.uint8)
    report = check(tmp_path / "p")
    assert kinds(report) == {("alike", "train/good")}
    assert report.dropped == set()


def test_depth_of_the_test_images(category):
    for path in (category / "train/good").iterdir():
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), pixels(image).astype(np.uint16) * 4)
    deep = pixels(cv2.imread(str(category / "test/good/0.png"), cv2.IMREAD_UNCHANGED)).astype(np.uint16) * 16
    cv2.imwrite(str(category / "test/good/0.png"), deep)
    (finding,) = [f for f in check(category).findings if f.kind == "depth"]
    assert finding.detail == "values up to 4095, the training images up to 1023: set data.full_scale=4095"


def inverted(mask):
    return 255 - mask


def on_purple(mask):
    return np.where(mask[..., None] > 0, [255, 255, 0], [60, 0, 80]).astype(np.uint8)


@pytest.mark.parametrize("painted", [inverted, on_purple])
def test_masks_that_mark_the_background_are_found_and_left_alone(category, tmp_path, painted):
    paths = sorted((category / "ground_truth/spot").iterdir())
    for path in paths:
        Image.fromarray(painted(np.asarray(Image.open(path)))).save(path)
    report = check(category)
    marked = [f for f in report.findings if f.kind == "mask-background"]
    assert [f.path for f in marked] == [f"ground_truth/spot/{k}_mask.png" for k in range(3)]
    share = 100 if painted is on_purple else 100 * (1 - 20 / 64**2)
    assert marked[0].detail.startswith(f"marks {share:.0f}% of the image as defect")
    assert report.rewritten == set()


def test_dark_and_odd_training_images(tmp_path):
    rng = np.random.default_rng(1)
    for k in range(30):
        write_image(tmp_path / f"p/train/good/{k:02}.png", rng)
    write_image(tmp_path / "p/train/good/anomalous.png", rng, defect=True)
    Image.open(tmp_path / "p/train/good/05.png").point(lambda v: v // 3).save(tmp_path / "p/train/good/05.png")
    found = kinds(check(tmp_path / "p"))
    assert {("brightness", "train/good/05.png"), ("suspect", "train/good/anomalous.png")} <= found
    assert {path for _, path in found} == {"train/good/05.png", "train/good/anomalous.png"}


def test_distances_against_least_squares():
    rng = np.random.default_rng(2)
    images = rng.random((5, 32, 32)).astype(np.float32)
    images[4] = 0.5
    smooth = [scipy.ndimage.gaussian_filter(image, 1, mode="reflect", truncate=2) for image in images]
    for i, first in enumerate(smooth[:4]):
        planes = [np.ones_like(first), first, *np.gradient(first)]
        span = np.stack([plane[::2, ::2].ravel() for plane in planes], axis=1)
        for j, second in enumerate(smooth[:4]):
            target = second[::2, ::2].ravel() - second[::2, ::2].mean()
            rest = target - span @ np.linalg.lstsq(span, target)[0]
            expected = np.linalg.norm(rest) / np.linalg.norm(target)
            assert distances(images[i : i + 1], images[j : j + 1])[0, 0] == pytest.approx(expected, abs=2e-2)
    assert np.isinf(distances(images, images)[:, 4]).all()


def test_distances_do_not_see_exposure_and_shift():
    image = texture(np.random.default_rng(3), 256).astype(np.float32)
    small = [cv2.resize(view, (32, 32), interpolation=cv2.INTER_AREA) for view in (image, image[1:, 1:], 0.1 * image)]
    near = distances(np.stack(small[:1]), np.stack(small))[0]
    assert near[1] < 0.02
    assert near[2] < 1e-3


def test_near_pairs_and_spacing():
    rng = np.random.default_rng(4)
    first, second = rng.random((30, 32, 32)).astype(np.float32), rng.random((9, 32, 32)).astype(np.float32)
    second[3] = 0.3 * first[17] + 0.2
    second[5] = first[2] + rng.normal(0, 0.01, (32, 32))
    assert [pair[:2] for pair in near_pairs(first, second, 0.1)] == [(17, 3), (2, 5)]
    found = distances(first, first)
    np.fill_diagonal(found, np.inf)
    assert spacing(first) == np.median(found.min(axis=1))
    assert spacing(first[:1]) == np.inf
    assert near_pairs(first, second[:0], 0.1) == near_pairs(first[:0], second, 0.1) == []


def test_robust_z_is_z_for_a_normal_sample():
    values = np.random.default_rng(0).normal(3, 2, 20_000)
    np.testing.assert_allclose(robust_z(values), (values - 3) / 2, atol=0.1)
    assert oddness(np.random.default_rng(0).random((30, 8, 8)).astype(np.float32)).shape == (30,)


@pytest.mark.parametrize("centre", [0.0, 0.5])
def test_robust_z_without_spread(centre):
    values = np.full(45, centre)
    assert (robust_z(values) == 0).all()
    values[7] += 0.3
    expected = np.zeros(45)
    expected[7] = 45 / 1.2533  # the mean absolute deviation is 0.3 / 45
    np.testing.assert_allclose(robust_z(values), expected, rtol=1e-12)


def test_black_training_images_with_one_that_is_not(tmp_path):
    for k in range(30):
        save(tmp_path / f"p/train/good/{k:02}.png", np.zeros((32, 32)), 255, np.uint8)
    save(tmp_path / "p/train/good/07.png", np.full((32, 32), 0.5), 255, np.uint8)
    (finding,) = [f for f in check(tmp_path / "p").findings if f.kind == "brightness"]
    assert finding.detail == "mean 128 of 255, robust z +23.9"


def described(values, **fixed):
    return [Fingerprint(mean=v, colour=(v, v, v), size=(8, 8), focus=1.0, **fixed) for v in values]


def test_shifts_against_counting():
    rng = np.random.default_rng(8)
    first, second = rng.normal(0.3, 0.02, 30), rng.normal(0.36, 0.02, 12)
    (found,) = shifts(described(first), described(second), 0.9)
    assert found.measure == "mean brightness"
    assert found.auroc == pytest.approx(np.mean(second[:, None] > first))
    assert found.medians == pytest.approx((255 * np.median(first), 255 * np.median(second)), rel=1e-4)
    assert shifts(described(first), described(second), found.auroc + 1e-6) == []
    assert shifts(described(first[:3]), described(second[:3] + 1), 0.9) == [], "may be chance"
    assert shifts([], described(second), 0.9) == shifts(described(first), [], 0.9) == []


def test_shifts_name_what_differs(tmp_path):
    rng = np.random.default_rng(9)
    views = {
        "plain": lambda image: image,
        "focus": lambda image: cv2.GaussianBlur(image, (0, 0), 1.5),
        "red": lambda image: image * [1.0, 1.0, 1.3],
        "blue": lambda image: image * [1.3, 1.0, 1.0],
        "size": lambda image: np.hstack([image, image]),
        "mean brightness": lambda image: image * 0.8,
    }
    prints: dict[str, list[Any]] = {name: [] for name in views}
    for name, view in views.items():
        for k in range(12):
            image = 0.7 * np.repeat(texture(rng)[..., None], 3, axis=2)
            save(tmp_path / f"{name}/{k}.png", view(image), 255, np.uint8)
            prints[name].append(fingerprint(tmp_path / f"{name}/{k}.png"))
    for name in views:
        found = {shift.measure for shift in shifts(prints["plain"], prints[name], 0.95)}
        assert (name in found) is (name != "plain")
        assert len(found) == (name != "plain") or name in ("red", "blue")  # a share of red less is one of blue more


def test_test_images_that_are_taken_otherwise(tmp_path):
    rng = np.random.default_rng(10)
    for k in range(24):
        save(tmp_path / f"p/train/good/{k:02}.png", texture(rng), 255, np.uint8)
        save(tmp_path / f"p/test/good/{k:02}.png", 0.8 * texture(rng), 255, np.uint8)
        save(tmp_path / f"p/test/hole/{k:02}.png", texture(rng), 255, np.uint8)
    report = check(tmp_path / "p")
    assert kinds(report) == {("shift", "test/good"), ("shortcut", "test")}
    shift, shortcut = sorted(report.findings)
    assert shift.detail.startswith("mean brightness alone tells test/good from train/good with AUROC 1.000 (median ")
    assert shortcut.detail.startswith("mean brightness alone tells defects from test/good with AUROC 1.000 (median ")


def test_exit_codes(category, monkeypatch):
    run = CliRunner().invoke
    assert run(app, ["check", str(category)]).exit_code == 0
    assert run(app, ["check", str(category.parent), "part", "--json"]).exit_code == 0
    plant_trouble(category)
    result = run(app, ["check", str(category)])
    assert result.exit_code == 1
    assert "12 findings" in result.output
    with pytest.raises(DataError, match="there are part"):
        checking.find_categories(category.parent, "nope")


def test_one_line_for_each_kind(category):
    run = CliRunner().invoke
    for k in range(5):
        (category / f"train/good/bad{k}.png").write_bytes(b"")
    (category / "test/spot/0.png").write_bytes(b"")
    head, seen, line, total = run(app, ["check", str(category)]).output.splitlines()
    assert head.startswith(f"{category}: ")
    assert seen.startswith(f"{category}: data=custom inspects all of each image, data=mvtec 76.6% of the area")
    kind, count, first = line.split("\t")
    assert (kind, count, total) == ("unreadable", "6", "6 findings")
    assert [part.split(": ")[0] for part in first.split("; ")] == [
        *(f"train/good/bad{k}.png" for k in range(3)), "..."
    ]  # fmt: skip
    assert run(app, ["check", str(category), "--verbose"]).output.count("train/good/bad") == 5
    found = json.loads(run(app, ["check", str(category), "--json"]).stdout)
    assert len(found[0]["findings"]) == 6


def test_fix_from_the_command_line(category, tmp_path):
    run = CliRunner().invoke
    arguments = ["check", str(category), "--fix", str(tmp_path / "mended")]
    for k in range(5):
        (category / f"train/good/{k}.png").write_bytes(b"")
    for extra in ([], ["--dry-run"]):
        result = run(app, [*arguments, *extra])
        assert "would lack 5 of 12 images" in str(result.exception)
    assert not (tmp_path / "mended").exists()
    assert run(app, [*arguments, "--force"]).exit_code == 1
    assert len(list((tmp_path / "mended/train/good").iterdir())) == 7
    result = run(app, arguments)
    assert "exists and is not an empty folder" in str(result.exception)
    assert result.output == "", "before anything is looked at"


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
