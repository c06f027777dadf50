"""PaDiM against a plain numpy reference, and its errors."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from oddpatch.errors import ConfigError, DataError
from oddpatch.models import padim
from oddpatch.models.padim import PaDiM
from oddpatch.ops import statistics

CHANNELS, STRIDES = [4, 6], [4, 8]
SIZE = (32, 48)


@pytest.fixture(params=["whole", "blocks"])
def kept(request, monkeypatch):
    """How whitening matrices are kept: those of more channels than are used here are in blocks."""
    if request.param == "blocks":
        monkeypatch.setattr(statistics, "COLUMNS", 3)
    return request.param


def features(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = [(c, SIZE[0] // s, SIZE[1] // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    return [torch.randn(count, *shape, generator=generator) * 2 + 5 for shape in maps]


def fitted(count=30, batch=8, **settings):
    detector = PaDiM(CHANNELS, STRIDES, **{"num_features": 7, "smoothing": 2.0, **settings})
    index = torch.arange(count)
    parts = zip(*(f.split(batch) for f in features(count)), strict=True)
    for part, i in zip(parts, index.split(batch), strict=True):
        detector.update(list(part), i)
    detector.fit()
    return detector


def reference(detector, train, test, epsilon, sigma, mode="nearest"):
    """Scores and maps by np.cov, np.linalg.inv and scipy, one position at a time."""
    size = train[0].shape[-2:]

    def embed(maps):
        options = {} if mode == "nearest" else {"align_corners": False}
        up = [maps[0], F.interpolate(maps[1], size=size, mode=mode, **options)]
        joined = torch.cat(up, 1)
        if detector.projection is not None:
            joined = torch.einsum("bchw,cd->bdhw", joined, detector.projection)
        else:
            joined = joined[:, detector.channel_index]
        return joined.double().numpy()

    fit_on, score = embed(train), embed(test)
    distances = np.zeros((len(score), *size))
    for y in range(size[0]):
        for x in range(size[1]):
            here = fit_on[:, :, y, x]
            covariance = np.cov(here, rowvar=False) + epsilon * np.eye(here.shape[1])
            shift = score[:, :, y, x] - here.mean(0)
            distances[:, y, x] = np.sqrt(np.einsum("ni,ij,nj->n", shift, np.linalg.inv(covariance), shift))
    up = F.interpolate(torch.from_numpy(distances)[:, None], size=SIZE, mode="bilinear", align_corners=False)[:, 0]
    return np.stack([gaussian_filter(m, sigma) if sigma else m for m in up.numpy()])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"epsilon": 0.3, "smoothing": 0.0},
        {"alignment": "bilinear"},
        {"reduction": "semi_orthogonal"},
        {"num_features": None},
    ],
)
@pytest.mark.usefixtures("kept")
def test_equals_a_plain_numpy_reference(settings):
    detector = fitted(**settings)
    test = features(3, seed=1)
    expected = reference(
        detector, features(30), test, settings.get("epsilon", 0.01), settings.get("smoothing", 2.0),
        settings.get("alignment", "nearest"),
    )  # fmt: skip
    prediction = detector(test, SIZE)
    np.testing.assert_allclose(prediction.anomaly_map[:, 0].numpy(), expected, rtol=2e-4)
    np.testing.assert_allclose(prediction.score.numpy(), expected.max((1, 2)), rtol=2e-4)


def test_score_from_raw_is_the_maximum_before_smoothing():
    raw, smoothed = fitted(score_from="raw"), fitted()
    test = features(3, seed=1)
    expected = reference(raw, features(30), test, 0.01, 0).max((1, 2))
    np.testing.assert_allclose(raw(test, SIZE).score.numpy(), expected, rtol=2e-4)
    assert (smoothed(test, SIZE).score < raw(test, SIZE).score).all()


def test_score_from_raw_is_the_maximum_inside_the_region():
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[:13, :21] = True  # of patches of 4 pixels the last row and column lie in it with one pixel
    test = features(3, seed=1)
    test[0][:, :, 3, 5] += 100  # so that the map is highest outside

    def score(**settings):
        detector = PaDiM(CHANNELS, STRIDES, num_features=7, **settings)
        detector.restrict(mask)
        detector.update(features(30), torch.arange(30))
        detector.fit()
        return detector(test, SIZE).score

    raw = score(score_from="raw", smoothing=2.0)
    torch.testing.assert_close(raw, score(score_from="smoothed", smoothing=0.0))
    full = PaDiM(CHANNELS, STRIDES, num_features=7, score_from="raw")
    full.update(features(30), torch.arange(30))
    full.fit()
    assert (raw < 0.9 * full(test, SIZE).score).all()


@pytest.mark.parametrize("batch", [1, 7, 30])
def test_batch_size_does_not_change_the_fit(batch):
    one, other = fitted(batch=8), fitted(batch=batch)
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.whitening, other.whitening, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"alignment": "bilinear"}, {"reduction": "semi_orthogonal"}])
def test_how_many_positions_are_taken_at_a_time_changes_nothing(settings, monkeypatch):
    whole, test = fitted(**settings), features(3, seed=1)
    expected = whole(test, SIZE)
    monkeypatch.setitem(padim.PART_BYTES, "cpu", 5 * 4 * 3 * 7)  # five positions of three images
    monkeypatch.setattr(padim, "CHUNK_BYTES", 7 * 8 * 7 * 7)
    parts = fitted(**settings)
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parts.whitening, whole.whitening, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts(test, SIZE).anomaly_map, expected.anomaly_map, rtol=1e-5, atol=1e-5)


def test_whole_matrices_are_saved_and_load_in_either_way(kept, monkeypatch):
    saving = fitted()
    assert len(saving.blocks) == {"whole": 1, "blocks": 3}[kept]
    saved = saving.state_dict()
    assert not [name for name in saved if "block" in name]
    whitening = saved["whitening"]
    assert whitening.shape == (8 * 12, 7, 7)
    assert torch.equal(whitening, whitening.tril())
    for columns in (3, 32):
        monkeypatch.setattr(statistics, "COLUMNS", columns)
        loading = PaDiM(CHANNELS, STRIDES, num_features=7, smoothing=2.0)
        loading.load_state_dict(saved)
        assert torch.equal(loading.whitening, whitening)
        torch.testing.assert_close(loading(features(3, seed=1), SIZE), saving(features(3, seed=1), SIZE))
    del saved["whitening"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"whitening"'):
        PaDiM(CHANNELS, STRIDES, num_features=7).load_state_dict(saved)


def test_the_drawn_channels_are_seeded_and_saved():
    first, second, third = (PaDiM(CHANNELS, STRIDES, num_features=5, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(first["channel_index"], second["channel_index"])
    assert not torch.equal(first["channel_index"], third["channel_index"])


def test_memory_does_not_grow_with_the_number_of_images():
    detector = PaDiM(CHANNELS, STRIDES, num_features=7)
    held = []
    for i in range(6):
        detector.update(features(4, seed=i), torch.arange(4))
        held.append(detector.moments.required(4 * i + 4))
    assert len(set(held)) == 1


def test_too_many_features_names_the_limit():
    with pytest.raises(ConfigError, match=r"num_features=600 but this backbone gives 10: choose 1..10"):
        PaDiM(CHANNELS, STRIDES, num_features=600)


@pytest.mark.parametrize(("count", "told"), [(0, "given 0"), (1, "given 1")])
def test_too_few_images(count, told):
    detector = PaDiM(CHANNELS, STRIDES, num_features=5)
    if count:
        detector.update(features(count), torch.arange(count))
    with pytest.raises(DataError, match=f"at least 2 good images.*{told}"):
        detector.fit()


def test_images_of_another_size_are_refused():
    detector = fitted()
    larger = [F.interpolate(f, scale_factor=2) for f in features(1)]
    with pytest.raises(DataError, match="grid of 16x24 patches, PaDiM was fitted on 8x12"):
        detector(larger, (64, 96))
    fitting = PaDiM(CHANNELS, STRIDES, num_features=7)
    fitting.update(features(2), torch.arange(2))
    with pytest.raises(DataError, match="grids of 8x12 and 16x24 patches: use images of one size"):
        fitting.update(larger, torch.arange(1))
    smaller = [F.interpolate(f, scale_factor=0.5) for f in features(1)]
    with pytest.raises(DataError, match="grids of 4x6 and 8x12 patches"):
        fitting.update(smaller, torch.arange(1))


def test_required_memory_covers_what_is_held():
    detector = PaDiM(CHANNELS, STRIDES, num_features=7)
    needed, remedy = detector.required_memory([(4, 8, 12), (6, 4, 6)], 30)
    assert needed >= 8 * 12 * 7 * 7 * 4
    assert "num_features" in remedy
