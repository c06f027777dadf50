"""The data module: what it finds, in which order, on how many devices, and rendering in place of missing data."""

import itertools
import json
import logging
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from narrowing import present
from PIL import Image
from torch import distributed

from oddpatch.data import datamodule as module
from oddpatch.data import loading
from oddpatch.data.datamodule import MVTecDataModule
from oddpatch.data.few import FewImages
from oddpatch.data.sharding import ShardedBatches
from oddpatch.data.transforms import Preprocess
from oddpatch.errors import ConfigError, DataError
from oddpatch.types import Batch

MEAN, STD = [0.5] * 3, [0.5] * 3
BOTTLE_ROOT = Path(__file__).parents[2] / "../shared/data/mvtec"


def write_category(folder, train=5, good=2, bad=3, seed=0):
    rng = np.random.default_rng(seed)
    for split, count in (("train/good", train), ("test/good", good), ("test/hole", bad)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (30, 30, 3)).astype(np.uint8)).save(folder / split / f"{number}.png")
    (folder / "ground_truth/hole").mkdir(parents=True)
    for number in range(bad):
        mask = np.zeros((30, 30), np.uint8)
        mask[10:20, 10:20] = 255
        Image.fromarray(mask).save(folder / "ground_truth/hole" / f"{number}_mask.png")
    return folder


def make(root, **settings):
    return MVTecDataModule(root, "part", MEAN, STD, **({"resize": 20, "num_workers": 0} | settings))


@pytest.fixture
def root(tmp_path):
    write_category(tmp_path / "part")
    return tmp_path


def test_loaders_keep_order_and_drop_nothing(root):
    data = make(root, batch_size=2)
    data.prepare_data()
    data.setup("fit")
    assert (len(data.train_samples), len(data.test_samples), data.warnings) == (5, 5, [])
    for loader, samples in ((data.train_dataloader(), data.train_samples), (data.test_dataloader(), data.test_samples)):
        batches = list(loader)
        assert [len(batch.index) for batch in batches] == [2, 2, 1]
        assert torch.cat([batch.index for batch in batches]).tolist() == list(range(5))
        assert [path for batch in batches for path in batch.path] == [str(sample.path) for sample in samples]
    assert batches[0].image.shape[1:] == (3, 20, 20)
    assert data.preprocess.image_size == (20, 20)


def test_warnings_are_logged_once(root, caplog):
    (root / "part/ground_truth/hole/0_mask.png").unlink()
    data = make(root)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
        data.setup("test")
    assert [record.message for record in caplog.records] == data.warnings
    assert len(data.warnings) == 1


class Counting(LightningModule):
    """Counts images, as any module over this data must."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def configure_optimizers(self):
        return None

    def training_step(self, batch, _):
        self.seen += batch.path

    test_step = training_step


def test_under_a_trainer_skipped_files_are_said(root, caplog):
    (root / "part/train/good/1.png").write_bytes(b"")
    Image.new("L", (30, 30)).save(root / "part/ground_truth/hole/2_mask.png")
    data, counting = make(root, on_error="skip", batch_size=1), Counting()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with caplog.at_level(logging.WARNING):
        trainer.fit(counting, data)
        trainer.test(counting, data)
    assert len(counting.seen) == 4 + 5
    messages = [record.message for record in caplog.records if record.name == module.__name__]
    assert messages[0] == "skipped 1 of 5 images:"
    assert messages[1].startswith(str(root / "part/train/good/1.png"))
    assert messages[2].startswith("1 of 3 masks: empty mask")
    assert str(root / "part/ground_truth/hole/2_mask.png") in messages[2]
    assert len(messages) == 3
    assert data.skipped() == messages[1:2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"num_workers": 10**6}, "num_workers=1000000 must be auto or 0 to"),
        ({"batch_size": 1.5}, "batch_size=1.5 must be a whole number"),
        ({"batch_size": "many"}, "batch_size='many'"),
        ({"fold": 0}, "set data.split to the manifest"),
        ({"num_workers": "many"}, "num_workers='many'"),
        ({"on_error": "hide"}, "on_error"),
        ({"mask_threshold": 2}, "mask_threshold"),
        ({"crop": 21}, "crop=.21, 21. is larger than resize=20"),
        ({"full_scale": "10 bit"}, "full_scale='10 bit'"),
    ],
)
def test_settings_that_cannot_work_fail_before_reading(tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        make(tmp_path / "absent", **wrong)


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 2), (64, 8)])
def test_workers_auto(monkeypatch, tmp_path, cores, workers):
    monkeypatch.setattr(loading, "cores", lambda: cores)
    assert make(tmp_path, num_workers="auto").num_workers == workers
    assert make(tmp_path, num_workers=3).num_workers == 3


# Several devices


@pytest.mark.parametrize(("length", "world"), [(10, 3), (2, 4), (0, 2), (7, 1)])
def test_sharded_batches_give_every_item_once(monkeypatch, length, world):
    batches = ShardedBatches(range(length), 3)
    assert list(itertools.chain(*batches)) == list(range(length)), "without a process group"
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: world)
    seen = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        assert len(batches) == len(list(batches))
        own = list(itertools.chain(*batches))
        assert all(index % world == rank for index in own)
        seen += own
    assert sorted(seen) == list(range(length))


def test_thirteen_images_in_batches_on_two_ranks(monkeypatch):
    positions = list(range(100, 113))  # of a dataset that holds others too
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    found = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        batches = ShardedBatches(positions, 2)
        found.append(list(batches))
        assert len(batches) == len(found[-1])
    assert found == [
        [[100, 102], [104, 106], [108, 110], [112]],
        [[101, 103], [105, 107], [109, 111], []],
    ]


@pytest.mark.parametrize(
    ("safe", "ranks", "workers", "warned"), [((9,), 2, 1, 1), ((9,), 1, 1, 0), ((9,), 2, 0, 0), ((3,), 2, 1, 0)]
)
def test_forks_of_ranks_that_can_hang_are_warned_of(tmp_path, monkeypatch, caplog, safe, ranks, workers, warned):
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: ranks)
    monkeypatch.setattr(distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(loading, "SAFE_FORKS", safe)
    monkeypatch.setattr(sys, "platform", "linux")
    data = make(tmp_path, resize=[20, 20], num_workers=workers)
    for _ in range(2):
        data.test_dataloader()
    assert sum("or later, or set data.num_workers=0" in line for line in caplog.messages) == warned


# Rendering in place of missing data


@pytest.fixture
def renderer(monkeypatch):
    """Stands in for `oddpatch.scenes`, which has its own tests."""
    calls = []

    def render_dataset(root, scene, *, seed=0, progress=None):
        calls.append((scene, seed))
        assert not root.exists()
        progress(1, 1)
        return write_category(root, seed=seed)

    fake: Any = types.ModuleType("oddpatch.scenes")
    fake.render_dataset = render_dataset
    monkeypatch.setitem(sys.modules, "oddpatch.scenes", fake)
    return calls


def test_absent_category_is_rendered_and_said_so(tmp_path, renderer, caplog):
    data = make(tmp_path / "data", render="board", render_seed=7)
    with caplog.at_level(logging.INFO):
        data.prepare_data()
    data.setup()
    assert renderer == [("board", 7)]
    assert len(data.train_samples) == 5
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["part"], "no scratch left behind"
    (line,) = [record.message for record in caplog.records]
    assert str(tmp_path / "data/part") in line
    assert "data.root" in line
    data.prepare_data()
    assert len(renderer) == 1


def test_true_means_the_scene_of_that_name(tmp_path, renderer):
    make(tmp_path, render=True).prepare_data()
    assert renderer == [("part", 0)]


@pytest.mark.parametrize("render", [None, False])
def test_absent_category_is_refused_without_render(tmp_path, renderer, render):
    write_category(tmp_path / "other")
    data = make(tmp_path, render=render)
    data.prepare_data()
    with pytest.raises(DataError, match="no such category; there are other"):
        data.setup()
    assert renderer == []


def test_existing_category_is_never_rendered_over(root, renderer):
    make(root, render=True).prepare_data()
    assert renderer == []


def test_the_first_of_two_jobs_wins(tmp_path, monkeypatch):
    def finish_another(*_):
        write_category(tmp_path / "part", train=9)

    monkeypatch.setattr("oddpatch.scenes.dataset.run_many", finish_another)
    data = make(tmp_path, render="toolbox")
    data.prepare_data()
    data.setup()
    assert [path.name for path in tmp_path.iterdir()] == ["part"], "no scratch left behind"
    assert len(data.train_samples) == 9


@pytest.mark.slow
@pytest.mark.real
def test_real_bottle_with_workers():
    if not BOTTLE_ROOT.is_dir():
        pytest.skip("the real images are not here")
    data = MVTecDataModule(BOTTLE_ROOT, "bottle", MEAN, STD, num_workers=2, batch_size=4)
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert tuple(batch.image.shape) == (4, 3, 256, 256)
    assert set(batch.mask[batch.label == 1].flatten(1).amax(1).tolist()) == {1}
    dataset: Any = data.test_dataloader().dataset
    assert dataset.warnings() == []


# Region, split and what is not there


def test_a_region_is_ignored_outside_in_every_mask(root):
    region = np.zeros((30, 30), np.uint8)
    region[3:20, 5:17] = 1
    Image.fromarray(region).save(root / "roi.png")
    data = make(root, roi=root / "roi.png")
    data.setup()
    plain = make(root)
    plain.setup()
    inside = plain.preprocess.mask(torch.from_numpy(region)) > 0
    assert torch.equal(data.preprocess.roi_mask, inside)
    for (batch,), (other,) in (
        (data.test_dataloader(), plain.test_dataloader()),
        (data.train_dataloader(), plain.train_dataloader()),
    ):
        assert torch.equal(batch.image, other.image)
        assert (batch.mask[:, ~inside] == 255).all()
        assert torch.equal(batch.mask[:, inside], other.mask[:, inside])


def test_a_defect_outside_the_region_is_said(root, caplog):
    for number in range(3):
        mask = np.zeros((30, 30), np.uint8)
        mask[:8, :8] = 255
        Image.fromarray(mask).save(root / f"part/ground_truth/hole/{number}_mask.png")
    region = np.zeros((30, 30), np.uint8)
    region[15:, 15:] = 1
    Image.fromarray(region).save(root / "roi.png")
    data = make(root, roi=root / "roi.png")
    data.setup()
    list(data.test_dataloader())
    data.teardown("test")
    (line,) = [message for message in caplog.messages if "no defect pixel" in message]
    assert line.startswith("3 of 3 masks: no defect pixel is left in the part that is inspected (")
    assert line.count("_mask.png") == 3


def test_regions_that_cannot_work(root):
    Image.new("L", (30, 30)).save(root / "black.png")
    with pytest.raises(DataError, match=r"black\.png: is zero throughout"):
        make(root, roi=root / "black.png")
    edge = np.zeros((30, 30), np.uint8)
    edge[:, 0] = 1
    Image.fromarray(edge).save(root / "edge.png")
    with pytest.raises(ConfigError, match="leaves nothing to inspect"):
        make(root, roi=root / "edge.png", resize=24, crop=20)
    Image.new("L", (31, 30), 255).save(root / "wide.png")
    data = make(root, roi=root / "wide.png")
    data.setup()
    with pytest.raises(DataError, match=r"train/good/0.png: image of 30x30 pixels, but roi was drawn on 30x31"):
        list(data.train_dataloader())
    with pytest.raises(ConfigError, match=r"roi has 30x31 pixels, the reference of align 30x30"):
        make(root, roi=root / "wide.png", align=root / "part/train/good/0.png").setup()


def test_the_settings_of_a_region_build_the_same_preprocessing(root):
    region = np.zeros((30, 30), np.uint8)
    region[3:20, 5:17] = 1
    Image.fromarray(region).save(root / "roi.png")
    data = make(root, roi=root / "roi.png")
    data.setup()
    preprocess = data.preprocess
    again = Preprocess(**preprocess.settings())
    assert torch.equal(present(again.roi_mask), present(preprocess.roi_mask))
    assert again.settings() == preprocess.settings()
    assert "base64" not in repr(again)
    assert "roi='22%'" in repr(again)  # 11 rows and 8 columns of 20 x 20


def test_a_split_decides_what_is_trained_on(root):
    rows = [{"path": f"train/good/{k}.png", "part": "train" if k < 2 else "test"} for k in range(5)]
    (root / "s.json").write_text(json.dumps({"files": [*rows, {"path": "test/hole/1.png", "part": "test"}]}))
    data = make(root, split=root / "s.json")
    data.setup()
    assert [s.path.name for s in data.train_samples] == ["0.png", "1.png"]
    assert [(s.path.name, s.label) for s in data.test_samples] == [
        ("1.png", 1),
        ("2.png", 0),
        ("3.png", 0),
        ("4.png", 0),
    ]


@pytest.mark.parametrize(
    ("category", "settings", "told"),
    [
        ("part", {"views": {"rotations": [90]}, "roi": "roi.png"}, "moves other parts into data.roi: leave"),
        (["part", "other"], {"roi": "roi.png"}, "data.roi is of one part, and data.category has 2: set data.roi=null"),
        ("part", {"split": "split.json", "validation": 0.5}, "names the validation images: set data.validation=null"),
    ],
)
def test_settings_that_do_not_go_together(root, category, settings, told):
    Image.new("L", (30, 30), 255).save(root / "roi.png")
    names = {"train/good/0.png": "train", "test/good/0.png": "test", "test/hole/0.png": "validation"}
    rows = [{"path": path, "part": part} for path, part in names.items()]
    (root / "split.json").write_text(json.dumps({"files": rows}))
    settings = {name: root / value if isinstance(value, str) else value for name, value in settings.items()}
    with pytest.raises(ConfigError, match=told):
        MVTecDataModule(root, category, MEAN, STD, **settings).setup()


def test_what_is_only_for_good_images_is_refused_to_others(root):
    data = make(root, views={"rotations": [90]})
    data.learns_from_defects = True
    with pytest.raises(ConfigError, match=r"without gradients: set learning\.augment instead"):
        data.setup()
    fitting: Any = make(root)
    fitting.trainer = types.SimpleNamespace(training=True)
    batch = Batch(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), torch.arange(2), ["a", "b"])
    with pytest.raises(DataError, match="b is among the training images but is not good: move it to test/"):
        fitting.on_before_batch_transfer(batch, 0)
    with pytest.raises(ConfigError, match="train_images=0 and test_images=1 must be at least 1"):
        FewImages(0, 1, root=root, category="part", mean=MEAN, std=STD)


def test_what_is_absent_says_how_to_obtain_it(root):
    with pytest.raises(
        DataError, match="no such folder: put images of good parts of your own into its train/good, or ask its owner"
    ):
        MVTecDataModule(root / "nothing", "part", MEAN, STD, obtain="ask its owner").setup()
    with pytest.raises(DataError, match="no such category; there are part"):
        MVTecDataModule(root, "prat", MEAN, STD, obtain="ask its owner").setup()
    with pytest.raises(ConfigError, match=r"data\.root=None and data\.category=part"):
        MVTecDataModule(None, "part", MEAN, STD)
    with pytest.raises(DataError, match=f"itself a category: set data.root={root} and data.category=part"):
        MVTecDataModule(root / "part", "part", MEAN, STD, obtain="ask its owner").setup()


def test_what_is_not_used_is_listed_with_the_reason(root):
    (root / "part/train/good/x.xyz").touch()
    (root / "labelled/good").mkdir(parents=True)
    (root / "labelled/hole").mkdir()
    (root / "part/test/hole/1.png").rename(root / "labelled/hole/1.png")
    (root / "part/ground_truth/hole/1_mask.png").unlink()
    (root / "labelled/good/gone.png").symlink_to("nowhere")
    for name in ("stray.png", "roi.png", "reference.png"):
        shutil.copy(root / "part/train/good/0.png", root / "part" / name)
    data = make(root, validation=root / "labelled", roi=root / "part/roi.png",
                align={"reference": root / "part/reference.png"})  # fmt: skip
    data.setup()
    assert data.left_out == [
        (root / "part/stray.png", "beside train and test, where no images are read"),
        (root / "part/train/good/x.xyz", "unknown suffix"), (root / "labelled/good/gone.png", "broken link"),
    ]  # fmt: skip
    assert f"{root / 'labelled'}: 1 left out, broken link: good/gone.png" in data.warnings


# What is inspected, and how values are scaled


def test_a_crop_that_leaves_much_out_is_warned_of_once_with_the_share(root, caplog):
    data = make(root, resize=24, crop=20)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
        data.setup("test")
    assert [record.message for record in caplog.records] == data.warnings
    (line,) = data.warnings
    assert line.startswith("69.4% of the area of the images is inspected")
    assert "data.crop=null" in line
    assert data.inspected.to_dict() == {"mean": 0.6944, "min": 0.6944}
    same = make(root, resize=24, crop=None)  # as the line says
    same.setup()
    assert same.warnings == []
    assert same.preprocess.image_size == (24, 24)
    assert same.inspected.to_dict() == {"mean": 1.0, "min": 1.0}


def test_images_of_odd_shapes_are_all_seen_whole(root):
    for number, size in enumerate([(30, 60), (60, 30), (31, 44), (25, 90), (40, 56)]):
        pixels = np.zeros((*size, 3), np.uint8)
        pixels[0, 0] = pixels[-1, -1] = 255
        Image.fromarray(pixels).save(root / f"part/train/good/{number}.png")
    data = make(root, multiple=4)
    data.setup()
    assert data.preprocess.image_size == (20, 28)  # of 40 x 56 and 31 x 44, those in the middle
    (batch,) = data.train_dataloader()
    assert batch.image.shape == (5, 3, 20, 28)
    assert (batch.image.flatten(1).amax(1) > -1).all()  # something of the corners
    assert data.inspected.min == 1


def test_depth_of_the_sensor_is_found_in_the_training_images_and_kept(root, caplog):
    rng = np.random.default_rng(0)
    for number in range(5):
        pixels = rng.integers(0, 900, (30, 30)).astype(np.uint16)
        Image.fromarray(pixels).save(root / f"part/train/good/{number}.png")
    bright = np.full((30, 30), 1010, np.uint16)
    Image.fromarray(bright).save(root / "part/test/good/0.png")
    data = make(root)
    with caplog.at_level(logging.INFO):
        data.setup()
    assert data.preprocess.full_scale == 1023
    assert any("full scale" in record.message and "1023" in record.message for record in caplog.records)
    assert Preprocess(**data.preprocess.settings()).full_scale == 1023
    image = data.test_dataloader().dataset[[s.path.name for s in data.test_samples].index("0.png")].image
    np.testing.assert_allclose(image, (1010 / 1023 - 0.5) / 0.5, atol=1e-6)
    Image.fromarray(np.full((30, 30), 1024, np.uint16)).save(root / "part/test/good/0.png")
    with pytest.raises(DataError, match=r"0\.png: values up to 1024 are beyond the full scale of 1023: set data\."):
        list(data.test_dataloader())
    fixed = make(root, full_scale=4095)
    fixed.setup()
    assert fixed.preprocess.full_scale == 4095


def test_an_image_deeper_than_all_of_the_training_images_is_refused(root):
    data = make(root)
    data.setup()  # 8-bit images
    assert data.preprocess.full_scale == 255
    path = root / "part/test/good/0.png"
    Image.fromarray(np.full((30, 30), 1000, np.uint16)).save(path)
    with pytest.raises(DataError, match=r"0\.png: values up to 1000 are beyond the full scale of 255: set data\."):
        data.preprocess.load(path)
    Image.fromarray(np.full((30, 30), 200, np.uint16)).save(path)  # 8 bits in a file of 16
    deep = data.preprocess.load(path)
    Image.fromarray(np.full((30, 30), 200, np.uint8)).save(path)
    torch.testing.assert_close(deep, data.preprocess.load(path))


def test_many_lost_defects_are_one_line(root, caplog):
    for number in range(3):
        mask = np.zeros((30, 30), np.uint8)
        mask[:1, :1] = 255
        Image.fromarray(mask).save(root / f"part/ground_truth/hole/{number}_mask.png")
    data = make(root, resize=24, crop=20)
    data.setup()
    list(data.test_dataloader())
    data.teardown("test")
    (line,) = [message for message in caplog.messages if "no defect pixel" in message]
    assert line.startswith("3 of 3 masks: no defect pixel is left in the part that is inspected; data.crop=null")
