"""Memory banks of layers against the released codes of AnomalyDINO, ProCon and SuperADD."""

from typing import Any

import numpy as np
import pytest
import torch
from vectors import fitted, vector, vector_maps

from oddpatch.errors import ConfigError
from oddpatch.models.banks import MemoryBanks, soft_projection
from oddpatch.ops.foreground import foreground

SIZE = (40, 48)


def dino(**settings):
    return MemoryBanks(
        [24], [4], **{"rule": "cosine", "top": 0.01, "top_of": "patches", "finest_stride": 1, **settings}
    )


@pytest.mark.vector
@pytest.mark.parametrize(
    ("name", "images", "settings"),
    [
        ("fullshot", slice(None), {}),
        ("shot2_seed1", slice(2, 4), {}),
        ("k3", slice(None), {"k": 3}),
        ("l2_k3", slice(None), {"k": 3, "unit": False, "rule": "distance"}),
    ],
)
def test_anomalydino_equals_the_released_code(name, images, settings):
    expected = vector("anomalydino")
    detector = fitted(dino(**settings), [m[images] for m in vector_maps("train", [3])])
    test = vector_maps("test", [3])
    patches, grid = detector.patches(test)
    np.testing.assert_allclose(detector.score_patches(patches).view(4, *grid), expected[f"{name}_patch"], 1e-5, 1e-5)
    score, heat = detector(test, SIZE)
    np.testing.assert_allclose(score, expected[f"{name}_score"], 1e-5, 1e-5)
    if name == "fullshot":
        np.testing.assert_allclose(heat[:, 0], expected["fullshot_map"], 1e-5, 1e-5)


@pytest.mark.vector
def test_the_background_is_masked_as_the_released_code_does_in_two_dimensions():
    expected = vector("anomalydino")
    train, test = ([torch.from_numpy(expected[f"fg_{kind}"]).float().permute(0, 3, 1, 2)] for kind in ("train", "test"))
    np.testing.assert_array_equal(foreground(test[0]), expected["mask_2d"])
    detector = fitted(dino(mask_background=True), train)
    patches, grid = detector.patches(test)
    np.testing.assert_allclose(detector.score_patches(patches).view(4, *grid), expected["masked2d_patch"], 1e-5, 1e-5)
    np.testing.assert_allclose(detector(test, SIZE).score, expected["masked2d_score"], 1e-5, 1e-5)
    plain = fitted(dino(), train)
    np.testing.assert_allclose(plain(test, SIZE).score, expected["fg_unmasked_score"], 1e-5, 1e-5)


def procon(monkeypatch, num_banks):
    """ProCon's settings, the random numbers of its code given."""
    expected = vector("procon")
    drawn = iter([(b, layer) for b in range(num_banks) for layer in range(4)])
    starts = iter([b for b in range(num_banks) for _ in range(4)])

    def project(points, dim, generator):
        bank, _ = next(drawn)
        return points @ torch.from_numpy(expected["mappers"][bank]).float().mT

    monkeypatch.setattr("oddpatch.models.banks.random_projection", project)
    points = torch.from_numpy(expected["start_points"].astype(np.int64))
    monkeypatch.setattr("oddpatch.ops.coreset.random_subset", lambda *_: points[next(starts)])
    detector = MemoryBanks([24] * 4, [4] * 4, reduced_dim=16, coreset_ratio=0.05, selector="approximate_greedy",
                           projection_dim=8, num_banks=num_banks, k=5, rule="soft_projection", top=0.05,
                           top_of="patches", smoothing_radius=8, finest_stride=1)  # fmt: skip
    for i in range(4):
        setattr(detector, f"reduction_{i}", torch.from_numpy(expected["projection"]).float().mT)
    return fitted(detector, vector_maps("train"))


@pytest.mark.vector
def test_procon_equals_the_released_code(monkeypatch):
    expected, detector, test = vector("procon"), procon(monkeypatch, 5), vector_maps("test")
    patches, grid = detector.patches(test)
    np.testing.assert_allclose(
        patches[0].view(120, 4, 16).transpose(0, 1), expected["projected_test0"], rtol=1e-5, atol=1e-6
    )
    every = detector.embed(vector_maps("train")).flatten(0, 2).split(16, dim=1)
    for layer in range(4):
        for bank in range(5):
            picked = every[layer][torch.from_numpy(expected["bank_index"][layer, bank].astype(np.int64))]
            torch.testing.assert_close(detector.banks[bank].split(16, dim=1)[layer], picked)
    scores = detector.score_patches(patches)
    np.testing.assert_allclose(scores.view(4, *grid), expected["patch"], 1e-5, 1e-5)
    score, heat = detector(test, (48, 48))
    np.testing.assert_allclose(score, expected["score_top5pct"], 1e-5, 1e-5)
    np.testing.assert_allclose(heat[:, 0], expected["map"], 1e-5, 1e-5)
    for top, name in ((0.005, "score_top0p5pct"), (None, "score_max")):
        detector.top = top
        np.testing.assert_allclose(detector(test, (48, 48)).score, expected[name], 1e-5, 1e-5)


@pytest.mark.vector
def test_procon_with_one_bank_equals_the_released_code(monkeypatch):
    detector = procon(monkeypatch, 1)
    patches, grid = detector.patches(vector_maps("test"))
    scores = detector.score_patches(patches).view(4, *grid)
    np.testing.assert_allclose(scores, vector("procon")["patch_one_bank"], 1e-5, 1e-5)


def test_with_fade_a_score_does_not_jump_where_another_patch_becomes_the_last_neighbour():
    generator = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(3, 9, generator=generator), dim=1)  # at distance 1 of the patch
    scores = []
    for nearer in (0, 1):
        far = 0.9 * points.clone()  # the first is the nearest of all, the others are equally far but for rounding
        far[0] *= 0.9
        far[1 + nearer] *= 1 - 1e-6
        distances = far.norm(dim=1)
        order = distances.argsort()
        patch, neighbours = torch.zeros(1, 1, 9), far[order[:2]][None, None]
        scores.append(soft_projection(patch, distances[order][None, None], neighbours, fade=0.03).item())
        scores.append(soft_projection(patch, distances[order[:2]][None, None], neighbours).item())
    assert abs(scores[1] - scores[3]) > 1e-2  # as published
    assert scores[0] == pytest.approx(scores[2], rel=1e-4)


def test_neighbours_that_are_all_equally_far_count_alike():
    neighbours = torch.eye(4)[None, None, :3]
    score = soft_projection(torch.zeros(1, 1, 4), torch.ones(1, 1, 4), neighbours, fade=0.03)
    assert score.item() == pytest.approx(3**-0.5)


def test_neighbours_well_before_the_next_weigh_as_published():
    generator = torch.Generator().manual_seed(0)
    patches, neighbours = torch.randn(1, 6, 4, generator=generator), torch.randn(1, 6, 3, 4, generator=generator)
    distances = (patches[:, :, None] - neighbours).norm(dim=3)
    further = torch.cat([distances, distances.amax(dim=2, keepdim=True) * 1.1], dim=2)
    scale = np.sort(distances.square().numpy().ravel())[8]  # the lower of the two in the middle of 18
    weights = np.exp(-distances.square().numpy() / scale)
    mean = (weights[..., None] * neighbours.numpy()).sum(2) / weights.sum(2, keepdims=True)
    expected = np.linalg.norm(patches.numpy() - mean, axis=2)
    np.testing.assert_allclose(soft_projection(patches, further, neighbours, fade=0.03), expected, rtol=1e-5)
    np.testing.assert_allclose(soft_projection(patches, distances, neighbours), expected, rtol=1e-5)


@pytest.mark.parametrize(("rule", "fade"), [("soft_projection", 0.0), ("distance", 0.03)])
def test_a_fade_that_means_nothing_is_refused(rule, fade):
    with pytest.raises(ConfigError, match=f"fade={fade}: choose above 0 with rule=soft_projection, or null"):
        MemoryBanks([4], [8], rule=rule, fade=fade)


@pytest.mark.vector
def test_superadd_scores_as_the_released_code():
    expected, test = vector("superadd"), vector_maps("test")
    detector = MemoryBanks([24] * 4, [4] * 4, unit=False, per_channel=True, top=0.01, smoothing_radius=16,
                           finest_stride=1)  # fmt: skip
    patches = [m.permute(0, 2, 3, 1).flatten(0, 2)[::3] for m in vector_maps("train")]
    detector.held.add(torch.zeros(len(patches[0]), dtype=torch.int64), torch.cat(patches, dim=1))
    detector.fit()
    embedded, grid = detector.patches(test)
    for layer, part in enumerate(embedded.split(24, dim=2)):
        alone = detector.score_layer(part, 0, layer).view(4, *grid)
        np.testing.assert_allclose(alone, expected["patch_per_layer"][:, layer], 1e-5, 1e-5)
    score, heat = detector(test, SIZE)
    np.testing.assert_allclose(heat[:, 0], expected["map"], 1e-5, 1e-5)
    np.testing.assert_allclose(score, expected["score_top1pct"], 1e-5, 1e-5)


def test_where_an_artifact_of_procon_is_refused_the_remedy_is_to_fade():
    told = [MemoryBanks([24], [8], rule="soft_projection", k=4, fade=fade).parity_remedy for fade in (None, 0.03)]
    assert told == ["train again with model.fade=0.03", MemoryBanks.parity_remedy]


def test_an_image_is_left_out_by_itself():
    train, kept = vector_maps("train"), torch.tensor([0, 1, 2, 4, 5, 6, 7])
    settings: dict[str, Any] = {"rule": "soft_projection", "k": 4, "finest_stride": 1}
    whole = fitted(MemoryBanks([24] * 4, [4] * 4, **settings), train)
    without = fitted(MemoryBanks([24] * 4, [4] * 4, **settings), [m[kept] for m in train])
    found = whole.score_left_out([m[3:4] for m in train], torch.tensor([3]), SIZE)
    torch.testing.assert_close(found.score, without([m[3:4] for m in train], SIZE).score)


def test_settings_that_cannot_work_are_refused():
    for settings, told in (
        ({"rule": "nearest"}, "rule='nearest': choose one of distance, cosine, soft_projection"),
        ({"num_banks": 2}, "num_banks=2: choose an odd number"),
        ({"selector": "greedy"}, "set one of coreset_ratio and coreset_size"),
        ({"top": 1.5}, "top=1.5 is a share"),
        ({"top_of": "images"}, "top_of='images': choose pixels or patches"),
    ):
        with pytest.raises(ConfigError, match=told):
            MemoryBanks([24], [8], **settings)
