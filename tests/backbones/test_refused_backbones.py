"""What no backbone can be made of, or take: one line with the value and what to choose."""

import re

import pytest
import torch

from oddpatch.backbones import timm
from oddpatch.backbones.engine import compile_openvino
from oddpatch.backbones.ensemble import EnsembleBackbone
from oddpatch.backbones.inspection import settings_of
from oddpatch.backbones.timm import TimmBackbone
from oddpatch.backbones.weights import read_state_dict
from oddpatch.errors import ConfigError, WeightsError

VIT = "vit_tiny_patch16_224"


def without_class_token():
    options = {"class_token": False, "global_pool": "avg"}
    return TimmBackbone(VIT, [2], "random", options=options, class_token=True)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: TimmBackbone(VIT, [2], "random", tap="nowhere"), f"tap='nowhere': a block of {VIT} has norm1, attn"),
        (without_class_token, f"{VIT} has no class token: leave class_token out"),
        (
            lambda: EnsembleBackbone({"a": TimmBackbone, "b": TimmBackbone}, weights="file.pt"),
            "weights='file.pt': choose pretrained or random for an ensemble",
        ),
        (lambda: settings_of("ensemble_lite"), "describes no single backbone of oddpatch: show its members one by one"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, told):
    with pytest.raises(ConfigError, match=re.escape(told)) as error:
        make()
    assert "\n" not in str(error.value)


def test_an_image_size_that_a_network_cannot_take_is_told():
    backbone = TimmBackbone(VIT, [2], "random")
    with pytest.raises(ConfigError, match=r"cannot take images of 50x70: .* Change data\.resize or data\.crop$"):
        backbone(torch.zeros(1, 3, 50, 70))


def test_packaged_weights_of_another_network_are_refused():
    with pytest.raises(WeightsError, match="the packaged weights are not those of resnet18: their shapes differ"):
        timm._rename_by_order({"conv1.weight": torch.zeros(1)}, "resnet18")  # noqa: SLF001 - the step alone: what leads to it takes seconds


def test_a_weights_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"a\.pt does not exist: give the path of a weights file, or 'pretrained'"):
        read_state_dict(tmp_path / "a.pt")


def test_what_openvino_cannot_convert_is_one_line(monkeypatch):
    openvino = pytest.importorskip("openvino")

    def fail(*args, **kwargs):
        raise openvino.frontend.OpConversionFailure("many lines\nNo conversion rule for aten::odd")

    monkeypatch.setattr(openvino, "convert_model", fail)
    told = r"OpenVINO cannot convert this backbone \(No conversion rule for aten::odd\): set backbone\.engine=torch$"
    with pytest.raises(ConfigError, match=told):
        compile_openvino(TimmBackbone("resnet18", [1], "random"), (32, 32))
