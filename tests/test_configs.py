"""Every YAML under configs/ composes, and what it describes can be built."""

import copy
import functools
import inspect
from typing import Any

import pytest
import torch
from conftest import CONFIGS, TinyBackbone
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class
from omegaconf import OmegaConf

from oddpatch import pipeline
from oddpatch.errors import ConfigError, DataError
from oddpatch.hydra_entry import building
from oddpatch.known import with_defaults
from oddpatch.learning.outcome import MODEL_KEYS
from oddpatch.models.trainable import TrainableDetector
from oddpatch.report.datasets import DATASETS
from oddpatch.report.published import matches
from oddpatch.report.runs import FinishedRun

GROUPS = {
    group.name: sorted(path.stem for path in group.glob("*.yaml"))
    for group in CONFIGS.iterdir()
    if group.is_dir() and group.name not in ("hydra", "paths")
}
#: Groups of which a test below composes and builds each choice.
BUILT = {"backbone", "model", "data", "experiment"}
CHOICES = [(group, choice) for group, choices in GROUPS.items() if group not in BUILT for choice in choices]


def composed(*overrides, name="train"):
    """The config, of which every reference can be resolved."""
    return copy.deepcopy(composed_once(overrides, name))


@functools.cache
def composed_once(overrides, name):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(name, [*overrides, "paths.output_dir=/tmp/out"])
    for key in ("model", "backbone", "data", "trainer"):
        if key in cfg:
            OmegaConf.to_container(cfg[key], resolve=True)
    return cfg


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=["/".join(c) for c in CHOICES])
def test_every_choice_composes(group, choice):
    assert {"model", "backbone", "data", "trainer"} <= composed(f"{group}={choice}").keys()


def on_meta(settings):
    """The backbone of a config without numbers in it, of which the large ones would take gigabytes."""
    return made_on_meta(OmegaConf.to_yaml(settings, resolve=True))


@functools.cache
def made_on_meta(settings):
    with torch.device("meta"):
        return building.make(OmegaConf.create(settings), weights="random")


@pytest.mark.parametrize("choice", GROUPS["backbone"])
def test_every_backbone_can_be_built(choice):
    backbone = on_meta(composed(f"backbone={choice}").backbone)
    assert len(backbone.info.channels) == len(backbone.info.strides) >= 1


@pytest.mark.parametrize("choice", GROUPS["model"])
def test_every_model_can_be_built(choice):
    tiny = TinyBackbone()
    settings: Any = OmegaConf.to_container(composed(f"model={choice}").model, resolve=True)
    if "num_features" in settings:
        settings["num_features"] = 10
    if "maps" in settings:
        settings["maps"] = [2, 1]
    assert building.make(settings, channels=tiny.info.channels, strides=[4, 8, 16]).required_memory(
        [(8, 16, 16), (12, 8, 8), (16, 4, 4)], 60
    )


@pytest.mark.parametrize("choice", GROUPS["data"])
def test_every_dataset_can_be_built(choice, tmp_path):
    named = ["data.root=/parts", "data.category=housing"] if choice == "custom" else []
    cfg = composed(f"data={choice}", f"paths.data_dir={tmp_path}", *named).data
    data = building.make(cfg, mean=[0.5] * 3, std=[0.5] * 3)
    data.preprocess.adapt([(90, 120)])
    crops = {"mvtec": (224, 224), "pcb": (280, 280), "toolbox": (280, 280)}
    assert data.preprocess.image_size == crops.get(choice, (256, 341))
    assert data.preprocess.frame.fit == ("crop" if choice in crops else "letterbox")
    if not data.render:  # what is not rendered says who has it, or how to arrange it, and downloads nothing
        with pytest.raises(DataError, match=r"no such folder: .*(https://|oddpatch data convert)") as error:
            data.setup()
        assert "\n" not in str(error.value)
        assert "oddpatch data convert" in str(error.value) or choice in ("mvtec", "mpdd")


def test_what_a_method_needs_for_some_images_is_set_for_those_alone():
    raw = {"reduction": "semi_orthogonal", "score_from": "raw"}
    own = {"reduction": "random", "score_from": "smoothed"}

    def found(*overrides):
        return {name: composed(*overrides).model.get(name) for name in raw}

    assert found() == found("data=toolbox") == raw
    assert found("data=mvtec") == found("data=custom") == found("~suited") == own
    assert found("model.score_from=smoothed") == {**raw, "score_from": "smoothed"}
    assert found("model=patchcore") == dict.fromkeys(raw)
    suited = {f"{model}-{data}" for model in GROUPS["model"] for data in GROUPS["data"]}
    assert suited >= set(GROUPS["suited"]), "one of a misspelt name would never be composed"


def test_custom_asks_for_its_folder():
    with pytest.raises(ConfigError, match=r"data\.root=None and data\.category=None"):
        building.make(composed("data=custom").data, mean=[0.5] * 3, std=[0.5] * 3)


@pytest.fixture(scope="module")
def recipe():
    """Each recipe, composed when first asked for; do not change it."""
    return functools.cache(lambda choice: composed(f"experiment={choice}", "paths.data_dir=/data"))


@pytest.mark.parametrize("choice", GROUPS["experiment"])
def test_every_recipe_can_be_built(choice, recipe):
    cfg = recipe(choice)
    backbone = on_meta(cfg.backbone)  # as wide as published
    detector = building.make(cfg.model, channels=backbone.info.channels, strides=backbone.info.strides)
    data = building.make(cfg.data, mean=backbone.info.mean, std=backbone.info.std)
    height, width = data.preprocess.image_size
    shapes = [
        (c, -(-height // s) if s else 1, -(-width // s) if s else 1)  # 0 of class tokens
        for c, s in zip(backbone.info.channels, backbone.info.strides, strict=True)
    ]
    assert detector.required_memory(shapes, 60)[0] > 0 or isinstance(detector, TrainableDetector)
    if choice not in ("patchcore_ensemble_lite", "cam_lite0", "cam_boards"):
        assert building.make(cfg.calibration).method == "none", "papers fit to all good images"


#: The published row that a recipe is for, as `oddpatch.report.published` names it, and its means over MVTec AD.
ROWS = {
    "anomalydino_s14_448": ("full", 0.993, 0.979),
    "anomalydino_s14_448_shots": ("1-shot", 0.965, 0.963),
    "anomalydino_s14_672": ("full", 0.995, 0.982),
    "anomalydino_s14_672_shots": ("1-shot", 0.966, 0.968),
    "dfm_r50": ("anomalib 2023 README, FRE, seed 42", 0.948, 0.966),
    "gaussian_b4": ("stages 1-9 sum; no-dim-reduction; no augmentation", 0.948, None),
    "mh_patchcore_wr50": ("anomalib 2.7.0", 0.988, 0.977),
    "musc_clip_l14": ("0-shot, unlabelled test set", 0.978, 0.971),
    "padim_effnet_b5": ("EfficientNet-B5", 0.979, None),
    "padim_effnet_b7": ("EfficientNet-B7 last blocks 11-18-38", 0.963, 0.970),
    "padim_effnet_b7_first": ("EfficientNet-B7 first blocks 5-12-29", 0.958, 0.974),
    "padim_effnet_b7_middle": ("EfficientNet-B7 middle blocks 8-15-33", 0.963, 0.971),
    "padim_r18": ("R18-Rd100", None, 0.967),
    "padim_r18_anomalib": ("anomalib dev 2023-07", 0.892, 0.968),
    "padim_r18_port": ("R18-Rd100 (re-implementation)", 0.905, 0.965),
    "padim_wr50": ("WR50-Rd550", 0.953, 0.975),
    "padim_wr50_ind_knn": ("ind_knn_ad d=250 eps=0.04", 0.943, 0.969),
    "padim_wr50_port": ("WR50-Rd550 (re-implementation)", 0.955, 0.973),
    "padim_wr50_semi_orthogonal": ("k100", None, 0.979),
    "patchcore_ensemble": ("IM224_Ensemble_L2-3_P001_D1024-384_PS-3_AN-1", 0.993, 0.981),
    "patchcore_ensemble_320": ("IM320_Ensemble_L2-3_P001_D1024-384_PS-3_AN-1", 0.996, 0.982),
    "patchcore_vit_b16": ("layer 3", 0.962, 0.967),
    "patchcore_vit_b16_34": ("layers 3+4", 0.962, 0.967),
    "patchcore_vit_b16_45": ("layers 4+5", 0.960, 0.966),
    "patchcore_vit_b32": ("layer 6", 0.940, 0.944),
    "patchcore_wr50_1": ("PatchCore-1%", 0.990, 0.980),
    "patchcore_wr50_10": ("PatchCore-10%", 0.990, 0.981),
    "patchcore_wr50_25": ("PatchCore-25%", 0.991, 0.981),
    "patchcore_wr50_320": ("IM320_WR50_L2-3_P001_D1024-1024_PS-3_AN-1", 0.993, 0.978),
    "patchcore_wr50_320_p5": ("IM320_WR50_L2-3_P001_D1024-1024_PS-5_AN-3", 0.989, 0.983),
    "patchcore_wr50_anomalib": ("anomalib dev 2023-07", 0.987, 0.976),
    "patchcore_wr50_ind_knn": ("ind_knn_ad coreset 0.1 reweight 3", 0.977, 0.972),
    "procon_b14_1": ("coreset 1%; B=5", 0.997, 0.986),
    "rad_b16": ("full, one model for all classes", None, 0.985),
    "spade_wr50": ("k=50 kappa=1", 0.855, 0.960),
    "spade_wr50_ind_knn": ("ind_knn_ad k=50", 0.826, 0.968),
    "subspacead_g14": ("full", 0.992, 0.982),
    "subspacead_g14_shots": ("1-shot", 0.971, 0.975),
}


#: The same of recipes that are measured on a held-out fifth: the balanced accuracy of each category.
FIFTH = {"cam_vgg16": ("hazelnut", "leather", "cable", "toothbrush", "pill")}


def test_recipes_without_a_row_say_so():
    for choice in set(GROUPS["experiment"]) - ROWS.keys() - {"patchcore_ensemble_lite", *FIFTH}:
        assert "o figure" in (CONFIGS / f"experiment/{choice}.yaml").read_text(), choice


@pytest.mark.parametrize("choice", ROWS)
def test_a_recipe_is_set_as_its_row_was_published(choice, tmp_path, recipe):
    cfg = recipe(choice)
    size = cfg.data.crop or cfg.data.resize
    names = {"category": "bottle", "image_size": [size, size] if isinstance(size, int) else list(size)}
    settings = {part: with_defaults(OmegaConf.to_container(cfg[part], resolve=True)) for part in MODEL_KEYS}
    fitted = cfg.data.shots or 209
    metrics = {"num_test_images": 83, "num_train_images": fitted, "weights": "file", "run": names, "settings": settings}
    run = FinishedRun(tmp_path, metrics)
    variant, image_auroc, pixel_auroc = ROWS[choice]
    (match,) = [m for m in matches(run)[0] if m.published.variant == variant]
    assert set(match.differences) == set(match.published.notes), "settings differ from the published ones"
    means = {key[2]: value for key, value in match.published.values.items() if key[:2] == ("mvtec_ad", "average")}
    text = " ".join((CONFIGS / f"experiment/{choice}.yaml").read_text().replace("\n#", " ").split())
    for metric, value in (("image_auroc", image_auroc), ("pixel_auroc", pixel_auroc)):
        if value is not None:
            assert means[metric] == pytest.approx(value, abs=5.1e-4)
            assert f"{value:.3f}" in text, "the comment states another figure"


@pytest.mark.parametrize(("choice", "category"), [(c, category) for c, of in FIFTH.items() for category in of])
def test_a_recipe_on_a_held_out_fifth_is_set_as_it_was_published(choice, category, tmp_path, recipe):
    cfg = recipe(choice)
    settings = {part: with_defaults(OmegaConf.to_container(cfg[part], resolve=True)) for part in MODEL_KEYS}
    size = DATASETS["mvtec_ad_fifth"].categories[category]
    about = {"num_test_images": size.test, "num_train_images": size.train, "weights": "file", "settings": settings}
    ((match,), _) = matches(FinishedRun(tmp_path, {**about, "run": {"category": category, "image_size": [224, 224]}}))
    assert match.differences == match.published.notes
    value = match.published.values["mvtec_ad_fifth", category, "balanced_accuracy"]
    assert f"{category} {value:.3f}" in " ".join((CONFIGS / f"experiment/{choice}.yaml").read_text().split())
    assert (cfg.trainer.max_epochs, cfg.learning.stop_accuracy, cfg.learning.optimizer.lr) == (10, 0.98, 1e-4)
    assert (cfg.learning.train_share, cfg.learning.validation_share, cfg.learning.augment) == (0.8, 0, [])
    assert building.make(cfg.learning.loss).weight.tolist() == [1, 3]


#: MLflow takes seconds to be imported; wandb would start its service.
LOGGERS = [pytest.param(c, marks=pytest.mark.slow if c == "mlflow" else ()) for c in GROUPS["logger"] if c != "wandb"]


@pytest.mark.parametrize("choice", LOGGERS)
def test_every_logger_and_the_trainer_can_be_built(choice, tmp_path):
    named = ["logger.mlflow.run_name=first"] if choice == "mlflow" else []  # by default after Hydra's choices
    cfg = composed(f"logger={choice}", "trainer.accelerator=cpu", *named)
    cfg.paths.output_dir = str(tmp_path)
    trainer = pipeline.build_trainer(cfg)
    assert len(trainer.loggers) == (0 if choice == "none" else 1)


@pytest.mark.parametrize("setting", ["trainer.accelerator=foo", "trainer.limit_test_batches=-3", "+trainer.foo=1"])
def test_what_lightning_refuses_is_one_line(setting, tmp_path):
    cfg = composed("logger=none", "trainer.accelerator=cpu", setting)
    cfg.paths.output_dir = str(tmp_path)
    with pytest.raises(ConfigError, match=r"^trainer[.:]") as error:
        pipeline.build_trainer(cfg)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("group", ["model", "data"])
def test_every_setting_of_a_class_can_be_set_as_it_is_written(group):
    given = {"channels", "strides", "mean", "std", "multiple", "adapted", "member"}  # by the run; a class of its own
    for choice in GROUPS[group]:
        settings = composed(f"{group}={choice}")[group]
        for part in (settings, settings.get("member")):
            if part:
                assert inspect.signature(get_class(part._target_)).parameters.keys() - given <= part.keys(), choice


def test_a_name_in_a_file_that_yaml_reads_as_a_number_is_refused():
    cfg = composed("data=custom", "data.root=/parts", "data.category=7").data
    with pytest.raises(ConfigError, match=r"data\.category=7 is read as a number.* in quotes"):
        building.make(cfg, mean=[0.5] * 3, std=[0.5] * 3)


def test_eval_composes():
    assert composed("run=/some/folder", name="eval").run == "/some/folder"
