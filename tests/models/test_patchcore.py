"""PatchCore against its equations written out in numpy, on a few small maps."""

import logging
import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from scipy.spatial.distance import cdist

from oddpatch.errors import ConfigError, DataError, NotFittedError
from oddpatch.models.patchcore import PatchCore
from oddpatch.models.state import Stream

CHANNELS, STRIDES, SIZE = [5, 7], [8, 16], (64, 48)
GRID = (8, 6)


def maps(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(count, c, SIZE[0] // s, SIZE[1] // s, generator=generator)
        for c, s in zip(CHANNELS, STRIDES, strict=True)
    ]


def make(**settings):
    defaults = {"embedding": "joined", "alignment": "nearest", "smoothing": 0.0, "selector": "none"}
    return PatchCore(CHANNELS, STRIDES, **{**defaults, **settings})


def fitted(features, batch=4, order=None, **settings):
    detector = make(**settings)
    order = torch.arange(len(features[0])) if order is None else order
    for index in order.split(batch):
        detector.update([f[index] for f in features], index)
    detector.fit()
    return detector


def joined(features, patch_size=3, stride=1):
    """The joined embedding (B, P, D): neighbourhood means with zeros beyond the border, coarse rows repeated."""
    fine, coarse = (
        uniform_filter(f.double().numpy(), (1, 1, patch_size, patch_size), mode="constant") for f in features
    )
    fine = fine[..., ::stride, ::stride]
    rows = np.arange(fine.shape[2]) * coarse.shape[2] // fine.shape[2]
    columns = np.arange(fine.shape[3]) * coarse.shape[3] // fine.shape[3]
    both = np.concatenate([fine, coarse[:, :, rows][..., columns]], axis=1)  # (B, D, h, w)
    return both.reshape(*both.shape[:2], -1).transpose(0, 2, 1)


def plain(train, test, k=1, b=0, metric="euclidean", patch_size=3, stride=1):
    """Scores (B,), patch scores (B, P) and nearest bank entries (B, P) by the paper's equations."""
    bank = np.concatenate(list(joined(train, patch_size, stride)))
    scores, patch_scores, nearest = [], [], []
    for patches in joined(test, patch_size, stride):
        distances = cdist(patches, bank, metric)  # (P, N)
        patch_scores.append(np.sort(distances, axis=1)[:, :k].mean(1))
        nearest.append(distances.argmin(1))
        hottest = patch_scores[-1].argmax()
        score = patch_scores[-1][hottest]
        if b:  # equation 7, around m*, the entry nearest to the hottest patch
            entry = nearest[-1][hottest]
            around = cdist(bank[[entry]], bank, metric)[0].argsort(kind="stable")[:b]
            score *= 1 - np.exp(distances[hottest, entry]) / np.exp(distances[hottest, around]).sum()
        scores.append(score)
    return np.array(scores), np.array(patch_scores), np.array(nearest)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"k": 3},
        {"num_neighbors": 4},
        {"num_neighbors": 9, "k": 2},
        {"distance": "cosine"},
        {"distance": "cosine", "num_neighbors": 3},
        {"patch_size": 1},
        {"patch_size": 5, "stride": 2},
    ],
    ids=str,
)
def test_scores_equal_the_equations(settings):
    train, test = maps(6), maps(3, seed=1)
    score, anomaly_map = fitted(train, **settings)(test, SIZE)
    stride = settings.get("stride", 1)
    reference, patches, _ = plain(
        train, test, settings.get("k", 1), settings.get("num_neighbors", 0), settings.get("distance", "euclidean"),
        settings.get("patch_size", 3), stride,
    )  # fmt: skip
    np.testing.assert_allclose(score, reference, rtol=1e-5)
    grid = (GRID[0] // stride, GRID[1] // stride)
    heat = torch.nn.functional.interpolate(
        torch.from_numpy(patches).view(3, 1, *grid), SIZE, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(anomaly_map, heat, rtol=1e-4, atol=1e-5)


def test_reweighting_survives_large_distances():
    train, test = maps(4), [50 * f for f in maps(2, seed=1)]
    score, _ = fitted(train, num_neighbors=3)(test, SIZE)
    assert torch.isfinite(score).all()
    assert (score > 0).all()


def test_k_and_b_beyond_the_bank_use_all_of_it():
    score, _ = fitted(maps(2), selector="greedy", coreset_size=5, k=50, num_neighbors=50)(maps(1, seed=1), SIZE)
    assert torch.isfinite(score).all()


def test_pooled_embedding_has_the_set_dimensions():
    wide = [torch.zeros(1, 2000, 2, 2), torch.zeros(1, 100, 1, 1)]
    assert PatchCore([2000, 100], [8, 16]).embed(wide).shape == (1, 2, 2, 1024)
    assert PatchCore(CHANNELS, STRIDES).embed(maps(2)).shape == (2, *GRID, 12)
    detector = PatchCore(CHANNELS, STRIDES, embedding_dim=9)
    assert detector.embed(maps(2)).shape == (2, *GRID, 9)


def test_authors_two_dimensions():
    train = maps(2)
    parts = []
    for feature in train:
        unfolded = torch.nn.functional.unfold(feature, 3, padding=1)  # (B, C * 9, positions)
        pooled = torch.nn.functional.adaptive_avg_pool1d(unfolded.mT.flatten(0, 1)[:, None], 11)[:, 0]
        grid = pooled.unflatten(0, (2, *feature.shape[-2:])).permute(0, 3, 1, 2)
        parts.append(torch.nn.functional.interpolate(grid, GRID, mode="bilinear", align_corners=False))
    both = torch.cat(parts, dim=1).permute(0, 2, 3, 1).flatten(0, 2)  # (B * P, 22)
    expected = torch.nn.functional.adaptive_avg_pool1d(both[:, None], 4)[:, 0]
    embedding = PatchCore(CHANNELS, STRIDES, embedding_dim=4, layer_dim=11).embed(train)
    torch.testing.assert_close(embedding.flatten(0, 2), expected, rtol=1e-5, atol=1e-6)


def plain_greedy(points, start, count):
    distances = cdist(points, points[[start]])[:, 0]
    picks = [start]
    while len(picks) < count:
        picks.append(int(distances.argmax()))
        distances = np.minimum(distances, cdist(points, points[[picks[-1]]])[:, 0])
    return picks


def test_greedy_bank_is_the_plain_greedy_selection():
    train = maps(6)
    detector = fitted(train, selector="greedy", coreset_size=40, seed=7)
    patches = np.concatenate(list(joined(train)))
    start = int(torch.randint(len(patches), (1,), generator=torch.Generator().manual_seed(7)))
    picks = plain_greedy(patches, start, 40)
    np.testing.assert_allclose(detector.memory_bank, patches[picks], rtol=1e-5, atol=1e-6)
    assert (detector.source[:, 0] * GRID[0] * GRID[1] + detector.source[:, 1]).tolist() == picks


def test_greedy_with_cosine_selects_by_direction():
    train = maps(4)
    detector = fitted(train, selector="greedy", coreset_size=30, distance="cosine", seed=3)
    patches = np.concatenate(list(joined(train)))
    start = int(torch.randint(len(patches), (1,), generator=torch.Generator().manual_seed(3)))
    picks = plain_greedy(patches / np.linalg.norm(patches, axis=1, keepdims=True), start, 30)
    np.testing.assert_allclose(detector.memory_bank, patches[picks], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("selector", ["greedy", "approximate_greedy", "random"])
@pytest.mark.parametrize("projection_dim", [None, 4])
def test_a_selector_keeps_distinct_patches_and_repeats_by_seed(selector, projection_dim):
    settings = {"selector": selector, "coreset_ratio": 0.1, "projection_dim": projection_dim}
    one, same = (fitted(maps(6), seed=1, **settings) for _ in range(2))
    other = fitted(maps(6), seed=2, **settings)
    assert len(one.memory_bank) == int(0.1 * 6 * 48)
    assert len({tuple(row) for row in one.source.tolist()}) == len(one.source)
    assert torch.equal(one.memory_bank, same.memory_bank)
    assert not torch.equal(one.source, other.source)


def test_none_keeps_every_patch_in_order():
    train = maps(3)
    detector = fitted(train)
    np.testing.assert_allclose(detector.memory_bank, np.concatenate(list(joined(train))), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"selector": "greedy", "coreset_size": 50}], ids=str)
def test_source_points_at_the_patch(settings):
    train = maps(5)
    detector = fitted(train, order=torch.tensor([3, 0, 4, 2, 1]), batch=2, **settings)
    patches = joined(train)
    expected = np.stack([patches[image, place] for image, place in detector.source.tolist()])
    np.testing.assert_allclose(detector.memory_bank, expected, rtol=1e-5, atol=1e-6)


def test_nearest_normal_is_the_nearest_patch():
    train, test = maps(5), maps(2, seed=1)
    distances, source = fitted(train).nearest_normal(test)
    _, reference, nearest = plain(train, test)
    np.testing.assert_allclose(distances.flatten(1), reference, rtol=1e-5)
    assert (source[..., 0] * 48 + source[..., 1]).flatten(1).tolist() == nearest.tolist()


@pytest.mark.parametrize("selector", ["greedy", "approximate_greedy", "random", "none"])
def test_the_bank_depends_neither_on_file_order_nor_on_batch_size(selector):
    train = maps(9)
    settings = {"selector": selector, "coreset_ratio": 0.2}
    one = fitted(train, batch=9, **settings)
    for batch, order in ((1, torch.arange(9)), (4, torch.randperm(9, generator=torch.Generator().manual_seed(0)))):
        other = fitted(train, batch, order, **settings)
        assert torch.equal(one.source, other.source)
        torch.testing.assert_close(one.memory_bank, other.memory_bank)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"coreset_ratio": 0}, r"coreset_ratio=0: choose above 0 and up to 1"),
        ({"coreset_ratio": 1.5}, r"coreset_ratio=1.5"),
        ({"coreset_ratio": None}, r"coreset_ratio=None.*give coreset_size"),
        ({"coreset_size": 0}, r"coreset_size=0: choose at least 1"),
        ({"selector": "gredy"}, r"selector='gredy': choose one of greedy, approximate_greedy, random, density, none"),
        ({"distance": "l1"}, r"distance='l1'"),
        ({"embedding": "sum"}, r"embedding='sum'"),
        ({"patch_size": 4}, r"patch_size=4: choose an odd number"),
        ({"k": 0}, r"k=0: choose at least 1"),
        ({"num_neighbors": -1}, r"num_neighbors=-1"),
        ({"finest_stride": 32}, r"finest_stride=32 leaves none"),
        ({"max_bank_memory": 10**6, "selector": "random"}, r"set selector=greedy and projection_dim=null"),
        ({"max_bank_memory": 10**6, "selector": "greedy", "projection_dim": 8}, r"and projection_dim=8: set"),
        ({"reduce_to": 0.25}, r"reduce_to=0.25 is a share of max_bank_memory: set that, or reduce_to=null"),
        ({"max_bank_memory": 10**6, "selector": "greedy", "reduce_to": 1}, r"reduce_to=1: choose above 0 and below 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told) as error:
        make(**settings)
    assert "\n" not in str(error.value)


def test_a_coreset_larger_than_all_patches_is_refused():
    with pytest.raises(ConfigError, match=r"coreset_size=97 but there are 96 patches: choose 1..96"):
        fitted(maps(2), selector="greedy", coreset_size=97)


def test_fit_without_images_is_refused():
    with pytest.raises(DataError, match="at least one good image"):
        make().fit()


def clustered_maps(count, seed=0):
    """Maps of one layer of which each position is near one of 30 centres."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0, -4, 32).exp()
    centres = torch.randn(30, 32, generator=generator) * scales * 8
    member = torch.randint(30, (count, 10, 10), generator=generator)
    noise = torch.randn(count, 10, 10, 32, generator=generator) * scales * 0.5
    return (centres[member] + noise).permute(0, 3, 1, 2)


def bounded(features, max_bank_memory, batch=5, **settings):
    options = {"embedding": "joined", "patch_size": 1, "coreset_size": 100, **settings}
    detector: Any = PatchCore([32], [8], max_bank_memory=max_bank_memory, **options)
    for index in torch.arange(len(features)).split(batch):
        detector.update([features[index]], index)
        if max_bank_memory:
            held = sum(part.untyped_storage().nbytes() for part in detector.held.coreset.held())
            assert held <= max_bank_memory
    detector.fit()
    return detector


def radius(patches, bank):
    """Largest distance of a patch to the nearest of the bank."""
    return torch.cdist(patches, bank).min(1).values.max()


def test_bounded_memory_covers_nearly_as_well_as_the_exact_selection():
    features = clustered_maps(40)  # 4000 patches
    patches = features.permute(0, 2, 3, 1).flatten(0, 2)
    exact = bounded(features, None)
    row = 32 * 4 + 16
    small = bounded(features, 400 * row)
    assert len(small.memory_bank) == 100
    assert radius(patches, small.memory_bank) <= 1.5 * radius(patches, exact.memory_bank)
    expected = features[small.source[:, 0]].flatten(2)[torch.arange(100), :, small.source[:, 1]]
    assert torch.equal(small.memory_bank, expected)
    assert torch.equal(small.source, bounded(features, 400 * row, batch=3).source)


def test_bounded_memory_that_holds_all_is_exact():
    features = clustered_maps(6)
    assert torch.equal(bounded(features, 10**6).source, bounded(features, None).source)


def test_bounded_memory_says_when_it_has_no_room_for_the_coreset(caplog):
    with caplog.at_level(logging.WARNING):
        detector = bounded(clustered_maps(6), 120 * (32 * 4 + 16))
        fewer = bounded(clustered_maps(6), 120 * (32 * 4 + 16), reduce_to=0.25)
    assert len(detector.memory_bank) == 60
    assert len(fewer.memory_bank) == 30
    assert "leaves room for 60 patches, not 100" in caplog.text
    assert "leaves room for 30 patches, not 100: raise it, or model.reduce_to" in caplog.text


class FirstOfTwo:
    """Rank zero, which was given no image, and what the other holds."""

    first = True

    def __init__(self, points):
        self.points = points

    def exchange(self, own):
        return [own, (len(self.points), len(self.points), len(self.points) // 2)]

    def collect(self, own, device):
        return iter([self.points, torch.arange(len(self.points))[:, None]])


def test_what_ranks_bring_together_is_reduced_to_the_share_as_well():
    stream: Any = Stream(1000, torch.Generator(), reduce_to=0.25)
    ranks: Any = FirstOfTwo(torch.arange(80.0)[:, None])
    stream.merge(ranks, torch.device("cpu"))
    assert stream.coreset.num_held == 20  # the room of 40 was full at the 41st and the 71st
    assert stream.coreset.num_seen == 80


def test_bounded_memory_with_cosine_holds_unit_vectors():
    bank = bounded(clustered_maps(12), 400 * (32 * 4 + 16), distance="cosine").memory_bank
    torch.testing.assert_close(bank.norm(dim=1), torch.ones(100))


def test_required_memory_is_bounded_by_max_bank_memory():
    shapes = [(5, 8, 6), (7, 4, 3)]
    free, remedy = make().required_memory(shapes, 1000)
    assert free > 2 * 1000 * 48 * 12 * 4
    assert "max_bank_memory" in remedy
    assert make(selector="greedy", max_bank_memory=10_000).required_memory(shapes, 1000)[0] < 50_000


@pytest.mark.parametrize("settings", [{}, {"selector": "approximate_greedy"}, {"projection_dim": 3}])
def test_the_remedy_for_too_little_memory_can_be_set(settings):
    shapes = [(5, 8, 6), (7, 4, 3)]
    before, remedy = make(**settings).required_memory(shapes, 1000)
    named = dict(re.findall(r"model\.(\w+)=(\w+)", remedy))
    mended = {**settings, **{key: None if value == "null" else value for key, value in named.items()}}
    after, remedy = make(max_bank_memory=10_000, **mended).required_memory(shapes, 1000)
    assert after < before
    assert remedy == "lower model.max_bank_memory"


def extended(settings, count=None):
    detector = fitted(maps(6), **settings)
    detector.update(maps(3, seed=5), torch.arange(6, 9))
    detector.extend(count)
    return detector


def test_extend_selects_among_the_bank_and_the_new_patches():
    settings = {"selector": "greedy", "coreset_size": 60, "seed": 4}
    before = fitted(maps(6), **settings)
    after = extended(settings)
    assert len(after.memory_bank) == 60
    rows = np.concatenate([before.memory_bank.double(), *joined(maps(3, seed=5))])
    images = np.concatenate([before.source[:, 0], np.repeat([6, 7, 8], 48)])
    rows = rows[images.argsort(kind="stable")]
    generator = torch.Generator().manual_seed(4)
    torch.randint(6 * 48, (1,), generator=generator)  # the start of the first selection
    start = int(torch.randint(len(rows), (1,), generator=generator))
    np.testing.assert_allclose(after.memory_bank, rows[plain_greedy(rows, start, 60)], rtol=1e-5, atol=1e-6)
    assert (after.source[:, 0] >= 6).any()


def test_extend_makes_the_new_images_normal():
    settings = {"selector": "none"}
    new = maps(3, seed=5)
    assert fitted(maps(6), **settings)(new, SIZE).score.min() > 0.5
    assert extended(settings)(new, SIZE).score.max() < 1e-3
    assert len(extended(settings).memory_bank) == 9 * 48


@pytest.mark.parametrize("selector", ["greedy", "approximate_greedy", "random"])
def test_extend_to_another_size(selector):
    assert len(extended({"selector": selector, "coreset_size": 20}, 33).memory_bank) == 33
    with pytest.raises(ConfigError, match="coreset_size=500 but there are 164 patches"):
        extended({"selector": selector, "coreset_size": 20}, 500)


def test_extend_in_bounded_memory():
    detector = bounded(clustered_maps(12), 400 * (32 * 4 + 16))
    new = clustered_maps(6, seed=3)
    detector.update([new], torch.arange(12, 18))
    detector.extend()
    assert len(detector.memory_bank) == 100
    assert set(detector.source[:, 0].tolist()) & set(range(12, 18))


def test_extend_needs_a_bank_and_images():
    with pytest.raises(NotFittedError):
        make().extend()
    with pytest.raises(DataError, match="no new good image"):
        fitted(maps(2)).extend()


def test_the_search_index_follows_the_bank_when_it_is_extended_or_loaded():
    test = maps(2, seed=1)
    detector, other = fitted(maps(3)), fitted(maps(3, seed=7))  # banks of one shape
    before = detector(test, SIZE).score  # the index is made
    detector.load_state_dict(other.state_dict())
    assert torch.equal(detector(test, SIZE).score, other(test, SIZE).score)
    assert not torch.equal(other(test, SIZE).score, before)
    detector.update(maps(3, seed=5), torch.arange(3, 6))
    detector.extend()
    fresh = make()
    fresh.load_state_dict(detector.state_dict())
    found, expected = detector(test, SIZE), fresh(test, SIZE)
    assert torch.equal(found.score, expected.score)
    assert torch.equal(found.anomaly_map, expected.anomaly_map)
    assert torch.equal(detector.nearest_normal(test)[1], fresh.nearest_normal(test)[1])
