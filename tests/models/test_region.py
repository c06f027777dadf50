"""The region of interest: the grid of patches by brute force, and what every detector leaves out."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from methods import INSPECTING_REGIONS, SIZE, features, make

from oddpatch.models.ensemble import EnsembleDetector
from oddpatch.models.patchcore import PatchCore
from oddpatch.models.region import RegionOfInterest
from oddpatch.models.spade import SPADE

ALL: dict[str, Callable[[], Any]] = {name: partial(make, name) for name in INSPECTING_REGIONS}
ALL["spade_join"] = lambda: SPADE([6, 8, 10], [4, 8, 16], k=5, smoothing=1.0, pyramid="join")
ALL["patchcore_weighted"] = lambda: PatchCore(
    [6, 8, 10], [4, 8, 16], coreset_ratio=0.5, num_neighbors=3, finest_stride=4
)
LEFT = torch.zeros(SIZE, dtype=torch.bool)
LEFT[8:56, 4:20] = True


def drawn(seed=0, size=(12, 20)):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.rand(size, generator=torch.Generator().manual_seed(seed)) < 0.06] = True
    return mask


@pytest.mark.parametrize("grid", [(12, 20), (6, 10), (3, 5), (4, 7), (1, 1)])
def test_patches_inside_and_the_nearest_of_them(grid):
    mask = drawn()
    region = RegionOfInterest(mask)
    rows, columns = (
        [range(n * k // g, -(-n * (k + 1) // g)) for k in range(g)] for n, g in zip(mask.shape, grid, strict=True)
    )
    inside = [(i, j) for i in range(grid[0]) for j in range(grid[1]) if mask[rows[i]][:, columns[j]].any()]
    assert region.positions(grid).tolist() == [i * grid[1] + j for i, j in inside]
    patches = torch.arange(grid[0] * grid[1])
    scores = torch.rand(len(inside))
    spread = region.spread(scores, grid)
    assert torch.equal(region.take(spread.flatten(), grid), scores)
    assert torch.equal(region.take(patches, grid), region.positions(grid))
    height, width = mask.shape[0] / grid[0], mask.shape[1] / grid[1]
    for i in range(grid[0]):
        for j in range(grid[1]):
            distance = torch.tensor([((i - a) * height) ** 2 + ((j - b) * width) ** 2 for a, b in inside])
            nearest = scores[(distance - distance.min()).abs() < 1e-6]
            assert (spread[i, j] == nearest).any()


def test_average_values_and_cut():
    mask = drawn()
    region, feature = RegionOfInterest(mask), torch.rand(2, 3, 12, 20)
    torch.testing.assert_close(region.average(feature), feature[:, :, mask].double().mean(2))
    maps = torch.rand(2, 1, 12, 20) - torch.tensor([0.0, 0.5]).view(2, 1, 1, 1)
    assert torch.equal(region.values(maps), maps[:, 0, mask].flatten())
    cut = region.cut(maps)
    assert torch.equal(cut[:, 0, mask], maps[:, 0, mask])
    assert (cut[0, 0, ~mask] == 0).all()
    assert (cut[1, 0, ~mask] == maps[1, 0, mask].min()).all()


def test_without_a_region_nothing_changes():
    region, tensor = RegionOfInterest(), torch.rand(2, 1, 4, 6)
    assert region.cut(tensor) is tensor
    assert region.take(tensor, (4, 6)) is tensor
    assert torch.equal(region.spread(tensor[0, 0].flatten(), (4, 6)), tensor[0, 0])
    assert torch.equal(region.average(tensor), tensor.mean(dim=(2, 3), dtype=torch.float64))
    assert region.positions((4, 6)).tolist() == list(range(24))


def altered(maps, seed):
    """The maps with noise in the right quarter, which no patch of LEFT and no neighbour of one lies in."""
    noise = torch.Generator().manual_seed(seed)
    changed = []
    for feature in maps:
        feature = feature.clone()
        right = feature[..., feature.shape[-1] * 3 // 4 :]
        right += 3 * torch.randn(right.shape, generator=noise)
        changed.append(feature)
    return changed


def fit(make, maps):
    detector = make()
    detector.restrict(LEFT)
    detector.update(maps, torch.arange(len(maps[0])))
    detector.fit()
    return detector


@pytest.mark.parametrize("name", ALL)
def test_what_lies_outside_does_not_count(name):
    make, good, test = ALL[name], features(20), features(4, seed=1)
    detector = fit(make, good)
    expected = detector(test, SIZE)
    # Neither in what is scored ...
    got = detector(altered(test, 5), SIZE)
    torch.testing.assert_close(got.score, expected.score)
    # ... nor in what is fitted to.
    refitted = fit(make, altered(good, 6))(test, SIZE)
    torch.testing.assert_close(refitted.score, expected.score, rtol=1e-4, atol=1e-5)
    if expected.anomaly_map is not None:
        torch.testing.assert_close(got.anomaly_map, expected.anomaly_map)
        torch.testing.assert_close(refitted.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-4)
        outside = expected.anomaly_map[:, 0, ~LEFT]
        assert (outside <= expected.anomaly_map[:, 0, LEFT].amin(1, keepdim=True)).all()
    whole = make()
    whole.update(good, torch.arange(20))
    whole.fit()
    assert not torch.allclose(whole(altered(test, 5), SIZE).score, whole(test, SIZE).score)


@pytest.mark.parametrize("name", ALL)
def test_a_defect_inside_is_found_as_before(name):
    detector = fit(ALL[name], features(20))
    test = features(2, seed=1)
    anomalous = [f.clone() for f in test]
    for feature in anomalous:
        at = feature.shape[-1] // 4
        feature[1, :, at, at] += 4
    before, after = detector(test, SIZE).score, detector(anomalous, SIZE).score
    torch.testing.assert_close(after[0], before[0])
    assert after[1] > before[1]


def test_the_bank_holds_patches_of_the_region_only():
    detector = fit(ALL["patchcore"], features(20))
    inside = set(detector.region.positions((16, 16)).tolist())
    assert len(inside) == 12 * 4  # rows 2 to 13, columns 1 to 4 of 4 x 4 pixels
    assert set(detector.source[:, 1].tolist()) <= inside
    assert len(detector.memory_bank) == int(0.5 * 20 * len(inside))
    distances, _ = detector.nearest_normal(features(1, seed=1))
    assert (distances.flatten()[[p not in inside for p in range(256)]] == 0).all()
    shapes = [(6, 16, 16), (8, 8, 8), (10, 4, 4)]
    assert detector.required_memory(shapes, 20)[0] < ALL["patchcore"]().required_memory(shapes, 20)[0] / 2


def test_an_ensemble_standardises_on_the_region():
    detector = fit(ALL["patchcore_ensemble"], features(20))
    assert isinstance(detector, EnsembleDetector)
    held_out = [f[[4, 9, 14, 19]] for f in features(20)]
    for number, member in enumerate(detector.detectors):
        _, maps = member(detector.split(held_out)[number], SIZE if number == 0 else (64, 64))
        inside = maps[:, 0, LEFT].double()
        torch.testing.assert_close(detector.center[number, 1].double(), inside.mean(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(detector.scale[number, 1].double(), inside.std(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_nothing_of_it_is_in_the_state(name):
    assert not [key for key in fit(ALL[name], features(20)).state_dict() if "region" in key]
