"""What is not needed is not computed, and `oddpatch backbone` says what a backbone costs."""

import pytest
import timm
import torch
from typer.testing import CliRunner

from oddpatch.backbones import inspection
from oddpatch.backbones.inspection import describe, images_per_second, nodes_of, on_meta, settings_of
from oddpatch.backbones.timm import TimmBackbone
from oddpatch.backbones.weights import WeightsSource, find_weights
from oddpatch.cli.main import app
from oddpatch.errors import ConfigError


def told(*words):
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["backbone", *words])
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 80
    return result.output


def test_stride_8_of_a_resnet50_costs_less_than_half_of_it():
    half, whole = (
        describe(on_meta({**settings_of("resnet50"), "layers": layers}), (224, 224)) for layers in ([1, 2], [1, 4])
    )
    assert half.flops < whole.flops / 2
    assert half.parameters < whole.parameters / 10
    assert whole.flops == pytest.approx(2 * 4.09e9, rel=0.01)  # 4.09 G multiply-adds: He et al., without the classifier


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vit_tiny_patch16_224", [3]), ("swin_tiny_patch4_window7_224", [0, 1]), ("densenet121", [1]),
        ("mobilenetv3_small_050", [1]), ("convnext_atto", [1]),
    ],
)  # fmt: skip
def test_every_family_is_cut_after_its_last_layer(name, layers):
    target = "oddpatch.backbones.timm.TimmBackbone"
    cut, whole = (
        describe(on_meta({"_target_": target, "name": name, "layers": chosen}), (224, 224))
        for chosen in (layers, "all")
    )
    assert cut.flops < 0.6 * whole.flops
    assert cut.parameters < 0.6 * whole.parameters


def test_weights_are_found_in_the_hugging_face_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants
    from safetensors.torch import save_file

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    repo = tmp_path / "models--timm--convnext_atto.d2_in1k"
    snapshot = repo / "snapshots/0123"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("0123")
    import timm

    network = timm.create_model("convnext_atto.d2_in1k")
    save_file(network.state_dict(), snapshot / "model.safetensors")
    found = find_weights(WeightsSource("net", hf_repo="timm/convnext_atto.d2_in1k"))
    assert found == snapshot / "model.safetensors"
    backbone = TimmBackbone("convnext_atto.d2_in1k", [0])
    assert backbone.weights_origin == "model.safetensors"
    key = "stem.0.weight"
    assert torch.equal(backbone.network.state_dict()[key], network.state_dict()[key])


def test_show_tells_layers_cost_and_weights():
    text = told("show", "effnet_lite0")
    assert "28 x 28" in text
    assert "efficientnet-lite0-57934424.pth" in text
    assert "GFLOPs" in text
    assert "4 x 4" in told("show", "resnet10t", "--size", "64")


def test_nodes_lists_maps():
    assert "features.29" in told("nodes", "vgg16")


def test_an_unknown_name_lists_the_known(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"'nope' is unknown: give one of .*effnet_lite0"):
        settings_of("nope")
    monkeypatch.setattr(inspection, "config_folder", lambda: None)
    with pytest.raises(ConfigError, match="there is no configs/backbone here"):
        settings_of("effnet_lite0")


def test_speed_is_of_images_not_batches(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(inspection.time, "perf_counter", lambda: next(clock))
    assert images_per_second(torch.nn.Identity(), (8, 8), batch=4) == 4


def test_nodes_are_listed_of_torchvision_networks_and_timm_models():
    assert nodes_of("resnet18")["layer2.0.relu"] == (128, 8)
    assert nodes_of("resnet18.tv_in1k")["layer2.0.act1"] == (128, 8)
    with pytest.raises(ConfigError, match="no such network"):
        nodes_of("resnt18")


def test_a_network_that_cannot_be_traced_is_one_line(monkeypatch):
    class Untraceable(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pretrained_cfg = {"input_size": (3, 32, 32)}

        def forward(self, images):
            return images if images.sum() > 0 else -images

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Untraceable())
    with pytest.raises(ConfigError, match=r"has no nodes by name, .*: give layers by number") as error:
        nodes_of("resnet18.a1_in1k")
    assert "\n" not in str(error.value)
