"""A fitted method that goes over to another distance gives what SciPy gives for it; others refuse."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from oddpatch.errors import ConfigError
from oddpatch.models.banks import MemoryBanks
from oddpatch.models.lunar import LUNAR
from oddpatch.models.padim import PaDiM
from oddpatch.models.patchcore import PatchCore
from oddpatch.models.rad import RAD
from oddpatch.models.spade import SPADE

SIZE = (6, 6)  # that of the grid: maps are not resized


def drawn(count, seed):
    return torch.randn(count, 5, 6, 6, generator=torch.Generator().manual_seed(seed)) + 1


def fitted(method):
    detector = method([5], [1])
    detector.update([drawn(8, 0)], torch.arange(8))
    detector.fit()
    return detector


def rows(maps):
    return maps.permute(0, 2, 3, 1).reshape(-1, 5).double().numpy()


plain: dict[str, Any] = {"smoothing": 0, "finest_stride": 1}
METHODS = {
    "patchcore": partial(PatchCore, selector="none", embedding="joined", patch_size=1, **plain),
    "rad": partial(RAD, window=None, **plain),
    "anomalydino": partial(MemoryBanks, rule="cosine", **plain),
    "superadd": partial(MemoryBanks, unit=False, **plain),
    "spade": partial(SPADE, k=8, **plain),
}
UNIT = ("rad", "anomalydino")  # their Euclidean distances are those of unit vectors


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_maps_are_those_of_scipy(name, distance):
    detector, test = fitted(METHODS[name]), drawn(2, 1)
    detector.measure(distance)
    good, new = rows(drawn(8, 0)), rows(test)
    if name in UNIT:
        good, new = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (good, new))
    expected = cdist(new, good, distance).min(axis=1).reshape(2, 6, 6)
    found = detector([test], SIZE).anomaly_map
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_there_and_back(name):
    detector, test = fitted(METHODS[name]), [drawn(2, 1)]
    own, before = detector.distance, detector(test, SIZE)
    detector.measure("cosine" if own == "euclidean" else "euclidean")
    assert not torch.allclose(detector(test, SIZE).score, before.score)
    if name != "superadd":  # whose patches have lost their lengths
        detector.measure(own)
        assert torch.equal(detector(test, SIZE).score, before.score)


def test_images_of_spade_are_retrieved_by_it_too():
    detector, test = fitted(partial(SPADE, k=3, **plain)), drawn(2, 1)
    detector.measure("cosine")
    average = [m.mean(dim=(2, 3)).double().numpy() for m in (test, drawn(8, 0))]
    expected = np.sort(cdist(*average, "cosine"), axis=1)[:, :3].mean(axis=1)
    np.testing.assert_allclose(detector([test], SIZE).score, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "method",
    [partial(PaDiM, num_features=2, finest_stride=1), partial(LUNAR, k=2, finest_stride=1),
     partial(MemoryBanks, rule="soft_projection", k=2, **plain)],
)  # fmt: skip
def test_methods_of_no_such_distance_refuse(method):
    with pytest.raises(ConfigError, match="leave out --distance"):
        method([5], [1]).measure("cosine")


def test_another_name_is_refused():
    with pytest.raises(ConfigError, match="choose euclidean or cosine"):
        fitted(METHODS["rad"]).measure("manhattan")
