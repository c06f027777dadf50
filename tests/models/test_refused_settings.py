"""Settings and images that no method can work with: one line with the value, before any image is looked at."""

import re

import pytest
import torch
from methods import CHANNELS, SIZE, STRIDES, features

from oddpatch.errors import ConfigError, DataError, NotFittedError
from oddpatch.models.banks import MemoryBanks
from oddpatch.models.calibration import Calibration
from oddpatch.models.dfm import DFM
from oddpatch.models.lunar import ScoreNetwork, train_network
from oddpatch.models.mh_patchcore import MHPatchCore
from oddpatch.models.musc import MuSc
from oddpatch.models.padim import PaDiM
from oddpatch.models.rad import RAD
from oddpatch.models.state import Rows, Spooled
from oddpatch.ops.ranks import Ranks


@pytest.mark.parametrize(
    ("method", "settings", "told"),
    [
        (MemoryBanks, {"k": 0}, "k=0: choose at least 1"),
        (MemoryBanks, {"reduced_dim": 0}, "reduced_dim=0: choose at least 1"),
        (MemoryBanks, {"selector": "greedy", "coreset_ratio": 1.5}, "coreset_ratio=1.5 is a share: choose above 0 and"),
        (DFM, {"variance": 1}, "variance=1 is a share: choose above 0 and below 1"),
        (DFM, {"pooling": 0}, "pooling=0 and score='reconstruction': choose 1 or more, reconstruction or likelihood"),
        (DFM, {"score": "both"}, "pooling=4 and score='both': choose 1 or more, reconstruction or likelihood"),
        (MHPatchCore, {"variance": 0}, "variance=0 and shrinkage="),
        (MHPatchCore, {"shrinkage": 1.1}, "and shrinkage=1.1 are shares: choose between 0 and 1"),
        (MHPatchCore, {"block_size": 0}, "block_size=0: choose at least 1"),
        (MuSc, {"windows": []}, "windows=[]: give odd numbers of at least 1"),
        (MuSc, {"windows": [1, 4]}, "windows=[1, 4]: give odd numbers of at least 1"),
        (MuSc, {"share": 0}, "share=0 must be above 0 and up to 1"),
        (MuSc, {"neighbours": [0]}, "neighbours=[0] at least 1"),
        (PaDiM, {"num_features": 4, "reduction": "pca"}, "reduction='pca': choose one of random, semi_orthogonal"),
        (PaDiM, {"num_features": 4, "score_from": "map"}, "score_from='map': choose one of smoothed, raw"),
        (PaDiM, {"num_features": 4, "epsilon": -1}, "epsilon=-1: it is added to variances and must not be negative"),
        (RAD, {"k": 0}, "k=0 and window="),
        (RAD, {"window": -1}, "window=-1: choose k of at least 1, window of at least 0 or null"),
        (RAD, {"weights": [1.0]}, "weights=[1.0]: give 2 of 0 or more, one for each layer"),
        (RAD, {"weights": [0, 0]}, "weights=[0, 0]: give 2 of 0 or more, one for each layer"),
    ],
)
def test_settings_that_cannot_work_are_refused(method, settings, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        method(CHANNELS, STRIDES, **settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"method": "bootstrap"}, "calibration.method='bootstrap' is not known: choose "),
        ({"fraction": 1}, "calibration.fraction=1 must lie between 0 and 1"),
        ({"minimum": 0}, "calibration.minimum=0 must be at least 1"),
        ({"folds": 1}, "calibration.folds=1 must be at least 2"),
        ({"min_area": -1}, "calibration.min_area=-1 must be at least 0"),
    ],
)
def test_calibrations_that_cannot_work_are_refused(settings, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        Calibration(**{"method": "cross", **settings})


@pytest.mark.parametrize("method", [MemoryBanks, MHPatchCore, RAD])
def test_a_fit_without_images_is_refused(method):
    with pytest.raises(DataError, match="needs at least one good image, it was given none: add images"):
        method(CHANNELS, STRIDES).fit()


def test_more_neighbours_than_patches_are_refused():
    detector = MemoryBanks(CHANNELS, STRIDES, k=65)  # of 8 x 8 at stride 8
    detector.update(features(1), torch.arange(1))
    with pytest.raises(ConfigError, match=r"k=65 neighbours of 64 patches: choose model\.k up to 64"):
        detector.fit()


@pytest.mark.parametrize("method", [MemoryBanks, RAD])
def test_the_only_good_image_cannot_be_left_out(method):
    detector = method(CHANNELS, STRIDES)
    detector.update(features(1), torch.arange(1))
    detector.fit()
    with pytest.raises(ConfigError, match=r"left out: add images, .*or set calibration=none"):
        detector.score_left_out(features(1), torch.arange(1), SIZE)


def test_what_was_not_expected_cannot_be_left_out():
    with pytest.raises(NotFittedError, match=r"^PaDiM: call expect_left_out\(\) before update\(\) and fit\(\)"):
        PaDiM(CHANNELS, STRIDES, num_features=4).require_left_out()


def test_features_of_several_sizes_are_refused():
    rows = Rows()
    rows.add(torch.tensor([0]), torch.zeros(1, 3, 4))
    with pytest.raises(DataError, match=r"shape \(3, 5\) where others gave \(3, 4\): use images of one size"):
        rows.add(torch.tensor([1]), torch.zeros(1, 3, 5))


class OtherRank(Ranks):
    """Of two ranks the one whose patches have another shape."""

    def exchange(self, value):
        return [value, [(9, 4)] * len(value)]


def test_features_of_several_sizes_on_two_ranks_are_refused():
    held = Spooled(torch.float32)
    held.add(torch.tensor([0]), torch.zeros(1, 8, 4))
    with pytest.raises(DataError, match=r"patches \(number, channels\) of .*8, 4.*9, 4.*: use images of one size"):
        held.merge(OtherRank(), torch.device("cpu"))


def test_a_loss_that_is_not_finite_ends_the_training_of_lunar():
    distances = torch.rand(8, 3)
    with pytest.raises(DataError, match=r"LUNAR: the loss is .* at step 0: check the backbone's precision"):
        train_network(ScoreNetwork(3), torch.full((8, 3), torch.nan), distances, steps=1)
