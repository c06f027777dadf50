"""SPADE against a brute-force numpy reference, its gallery on disk, and its errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from torch.nn import functional as F

from oddpatch.errors import ConfigError, DataError, ResourceError
from oddpatch.models.spade import SPADE
from oddpatch.ops import correspondence, gallery
from oddpatch.ops.correspondence import correspondence_distances
from oddpatch.ops.gallery import Spool

CHANNELS, STRIDES = [4, 6, 9], [4, 8, 16]
SIZE = (32, 48)


def features(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = [(c, SIZE[0] // s, SIZE[1] // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    return [torch.randn(count, *shape, generator=generator) * 2 + 5 for shape in maps]


def fitted(count=12, batch=5, order=None, maps=None, **settings):
    detector = SPADE(CHANNELS, STRIDES, **{"k": 4, "smoothing": 2.0, **settings})
    order = torch.arange(count) if order is None else order
    maps = features(count) if maps is None else maps
    for index in order.split(batch):
        detector.update([f[index] for f in maps], index)
    detector.fit()
    return detector


def patches(feature):
    return feature.double().flatten(2).mT.numpy()  # (B, P, C)


def reference(train, test, k=4, kappa=1, pool=(2,), maps=(0, 1, 2), join=False, sigma=2.0, interpolation="bilinear"):
    """Scores and maps by scipy's cdist over all patches of the retrieved images."""
    pooled = [np.concatenate([f[i].double().mean((2, 3)).numpy() for i in pool], 1) for f in (test, train)]
    distances = cdist(*pooled)
    retrieved = np.argsort(distances, 1, kind="stable")[:, :k]
    levels: list[Any] = [(train[i], test[i]) for i in maps]
    if join:
        size = train[maps[0]].shape[-2:]
        levels = [tuple(torch.cat([F.interpolate(f[i], size=size) for i in maps], 1) for f in (train, test))]
    total = np.zeros((len(test[0]), *SIZE))
    for good, scored in levels:
        for b in range(len(scored)):
            bank = patches(good)[retrieved[b]].reshape(-1, good.shape[1])
            nearest = np.sort(cdist(patches(scored)[b], bank), 1)[:, :kappa].mean(1)
            grid = torch.from_numpy(nearest).view(1, 1, *scored.shape[-2:])
            up = F.interpolate(grid, size=SIZE, mode=interpolation, align_corners=False)[0, 0].numpy()
            total[b] += gaussian_filter(up, sigma) if sigma else up
    return np.take_along_axis(distances, retrieved, 1).mean(1), total


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        ({"k": 1, "smoothing": 0.0}, {"k": 1, "sigma": 0}),
        ({"k": 12, "interpolation": "bicubic"}, {"k": 12, "interpolation": "bicubic"}),
        ({"kappa": 3}, {"kappa": 3}),
        ({"kappa": 30}, {"kappa": 30, "maps": (0, 1)}),
        ({"pool_layers": [2], "map_layers": [0, 1]}, {"maps": (0, 1)}),
        ({"pool_layers": [0, -1], "map_layers": [1]}, {"pool": (0, 2), "maps": (1,)}),
        ({"pyramid": "join"}, {"join": True}),
    ],
)
@pytest.mark.parametrize("block", [7, 512])
def test_equals_a_brute_force_reference(settings, expected, block, monkeypatch):
    monkeypatch.setattr(correspondence, "BLOCK", block)
    if settings.get("kappa") == 30:  # the coarsest map has fewer patches than that
        settings = {**settings, "map_layers": [0, 1]}
    test = features(3, seed=1)
    prediction = fitted(**settings)(test, SIZE)
    score, anomaly_map = reference(features(12), test, **expected)
    np.testing.assert_allclose(prediction.score.numpy(), score, rtol=1e-5)
    np.testing.assert_allclose(prediction.anomaly_map[:, 0].numpy(), anomaly_map, rtol=1e-5)


def test_images_of_the_gallery_are_at_distance_nought():
    detector = fitted(k=1)
    score, anomaly_map = detector([f[2:4] + 0 for f in features(12)], SIZE)
    assert torch.equal(score, torch.zeros(2))
    torch.testing.assert_close(anomaly_map, torch.zeros(2, 1, *SIZE), rtol=0, atol=1e-5)


def test_batch_one_equals_batch_n_to_the_bit():
    detector, test = fitted(kappa=2), features(4, seed=1)
    together = detector(test, SIZE)
    for i in range(4):
        single = detector([f[i : i + 1] for f in test], SIZE)
        assert torch.equal(single.score[0], together.score[i])
        torch.testing.assert_close(single.anomaly_map[0], together.anomaly_map[i], rtol=1e-6, atol=0)


@pytest.mark.parametrize("batch", [1, 4, 12])
def test_neither_batch_size_nor_order_nor_repetition_change_the_fit(batch):
    one = fitted()
    shuffled = torch.cat([torch.randperm(12, generator=torch.Generator().manual_seed(3)), torch.tensor([5, 0])])
    other = fitted(batch=batch, order=shuffled)
    for name, buffer in one.named_buffers():
        assert torch.equal(buffer, dict(other.named_buffers())[name]), name


def test_equally_near_images_are_retrieved_by_lowest_index():
    maps = [f[[0, 1, 1, 1]] for f in features(2)]
    maps[0][1:] = features(3, seed=9)[0]  # alike where they are pooled, not where they are mapped
    detector = fitted(count=4, maps=maps, k=1, map_layers=[0])
    query = [f[1:2] for f in maps]
    assert detector(query, SIZE).anomaly_map.max() < 1e-5


def test_far_from_the_origin_distances_keep_their_digits():
    generator = torch.Generator().manual_seed(0)
    queries, images = torch.randn(40, 8, generator=generator), torch.randn(5, 60, 8, generator=generator)
    queries, images = queries + 1000, images + 1000
    expected = cdist(queries.double(), images.double().flatten(0, 1)).min(1)
    found = correspondence_distances(queries, lambda i: images[i], 5)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_half_precision_gallery_is_half_the_size_and_close():
    full, half = fitted(), fitted(gallery_dtype="float16")
    assert half.gallery_0.dtype == torch.float16
    test = features(3, seed=1)
    torch.testing.assert_close(half(test, SIZE).anomaly_map, full(test, SIZE).anomaly_map, rtol=5e-3, atol=0)
    detector = SPADE(CHANNELS, STRIDES, k=1, gallery_dtype="float16")
    with pytest.raises(DataError, match=r"range of float16: set model\.gallery_dtype=float32"):
        detector.update([f * 1e5 for f in features(2)], torch.arange(2))


def test_a_mapped_checkpoint_is_not_copied(tmp_path):
    detector, path, test = fitted(), tmp_path / "fitted.ckpt", features(2, seed=1)
    torch.save(detector.state_dict(), path)
    state = torch.load(path, weights_only=True, mmap=True)
    loaded: Any = SPADE(CHANNELS, STRIDES, k=4, smoothing=2.0)
    loaded.load_state_dict(state)
    assert loaded.gallery_0.data_ptr() == state["gallery_0"].data_ptr()
    before, after = detector(test, SIZE), loaded(test, SIZE)
    assert torch.equal(before.score, after.score)
    assert torch.equal(before.anomaly_map, after.anomaly_map)


def anonymous_memory():
    """Bytes this process holds that no file backs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_the_gallery_is_not_held_in_memory():
    rows = torch.randn(8, 256, 1024)  # 8 MiB
    spool, before = Spool((256, 1024)), anonymous_memory()
    for _ in range(20):
        spool.append(rows)
    mapped = spool.finish(torch.arange(160))
    assert mapped.shape == (160, 256, 1024)
    assert torch.equal(mapped[8:16], rows)
    assert anonymous_memory() - before < 40 * 2**20


def test_temporary_files_have_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery.tempfile, "tempdir", str(tmp_path))
    detector: Any = SPADE(CHANNELS, STRIDES, k=4)
    detector.update(features(6), torch.arange(6).flip(0))
    assert not list(tmp_path.iterdir())
    detector.fit()
    assert not list(tmp_path.iterdir())
    assert torch.equal(detector.gallery_1[5], features(6)[1][0].flatten(1).T)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"k": 0}, "k=0: choose at least 1"),
        ({"kappa": 0}, "kappa=0: choose at least 1"),
        ({"pool_layers": [3]}, r"pool_layers=\[3\] but there are 3 feature maps: choose from 0\.\.2"),
        ({"map_layers": []}, r"map_layers=\[\] but there are 3"),
        ({"pyramid": "concat"}, "pyramid='concat': choose one of sum, join"),
        ({"gallery_dtype": "int8"}, "gallery_dtype='int8': choose one of float32, float16"),
    ],
)
def test_wrong_settings(settings, told):
    with pytest.raises(ConfigError, match=told):
        SPADE(CHANNELS, STRIDES, **settings)


def test_k_larger_than_the_gallery_is_told_before_and_at_fit():
    told = r"k=13 images to retrieve but the gallery has 12: choose model\.k from 1\.\.12"
    with pytest.raises(ConfigError, match=told):
        fitted(k=13)
    with pytest.raises(ConfigError, match=told):
        SPADE(CHANNELS, STRIDES, k=13).required_memory([(4, 8, 12), (6, 4, 6), (9, 2, 3)], 12)


def test_kappa_larger_than_all_patches_is_told():
    with pytest.raises(ConfigError, match=r"kappa=25 .* only 24 patches .* choose model\.kappa from 1\.\.24"):
        fitted(kappa=25)


def test_no_images():
    with pytest.raises(DataError, match="at least 1 good image"):
        SPADE(CHANNELS, STRIDES, k=1).fit()


def test_images_of_several_sizes_are_refused():
    detector = SPADE(CHANNELS, STRIDES, k=1)
    detector.update(features(1), torch.arange(1))
    with pytest.raises(DataError, match="384 patches where others gave 96"):
        detector.update([F.interpolate(f, scale_factor=2) for f in features(1)], torch.arange(1))


def test_an_image_of_another_size_is_scored_unless_maps_are_joined():
    larger = [F.interpolate(f, scale_factor=2) for f in features(1, seed=1)]
    assert fitted()(larger, (64, 96)).anomaly_map.shape == (1, 1, 64, 96)
    with pytest.raises(DataError, match="image gives 384 patches, the gallery 96"):
        fitted(pyramid="join")(larger, (64, 96))


def test_required_memory_leaves_the_gallery_out_but_asks_for_its_disk():
    detector = SPADE(CHANNELS, STRIDES, k=50)
    shapes = [(256, 56, 56), (512, 28, 28), (1024, 14, 14)]
    needed, remedy = detector.required_memory(shapes, 400)
    assert needed < 400 * 256 * 56 * 56 * 4 / 10  # of the finest map alone
    assert "gallery_dtype" in remedy
    with pytest.raises(ResourceError, match=r"GiB of disk .* set TMPDIR to a folder with more"):
        detector.required_memory(shapes, 10**9)
