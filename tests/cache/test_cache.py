"""The cache of features: never stale, never half, bounded, and not to be noticed in the results."""

import contextlib
import json
import multiprocessing
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import TinyBackbone, make_dataset
from narrowing import present
from safetensors import safe_open
from test_pipeline import config, predictions, run, tiny_backbone  # noqa: F401 - a fixture

import oddpatch.data.transforms
from oddpatch import environment
from oddpatch.backbones.engine import Runtime
from oddpatch.cache import fingerprint as fingerprints
from oddpatch.cache.features import END, Entry, FeatureCache, stack
from oddpatch.cache.fingerprint import fingerprint, hash_tensors
from oddpatch.cache.wrapping import CachedDataset
from oddpatch.data.dataset import MVTecDataset
from oddpatch.data.layout import scan
from oddpatch.data.transforms import Preprocess
from oddpatch.errors import ConfigError
from oddpatch.models.anomaly_model import AnomalyModel
from oddpatch.models.padim import PaDiM
from oddpatch.types import Batch

GIB = 2**30


def make_cache(folder, max_bytes=GIB):
    cache = FeatureCache(folder, max_bytes / GIB)
    cache.fingerprint = "f"
    return cache


@pytest.mark.parametrize(
    "changed",
    [
        lambda found: {**found, "0": found["0"][:, :-1]},
        lambda found: {**found, "0": found["0"][:-1]},
        lambda found: {**found, "0": found["0"].flatten()},
        lambda found: {**found, "0": found["0"].long()},
        lambda found: {**found, "2": found["0"]},
        lambda found: {name: value for name, value in found.items() if name != "1"},
        lambda found: {name: value for name, value in found.items() if name != "facts"},
        lambda found: {name: value for name, value in found.items() if name != "channels_last"},
        lambda found: {**found, "facts": torch.zeros(3, dtype=torch.float64)},
        lambda found: {**found, "channels_last": torch.zeros(5, dtype=torch.bool)},
        lambda found: {},
    ],
)
def test_an_entry_that_the_backbone_does_not_give_is_computed_again(tmp_path, changed, caplog):
    """A map with fewer rows would be scored as if it were whole."""
    cache = make_cache(tmp_path)
    cache.shapes = [(4, 8, 8), (6, 4, 4)]
    (entry,) = entries(cache, "x")
    cache.store([entry], [torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)])
    assert cache.load(entry.key) is not None
    (path,) = tmp_path.rglob("*.safetensors")
    found = {name: value.clone() for name, value in safetensors.torch.load_file(path).items() if name != "digest"}
    tensors = {name: value.contiguous().clone() for name, value in changed(found).items()}
    tensors["digest"] = torch.tensor(list(hash_tensors(tensors, entry.key)), dtype=torch.uint8)  # it was made so
    path.write_bytes(safetensors.torch.save(tensors))
    assert cache.load(entry.key) is None
    assert "it is not what the backbone gives): its features are computed again" in caplog.text


def entries(cache, *contents):
    return [Entry(cache.key(content.encode()), (48.0, 64.0, 0.5, 0.01)) for content in contents]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_stored_comes_back_to_the_bit_and_in_its_layout(tmp_path, dtype, layout):
    features = [torch.randn(3, c, s, s).to(dtype).contiguous(memory_format=layout) for c, s in ((4, 8), (6, 4), (5, 1))]
    features[0][0, 0, 0, 0] = float("nan")
    cache = make_cache(tmp_path)
    stored = entries(cache, "a", "b", "c")
    cache.store(stored, features)
    found = [cache.load(entry.key) for entry in stored]
    assert all(it.facts == (48.0, 64.0, 0.5, 0.01) for it in found)
    for mine, theirs in zip(stack(found), features, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
        assert mine.dtype == theirs.dtype
        assert mine.stride() == theirs.stride() or mine.shape[2:] == (1, 1), "a single position has no layout"


def test_files_are_plain_tensors(tmp_path):
    cache = make_cache(tmp_path)
    cache.store(entries(cache, "a"), [torch.ones(1, 2, 3, 3)])
    (path,) = tmp_path.rglob("*.safetensors")
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"0", "facts", "channels_last", "digest"}


def test_nothing_known_is_none(tmp_path):
    assert make_cache(tmp_path).load("f/unknown") is None


def test_a_damaged_file_is_said_and_computed_again(tmp_path, caplog):
    cache = make_cache(tmp_path)
    (entry,) = stored = entries(cache, "a")
    cache.store(stored, [torch.ones(1, 2, 3, 3)])
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:50])
    assert cache.load(entry.key) is None
    assert "is computed again" in caplog.text or "are computed again" in caplog.text
    cache.store(stored, [torch.ones(1, 2, 3, 3)])
    assert cache.load(entry.key) is not None


def test_no_flipped_bit_is_used(tmp_path):
    cache = make_cache(tmp_path)
    (entry,) = stored = entries(cache, "a")
    cache.store(stored, [torch.arange(8.0).view(1, 2, 2, 2)])
    (path,) = tmp_path.rglob("*.safetensors")
    content = path.read_bytes()
    kept = cache.load(entry.key)
    for byte in range(len(content)):
        flipped = bytearray(content)
        flipped[byte] ^= 1 << byte % 8
        path.write_bytes(flipped)
        found = cache.load(entry.key)
        assert found is None or torch.equal(found.features[0], kept.features[0]), f"byte {byte}"
        assert found is None or found[1:] == kept[1:], f"byte {byte}"


def test_an_entry_under_another_name_is_not_used(tmp_path):
    cache = make_cache(tmp_path)
    first, second = stored = entries(cache, "a", "b")
    cache.store(stored, [torch.arange(2.0).view(2, 1, 1, 1)])
    cache.path_of(first.key).replace(cache.path_of(second.key))
    assert cache.load(second.key) is None


def test_a_cache_that_is_too_small_says_so_and_which_size_works(tmp_path, caplog):
    def run(max_bytes, folder="used"):
        cache = make_cache(tmp_path / folder, max_bytes)
        for i in range(20):
            cache.store(entries(cache, f"{i}"), [torch.zeros(1, 1, 16, 16)])
        with caplog.at_level("INFO"):
            cache.report()
        return cache.kept

    kept = run(15_000)
    assert 0 < kept < 20
    assert f"20 computed, {kept} of these kept" in caplog.text
    told = present(re.search(r"give cache.max_gib=(\S+), or more", caplog.text)).group(1)
    assert run(1000, "new") == 0, "no room for a single one"
    caplog.clear()
    assert run(int(float(told) * GIB)) == 20
    assert "max_gib" not in caplog.text


def size(folder):
    total = 0
    for path in folder.rglob("*.safetensors"):
        with contextlib.suppress(FileNotFoundError):  # another job has just dropped it
            total += path.stat().st_size
    return total


def test_what_was_used_longest_ago_goes_first(tmp_path):
    cache = make_cache(tmp_path, 100_000)
    one = [torch.ones(1, 1, 16, 16)]  # 1 KiB and a header
    names = [f"{i}" for i in range(200)]
    for name in names:
        cache.store(entries(cache, name), one)
        assert cache.load(cache.key(b"0")) is not None, "used all the time"
        time.sleep(0.001)  # so that the times of use differ
    assert size(tmp_path) <= 100_000
    kept = [name for name in names if cache.path_of(cache.key(name.encode())).exists()]
    assert kept == ["0", *names[-len(kept) + 1 :]]
    assert len(kept) > 100_000 * END / 1400


def fill(folder, number):
    cache = make_cache(folder, 200_000)
    for i in range(300):
        stored = entries(cache, f"{number * 100 + i}")  # the jobs have two thirds of the images in common
        if cache.load(stored[0].key) is None:
            cache.store(stored, [torch.full((1, 1, 16, 16), float(number * 100 + i))])
        assert size(folder) <= 200_000
    return cache.kept


@pytest.mark.slow
def test_jobs_fill_it_together_within_its_size(tmp_path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert min(pool.starmap(fill, [(tmp_path, number) for number in range(3)])) > 0
    assert size(tmp_path) > 100_000
    cache = make_cache(tmp_path)
    found = {i: cache.load(cache.key(f"{i}".encode())) for i in range(500)}
    assert all((it.features[0] == i).all() for i, it in found.items() if it)
    assert not list(tmp_path.rglob("*.partial"))


def test_leftovers_of_killed_jobs_go(tmp_path):
    old, new = tmp_path / "f/.a.0000abcd-1.partial", tmp_path / "f/.b.0000abcd-2.partial"  # of another machine
    for path in (old, new):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    os.utime(old, (0, 0))
    cache = make_cache(tmp_path)
    cache.store(entries(cache, "a"), [torch.ones(1, 1, 2, 2)])
    assert (old.exists(), new.exists()) == (False, True)


def test_a_full_disk_ends_the_caching_but_not_the_run(tmp_path, monkeypatch, caplog):
    cache = make_cache(tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("oddpatch.cache.features.replacing", full)
    for name in ("a", "b"):
        cache.store(entries(cache, name), [torch.ones(1, 1, 2, 2)])
    assert caplog.text.count("No space left on device") == 1
    assert (cache.computed, cache.kept) == (2, 0)
    cache.report()
    assert "max_gib" not in caplog.text


@pytest.mark.parametrize("max_gib", [0, -1])
def test_a_size_that_cannot_work_is_refused(tmp_path, max_gib):
    with pytest.raises(ConfigError, match="max_gib"):
        FeatureCache(tmp_path, max_gib)


# -- what decides the features ----------------------------------------------------------------------------------------


def model(**preprocess):
    settings = {"resize": 32, "crop": 32, "mean": [0.5] * 3, "std": [0.5] * 3, **preprocess}
    backbone = TinyBackbone()
    return AnomalyModel(
        Preprocess(**settings), backbone, PaDiM(backbone.info.channels, backbone.info.strides, num_features=5)
    )


def test_whatever_changes_features_changes_the_fingerprint(monkeypatch):
    cpu = torch.device("cpu")
    first = fingerprint(model(), {"name": "tiny"}, cpu)
    assert fingerprint(model(), {"name": "tiny"}, cpu) == first
    found = [
        fingerprint(model(crop=24), {"name": "tiny"}, cpu),
        fingerprint(model(mean=[0.4] * 3), {"name": "tiny"}, cpu),
        fingerprint(model(interpolation="bicubic"), {"name": "tiny"}, cpu),
        fingerprint(model(), {"name": "tiny", "layers": [1]}, cpu),
    ]
    other = model()
    with torch.no_grad():
        other.backbone.steps[1].weight[0, 0, 0, 0] += 1e-7
    found.append(fingerprint(other, {"name": "tiny"}, cpu))
    half = model()
    half.backbone.runtime = replace(Runtime(), precision="bf16")
    found.append(fingerprint(half, {"name": "tiny"}, cpu))
    monkeypatch.setattr(environment, "version", lambda name: "0.0")
    found.append(fingerprint(model(), {"name": "tiny"}, cpu))
    assert len({first, *found}) == len(found) + 1


def test_an_edited_source_changes_the_fingerprint(monkeypatch):
    before = fingerprint(model(), {}, torch.device("cpu"))
    monkeypatch.setattr(fingerprints, "SOURCES", (*fingerprints.SOURCES, "types.py"))
    assert fingerprint(model(), {}, torch.device("cpu")) != before


# -- in a dataset and in a run ----------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    make_dataset(tmp_path / "data")
    test = scan(tmp_path / "data", "tile").test
    images = MVTecDataset(test, Preprocess(32, 32, [0.5] * 3, [0.5] * 3))
    return CachedDataset(images, make_cache(tmp_path / "cache"))


def fill_from(dataset, indices):
    """Keep every other pixel as the features of images; gives the items as they were decoded."""
    found = dataset.__getitems__(indices)
    for it in found:
        dataset.cache.store([it.entry], [it.item.image[None, :, ::2, ::2].contiguous()])
    return [it.item for it in found]


def test_cached_items_have_features_and_mask_but_no_image(dataset):
    plain = fill_from(dataset, range(13))
    for (item, found, _), before in zip(dataset.__getitems__(range(13)), plain, strict=True):
        assert item.image.shape == (3, 0, 0)
        assert torch.equal(found.features[0], before.image[:, ::2, ::2])
        assert torch.equal(item.mask, before.mask)
        assert (item.label, item.index, item.path) == (before.label, before.index, before.path)
        assert torch.equal(dataset.dataset.image(item.index), before.image)


def test_a_batch_that_is_not_complete_in_the_cache_is_decoded_as_a_whole(dataset):
    fill_from(dataset, [0, 1, 3])
    assert all(it.found is None and it.item.image.numel() for it in dataset.__getitems__([0, 1, 2, 3]))


def test_a_changed_image_is_decoded_again_and_a_changed_mask_is_used(dataset):
    fill_from(dataset, [5, 6])
    first, second = dataset.dataset.samples[5], dataset.dataset.samples[6]
    image, mask = first.path, first.mask_path
    modified = image.stat().st_mtime_ns
    mask.write_bytes(second.mask_path.read_bytes())
    before, after = dataset.dataset[6], dataset.__getitems__([5])[0]
    assert after.found is not None
    assert torch.equal(after.item.mask, before.mask)
    size_before = image.stat().st_size
    image.write_bytes(dataset.dataset.samples[7].path.read_bytes()[:size_before].ljust(size_before, b"\0"))
    os.utime(image, ns=(modified, modified))  # same size, same time: only its content tells
    assert dataset.__getitems__([5])[0].found is None


def test_an_image_that_changes_while_it_is_read_is_not_kept(dataset, monkeypatch):
    keys = iter(["f/none", "f/a", "f/b"])  # looked up, before it is decoded, afterwards
    monkeypatch.setattr(dataset.cache, "key", lambda content: next(keys))
    assert dataset.__getitems__([0])[0].entry is None


def test_aligned_images_keep_where_they_lie(tmp_path):
    from oddpatch.data.alignment import load_alignment

    make_dataset(tmp_path)
    test = scan(tmp_path, "tile").test
    align = load_alignment({"reference": str(test[0].path), "method": "translation", "min_quality": 0.0})
    images = MVTecDataset(test, Preprocess(32, 32, [0.5] * 3, [0.5] * 3, align=align))
    dataset = CachedDataset(images, make_cache(tmp_path / "cache"))
    plain = fill_from(dataset, [5, 9])
    for loaded, before in zip(dataset.__getitems__([5, 9]), plain, strict=True):
        assert loaded is not None
        item, found, _ = loaded
        assert found is not None
        assert len(found.facts) == 14
        assert torch.equal(item.mask, before.mask)


def job(tiles, out, *overrides):
    cfg = config(
        "train", "data=mvtec", f"data.root={tiles}", "data.category=tile", "data.resize=32", "data.crop=32",
        "data.batch_size=5", "data.num_workers=0", "trainer.accelerator=cpu", *overrides, out=out,
    )  # fmt: skip
    cfg.callbacks = {name: cfg.callbacks[name] for name in ("pictures", "results")}
    return cfg


def looked_up(job):
    """How many images' features were found, and how many computed."""
    cache = job.module.compute_features.cache
    return cache.found, cache.computed


def results(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    ignored = ("timing", "peak_memory_bytes", "operating", "git_commit", "settings")
    return {name: value for name, value in metrics.items() if name not in ignored}, predictions(folder)


@pytest.mark.slow  # pictures take their time
@pytest.mark.parametrize("method", [["model=padim", "model.num_features=10"], ["model=patchcore"]])
def test_a_run_from_the_cache_runs_no_backbone_and_gives_the_same_to_the_bit(
    tiles,
    tmp_path,
    tiny_backbone,  # noqa: F811
    monkeypatch,
    method,
):
    decoded, ran = [], []
    read, forward = oddpatch.data.transforms.read_image, TinyBackbone.forward

    def read_and_note(path, *rest, **kept):
        decoded.append(str(path))
        return read(path, *rest, **kept)

    def run_and_note(self, images):
        ran.append(bool(images.any()))
        return forward(self, images)

    monkeypatch.setattr(oddpatch.data.transforms, "read_image", read_and_note)
    monkeypatch.setattr(TinyBackbone, "forward", run_and_note)
    overrides = [*method, "calibration=cross", "calibration.folds=3", "callbacks.pictures.worst=1"]
    cached = [*overrides, "cache=features", f"cache.folder={tmp_path}/cache"]
    run(job(tiles, tmp_path / "without", *overrides))
    filling = run(job(tiles, tmp_path / "filling", *cached))
    assert looked_up(filling) == (0, 25)  # kept for the scores after the fit
    decoded.clear()
    ran.clear()
    again = run(job(tiles, tmp_path / "again", *cached))
    assert looked_up(again) == (25, 0)
    assert not any(ran), "the one call left finds out the shapes, on zeros"
    assert results(tmp_path / "filling") == results(tmp_path / "without")
    assert results(tmp_path / "again") == results(tmp_path / "without")
    pictures = [{p.name: p.read_bytes() for p in (tmp_path / f / "figures").iterdir()} for f in ("without", "again")]
    assert pictures[0] == pictures[1]
    shown = re.compile(r"[a-z_]+_\d+_(good|spot|stain)_.*\.png")
    assert len(decoded) == sum(bool(shown.fullmatch(name)) for name in pictures[1]), "the few that are shown"


def test_another_setting_finds_nothing(tiles, tmp_path, tiny_backbone):  # noqa: F811
    cached = [
        "cache=features",
        f"cache.folder={tmp_path}/cache",
        "callbacks.pictures=null",
        "calibration=none",
        "model=gaussian",
    ]
    run(job(tiles, tmp_path / "one", *cached))
    other = run(job(tiles, tmp_path / "two", *cached, "data.interpolation=bicubic"))
    assert looked_up(other) == (0, 25)


def test_loaders_in_other_processes_use_it_too(tiles, tmp_path, tiny_backbone):  # noqa: F811
    cached = [
        "cache=features",
        f"cache.folder={tmp_path}/cache",
        "callbacks.pictures=null",
        "calibration=none",
        "model=gaussian",
    ]
    run(job(tiles, tmp_path / "one", *cached))
    again = run(job(tiles, tmp_path / "two", *cached, "data.num_workers=2"))
    assert looked_up(again) == (25, 0)
    assert results(tmp_path / "two") == results(tmp_path / "one")


def test_nothing_outside_its_folder_knows_of_it():
    """But the pipeline, which puts it around a run."""
    package = Path(oddpatch.__file__).parent
    knows = [p for p in package.rglob("*.py") if "oddpatch.cache" in p.read_text() and p.parent.name != "cache"]
    assert [p.name for p in knows] == ["pipeline.py"]
    assert Batch._fields == ("image", "mask", "label", "index", "path")
