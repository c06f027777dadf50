import json
import warnings
from dataclasses import replace
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import CONFIGS
from finished_runs import make_result
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from narrowing import pixels
from PIL import Image
from torch import nn

from oddpatch.callbacks.loggers import log_result
from oddpatch.callbacks.writers import Log, Pictures
from oddpatch.data.layout import Sample
from oddpatch.data.transforms import Preprocess
from oddpatch.errors import ConfigError
from oddpatch.figures.run import choose_look, write_figures
from oddpatch.learning.examples import KeptExamples
from oddpatch.learning.scoring import AnomalyModule
from oddpatch.metrics import ImageMetrics, PixelMetrics
from oddpatch.models.calibration import Calibration
from oddpatch.results.test_result import ScoredImage, Thresholds
from oddpatch.types import IGNORE, Batch, Prediction

SIZE = 24


class RedChannel(nn.Module):
    def __init__(self, preprocess, mapped):
        super().__init__()
        self.preprocess, self.localizes = preprocess, mapped

    def forward(self, features, image_size):
        maps = 100 * self.preprocess.to_image(features)[:, :1]
        return Prediction(maps.amax((1, 2, 3)), maps if self.localizes else None)


class Reader(nn.Module):
    """Reads the anomaly map off the image's red channel: the test says what is anomalous."""

    def __init__(self, mapped=True, weights="pretrained"):
        super().__init__()
        self.preprocess = Preprocess(SIZE, SIZE, (0.5,) * 3, (0.25,) * 3)
        self.backbone = nn.Identity()
        self.backbone.weights_origin = weights
        self.detector = RedChannel(self.preprocess, mapped)
        self.calibration, self.products = Calibration(), None

    def features(self, images):
        return self.backbone(images)

    def forward(self, images):
        return self.detector(self.features(images), SIZE)


class Data(L.LightningDataModule):
    """Images with a square as bright as `levels` says, 0..1; no training."""

    root, inspected, test_set, reference = "/data", None, None, None
    train_samples, left_out, several = (), (), ()

    def __init__(self, levels, types, masks=True, batch_size=4):
        super().__init__()
        mask = Path("mask") if masks else None
        self.levels, self.batch_size, self.masks = levels, batch_size, masks
        self.samples = self.test_samples = [
            Sample(Path(f"/data/{name}/{i:03}.png"), int(name != "good"), name, mask if name != "good" else None)
            for i, name in enumerate(types)
        ]

    def item(self, index):
        image, mask = torch.full((3, SIZE, SIZE), 0.1), torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
        image[0, 6:12, 6:12] = self.levels[index]
        if self.samples[index].label:
            mask[:, 6:12, 6:12] = 1
            mask = mask if self.masks else torch.full_like(mask, IGNORE)
        return (image - 0.5) / 0.25, mask

    def test_image(self, index):
        return self.item(index)[0]

    def gather(self):
        """Nothing to learn of other ranks."""

    def skipped(self):
        return []

    def test_dataloader(self):
        indices = torch.arange(len(self.levels)).split(self.batch_size)
        batches: Any = [self.batch(rows.tolist()) for rows in indices]
        return torch.utils.data.DataLoader(batches, batch_size=None)

    def batch(self, rows):
        images, masks = zip(*map(self.item, rows), strict=True)
        samples = [self.test_samples[i] for i in rows]
        labels, paths = torch.tensor([it.label for it in samples]), [str(it.path) for it in samples]
        return Batch(torch.stack(images), torch.stack(masks), labels, torch.tensor(rows), paths)


def mixed(count=30, **settings):
    levels = np.random.default_rng(0).uniform(0.15, 0.95, count)
    types = [("good", "spot", "stain")[i % 3] for i in range(count)]
    return Data(levels.tolist(), types, **settings)


def run(data, folder, model=None, loggers=(), worst=1, typical=1):
    read: Any = model or Reader()
    pictures = Pictures(str(folder), worst=worst, typical=typical)
    metrics = {"image": ImageMetrics(), "pixel": PixelMetrics()}
    module = AnomalyModule(read, metrics, config={"model": {"name": "reader"}})
    trainer = L.Trainer(
        accelerator="cpu", logger=list(loggers), callbacks=[Log(), pictures], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="oddpatch|matplotlib")
        trainer.test(module, data, verbose=False)
    return module


def names(folder):
    """The figures in the folder, each of them checked to be a picture of sane size."""
    for path in (folder / "figures").iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert all(150 < side < 2000 for side in picture.size), path
        assert 2_000 < path.stat().st_size < 400_000, path
    return sorted(path.stem for path in (folder / "figures").iterdir())


CURVES = {"roc", "precision_recall", "pro", "scores"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return run(mixed(), folder, worst=4, typical=3), folder


def test_worst_and_typical_are_pictured_under_their_names(finished):
    module, folder = finished
    anomalous = sorted((it for it in module.result.rows if it.label), key=lambda it: it.score)
    good = sorted((it for it in module.result.rows if not it.label), key=lambda it: -it.score)
    expected = {f"miss_{i + 1}_{it.defect_type}_{it.path[-7:-4]}" for i, it in enumerate(anomalous[:4])}
    expected |= {f"false_alarm_{i + 1}_good_{it.path[-7:-4]}" for i, it in enumerate(good[:4])}
    found = names(folder)
    assert expected | CURVES | {"overview"} <= set(found)
    assert len([name for name in found if name.startswith("typical_")]) == 3
    assert len(found) == 4 + 4 + 3 + 5


def test_time_is_counted(finished):
    assert finished[0].timing["figures"] > 0


def test_batch_size_changes_no_byte(finished, tmp_path):
    run(mixed(batch_size=7), tmp_path, worst=4, typical=3)
    assert names(tmp_path) == names(finished[1])
    for path in (finished[1] / "figures").iterdir():
        assert (tmp_path / "figures" / path.name).read_bytes() == path.read_bytes(), path.name


def keep(kept, batch, model, data):
    kept.keep(model(batch.image), batch, data.samples, model.preprocess)


def test_few_images_are_kept_and_none_after_the_test(finished):
    kept, numbers, data, model = KeptExamples(4, 4), [], mixed(300, batch_size=10), Reader()
    for batch in data.test_dataloader():
        keep(kept, batch, model, data)
        pools = (kept.candidates.misses, kept.candidates.false_alarms, *kept.candidates.by_type.values())
        numbers.append(sum(len(pool.kept) for pool in pools))
    assert max(numbers) == numbers[5] == 4 + 4 + 3 * 5
    example = kept.candidates.misses.examples()[0]
    for array in map(pixels, (example.image, example.mask, example.anomaly_map)):
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base, torch.Tensor)
        assert base.untyped_storage().nbytes() == array.nbytes  # not a view, which would keep the whole batch
    assert finished[0].kept_examples.candidates.misses.examples() == []


def test_without_masks_the_highest_good_pixel_is_the_threshold(tmp_path):
    module = run(mixed(masks=False), tmp_path)
    found = names(tmp_path)
    assert "pro" not in found
    assert {"roc", "precision_recall", "overview"} <= set(found)
    levels = np.array([[0, 1.0, 5.0], [0, 2.0, 7.0], [0, 3.0, 6.0], [1, 2.0, 9.0], [1, 9.0, 30.0], [1, 9.0, 20.0]])
    look = choose_look(replace(module.result, levels=levels))
    assert (look.low, look.high, look.threshold) == (2.0, 20.0, 7.0)
    assert "oracle" in look.threshold_name


def test_good_images_only(tmp_path):
    module = run(Data([0.2, 0.3, 0.4, 0.5, 0.6], ["good"] * 5), tmp_path, worst=2, typical=2)
    assert names(tmp_path) == [
        "false_alarm_1_good_004", "false_alarm_2_good_003", "overview", "scores",
        "typical_1_good_002", "typical_2_good_001",
    ]  # fmt: skip
    look = choose_look(replace(module.result, levels=np.array([[0, 2.0, 7.0], [0, 2.0, 5.0]])))
    assert (look.low, look.high, look.threshold, look.image_threshold) == (2.0, 12.0, None, None)


def test_anomalous_images_only(tmp_path):
    run(Data([0.3, 0.6], ["spot"] * 2), tmp_path, worst=4)
    assert names(tmp_path) == [
        "miss_1_spot_000",
        "miss_2_spot_001",
        "overview",
        "precision_recall",
        "pro",
        "roc",
        "scores",
    ]


def test_method_that_scores_whole_images_only(tmp_path):
    run(mixed(), tmp_path, Reader(mapped=False))
    found = names(tmp_path)
    assert "pro" not in found
    assert {"roc", "precision_recall", "overview"} <= set(found)
    with Image.open(next((tmp_path / "figures").glob("miss_1_*"))) as picture:
        assert picture.width < 800


def test_random_weights_show(tmp_path):
    run(mixed(), tmp_path, Reader(weights="random"))
    for path in (tmp_path / "figures").iterdir():
        picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
        assert (np.abs(picture - (196, 22, 28)).max(axis=-1) < 40).any(), path
    assert "random" in choose_look(make_result(weights="random")).warning


def test_a_constant_map_has_a_scale(finished):
    look = choose_look(replace(finished[0].result, levels=np.array([[0, 3.0, 3.0], [1, 3.0, 3.0]])))
    assert look.high > look.low
    assert np.isfinite(look.heat(np.full((2, 2), 3, dtype=np.float32))).all()


def test_nothing_wanted_leaves_the_curves(tmp_path):
    run(mixed(), tmp_path, worst=0, typical=0)
    assert set(names(tmp_path)) == CURVES


def test_pictures_of_an_earlier_test_go_and_other_files_stay(tmp_path):
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "miss_1_old_007.png").touch()
    (folder / "pro.png").touch()
    (folder / "mine.png").touch()
    (folder / "missing_1_mine.txt").touch()
    run(mixed(masks=False), tmp_path)
    left = {path.name for path in folder.iterdir()}
    assert {"mine.png", "missing_1_mine.txt"} <= left
    assert not {"miss_1_old_007.png", "pro.png"} & left


def test_negative_numbers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"callbacks.pictures.worst=-1 must be 0 or more"):
        Pictures(str(tmp_path), worst=-1)
    with pytest.raises(ConfigError, match=r"callbacks.pictures.typical=-2"):
        Pictures(str(tmp_path), typical=-2)


def test_rank_zero_brings_together_what_all_devices_kept(finished, tmp_path, monkeypatch):
    data, model = mixed(), Reader()
    ranks = [KeptExamples(4, 3) for _ in range(2)]
    for number, kept in enumerate(ranks):
        keep(kept, data.batch(list(range(number, 30, 2))), model, data)

    def gather_object(obj, held):
        held[:] = [(it.candidates, torch.cat(it.levels)) for it in ranks]

    for name, value in {"is_initialized": True, "get_world_size": 2, "get_rank": 0}.items():
        monkeypatch.setattr(dist, name, lambda value=value: value)
    monkeypatch.setattr(dist, "gather_object", gather_object)
    levels = ranks[0].gather()
    assert len(levels) == 30
    result = finished[0].result
    write_figures(replace(result, levels=levels, examples=ranks[0].choose(result.rows)), tmp_path / "figures")
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == sorted(
        p.name for p in (finished[1] / "figures").iterdir()
    )
    for path in (finished[1] / "figures").iterdir():
        assert (tmp_path / "figures" / path.name).read_bytes() == path.read_bytes(), path.name


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    data, kept = mixed(), KeptExamples(4, 4)
    keep(kept, data.batch(list(range(rank, 30, 2))), Reader(), data)
    levels = kept.gather()
    examples = [it.index for it in kept.candidates.misses.examples()]
    torch.save((sorted(map(tuple, levels.tolist())), examples), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    torch.multiprocessing.spawn(work, args=(tmp_path,), nprocs=2)
    data, alone = mixed(batch_size=30), KeptExamples(4, 4)
    (batch,) = data.test_dataloader()
    keep(alone, batch, Reader(), data)
    levels, kept = torch.load(tmp_path / "0.pt")
    assert levels == sorted(map(tuple, alone.gather().tolist()))
    assert kept == [it.index for it in alone.candidates.misses.examples()]


# -- good images that the threshold was set on -------------------------------------------------------------------------


def calibrated(levels, worst=2, count=4, set_by=None):
    """The examples shown of good images of these brightnesses after a calibration on them, and their result."""
    data, model, kept = Data(levels, ["good"] * len(levels)), Reader(), KeptExamples(2 * worst, 0)
    for batch in data.test_dataloader():
        keep(kept, batch, model, data)
    scores = [model(data.item(i)[0][None]).score.item() for i in range(len(levels))]
    model.calibration.calibrate(torch.tensor(scores), torch.tensor(scores), torch.arange(len(levels)))
    if set_by is not None:
        model.calibration.target_fpr = set_by / (len(levels) + 1)
    good = [
        ScoredImage(str(it.path), 0, "good", score, i)
        for i, (it, score) in enumerate(zip(data.samples, scores, strict=True))
    ]
    shown = kept.choose_good(good, model.calibration.set_by, count, (SIZE, SIZE))
    return shown, make_result(good=tuple(good), examples={"calibration": shown}, levels=kept.gather())


def test_without_test_images_the_good_ones_of_the_threshold_are_drawn(tmp_path):
    levels = np.random.default_rng(1).permutation(np.linspace(0.2, 0.5, 11)).tolist()
    shown, result = calibrated(levels)
    highest = sorted(range(11), key=lambda i: -levels[i])
    assert [example.index for example in shown] == highest[:4]
    assert [example.note for example in shown] == ["sets the threshold", "", "", ""]
    assert all(example.image.shape == (SIZE, SIZE, 3) for example in shown)
    for example in shown:
        assert example.image[8, 8, 0] == pytest.approx(255 * levels[example.index], abs=1)
    write_figures(result, tmp_path / "figures")
    assert {"overview", "scores", f"calibration_1_good_{highest[0]:03}"} <= set(names(tmp_path))
    look = choose_look(replace(result, thresholds=Thresholds({"conformal": shown[0].score})))
    assert look.high > look.low > 0  # on the scale of these images
    assert look.verdict(replace(shown[0], note="")) == "passed"  # not above the threshold


def test_a_good_image_that_stands_out_is_asked_about():
    levels = [*np.linspace(0.2, 0.25, 30), 0.9]
    first = calibrated(levels)[0][0]
    assert (first.index, first.note) == (30, "sets the threshold; looks unlike the rest: is it good?")


def test_the_image_that_sets_the_threshold_is_shown_where_it_is_not_among_the_highest():
    levels = np.linspace(0.2, 0.5, 40).tolist()
    shown, _ = calibrated(levels, set_by=10)
    assert [example.index for example in shown] == [39, 38, 37, 36, 30]
    assert [example.note for example in shown] == ["", "", "", "", "sets the threshold"]
    assert shown[-1].anomaly_map is None
    assert shown[-1].image.size == 0  # it is decoded with the result
    assert calibrated(levels, worst=0)[0] == []


# -- loggers ----------------------------------------------------------------------------------------------------------


def test_wandb_gets_images_with_masks_and_the_curves(tmp_path):
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    class Recorder(WandbLogger):
        experiment = SimpleNamespace(summary={})  # starts no service

        def __init__(self):
            super().__init__(save_dir=tmp_path, offline=True)
            self.seen, self.params = {}, None

        def log_metrics(self, metrics, step=None):
            self.seen.update(metrics)

        def log_hyperparams(self, params):
            self.params = params

        def save(self): ...

        def finalize(self, status): ...

    logger = Recorder()
    run(mixed(), tmp_path, loggers=[logger])
    assert logger.params == {"model": {"name": "reader"}}
    images = {key: value for key, value in logger.seen.items() if "/" in key}
    assert set(images) == {f"figures/{name}" for name in ("overview", *CURVES)} | {
        "test/miss", "test/false_alarm", "test/typical", "test/predictions",
    }  # fmt: skip
    assert len(images["test/miss"]) == 1
    first = images["test/miss"][0]
    assert isinstance(first, wandb.Image)
    assert set(first._masks) == {"ground_truth", "prediction"}  # noqa: SLF001 - W&B has no other name for them
    assert first._caption.startswith("stain/011  15.22  ")  # noqa: SLF001


def test_tensorboard_gets_every_picture(tmp_path):
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(mixed(), tmp_path, loggers=[TensorBoardLogger(tmp_path, name="tb", version="", default_hp_metric=False)])
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"images": 0})
    events.Reload()
    assert sorted(tag.removeprefix("figures/") for tag in events.Tags()["images"]) == names(tmp_path)
    assert "name: reader" in (tmp_path / "tb/hparams.yaml").read_text()


@pytest.mark.slow
def test_mlflow_gets_the_config_the_metrics_and_every_picture(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    from oddpatch.callbacks.mlflow import MLflowLogger

    monkeypatch.chdir(tmp_path)  # where it keeps what belongs to a database of this machine
    logger = MLflowLogger("oddpatch", "first", "sqlite:///mlflow.db")
    logger.log_metrics({"au_pro@0.05": 0.5})
    run(mixed(), tmp_path / "run", loggers=[logger])
    client = mlflow.MlflowClient("sqlite:///mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("oddpatch").experiment_id])
    assert (found.info.run_name, found.info.status) == ("first", "FINISHED")
    assert found.data.params == {"model/name": "reader"}
    assert found.data.metrics["au_pro_at_0.05"] == 0.5
    result = json.loads(Path(client.download_artifacts(found.info.run_id, "metrics.json")).read_text())
    assert found.data.metrics["image_auroc"] == pytest.approx(result["image_auroc"], rel=1e-6)  # Lightning's float32
    stored = {artifact.path for artifact in client.list_artifacts(found.info.run_id)}
    assert stored == {"metrics.json", "figures"}
    pictures = [PurePath(artifact.path).stem for artifact in client.list_artifacts(found.info.run_id, "figures")]
    assert sorted(pictures) == names(tmp_path / "run")


def test_mlflow_that_is_not_installed_is_one_line(monkeypatch):
    from lightning.pytorch.loggers import mlflow

    from oddpatch.callbacks.mlflow import MLflowLogger

    monkeypatch.setattr(mlflow, "_MLFLOW_AVAILABLE", False)
    with pytest.raises(ConfigError, match=r"^logger=mlflow needs MLflow: pip install 'oddpatch\[mlflow\]'$"):
        MLflowLogger("oddpatch", None, "sqlite:///mlflow.db")


def test_loggers_that_take_no_images_are_left_alone(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    run(mixed(), tmp_path, loggers=[CSVLogger(tmp_path, name="csv", version="")])
    assert [path.name for path in (tmp_path / "csv").iterdir()] == ["metrics.csv"]
    log_result([object()], make_result())


# -- configs ----------------------------------------------------------------------------------------------------------


def composed(name, *overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, [*overrides, "hydra.run.dir=."], return_hydra_config=True)


def test_pictures_come_by_default_and_can_be_left_out(tmp_path):
    cfg = composed("train", f"paths.output_dir={tmp_path}")
    assert isinstance(instantiate(cfg.callbacks.pictures), Pictures)
    assert composed("train", "callbacks.pictures=null").callbacks.pictures is None


@pytest.mark.parametrize(
    ("config", "override", "name"),
    [("train", "data=mvtec", "padim-effnet_lite0-bottle"), ("eval", "run=/runs/a", "/runs/a")],
)
def test_runs_in_wandb_and_mlflow_are_named_after_what_they_are(config, override, name):
    from hydra.core.hydra_config import HydraConfig

    for logger, setting in {"wandb": "name", "mlflow": "run_name"}.items():
        cfg = composed(config, override, f"logger={logger}")
        HydraConfig.instance().set_config(cfg)
        assert cfg.logger[logger][setting] == name
