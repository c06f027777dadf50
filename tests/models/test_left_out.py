"""What every detector gives a training image that is left out is what a fit without it gives."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from methods import CHANNELS, LEAVING_OUT, SIZE, STRIDES, features, make

from oddpatch.errors import ConfigError
from oddpatch.models.ensemble import EnsembleDetector
from oddpatch.models.gaussian import GaussianAD
from oddpatch.models.padim import PaDiM
from oddpatch.models.patchcore import PatchCore
from oddpatch.models.spade import SPADE

JOINED: dict[str, Any] = {"embedding": "joined", "smoothing": 1.0, "finest_stride": 4}
#: Methods whose score without an image is exactly that of a fit without it.
REFITTED = {
    "padim": lambda: PaDiM(CHANNELS, STRIDES, num_features=12, smoothing=1.0),
    "padim_raw": lambda: PaDiM(CHANNELS, STRIDES, num_features=20, smoothing=1.0, score_from="raw"),
    "padim_projected": lambda: PaDiM(CHANNELS, STRIDES, num_features=12, reduction="semi_orthogonal"),
    "gaussian": lambda: GaussianAD(CHANNELS, STRIDES),
    "gaussian_epsilon": lambda: GaussianAD(CHANNELS, STRIDES, shrinkage="epsilon"),
    "gaussian_npca": lambda: GaussianAD(CHANNELS, STRIDES, npca=0.3),
    "patchcore_whole": lambda: PatchCore(CHANNELS, STRIDES, selector="none", **JOINED),
    "patchcore_cosine": lambda: PatchCore(CHANNELS, STRIDES, selector="none", distance="cosine", **JOINED),
    "patchcore_k": lambda: PatchCore(CHANNELS, STRIDES, selector="none", k=3, **JOINED),
    "patchcore_weighted": lambda: PatchCore(CHANNELS, STRIDES, selector="none", num_neighbors=4, **JOINED),
    "spade": lambda: SPADE(CHANNELS, STRIDES, k=3, smoothing=1.0),
    "spade_joined": lambda: SPADE(CHANNELS, STRIDES, k=2, kappa=2, pyramid="join", smoothing=1.0),
}


def fit(detector, count, without=(), scale=1.0, first=0):
    maps, index = features(count), torch.tensor([i for i in range(count) if i not in without])
    for batch in index.split(7):
        detector.update([f[batch] * scale for f in maps], batch + first)
    detector.fit()
    return detector


def left_out(make, count, images, scale=1.0, first=0):
    detector = make()
    detector.expect_left_out()
    fit(detector, count, scale=scale, first=first)
    return detector.score_left_out([f[images] * scale for f in features(count)], torch.tensor(images) + first, SIZE)


@pytest.mark.parametrize("count", [5, 40])
@pytest.mark.parametrize("name", REFITTED)
def test_as_if_it_had_not_been_fitted(name, count):
    images = [0, 3, count - 1]
    found = left_out(REFITTED[name], count, images, first=2)
    for i, image in enumerate(images):
        wanted = fit(REFITTED[name](), count, [image])([f[image : image + 1] for f in features(count)], SIZE)
        # With more images than 5/4 of its features PaDiM gives an upper bound, see `left_out_mahalanobis`.
        above = (count - 1) / (count - 2) if name.startswith("padim") and count == 40 else 1
        assert wanted.score.item() * (1 - 1e-4) <= found.score[i].item() <= wanted.score.item() * above * (1 + 1e-4)
        if wanted.anomaly_map is not None and above == 1:
            torch.testing.assert_close(found.anomaly_map[i], wanted.anomaly_map[0], rtol=1e-3, atol=1e-4)


def test_where_many_images_are_expected_none_is_kept(caplog):
    make, images = REFITTED["padim"], [0, 3]
    found = left_out(make, 40, images)
    detector = make()
    detector.expect_left_out(24)  # of 12 features, 15 images are few, and 24 may become 16
    detector.update([f[:7] for f in features(40)], torch.arange(7))
    assert isinstance(detector, PaDiM)
    assert not len(detector.samples)
    detector = make()
    detector.expect_left_out(24)
    fit(detector, 40)
    same = detector.score_left_out([f[images] for f in features(40)], torch.tensor(images), SIZE)
    assert torch.equal(same.score, found.score)
    assert not caplog.records
    detector = make()
    detector.expect_left_out(22)  # which may become 14
    fit(detector, 14)
    assert len(detector.left_out) == 14
    detector = make()
    detector.expect_left_out(24)
    fit(detector, 14)
    assert "PaDiM was given 14 of 24 images" in caplog.text
    bound = detector.score_left_out(features(14), torch.arange(14), SIZE).score
    assert (bound >= left_out(make, 14, list(range(14))).score * (1 - 1e-4)).all()


@pytest.mark.parametrize("scale", [0.1, 100])
def test_few_images_of_any_scale_lose_no_digits(scale):
    make = REFITTED["padim"]
    found = left_out(make, 6, [2], scale)
    wanted = fit(make(), 6, [2], scale)([f[2:3] * scale for f in features(6)], SIZE)
    torch.testing.assert_close(found.score, wanted.score, rtol=1e-3, atol=0)


@pytest.mark.parametrize("settings", [
    {}, {"distance": "cosine"}, {"selector": "approximate_greedy"}, {"selector": "random"}, {"projection_dim": 4},
    {"k": 3}, {"num_neighbors": 3}, {"max_bank_memory": 60000}, {"coreset_ratio": 0.02},
])  # fmt: skip
def test_a_memory_bank_is_searched_without_the_image_itself(settings):
    make = partial(PatchCore, CHANNELS, STRIDES, **{"coreset_ratio": 0.1, **JOINED, **settings})
    detector, plain = make(), fit(make(), 12)
    detector.expect_left_out()
    fit(detector, 12)
    assert torch.equal(detector.source, plain.source), "the coreset does not depend on what is measured besides"
    found: Any = detector.score_left_out(features(12), torch.arange(12), SIZE)
    for image in range(12):
        kept = plain.source[:, 0] != image
        plain_bank, plain_source = plain.memory_bank, plain.source
        plain.memory_bank, plain.source = plain_bank[kept], plain_source[kept]
        wanted: Any = plain([f[image : image + 1] for f in features(12)], SIZE)
        plain.memory_bank, plain.source = plain_bank, plain_source
        torch.testing.assert_close(found.score[image], wanted.score[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.anomaly_map[image], wanted.anomaly_map[0], rtol=1e-4, atol=1e-6)


def test_a_bank_of_one_image_cannot_leave_it_out():
    detector = fit(PatchCore(CHANNELS, STRIDES, coreset_size=1, **JOINED), 6)
    image = int(detector.source[0, 0])
    with pytest.raises(ConfigError, match="all 1 entries of the memory bank come from one good image"):
        detector.score_left_out([f[[image]] for f in features(6)], torch.tensor([image]), SIZE)


def test_an_ensemble_leaves_images_out_of_its_members():
    member = partial(PatchCore, selector="none", **JOINED)
    ensemble = fit(EnsembleDetector(CHANNELS, STRIDES, maps=[2, 1], member=member), 12)
    assert ensemble.leaves_out
    found = ensemble.score_left_out(features(12), torch.arange(12), SIZE)
    held_out = [4, 9]  # what the members are standardised on, they were not fitted to
    for image in range(12):
        alone = [f[image : image + 1] for f in features(12)]
        if image in held_out:
            wanted = ensemble(alone, SIZE)
        else:
            refitted = fit(EnsembleDetector(CHANNELS, STRIDES, maps=[2, 1], member=member), 12, [image])
            refitted.center, refitted.scale = ensemble.center, ensemble.scale
            wanted = refitted(alone, SIZE)
        torch.testing.assert_close(found.score[image], wanted.score[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.anomaly_map[image], wanted.anomaly_map[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LEAVING_OUT)
def test_the_batch_does_not_matter(name):
    detector = make(name)
    assert detector.leaves_out
    detector.expect_left_out()
    fit(detector, 24)
    together = detector.score_left_out(features(24), torch.arange(24), SIZE)
    for image in (0, 4, 23):
        alone = detector.score_left_out([f[[image]] for f in features(24)], torch.tensor([image]), SIZE)
        torch.testing.assert_close(alone.score[0], together.score[image], rtol=1e-5, atol=1e-5)
    names = dict(detector.state_dict())
    assert not [n for n in names if "left_out" in n], "it is not saved"


DIRECT = {
    "padim": lambda dim: PaDiM([dim], [4], num_features=None, smoothing=0),
    "patchcore": lambda dim: PatchCore([dim], [4], selector="none", smoothing=0, embedding="joined", patch_size=1,
                                       finest_stride=1),
    "spade": lambda dim: SPADE([dim], [4], k=3, smoothing=0),
    "gaussian": lambda dim: GaussianAD([dim], [4]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "count"), [(10, 5), (10, 30)])
@pytest.mark.parametrize("method", DIRECT)
def test_a_threshold_from_left_out_images_keeps_its_rate(method, dim, count):
    """False alarms among new images, at the highest and the second highest of the scores, over many draws."""
    rng = np.random.default_rng(0)
    alarms: dict[int, list[Any]] = {1: [], 2: []}
    mixing = np.diag(np.linspace(0.2, 3, dim))
    for _ in range(100):
        draw = torch.from_numpy(rng.standard_normal((count + 30, dim)) @ mixing).float()[:, :, None, None]
        detector = DIRECT[method](dim)
        detector.expect_left_out()
        detector.update([draw[:count]], torch.arange(count))
        detector.fit()
        scores = detector.score_left_out([draw[:count]], torch.arange(count), (4, 4)).score.sort(descending=True).values
        new = detector([draw[count:]], (4, 4)).score
        for rank, rates in alarms.items():
            rates.append(float((new > scores[rank - 1]).float().mean()))
    for rank, rates in alarms.items():
        error = np.std(rates) / np.sqrt(len(rates))
        assert np.mean(rates) <= rank / (count + 1) + 3 * error
        assert np.mean(rates) >= 0.2 * rank / (count + 1) - 3 * error
