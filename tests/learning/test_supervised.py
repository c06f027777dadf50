"""Learning by gradients: a small real classifier, trained by the pipeline on rendered tiles."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from conftest import TinyBackbone, make_dataset, use_tiny_backbone
from narrowing import present
from test_pipeline import config, predictions
from torch import nn
from torchvision.transforms import v2

from oddpatch import pipeline
from oddpatch.checkpoint import read_checkpoint
from oddpatch.data.dataset import MVTecDataset
from oddpatch.data.layout import scan
from oddpatch.data.splits import read_parts
from oddpatch.data.transforms import Preprocess
from oddpatch.errors import ConfigError
from oddpatch.learning import distributed
from oddpatch.learning.augmenting import AugmentedImages, Shuffle, ShuffledBatches
from oddpatch.models.trainable import TrainableDetector
from oddpatch.types import Prediction


class Pooled(TrainableDetector):
    """A linear layer on the maximum over positions of frozen features."""

    localizes = False

    def __init__(self, channels, strides, dropout=0.0):
        super().__init__(channels, strides)
        self.dropout = nn.Dropout(dropout)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(sum(self.channels), 1)

    def logits(self, features):
        pooled = torch.cat([maps.amax((2, 3)) for maps in self.select(features)], 1)
        return self.linear(self.dropout(pooled))[:, 0]

    def loss(self, features, batch, criterion):
        return criterion(self.logits(features), batch.label.float())

    def forward(self, features, image_size):
        self.require_fitted()
        return Prediction(self.logits(features), None)


def supervised(root, out, *overrides, **model):
    """The config of a training of `Pooled`."""
    cfg = config(
        "train", "learning=supervised", "data=mvtec", f"data.root={root}", "data.category=tile", "data.resize=32",
        "data.crop=32", "data.batch_size=4", "data.num_workers=0", "trainer.accelerator=cpu", "callbacks.progress=null",
        "callbacks.pictures=null", "callbacks.report=null", "callbacks.results.confidence.draws=0", "logger=none",
        "calibration=none", "learning.optimizer.lr=0.03", "trainer.max_epochs=6", *overrides, out=out,
    )  # fmt: skip
    cfg.model = {"_target_": "test_supervised.Pooled", **model}
    return cfg


def train(cfg):
    job = pipeline.build(cfg)
    job.fit()
    job.calibrate()
    job.save()
    job.test()
    return job


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    make_dataset(folder, good=20, test_good=10, defects=14)
    return folder


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        return train(supervised(root, folder, "trainer.max_epochs=12")), folder


def state(job):
    return {name: value.clone() for name, value in job.module.state_dict().items() if "detector" in name}


def require_equal(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerance or {"rtol": 0, "atol": 0})


def test_it_learns_what_a_defect_looks_like(finished):
    metrics = json.loads((finished[1] / "metrics.json").read_text())
    assert metrics["image_auroc"] > 0.95
    assert len(predictions(finished[1])) == len(finished[0].data.test_samples)
    backbone = finished[0].module.model.backbone
    for name, value in TinyBackbone().state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value), "it is frozen"


def test_both_folders_are_split_by_type_and_the_split_is_written(finished):
    job, folder = finished
    parts = read_parts(folder / "split.json")
    assert read_checkpoint(folder / "checkpoints/fitted.ckpt")["oddpatch"]["config"]["data"]["split"] == "split.json"
    data = job.data
    for part, samples in (
        ("train", data.train_samples),
        ("validation", data.validation_samples),
        ("test", data.test_samples),
    ):
        names = {sample.path.relative_to(data.root / "tile").as_posix() for sample in samples}
        assert names == {name for name, of in parts.items() if of == part}
        counts = {kind: sum(s.defect_type == kind for s in samples) for kind in ("good", "spot", "stain")}
        shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
        assert counts == {
            kind: pytest.approx(shares[part] * total, abs=0.51)
            for kind, total in (("good", 30), ("spot", 14), ("stain", 14))
        }
    assert job.module.num_fitted == len(data.train_samples)


def test_labelled_validation_images_give_a_threshold(finished):
    metrics = json.loads((finished[1] / "metrics.json").read_text())
    assert metrics["image_f1@validation"] > 0.7


def test_what_is_tested_is_the_best_epoch(finished):
    job, folder = finished
    require_equal(state(job), of_detector(folder / "checkpoints/best.ckpt"))
    assert float(job.module.best.best_model_score) == pytest.approx(validation_loss(job), rel=1e-6)


def of_detector(path):
    return {name: value for name, value in read_checkpoint(path)["state_dict"].items() if "detector" in name}


def items_of(dataset, indices):
    """Those of images that can be read."""
    return [present(item) for item in dataset.__getitems__(indices)]


def validation_loss(job):
    """The loss of the labelled validation images, by hand."""
    data, model = job.data, job.module.model
    dataset = MVTecDataset(data.validation_samples, data.preprocess)
    items = items_of(dataset, range(len(dataset)))
    images, labels = torch.stack([it.image for it in items]), torch.tensor([float(it.label) for it in items])
    with torch.no_grad():
        return float(nn.BCEWithLogitsLoss()(model.detector.logits(model.backbone(images)), labels))


@pytest.mark.usefixtures("tiny_backbone")
def test_it_stops_when_the_validation_loss_no_longer_falls(root, tmp_path):
    cfg = supervised(root, tmp_path, "trainer.max_epochs=40", "learning.patience=2", "learning.optimizer.lr=3")
    job = train(cfg)
    assert 2 < job.trainer.current_epoch < 40
    again = train(cfg)
    assert again.trainer.current_epoch == job.trainer.current_epoch, "what has stopped stays so"
    assert json.loads((tmp_path / "metrics.json").read_text())["num_train_images"] > 0
    require_equal(state(again), state(job))
    best, last = (of_detector(tmp_path / f"checkpoints/{name}.ckpt") for name in ("best", "last"))
    require_equal(state(job), best)
    with pytest.raises(AssertionError):
        require_equal(last, best)


@pytest.mark.slow  # for the imports of the process that is killed
@pytest.mark.usefixtures("tiny_backbone")
def test_training_that_was_killed_goes_on_as_if_it_had_not_been(root, tmp_path):
    """In the middle of the third epoch, with dropout, moments of gradients and a schedule of the learning rate."""
    undisturbed = train(supervised(root, tmp_path / "whole", dropout=0.5))
    child = subprocess.Popen(
        [sys.executable, __file__, str(root), str(tmp_path / "killed")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with child:
        assert present(child.stdout).readline().startswith("in epoch 3")
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    checkpoints = tmp_path / "killed/checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    resumed = train(supervised(root, tmp_path / "killed", dropout=0.5))
    require_equal(state(resumed), state(undisturbed))
    assert predictions(tmp_path / "killed") == predictions(tmp_path / "whole")
    assert resumed.module.num_fitted == undisturbed.module.num_fitted


def killed(root, out):
    """Train until the middle of the third epoch, then wait for the end."""

    class Stop(pipeline.L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_index):
            if trainer.current_epoch == 2 and batch_index == 3:
                sys.stdout.write("in epoch 3\n")
                sys.stdout.flush()
                time.sleep(600)

    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        job = pipeline.build(supervised(root, out, dropout=0.5))
        trainer: Any = job.trainer
        trainer.callbacks.append(Stop())
        job.fit()


@pytest.mark.usefixtures("tiny_backbone")
def test_a_checkpoint_of_another_training_is_not_gone_on_from(root, tmp_path, caplog):
    train(supervised(root, tmp_path, "trainer.max_epochs=2"))
    fresh = train(supervised(root, tmp_path / "fresh", "learning.optimizer.lr=0.01", "trainer.max_epochs=2"))
    other = train(supervised(root, tmp_path, "learning.optimizer.lr=0.01", "trainer.max_epochs=2"))
    assert "last.ckpt is of another training (another config): training begins from the start" in caplog.text
    require_equal(state(other), state(fresh))


def ranks_work(rank, world, root, out):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {distributed.STORE: f"{out}/store", "WORLD_SIZE": str(world)}
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        ranks = ("trainer=ddp", f"trainer.devices={world}", "trainer.accelerator=cpu", "data.batch_size=4")
        job = train(supervised(root, out / "run", *ranks))
    torch.save((state(job), job.module.result.metrics), out / f"{rank}.pt")
    distributed.leave()


@pytest.mark.slow
def test_two_devices_compute_the_gradients_of_one_with_twice_the_batch(root, tmp_path, tiny_backbone):
    alone = train(supervised(root, tmp_path / "alone", "data.batch_size=8"))
    mp.spawn(ranks_work, args=(2, root, tmp_path), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    require_equal(found[0][0], found[1][0])
    require_equal(found[0][0], state(alone), rtol=1e-4, atol=1e-5)
    assert found[0][1]["image_auroc"] == alone.module.result.metrics["image_auroc"]


def test_a_method_names_its_learning_in_its_yaml(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/pooled.yaml").write_text(
        "defaults:\n  - override /learning@_global_.learning: supervised\n\n_target_: test_supervised.Pooled\n"
    )
    own = f"hydra.searchpath=[file://{tmp_path}]"
    cfg = config("train", own, "model=pooled", out=tmp_path)
    assert cfg.learning._target_ == "oddpatch.learning.supervised.Supervised"
    assert cfg.model == {"_target_": "test_supervised.Pooled"}
    assert (cfg.trainer.max_epochs, cfg.trainer.enable_checkpointing, cfg.calibration.method) == (50, True, "holdout")
    cfg = config("train", own, "model=pooled", "calibration=none", "trainer.max_epochs=3", out=tmp_path)
    assert (cfg.trainer.max_epochs, cfg.calibration.method) == (3, "none")
    cfg = config("train", out=tmp_path)
    assert cfg.learning == {"_target_": "oddpatch.learning.one_epoch.OneEpoch"}
    assert (cfg.trainer.max_epochs, cfg.trainer.enable_checkpointing) == (1, False)


@pytest.mark.usefixtures("tiny_backbone")
def test_good_images_left_out_of_training_give_the_conformal_threshold(root, tmp_path):
    settings = ("calibration=holdout", "calibration.minimum=5", "trainer.max_epochs=1")
    job = train(supervised(root, tmp_path, *settings))
    held, fitted = job.data.held_out, job.data.fitted
    samples = job.data.train_samples
    assert len(held) == 5
    assert not any(samples[position].label for position in held)
    assert sorted([*held, *fitted]) == list(range(len(samples)))
    assert sum(samples[position].label for position in fitted) == sum(sample.label for sample in samples)
    assert job.module.num_fitted == len(fitted)
    calibration = job.module.model.calibration
    images = torch.stack([job.data.train_image(position) for position in held])
    scores = job.module.model(images).score
    torch.testing.assert_close(calibration.image_scores, scores.detach().double().sort().values, rtol=1e-5, atol=1e-6)
    assert not calibration.f1_threshold.isnan()


@pytest.mark.usefixtures("tiny_backbone")
def test_too_few_good_images_for_a_conformal_threshold_are_said(root, tmp_path, caplog):
    job = pipeline.build(supervised(root, tmp_path, "calibration=holdout"))
    assert "18 good training images are too few for calibration=holdout, which takes at least 40" in caplog.text
    assert job.data.held_out == []


@pytest.mark.usefixtures("tiny_backbone")
def test_it_is_tested_again_from_its_checkpoint(finished, tmp_path):
    folder = finished[1]
    cfg = config("eval", f"run={folder}", "trust=[test_supervised]", "trainer.accelerator=cpu",
                 "callbacks.progress=null", "callbacks.pictures=null", "callbacks.report=null", "+data.num_workers=0",
                 out=tmp_path)  # fmt: skip
    pipeline.rebuild(cfg).test()
    assert predictions(tmp_path) == predictions(folder)


# -- order and augmentation -------------------------------------------------------------------------------------------


def test_every_image_once_an_epoch_in_an_order_of_its_own():
    shuffle = Shuffle(range(10, 33), seed=4)
    orders = []
    for epoch in (0, 1, 0):
        shuffle.set_epoch(epoch)
        batches = list(ShuffledBatches(shuffle, 5))
        assert sorted(len(batch) for batch in batches) == [4, 4, 5, 5, 5]
        orders.append([index for batch in batches for index in batch])
        assert sorted(orders[-1]) == list(range(10, 33))
    assert orders[0] == orders[2] != orders[1]


def test_ranks_share_the_batches_of_one_device(monkeypatch):
    class Rank:
        rank, size = 0, 3

    shuffle = Shuffle(range(17), seed=0)
    whole = list(ShuffledBatches(shuffle, 6))
    monkeypatch.setattr("oddpatch.learning.augmenting.Ranks", Rank)
    parts = []
    for Rank.rank in range(3):
        parts.append(list(ShuffledBatches(shuffle, 2)))
    together = [sorted(itertools.chain(*batches)) for batches in zip(*parts, strict=True)]
    assert together == [sorted(batch) for batch in whole]
    assert all(batch for part in parts for batch in part), "a rank without images would wait in vain"
    shuffle.positions = range(2)
    with pytest.raises(ConfigError, match="2 training images are too few for 3 devices"):
        list(ShuffledBatches(shuffle, 2))


@pytest.fixture
def images(root):
    return MVTecDataset(scan(root, "tile").test, Preprocess(32, 32, [0.5] * 3, [0.5] * 3))


def test_images_are_altered_together_with_their_masks_from_the_seed(images):
    shuffle = Shuffle(range(len(images)), seed=1)
    flipped = AugmentedImages(images, [v2.RandomHorizontalFlip(1.0)], shuffle)
    altered = AugmentedImages(images, [v2.RandomHorizontalFlip(), v2.ColorJitter(0.5)], shuffle)
    state, indices = torch.get_rng_state(), range(10, 24)
    for plain, mirrored in zip(items_of(images, indices), items_of(flipped, indices), strict=True):
        torch.testing.assert_close(mirrored.image, plain.image.flip(2))
        assert torch.equal(mirrored.mask, plain.mask.flip(2))
        assert type(mirrored.image) is type(mirrored.mask) is torch.Tensor
    first, again = items_of(altered, indices), items_of(altered, indices[::-1])[::-1]
    assert all(torch.equal(a.image, b.image) for a, b in zip(first, again, strict=True))
    shuffle.set_epoch(1)
    assert not any(torch.equal(a.image, b.image) for a, b in zip(first, items_of(altered, indices), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert first[0].image.amin() >= -1.0001, "colours are altered in [0, 1], before they are normalised"


def test_a_transform_that_changes_the_size_is_refused(images):
    crop = AugmentedImages(images, [v2.RandomCrop(16)], Shuffle(range(3), seed=0))
    with pytest.raises(ConfigError, match=r"learning.augment makes images of \(32, 32\) pixels into \(16, 16\)"):
        crop.__getitems__([0])


# -- settings that cannot work ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("calibration=cross", "would take as many trainings: set calibration=holdout"),
        ("learning.patience=0", "learning.patience=0 must be at least 1"),
        ("learning.stop_accuracy=0.9", "set learning.stop_accuracy=null"),
        ("learning.train_share=0.9", "validation_share=0.2: choose 0 or a share below 0.1"),
        ("learning.validation_share=0", "set data.validation=0.2"),
        ("cache=features", "set cache=null"),
        ("+learning.patence=3", "did you mean learning.patience?"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_training(root, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        pipeline.build(supervised(root, tmp_path, override, *(["cache.folder=/tmp/x"] if "cache" in override else [])))


@pytest.mark.usefixtures("tiny_backbone")
def test_the_method_decides_how_it_learns(root, tmp_path):
    cfg = supervised(root, tmp_path)
    cfg.learning = {"_target_": "oddpatch.learning.one_epoch.OneEpoch"}
    with pytest.raises(ConfigError, match="Pooled learns by gradients: set learning=supervised"):
        pipeline.build(cfg)
    cfg = supervised(root, tmp_path)
    cfg.model = config("train", "model.num_features=9", out=tmp_path).model
    with pytest.raises(ConfigError, match="PaDiM has nothing that learns by gradients: set learning=one_epoch"):
        pipeline.build(cfg)


@pytest.mark.usefixtures("tiny_backbone")
def test_a_schedule_that_cannot_be_resumed_is_refused(root, tmp_path):
    cfg = supervised(root, tmp_path)
    plateau = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "_partial_": True}
    cfg.learning.scheduler = plateau
    with pytest.raises(ConfigError, match="ReduceLROnPlateau cannot be resumed"):
        pipeline.build(cfg).fit()


@pytest.fixture
def tiny_backbone(monkeypatch):
    use_tiny_backbone(monkeypatch)


if __name__ == "__main__":
    sys.modules["test_supervised"] = sys.modules["__main__"]
    killed(Path(sys.argv[1]), Path(sys.argv[2]))
