"""LUNAR against the numbers of the reference program and plain computations."""

from typing import Any

import numpy as np
import pytest
import torch
from methods import CHANNELS, SIZE, STRIDES, features
from methods import fit as fitted
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from test_contract import allocated_at_the_peak
from vectors import vector

from oddpatch.errors import ConfigError, DataError
from oddpatch.models import lunar
from oddpatch.models.calibration import Calibration
from oddpatch.models.lunar import LUNAR, ScoreNetwork, WeightNetwork, draw_negatives, ranges, train_network
from oddpatch.ops.neighbours import nearest

SMALL: dict[str, Any] = {"coreset_size": 150, "steps": 20, "finest_stride": 4}


@pytest.fixture(scope="module")
def vectors():
    return {name: torch.from_numpy(value) for name, value in vector("lunar").items()}


def layer(kind):
    maps = vector("features")[kind][1].astype(np.float32)  # (n, H, W, C)
    return torch.from_numpy(maps)


def state(vectors, prefix):
    return {name.removeprefix(prefix): value.float() for name, value in vectors.items() if name.startswith(prefix)}


@pytest.mark.vector
def test_distances_to_normal_patches_equal_the_reference(vectors):
    detector = LUNAR([24], [4], finest_stride=1)
    # Theirs is x * scale + shift, fitted to the same patches.
    detector.minimum = (-vectors["scaler_min"] / vectors["scaler_scale"]).float()
    detector.span = (1 / vectors["scaler_scale"]).float()
    detector.memory_bank = vectors["neighbours"][: vectors["num_normal"]]
    queries = detector.scale(layer("test").flatten(0, 2))
    distances, _ = detector.index.search(queries, 5)
    torch.testing.assert_close(
        distances.view(4, 10, 12, 5), vectors["distances_test_normals_only"], rtol=1e-5, atol=1e-5
    )
    among_all, _ = nearest(queries, vectors["neighbours"], 5)
    torch.testing.assert_close(among_all.view(4, 10, 12, 5), vectors["distances_test"].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.vector
def test_the_scaling_is_that_of_the_reference(vectors):
    every = layer("train")[:, ::2, ::2].flatten(0, 2)
    scaled = every * vectors["scaler_scale"] + vectors["scaler_min"]
    trained = every[nearest(scaled, vectors["neighbours"][:216].double())[0][:, 0] < 1e-6]
    assert len(trained) == vectors["num_normal"] == 216
    minimum, span = ranges(trained)
    torch.testing.assert_close(1 / span, vectors["scaler_scale"].float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(-minimum / span, vectors["scaler_min"].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.vector
@pytest.mark.parametrize(("kind", "network"), [("weight", WeightNetwork), ("score", ScoreNetwork)])
def test_networks_equal_the_reference(vectors, kind, network):
    network = network(5).eval()
    network.load_state_dict(state(vectors, f"{kind}_net_"))
    distances = vectors["distances_test"].float().view(-1, 5)
    with torch.no_grad():
        scores = network.finish(network.rate(distances))
    torch.testing.assert_close(scores.view(4, 10, 12), vectors[f"{kind}_score"], rtol=1e-5, atol=1e-5)


@pytest.mark.vector
@pytest.mark.parametrize("chunk", [16384, 100])
def test_training_ends_where_the_reference_ends(vectors, chunk, monkeypatch):
    monkeypatch.setattr(lunar, "CHUNK", chunk)
    train, negatives = vectors["small_train_x"], vectors["small_train_neg"]
    bank = torch.cat([train, negatives])  # the reference has negatives among the neighbours
    distances = torch.cat([nearest(train, bank, 6)[0][:, 1:], nearest(negatives, bank, 5)[0]])
    validation = nearest(torch.cat([vectors["small_val_x"], vectors["small_val_neg"]]), bank, 5)[0]
    network = WeightNetwork(5, hidden=16)
    network.load_state_dict(state(vectors, "small_start_"), strict=False)
    with torch.no_grad():
        network.load_state_dict(train_network(network, distances, validation, steps=30))
        expected = state(vectors, "small_end_")
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value.float(), expected[name], rtol=2e-4, atol=2e-4)
        network.eval()
        scores = network.finish(network.rate(vectors["distances_test"].float().view(-1, 5)))
    torch.testing.assert_close(scores.view(4, 10, 12), vectors["small_score_test"], rtol=1e-4, atol=1e-4)


def test_negatives_are_half_uniform_and_half_near_a_good_patch():
    points = torch.rand(2000, 20, generator=torch.Generator().manual_seed(0)) * 0.01
    points[0, 0], points[1, 1] = -1, 3
    drawn = draw_negatives(points, torch.Generator().manual_seed(1))
    assert drawn.shape == points.shape
    pairs = drawn[:, None] == points[None]  # few dimensions have no noise by chance alone
    source = pairs.sum(2).argmax(1)
    uniform = ~pairs.any(2).any(1)
    assert 0.47 < uniform.float().mean() < 0.53
    of_uniform = drawn[uniform].flatten()
    assert -1 <= of_uniform.min() < -0.99
    assert 2.99 < of_uniform.max() <= 3
    assert of_uniform.mean() == pytest.approx(1, abs=0.02)
    noise = (drawn - points[source])[~uniform]
    assert 0.25 < (noise != 0).float().mean() < 0.35
    assert noise[noise != 0].std() == pytest.approx(0.1, rel=0.1)


def test_distances_are_those_of_scikit_learn_to_what_was_trained_on():
    detector = fitted(LUNAR(CHANNELS, STRIDES, **SMALL))
    patches, _ = detector.patches(features(2, seed=5))
    queries = ((patches - detector.minimum) / detector.span).flatten(0, 1)
    neighbours = NearestNeighbors(n_neighbors=5).fit(detector.memory_bank.double().numpy())
    distances, _ = neighbours.kneighbors(queries.double().numpy())
    network = detector.network
    with torch.no_grad():
        expected = network.finish(network.rate(torch.from_numpy(distances).float())).view(2, -1)
    torch.testing.assert_close(detector.score_patches(patches), expected, rtol=1e-4, atol=1e-4)


def test_a_tenth_is_held_out_and_the_rest_is_the_bank():
    detector = fitted(LUNAR(CHANNELS, STRIDES, coreset_size=101, steps=1))
    assert len(detector.memory_bank) == 90
    assert detector.memory_bank.amin(0).abs().max() == 0
    assert detector.memory_bank.amax(0).allclose(torch.ones(()))


def test_it_learns_where_gradients_are_off_and_leaves_global_generators_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    expected = fitted(LUNAR(CHANNELS, STRIDES, **SMALL))
    torch.manual_seed(4)
    with torch.inference_mode():
        found = fitted(LUNAR(CHANNELS, STRIDES, **SMALL))
    assert not torch.equal(before, torch.get_rng_state())
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert not any(parameter.requires_grad for parameter in found.parameters())
    torch.manual_seed(3)
    LUNAR(CHANNELS, STRIDES)
    assert torch.equal(before, torch.get_rng_state())


def test_other_seeds_draw_otherwise():
    one, other = (fitted(LUNAR(CHANNELS, STRIDES, **SMALL, seed=seed)) for seed in (0, 1))
    assert not torch.equal(one.memory_bank, other.memory_bank)
    weights = [torch.cat([w.flatten() for w in detector.network.parameters()]) for detector in (one, other)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("network", ["weight", "score"])
def test_it_tells_good_from_anomalous(network):
    detector = fitted(LUNAR(CHANNELS, STRIDES, coreset_size=300, steps=100, network=network))
    good, anomalous = features(6, seed=2), [m + 2 for m in features(6, seed=3)]
    scores = torch.cat([detector.score_patches(detector.patches(maps)[0]).flatten() for maps in (good, anomalous)])
    labels = torch.arange(len(scores)) >= len(scores) // 2
    assert roc_auc_score(labels, scores) > 0.99
    if network == "score":
        assert 0 <= scores.min() <= scores.max() <= 1


def test_parts_of_a_large_batch_are_scored_as_the_whole(monkeypatch):
    detector = fitted(LUNAR(CHANNELS, STRIDES, **SMALL))
    whole = detector(features(3, seed=1), SIZE)
    monkeypatch.setattr(lunar, "CHUNK", 50)
    parts = detector(features(3, seed=1), SIZE)
    torch.testing.assert_close(parts.anomaly_map, whole.anomaly_map, rtol=1e-5, atol=1e-5)


def test_progress_is_told():
    steps = []
    detector = LUNAR(CHANNELS, STRIDES, **SMALL)
    detector.update(features(4), torch.arange(4))
    detector.fit(lambda *told: steps.append(told))
    assert steps[0] == (1, 20, "LUNAR")
    assert steps[-1] == (20, 20, "LUNAR")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"k": 0}, "k=0: choose at least 1"),
        ({"steps": 0}, "steps=0: choose at least 1"),
        ({"network": "both"}, "network='both': choose one of weight, score"),
        ({"coreset_size": 0}, "coreset_size=0: choose at least 1"),
        ({"patch_size": 2}, "patch_size=2: choose an odd number"),
        ({"top": 1}, "top=1 is a share"),
        ({"selector": "x"}, "selector='x'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        LUNAR(CHANNELS, STRIDES, **settings)


def test_too_few_patches_are_refused_before_the_fit():
    shapes = [(c, 16 // s, 16 // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    with pytest.raises(ConfigError, match=r"k=5 nearest of 3 patches.*lower model\.k, raise model\.coreset_size"):
        LUNAR(CHANNELS, STRIDES).required_memory(shapes, 1)
    with pytest.raises(DataError, match="LUNAR needs at least one good image"):
        LUNAR(CHANNELS, STRIDES).fit()


@pytest.mark.parametrize("chunk", [16384, 2000])
def test_the_memory_of_training_is_stated(chunk, monkeypatch):
    monkeypatch.setattr(lunar, "CHUNK", chunk)
    detector = LUNAR([6], [4], coreset_size=None, steps=2, finest_stride=1)
    maps = features(20)[:1]
    _, channels, height, width = maps[0].shape
    needed, _ = detector.required_memory([(channels, height, width)], 20)

    def run():
        detector.update(maps, torch.arange(20))
        detector.fit()

    assert allocated_at_the_peak(run) == pytest.approx(needed, rel=0.2)


def test_the_image_score_may_be_the_mean_of_the_top_share():
    detector = fitted(LUNAR(CHANNELS, STRIDES, **SMALL, top=0.1))
    score, heat = detector(features(2, seed=1), SIZE)
    highest = np.sort(heat.flatten(1).numpy())[:, -round(0.1 * heat[0].numel()) :]
    np.testing.assert_allclose(score, highest.mean(1), rtol=1e-5, atol=1e-6)


def test_scores_of_any_sign_set_thresholds_and_rank():
    detector = fitted(LUNAR(CHANNELS, STRIDES, **SMALL))
    assert isinstance(detector.network, WeightNetwork)
    detector.network.final_norm.bias.sub_(10)
    scores = detector(features(40, seed=7), SIZE).score
    assert scores.max() < 0
    calibration = Calibration("holdout", target_fpr=0.1)
    calibration.calibrate(scores, torch.empty(0), torch.arange(40))
    threshold = calibration.thresholds()["conformal"]
    assert (scores > threshold).float().mean() <= 0.1
    anomalous = detector([m + 2 for m in features(5, seed=8)], SIZE).score
    assert (anomalous > threshold).all()
    detector.restrict(torch.ones(SIZE).triu().bool())
    heat = detector(features(1, seed=8), SIZE).anomaly_map
    assert heat.max() == heat[..., torch.ones(SIZE).triu().bool()].max()


def test_a_good_patch_is_no_neighbour_of_its_own_in_training(monkeypatch):
    given = []

    def noted(start, *rest):
        given.append(rest)
        return start.state_dict()

    monkeypatch.setattr(lunar, "train_network", noted)
    detector = fitted(LUNAR(CHANNELS, STRIDES, **SMALL))
    distances, validation = given[0][:2]
    assert distances.shape == (2 * 135, 5)
    assert validation.shape == (2 * 15, 5)
    others, _ = NearestNeighbors(n_neighbors=5).fit(detector.memory_bank.double().numpy()).kneighbors()
    np.testing.assert_allclose(distances[:135], others, rtol=1e-5)
