"""`pixel_statistics.npz`: what is read is what `from_maps` can have written, or one line."""

import contextlib
import io
import zipfile

import numpy as np
import pytest

from oddpatch.errors import CheckpointError
from oddpatch.metrics.uncertainty.pixel_statistics import PixelStatistics


@pytest.fixture
def saved(tmp_path):
    rng = np.random.default_rng(0)
    masks = np.zeros((4, 8, 8), np.uint8)
    masks[1, 2:4, 2:4] = masks[3, :2, :2] = masks[3, 6:, 6:] = 1
    PixelStatistics.from_maps(rng.random((4, 8, 8), dtype=np.float32), masks).save(tmp_path / "s.npz")
    return tmp_path / "s.npz"


def test_what_is_saved_comes_back(saved):
    assert PixelStatistics.load(saved).num_images == 4


CHANGES = {
    "edges": [
        lambda a: a[::-1],
        lambda a: a[:-1],
        lambda a: a.astype(np.float64),
        lambda a: a * np.nan,
        lambda a: a[:0],
    ],
    "normal": [lambda a: a[:2], lambda a: a[:, 1:], lambda a: a - 10**6, lambda a: a.astype(float), lambda a: a[0]],
    "defect_scores": [lambda a: a[:-1], lambda a: a - 100, lambda a: a[None], lambda a: a * np.inf],
    "region_size": [lambda a: a * 0, lambda a: a + 1, lambda a: -a, lambda a: a[:1]],
    "region_image": [lambda a: a + 10, lambda a: a[::-1], lambda a: a - 9, lambda a: a.astype(bool)],
    "exact": [lambda a: a[:3], lambda a: a + 1, lambda a: a[None], lambda a: a.astype(np.float32)],
    "fpr_limits": [lambda a: a * 0, lambda a: a + 5, lambda a: a[:0], lambda a: np.array("x"), lambda a: a.astype("O")],
}


@pytest.mark.parametrize(
    ("name", "number"), [(name, i) for name, changes in CHANGES.items() for i in range(len(changes))]
)
def test_arrays_that_do_not_go_together_are_refused(saved, name, number):
    with np.load(saved) as file:
        arrays = dict(file)
    arrays[name] = CHANGES[name][number](arrays[name])
    saved.unlink()
    np.savez(saved, **arrays)
    with pytest.raises(CheckpointError, match=r"s\.npz cannot be read.*oddpatch eval") as error:
        PixelStatistics.load(saved)
    assert "\n" not in str(error.value)


def damaged(data):
    yield b""
    yield b"text"
    yield data[: len(data) // 2]
    yield bytes(1000)
    for start in range(0, len(data), max(len(data) // 40, 1)):  # a stretch of every part is overwritten
        yield data[:start] + b"\xff" * 8 + data[start + 8 :]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("edges.npy", b"\x93NUMPY\x01\x00\xff\xff{")
    yield archive.getvalue()
    one = io.BytesIO()
    np.save(one, np.zeros(3))
    yield one.getvalue()


def test_damaged_files_are_one_line_or_harmless(saved):
    for content in damaged(saved.read_bytes()):
        saved.unlink(missing_ok=True)
        saved.write_bytes(content)
        with contextlib.suppress(CheckpointError):  # any other error fails the test
            PixelStatistics.load(saved)
