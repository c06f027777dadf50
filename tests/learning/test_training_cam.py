"""CAM trained by the pipeline as its YAML says: split, stop at a training accuracy, resuming, what is measured."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.multiprocessing as mp
from conftest import TinyBackbone, make_dataset, use_tiny_backbone
from narrowing import present
from test_pipeline import config, predictions

from oddpatch import factory, pipeline
from oddpatch.backbones.engine import Runtime
from oddpatch.checkpoint import read_checkpoint
from oddpatch.data.splits import read_parts
from oddpatch.errors import ConfigError
from oddpatch.learning import distributed
from oddpatch.learning.supervised import Supervised
from oddpatch.models.cam import CAM


def cam(root, out, *overrides):
    """The config of a training of CAM on small tiles."""
    return config(
        "train", "model=cam", "data=mvtec", f"data.root={root}", "data.category=tile", "data.resize=32",
        "data.crop=32", "data.batch_size=4", "data.num_workers=0", "trainer.accelerator=cpu", "callbacks.progress=null",
        "callbacks.pictures=null", "callbacks.report=null", "callbacks.results.confidence.draws=0", "logger=none",
        "calibration=none", "learning.optimizer.lr=0.03", "model.trained_layers=1", *overrides, out=out,
    )  # fmt: skip


def train(cfg, stop_after=None):
    job = pipeline.build(cfg)
    if stop_after:
        job.trainer.fit_loop.max_epochs = stop_after
    job.fit()
    job.calibrate()
    job.save()
    job.test()
    return job


@pytest.fixture
def tiny_backbone(monkeypatch):
    use_tiny_backbone(monkeypatch)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    make_dataset(folder, good=20, test_good=10, defects=15)
    return folder


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        return train(cam(root, folder, "trainer.max_epochs=40")), folder


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def same_state(found, expected):
    torch.testing.assert_close(dict(found), dict(expected), rtol=0, atol=0, equal_nan=True)  # no threshold: NaN


def test_it_learns_what_a_defect_looks_like_and_shows_where(finished):
    found = metrics(finished[1])
    assert found["balanced_accuracy"] >= 0.9
    assert found["pixel_auroc"] > 0.8
    counts = [found[f"anomaly_{kind}"] for kind in ("tp", "fn", "fp", "tn")]
    assert sum(counts[:2]) == 6
    assert sum(counts[2:]) == 6
    assert found["accuracy"] == (counts[0] + counts[3]) / 12
    assert {"f1", "image_auroc", "au_pro"} <= found.keys()


def test_four_fifths_of_each_type_are_trained_on_and_the_manifest_says_which(finished):
    job, folder = finished
    parts = read_parts(folder / "split.json")
    assert set(parts.values()) == {"train", "test"}
    for kind, total in (("good", 30), ("spot", 15), ("stain", 15)):
        of = [part for path, part in parts.items() if path.split("/")[1] == kind]
        assert (of.count("train"), len(of)) == (total * 4 // 5, total)
    assert job.module.num_fitted == 48
    assert {sample.path.parts[-3] for sample in job.data.test_samples} == {"train", "test"}


def test_the_last_convolution_has_learned_and_the_checkpoint_holds_it(finished):
    job, folder = finished
    before, after = TinyBackbone().state_dict(), job.module.model.backbone.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {"steps.2.weight", "steps.2.bias"}
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        model, _ = factory.restore(folder)
    same_state(model.state_dict(), job.module.model.state_dict())


def test_it_stops_when_enough_training_images_are_called_right(finished):
    job = finished[0]
    assert 1 < job.trainer.current_epoch < 40
    assert job.module.train_accuracy >= 0.98
    same_state(read_checkpoint(job.checkpoints / "last.ckpt")["state_dict"], job.module.state_dict())


@pytest.mark.usefixtures("tiny_backbone")
def test_what_has_stopped_stays_so_and_the_accuracy_is_of_the_images_as_they_were_trained_on(
    root, tmp_path, caplog, monkeypatch
):
    caplog.set_level("INFO")
    cfg = cam(root, tmp_path, "learning.stop_accuracy=0.5", "trainer.max_epochs=40", "learning.optimizer.lr=0")
    first = pipeline.build(cfg)
    detector: Any = first.module.detector
    labels = torch.tensor([bool(sample.label) for sample in first.data.train_samples])
    images = torch.stack([first.data.train_image(i) for i in range(len(labels))])
    with torch.no_grad():
        features = first.module.model.backbone(images)
        score = detector.logits(features).softmax(1)[:, 1]
    monkeypatch.setattr(CAM, "decides_at", float(score.quantile(0.3)))  # untrained, it would call all of them alike
    job = train(cfg)
    right = ((score > CAM.decides_at) == labels).double().mean()
    assert float(job.module.train_accuracy) == pytest.approx(float(right))
    assert f"train accuracy {float(right):.4g}" in caplog.text
    epochs = job.trainer.current_epoch
    assert epochs == (1 if right >= 0.5 else 40)
    again = train(cfg)
    assert again.trainer.current_epoch == epochs
    same_state(again.module.state_dict(), job.module.state_dict())


AUGMENT = (
    "learning.augment=[{_target_:torchvision.transforms.v2.RandomHorizontalFlip},"
    "{_target_:torchvision.transforms.v2.RandomRotation,degrees:10},"
    "{_target_:torchvision.transforms.v2.ColorJitter,brightness:0.2}]"
)


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("augment", ["learning.augment=[]", AUGMENT], ids=["plain", "augmented"])
def test_images_are_altered_if_asked_only(root, tmp_path, augment):
    data = pipeline.build(cam(root, tmp_path, augment)).data
    batch = next(iter(data.train_dataloader()))
    plain = torch.stack([data.train_image(i) for i in batch.index.tolist()])
    assert torch.equal(batch.image, plain) == (augment != AUGMENT)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_backbone")
def test_killed_in_the_third_epoch_and_started_again_it_ends_with_the_same_numbers(root, tmp_path):
    settings = ("learning.stop_accuracy=1", "trainer.max_epochs=6", AUGMENT)
    undisturbed = train(cam(root, tmp_path / "whole", *settings))
    child = subprocess.Popen(
        [sys.executable, __file__, str(root), str(tmp_path / "killed"), *settings],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with child:
        assert present(child.stdout).readline().startswith("in epoch 3")
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "killed/checkpoints").iterdir()] == ["last.ckpt"]
    resumed = train(cam(root, tmp_path / "killed", *settings))
    assert resumed.trainer.current_epoch == undisturbed.trainer.current_epoch > 2
    same_state(resumed.module.state_dict(), undisturbed.module.state_dict())
    assert predictions(tmp_path / "killed") == predictions(tmp_path / "whole")
    of_both = [metrics(tmp_path / name) for name in ("killed", "whole")]
    measured = [{k: v for k, v in found.items() if isinstance(v, float)} for found in of_both]
    assert measured[0] == measured[1]
    assert "balanced_accuracy" in measured[0]


def killed(root, out, *settings):
    """Train until the middle of the third epoch, then wait for the end."""

    class Stop(pipeline.L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_index):
            if trainer.current_epoch == 2 and batch_index == 3:
                sys.stdout.write("in epoch 3\n")
                sys.stdout.flush()
                time.sleep(600)

    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        job = pipeline.build(cam(root, out, *settings))
        trainer: Any = job.trainer
        trainer.callbacks.append(Stop())
        job.fit()


PLACES = ("model.trained_layers=0", "model.place_channels=4", "model.pool=16")


@pytest.mark.usefixtures("tiny_backbone")
def test_places_are_those_of_the_good_images_it_is_trained_on_and_it_goes_on_as_if_not_stopped(root, tmp_path):
    held_out = ("calibration=holdout", "calibration.fraction=0.25", "calibration.minimum=3", "learning.stop_accuracy=1")
    job = train(cam(root, tmp_path / "whole", *PLACES, *held_out, "trainer.max_epochs=3"))
    data, detector = job.data, cast(CAM, job.module.detector)
    good = [i for i in data.fitted if not data.train_samples[i].label]
    assert 10 < len(good) < 24, "some are held out"
    with torch.no_grad():
        features = job.module.model.backbone(torch.stack([data.train_image(i) for i in good]))
        shown = detector.joined(features)
    torch.testing.assert_close(detector.place_mean, shown.mean(0), rtol=1e-4, atol=1e-5)
    assert metrics(tmp_path / "whole")["balanced_accuracy"] >= 0.5
    train(cam(root, tmp_path / "two", *PLACES, *held_out, "trainer.max_epochs=3"), stop_after=2)
    again = train(cam(root, tmp_path / "two", *PLACES, *held_out, "trainer.max_epochs=3"))
    same_state(again.module.state_dict(), job.module.state_dict())


def ranks_work(rank, world, root, out):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {distributed.STORE: f"{out}/store", "WORLD_SIZE": str(world)}
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        ranks = ("trainer=ddp", f"trainer.devices={world}", "trainer.accelerator=cpu")
        job = train(cam(root, out / "run", *PLACES, *ranks, "trainer.max_epochs=2"))
    torch.save(job.module.state_dict(), out / f"{rank}.pt")
    distributed.leave()


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_backbone")
def test_two_devices_know_the_places_of_one(root, tmp_path):
    alone = train(cam(root, tmp_path / "alone", *PLACES, "data.batch_size=8", "trainer.max_epochs=2"))
    mp.spawn(ranks_work, args=(2, root, tmp_path), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    same_state(found[0], found[1])
    expected = dict(alone.module.state_dict())
    torch.testing.assert_close(dict(found[0]), expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.usefixtures("tiny_backbone")
def test_with_a_cache_it_ends_with_the_same_numbers(root, tmp_path):
    plain = train(cam(root, tmp_path / "plain", *PLACES, "trainer.max_epochs=2"))
    kept = ("cache=features", f"cache.folder={tmp_path / 'cache'}")
    cached = train(cam(root, tmp_path / "cached", *PLACES, *kept, "trainer.max_epochs=2"))
    same_state(cached.module.state_dict(), plain.module.state_dict())
    assert predictions(tmp_path / "cached") == predictions(tmp_path / "plain")


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning.stop_accuracy=1.2", r"learning\.stop_accuracy=1\.2 is a share: choose above 0 and at most 1"),
        ("learning.stop_accuracy=null", r"names no image of a part validation"),
        ("model.trained_layers=9", r"this backbone has 3 convolutions: choose 0\.\.3"),
        ("cache=features", "the backbone learns too, so that its features change: set cache=null"),
        ((*PLACES, AUGMENT), r"compares each place with good images, .* set learning\.augment=\[\]"),
        ("data.roi=roi.png", "knows no region of interest: set data.roi=null"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_training(root, tmp_path, override, message, monkeypatch):
    if "roi" in override:
        from PIL import Image

        Image.new("L", (48, 48), 255).save(tmp_path / "roi.png")
        monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        pipeline.build(cam(root, tmp_path / "out", *([override] if isinstance(override, str) else override)))


@pytest.mark.usefixtures("tiny_backbone")
def test_a_backbone_that_learns_is_taken_as_it_is(root, tmp_path, monkeypatch):
    nothing: Any = None
    model = pipeline.build(cam(root, tmp_path)).module.model
    runtime, model.backbone.runtime = model.backbone.runtime, Runtime("torch", "bf16")
    with pytest.raises(ConfigError, match=r"the backbone learns too, .*: set backbone\.engine=torch"):
        Supervised(model, {}, loss=nothing, optimizer=nothing)
    model.backbone.runtime = runtime
    monkeypatch.setattr(CAM, "adapt_backbone", lambda self, backbone: None)
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="CAM has no parameter to learn: set learning=one_epoch"):
        Supervised(model, {}, loss=nothing, optimizer=nothing)


if __name__ == "__main__":
    killed(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
