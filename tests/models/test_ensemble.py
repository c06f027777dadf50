"""The ensemble's averages against the members', standardised by hand on the images held out."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import TinyBackbone

from oddpatch.backbones.ensemble import EnsembleBackbone
from oddpatch.errors import ConfigError, DataError
from oddpatch.models.ensemble import EnsembleDetector
from oddpatch.models.padim import PaDiM
from oddpatch.models.patchcore import PatchCore

CHANNELS, STRIDES, SIZE = [6, 8, 5], [8, 16, 8], (64, 64)
MEMBER = partial(PatchCore, coreset_ratio=0.5, smoothing=1.0)


def maps(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(count, c, 64 // s, 64 // s, generator=generator) for c, s in zip(CHANNELS, STRIDES, strict=True)
    ]


def fitted(train, batch=4, member=MEMBER, order=None, holdout=0.25):
    detector = EnsembleDetector(CHANNELS, STRIDES, maps=[2, 1], member=member, holdout=holdout)
    order = torch.arange(len(train[0])) if order is None else order
    for index in order.split(batch):
        detector.update([f[index] for f in train], index)
    detector.fit()
    return detector


def test_scores_are_means_of_the_members_standardised_on_images_held_out():
    train, test = maps(16), maps(3, seed=1)
    score, anomaly_map = fitted(train)(test, SIZE)
    held_out = torch.arange(16) % 4 == 3
    scores, heat = [], []
    for part in (slice(0, 2), slice(2, 3)):
        alone = MEMBER(CHANNELS[part], STRIDES[part])
        alone.update([f[~held_out] for f in train[part]], torch.arange(16)[~held_out])
        alone.fit()
        good, anomalous = alone([f[held_out] for f in train[part]], SIZE), alone(test[part], SIZE)
        scores.append((anomalous.score - good.score.mean()) / good.score.std())
        heat.append((anomalous.anomaly_map - good.anomaly_map.mean()) / good.anomaly_map.std())
    torch.testing.assert_close(score, (scores[0] + scores[1]) / 2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(anomaly_map, (heat[0] + heat[1]) / 2, rtol=1e-4, atol=1e-4)


def test_it_depends_neither_on_file_order_nor_on_batch_size():
    train, test = maps(16), maps(2, seed=1)
    one = fitted(train)(test, SIZE)
    for batch, order in ((1, None), (5, torch.randperm(16, generator=torch.Generator().manual_seed(0)))):
        other = fitted(train, batch, order=order)(test, SIZE)
        torch.testing.assert_close(other.score, one.score)
        torch.testing.assert_close(other.anomaly_map, one.anomaly_map)


def test_any_method_can_be_a_member():
    score, _ = fitted(maps(16), member=partial(PaDiM, num_features=4))(maps(2, seed=1), SIZE)
    assert torch.isfinite(score).all()


def test_identical_images_give_finite_scores():
    same = [f[:1].expand(16, -1, -1, -1) for f in maps(1)]
    assert torch.isfinite(fitted(same)(maps(2, seed=1), SIZE).score).all()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"maps": [2, 2]}, r"maps=\[2, 2\] but the backbones give 3 maps"),
        ({"maps": [3, 0]}, r"maps=\[3, 0\] but"),
        ({"holdout": 0}, r"holdout=0: choose above 0 and up to 0.5"),
        ({"holdout": 0.9}, r"holdout=0.9"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        EnsembleDetector(CHANNELS, STRIDES, **{"maps": [2, 1], "member": MEMBER, **settings})


@pytest.mark.parametrize(
    ("strides", "maps"), [([8, 16, 8, 16, 8, 16], [2, 2, 2]), ([4, 8, 16, 16], [3, 1]), ([16, 16], [1, 1]), ([8], [1])]
)
def test_rising_strides_tell_the_backbones_apart(strides, maps):
    assert EnsembleDetector([3] * len(strides), strides, maps=None, member=MEMBER).maps == maps


def test_too_few_images_to_hold_out_are_refused():
    with pytest.raises(DataError, match=r"holdout=0.25 leaves 1 of them: add good images, or set model.holdout=0.5"):
        fitted(maps(7))
    fitted(maps(7), holdout=0.5)


def test_required_memory_counts_members_and_held_out_maps():
    shapes = [(c, 64 // s, 64 // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    detector = EnsembleDetector(CHANNELS, STRIDES, maps=[2, 1], member=MEMBER, holdout=0.25)
    needed, remedy = detector.required_memory(shapes, 100)
    alone = sum(MEMBER(CHANNELS[p], STRIDES[p]).required_memory(shapes[p], 75)[0] for p in (slice(0, 2), slice(2, 3)))
    assert needed == alone + 2 * 25 * 4 * sum(c * h * w for c, h, w in shapes)
    assert remedy.startswith("set model.member.max_bank_memory")


class Shifted(TinyBackbone):
    def __init__(self, weights="random"):
        super().__init__(weights)
        self.info = replace(TinyBackbone().info, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))


def test_each_backbone_sees_images_normalised_as_it_was_trained():
    both = EnsembleBackbone({"a": TinyBackbone, "b": Shifted}, weights="random")
    assert both.info.channels == [8, 12, 16] * 2
    assert both.info.strides == [2, 4, 8] * 2
    raw = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def normalised(backbone):
        return (raw - torch.tensor(backbone.info.mean)[:, None, None]) / torch.tensor(backbone.info.std)[:, None, None]

    features = both(normalised(both))
    expected = [feature for one in (TinyBackbone(), Shifted()) for feature in one(normalised(one))]
    for given, wanted in zip(features, expected, strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)
    assert both.feature_shapes((32, 32)) == [(8, 16, 16), (12, 8, 8), (16, 4, 4)] * 2
    assert not both.train().training
    assert both.weights_origin == "random"


def test_an_ensemble_of_one_is_refused():
    with pytest.raises(ConfigError, match=r"members=\['a'\]: an ensemble needs at least two backbones"):
        EnsembleBackbone({"a": TinyBackbone})
