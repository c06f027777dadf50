"""Detectors of PyOD on patch features: what PyOD itself gives, and the same again after loading."""

import io
import logging
import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from methods import CHANNELS, SIZE, STRIDES, config, features
from methods import fit as fitted
from omegaconf import OmegaConf
from pyod.models.ecod import ECOD
from pyod.models.hbos import HBOS
from pyod.models.iforest import IForest
from pyod.models.knn import KNN
from pyod.models.loda import LODA
from pyod.models.ocsvm import OCSVM
from pyod.models.pca import PCA

from oddpatch.errors import ConfigError, DataError
from oddpatch.hydra_entry import building
from oddpatch.models.pyod import PyOD

SMALL: dict[str, Any] = {"coreset_size": 300, "finest_stride": 4, "smoothing": 0}


def composed(described):
    """What the config makes with another detector, or more settings of it."""
    model: Any = OmegaConf.to_container(config("pyod").model, resolve=True)
    model["detector"] |= described
    return building.make(model, channels=CHANNELS, strides=STRIDES)


def reloaded(detector, make_detector):
    file = io.BytesIO()
    torch.save(detector.state_dict(), file)
    file.seek(0)
    loaded = PyOD(CHANNELS, STRIDES, make_detector, **SMALL)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    return loaded


@pytest.mark.parametrize("of", [KNN, HBOS, OCSVM])
def test_scores_are_those_of_pyod(of):
    detector = fitted(PyOD(CHANNELS, STRIDES, of, **SMALL))
    patches, _ = detector.patches(features(2, seed=1))
    expected = of().fit(detector.memory_bank.double().numpy()).decision_function(patches.flatten(0, 1).double().numpy())
    torch.testing.assert_close(detector.score_patches(patches).flatten(), torch.from_numpy(expected).float())


def test_ecod_ranks_the_patches_of_one_image_among_the_bank():
    detector = fitted(PyOD(CHANNELS, STRIDES, ECOD, **SMALL))
    patches, _ = detector.patches(features(3, seed=1))
    expected = [
        ECOD().fit(detector.memory_bank.double().numpy()).decision_function(image.double().numpy()) for image in patches
    ]
    torch.testing.assert_close(detector.score_patches(patches), torch.from_numpy(np.stack(expected)).float())


@pytest.mark.parametrize("of", [ECOD, PCA, LODA, partial(IForest, n_estimators=10)])
def test_loading_fits_again_to_the_same_scores_and_says_so(of, caplog):
    np.random.seed(0)  # noqa: NPY002
    detector = fitted(PyOD(CHANNELS, STRIDES, of, **SMALL))
    assert set(detector.state_dict()) == {"fitted", "memory_bank"}
    np.random.seed(1)  # noqa: NPY002
    with caplog.at_level(logging.INFO):
        loaded = reloaded(detector, of)
    assert f"fitted {type(detector.outliers).__name__} again, to the 300 patches that were stored, in " in caplog.text
    found, expected = (one(features(3, seed=1), SIZE) for one in (loaded, detector))
    assert torch.equal(found.score, expected.score)
    assert torch.equal(found.anomaly_map, expected.anomaly_map)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_patches_that_are_not_finite_get_no_score(value):
    detector = fitted(PyOD(CHANNELS, STRIDES, ECOD, **SMALL))
    maps = features(2, seed=1)
    maps[-1][1, 0, 0, 0] = value
    with pytest.raises(DataError, match=r"patches: row .* holds NaN, infinity or values too large"):
        detector(maps, SIZE)


def test_global_generators_are_left_alone():
    states = np.random.get_state(legacy=False)["state"]["key"].copy(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    detector = fitted(PyOD(CHANNELS, STRIDES, IForest, **SMALL))
    detector(features(1), SIZE)
    assert (np.random.get_state(legacy=False)["state"]["key"] == states[0]).all()  # noqa: NPY002
    assert random.getstate() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_it_works_where_gradients_are_off():
    expected = fitted(PyOD(CHANNELS, STRIDES, KNN, **SMALL))(features(2, seed=1), SIZE)
    with torch.inference_mode():
        found = fitted(PyOD(CHANNELS, STRIDES, KNN, **SMALL))(features(2, seed=1), SIZE)
    assert torch.equal(found.score, expected.score)


def test_another_detector_and_its_settings_are_composed():
    detector = fitted(composed({"_target_": "pyod.models.knn.KNN", "n_neighbors": 3}))
    assert isinstance(detector.outliers, KNN)
    assert detector.outliers.n_neighbors == 3


@pytest.mark.parametrize(
    ("described", "told"),
    [
        ({"_target_": "pyod.models.ecod.Ecod"}, r"Error locating target 'pyod.models.ecod.Ecod': is its name spelt"),
        ({"_target_": "pyodd.models.ecod.ECOD"}, "pyodd is not installed: install it, or is its name spelt right"),
        ({"_target_": "torch.nn.Identity"}, "makes a Identity, which is no detector of PyOD"),
        ({"neighbours": 3}, r"model.detector cannot be made \(TypeError: .*neighbours"),
        ({"contamination": 2.0}, r"model.detector cannot be made \(ValueError: contamination must be"),
    ],
)
def test_what_is_no_detector_is_told_in_one_line(described, told):
    with pytest.raises(ConfigError, match=told) as error:
        composed(described)
    assert "\n" not in str(error.value)


def test_without_pyod_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(building, "missing_package", lambda error: "pyod" if "absent" in str(error) else None)
    with pytest.raises(ConfigError, match=r"pyod is not installed: pip install 'oddpatch\[outlier\]'$"):
        composed({"_target_": "pyod.models.absent.A"})


def test_what_pyod_cannot_fit_is_told_in_one_line():
    detector = PyOD(CHANNELS, STRIDES, partial(KNN, n_neighbors=1000), **SMALL)
    with pytest.raises(ConfigError, match=r"KNN cannot be fitted to patches of shape \(300, 24\) .*: choose another"):
        fitted(detector)
    with pytest.raises(DataError, match="PyOD needs at least one good image"):
        PyOD(CHANNELS, STRIDES, ECOD).fit()
