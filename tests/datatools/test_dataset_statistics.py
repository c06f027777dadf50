"""Figures of a category against numpy."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from oddpatch.cli.data import app
from oddpatch.datatools import statistics
from oddpatch.datatools.statistics import collect, draw, table
from oddpatch.errors import ConfigError


@pytest.fixture
def root(tmp_path):
    base = tmp_path / "data" / "part"
    rng = np.random.default_rng(0)
    for name in ("train/good/0", "train/good/1", "test/good/0", "test/hole/0", "test/hole/1"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 20, 3), np.uint8)).save(base / f"{name}.png")
    mask = np.zeros((10, 20), np.uint8)
    mask[2:4, 3:8] = 255
    (base / "ground_truth/hole").mkdir(parents=True)
    Image.fromarray(mask).save(base / "ground_truth/hole/0_mask.png")
    return tmp_path / "data"


def test_figures(root, tmp_path):
    stats = collect(root, "part")
    for item, name in zip(stats, ("train/good/0", "train/good/1"), strict=False):
        array = np.asarray(Image.open(root / "part" / f"{name}.png")) / 255
        np.testing.assert_allclose(item.colour, array.mean((0, 1)), rtol=1e-5)
        np.testing.assert_allclose(item.contrast, array.mean(2).std(), rtol=1e-4)
    rows = {row["group"]: row for row in table(stats)}
    assert list(rows) == ["train/good", "test/good", "test/hole"]
    assert rows["test/hole"]["defect %"] == "5.00 (5.00..5.00)"
    assert (rows["test/hole"]["images"], rows["test/hole"]["masks"], rows["test/hole"]["size"]) == (2, 1, "20x10")


def drawn(stats, path, monkeypatch):
    """The axes of the picture and its texts."""
    sheets = []
    original = statistics.Sheet

    def noted(*size):
        sheets.append(original(*size))
        return sheets[-1]

    monkeypatch.setattr(statistics, "Sheet", noted)
    draw(stats, path, "part")
    (sheet,) = sheets
    return sheet.figure.axes, [text.get_text() for text in sheet.figure.texts]


def dots(axes):
    return np.concatenate(
        [np.asarray(points.get_offsets()) for points in axes.collections if len(points.get_offsets())]
    )


def test_picture_shows_each_image_in_the_row_of_its_group(root, tmp_path, monkeypatch):
    stats = collect(root, "part")
    panels, texts = drawn(stats, tmp_path / "s.png", monkeypatch)
    assert Image.open(tmp_path / "s.png").width > 500
    assert {"part: 5 images", "train/good", "2 images", "test/good", "1 image", "test/hole"} <= set(texts)
    assert any(text.startswith("all 20 x 10 pixels, colour, 1 with a mask; ") for text in texts), "no panel of one dot"
    brightness, *_, area = panels
    assert [len(dots(axes)) for axes in panels] == [5, 5, 15, 1]
    order = [item.group for item in stats]
    assert order == ["train/good"] * 2 + ["test/good"] + ["test/hole"] * 2
    x, y = dots(brightness).T
    np.testing.assert_allclose(x, [255 * item.brightness for item in stats])
    assert np.floor(y).tolist() == [0, 0, 1, 2, 2]
    assert dots(area)[0, 0] == pytest.approx(5)


def test_picture_of_several_sizes_and_of_grey_images(root, tmp_path, monkeypatch):
    Image.fromarray(np.full((30, 10), 7, np.uint8)).save(root / "part/train/good/0.png")
    panels, texts = drawn(collect(root, "part"), tmp_path / "s.svg", monkeypatch)
    assert sorted(dots(panels[0])[:, 0]) == [10, 20, 20, 20, 20]
    assert sorted(dots(panels[1])[:, 0]) == [10, 10, 10, 10, 30]
    assert "Width, pixels" in texts
    for path in root.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    panels, texts = drawn(collect(root, "part"), tmp_path / "s.pdf", monkeypatch)
    assert not any("Red" in text for text in texts)


def test_all_images_alike_can_be_drawn(tmp_path):
    (tmp_path / "part/train/good").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "part/train/good/0.png")
    draw(collect(tmp_path, "part"), tmp_path / "s.png")
    assert (tmp_path / "s.png").is_file()


def test_brightness_of_ten_bits_in_a_file_of_sixteen(tmp_path):
    (tmp_path / "part/train/good").mkdir(parents=True)
    for name, value in (("a", 1023), ("b", 512)):
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / f"part/train/good/{name}.png")
    assert [item.brightness for item in collect(tmp_path, "part")] == pytest.approx([1, 512 / 1023])


def test_unknown_picture_format_is_said_before_anything_is_read(tmp_path):
    result = CliRunner().invoke(app, ["stats", str(tmp_path), "part", "--out", str(tmp_path / "s.foo")])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(f"{tmp_path / 's.foo'}: name the picture by its format, such as s.png")
