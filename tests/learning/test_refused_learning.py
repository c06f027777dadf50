"""What several processes, and learning by gradients, refuse: one line, before training or in the step that fails."""

import pytest
import torch
import torch.distributed as dist
from narrowing import stand_in
from omegaconf import OmegaConf

from oddpatch import pipeline
from oddpatch.errors import ConfigError
from oddpatch.learning import distributed
from oddpatch.learning.supervised import Supervised
from oddpatch.models.trainable import TrainableDetector
from oddpatch.pipeline import rebuild
from oddpatch.types import Batch


@pytest.fixture
def two_ranks(monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)


def test_processes_that_the_trainer_does_not_expect_are_refused(two_ranks):
    with pytest.raises(ConfigError, match=r"2 processes were started for one run, .*: add trainer=ddp"):
        distributed.join({"strategy": None}, "run")


def test_ranks_that_would_write_into_several_folders_are_refused(two_ranks, monkeypatch):
    monkeypatch.setattr(dist, "init_process_group", lambda *args: None)
    monkeypatch.setattr(distributed, "Ranks", lambda: stand_in(exchange=lambda folder: [folder, "another"]))
    told = r"the ranks would write into 2 folders: give all the same by hydra\.run\.dir=FOLDER"
    with pytest.raises(ConfigError, match=told):
        distributed.join({"strategy": "ddp", "accelerator": "cpu"}, "run")


def test_a_loss_that_is_not_finite_ends_the_training():
    module = stand_in(
        features=lambda batch: [], criterion=None, current_epoch=2,
        detector=stand_in(loss=lambda features, batch, criterion: torch.tensor(torch.nan)),
    )  # fmt: skip
    batch = Batch(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4), torch.zeros(1), torch.arange(1), ["a.png"])
    with pytest.raises(ConfigError, match=r"the loss is nan in epoch 3: lower learning\.optimizer\.lr"):
        Supervised.training_step(module, batch, 0)


def test_training_on_good_images_alone_is_refused():
    data = stand_in(validation_samples=[1], train_samples=[stand_in(label=0)], base="data/tile")
    with pytest.raises(ConfigError, match=r"there is no defective image to train on in data/tile: add some"):
        Supervised.divide(stand_in(stop_accuracy=None), data)


def test_what_learns_by_gradients_is_not_shown_images_once():
    with pytest.raises(ConfigError, match="learns by gradients: set learning=supervised"):
        TrainableDetector.update(stand_in(), [], torch.arange(0))


@pytest.mark.parametrize("name", ["nothing", "oddpatch.learning.one_epoch.Nothing"])
def test_another_way_of_learning_is_refused(name):
    with pytest.raises(ConfigError, match=r"^learning: .*: is its name spelt right"):
        pipeline._class(name)  # noqa: SLF001 - the step alone: what leads to it takes seconds


def test_a_test_without_a_run_says_how_to_name_one():
    with pytest.raises(ConfigError, match=r"which run\? give its folder: oddpatch eval run=outputs/FOLDER"):
        rebuild(OmegaConf.create({"run": "???"}))
