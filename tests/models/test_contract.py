"""What every detector promises, whatever its method."""

import io
import subprocess
import sys
from functools import partial

import pytest
import torch

from oddpatch.errors import NotFittedError
from oddpatch.models.ensemble import EnsembleDetector
from oddpatch.models.gaussian import GaussianAD
from oddpatch.models.padim import PaDiM
from oddpatch.models.patchcore import PatchCore
from oddpatch.models.spade import SPADE

CHANNELS, STRIDES, SIZE = [6, 8, 10], [4, 8, 16], (64, 64)
DETECTORS = {
    "ensemble": lambda: EnsembleDetector(
        CHANNELS, STRIDES, maps=[2, 1], member=partial(PatchCore, coreset_ratio=0.5, smoothing=1.0, finest_stride=4)
    ),
    "gaussian": lambda: GaussianAD(CHANNELS, STRIDES),
    "padim": lambda: PaDiM(CHANNELS, STRIDES, num_features=12, smoothing=1.0),
    "patchcore": lambda: PatchCore(CHANNELS, STRIDES, coreset_ratio=0.5, smoothing=1.0, finest_stride=4),
    "spade": lambda: SPADE(CHANNELS, STRIDES, k=5, smoothing=1.0),
}


def features(count, seed=0):
    """Structured maps: every position has its own mean, good images vary a little around it."""
    fixed = torch.Generator().manual_seed(99)
    drawn = torch.Generator().manual_seed(seed)
    maps = []
    for channels, stride in zip(CHANNELS, STRIDES, strict=True):
        shape = (channels, SIZE[0] // stride, SIZE[1] // stride)
        maps.append(torch.randn(shape, generator=fixed) + 0.1 * torch.randn(count, *shape, generator=drawn))
    return maps


@pytest.fixture(params=DETECTORS, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def fitted(name):
    detector = DETECTORS[name]()
    for start in range(0, 24, 8):
        detector.update([f[start : start + 8] for f in features(24)], torch.arange(start, start + 8))
    detector.fit()
    return detector


def test_shapes_and_finite_values(fitted):
    score, anomaly_map = fitted(features(5, seed=1), SIZE)
    assert score.shape == (5,)
    assert score.dtype == torch.float32
    assert torch.isfinite(score).all()
    if anomaly_map is not None:
        assert anomaly_map.shape == (5, 1, *SIZE)
        assert torch.isfinite(anomaly_map).all()


def test_four_at_once_equal_four_singles(fitted):
    test = features(4, seed=1)
    together = fitted(test, SIZE)
    for i in range(4):
        single = fitted([f[i : i + 1] for f in test], SIZE)
        torch.testing.assert_close(single.score[0], together.score[i], rtol=1e-5, atol=1e-5)
        if together.anomaly_map is not None:
            torch.testing.assert_close(single.anomaly_map[0], together.anomaly_map[i], rtol=1e-4, atol=1e-5)


def test_a_planted_defect_scores_higher_and_is_found(fitted):
    good, anomalous = features(6, seed=2), features(6, seed=2)
    for feature, stride in zip(anomalous, STRIDES, strict=True):
        side = 16 // stride
        feature[:, :, side : 2 * side, 2 * side : 3 * side] += 2.0
    of_good, of_odd = fitted(good, SIZE), fitted(anomalous, SIZE)
    assert of_odd.score.min() > of_good.score.max()
    if of_odd.anomaly_map is not None:
        peaks = of_odd.anomaly_map.flatten(1).argmax(1)
        rows, columns = peaks // SIZE[1], peaks % SIZE[1]
        assert ((rows >= 12) & (rows < 36)).all()
        assert ((columns >= 28) & (columns < 52)).all()


def test_save_and_load_give_the_same_scores_to_the_bit(name, fitted):
    file = io.BytesIO()
    torch.save(fitted.state_dict(), file)
    file.seek(0)
    loaded = DETECTORS[name]()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    test = features(3, seed=3)
    before, after = fitted(test, SIZE), loaded(test, SIZE)
    assert torch.equal(before.score, after.score)
    if before.anomaly_map is not None:
        assert torch.equal(before.anomaly_map, after.anomaly_map)


def test_scoring_before_fit_is_refused(name):
    with pytest.raises(NotFittedError, match=r"call update\(\).*fit\(\)"):
        DETECTORS[name]()(features(1), SIZE)


def test_required_memory_is_positive_and_names_a_setting(name):
    shapes = [(c, SIZE[0] // s, SIZE[1] // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    needed, remedy = DETECTORS[name]().required_memory(shapes, 24)
    assert needed > 0
    assert remedy


def test_importing_the_models_loads_neither_lightning_nor_hydra():
    modules = ", ".join(f"oddpatch.models.{name}" for name in ["base", *DETECTORS])
    code = f"import sys, {modules}; assert not {{'lightning', 'hydra', 'timm'}} & set(sys.modules), 'too much'"
    subprocess.run([sys.executable, "-c", code], check=True)
