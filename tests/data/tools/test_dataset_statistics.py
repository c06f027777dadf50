"""Figures of a category against numpy."""

import numpy as np
import pytest
from PIL import Image

from oddpatch.data.tools.statistics import collect, draw, table


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
    draw(stats, tmp_path / "s.png")
    assert Image.open(tmp_path / "s.png").width > 500
