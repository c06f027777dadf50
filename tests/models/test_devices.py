"""Whether a method computes where its state and the features are: on a pretended GPU, as not every machine has one.

Tensors of `FakeTensorMode` have shapes and devices but no values, and an operation on two devices is an error there.
"""

import copy

import pytest
import torch
from methods import FITTED, METHODS, SIZE, features, fit, make
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from oddpatch.models import banks, lunar, mh_patchcore, patchcore
from oddpatch.ops import maps


class Searched:
    """In place of a `NearestIndex`, whose steps depend on values: says where its results would be."""

    def __init__(self, bank, metric="euclidean", num_queries=0):
        self.bank, self.metric, self.dim = bank, metric, bank.shape[1]

    def search(self, queries, k=1, max_bytes=None, without=None):
        assert queries.device == self.bank.device
        return queries.new_empty(len(queries), k), queries.new_empty(len(queries), k, dtype=torch.int64)


def pretend(mode, tensor):
    return mode.from_tensor(tensor, static_shapes=True).to("cuda")


def moved(mode, detector):
    detector = copy.deepcopy(detector)
    with mode:
        for module in detector.modules():
            for held in (module._buffers, module._parameters):  # noqa: SLF001 - as `Module.to` does
                held.update({key: pretend(mode, value) for key, value in held.items() if value is not None})
    return detector


@pytest.fixture
def mode(monkeypatch):
    def with_values(*args):
        with unset_fake_temporarily():  # it is made on the CPU, by NumPy
            return axis_matrix(*args)

    axis_matrix = maps.axis_matrix
    monkeypatch.setattr(maps, "axis_matrix", with_values)
    maps.axis_matrix_on.cache_clear()
    yield FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(allow_dynamic_output_shape_ops=True))
    maps.axis_matrix_on.cache_clear()


#: PyOD scores on the CPU; in the other two, values decide what is computed.
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("musc", "pyod", "spade")])
def test_scores_are_computed_where_the_features_are(name, mode, monkeypatch):
    fitted, images = fit(make(name)), features(5, seed=1)
    wanted = fitted(images, SIZE)
    for module in (banks, lunar, mh_patchcore, patchcore):
        monkeypatch.setattr(module, "NearestIndex", Searched)
    detector = moved(mode, fitted)
    with mode:
        found = detector([pretend(mode, image) for image in images], SIZE)
    for value, known in zip(found, wanted, strict=True):
        assert (value is None) == (known is None)
        if value is not None:
            assert (value.device.type, value.dtype, value.shape) == ("cuda", known.dtype, known.shape)


#: An ensemble looks whether images come twice, and SPADE writes to a file.
@pytest.mark.parametrize("name", [name for name in FITTED if name not in ("patchcore_ensemble", "spade")])
def test_batches_are_taken_in_where_the_features_are(name, mode):
    detector, batches = moved(mode, make(name)), [features(4, seed=0), features(4, seed=1)]
    with mode:
        for number, images in enumerate(batches):
            detector.update([pretend(mode, image) for image in images], torch.arange(4) + 4 * number)
