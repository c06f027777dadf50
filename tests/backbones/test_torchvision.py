"""torchvision networks by the names of their nodes."""

from typing import Any

import pytest
import torch
import torchvision

from oddpatch.backbones.torchvision import TorchvisionBackbone, map_nodes
from oddpatch.errors import ConfigError, WeightsError


def test_features_equal_those_of_hooks_in_the_whole_network():
    torch.manual_seed(0)
    network = torchvision.models.resnet34().eval()
    expected: dict[Any, Any] = {}
    for node in ("layer2", "layer3.5.bn2"):
        network.get_submodule(node).register_forward_hook(lambda m, i, o, n=node: expected.__setitem__(n, o.clone()))
    backbone = TorchvisionBackbone("resnet34", ["layer3.5.bn2", "layer2", "layer3.5.relu_1"], "random")
    backbone.network.load_state_dict({k: network.state_dict()[k] for k in backbone.network.state_dict()})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        network(images)
    assert backbone.info.layers == ["layer2", "layer3.5.bn2", "layer3.5.relu_1"]
    assert backbone.info.channels == [128, 256, 256]
    assert backbone.info.strides == [8, 16, 16]
    features = backbone(images)
    torch.testing.assert_close(features[0], expected["layer2"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features[1], expected["layer3.5.bn2"], rtol=1e-4, atol=1e-4)


def test_what_lies_behind_the_last_node_is_gone():
    backbone = TorchvisionBackbone("vgg16", ["features.8"], "random")
    assert {key.split(".")[2] for key in backbone.state_dict()} == {"0", "2", "5", "7"}
    assert backbone.feature_shapes((40, 24)) == [(128, 20, 12)]


def test_stages_are_the_ends_of_the_modules():
    backbone = TorchvisionBackbone("resnet18", "stages", "random")
    assert backbone.info.layers == ["relu", "layer1", "layer2", "layer3", "layer4"]
    assert backbone.info.strides == [2, 4, 8, 16, 32]


def test_only_maps_are_nodes():
    nodes = map_nodes("resnet18")
    assert nodes["layer2.0.relu"] == (128, 8)
    assert not {"x", "avgpool", "flatten", "fc"} & nodes.keys()


def test_the_weights_tag_sets_the_normalisation():
    backbone = TorchvisionBackbone("vgg16", ["features.3"], "random", tag="IMAGENET1K_FEATURES")
    assert backbone.info.std[0] == pytest.approx(1 / 255)


def test_a_weights_file_is_loaded_and_a_wrong_one_told(tmp_path):
    network = torchvision.models.resnet18()
    torch.save({"model": network.state_dict()}, tmp_path / "w.pth")
    backbone = TorchvisionBackbone("resnet18", ["layer1"], str(tmp_path / "w.pth"))
    assert backbone.weights_origin == "w.pth"
    assert torch.equal(backbone.state_dict()["network.conv1.weight"], network.state_dict()["conv1.weight"])
    with pytest.raises(WeightsError, match="the weights do not fit resnet34"):
        TorchvisionBackbone("resnet34", ["layer1"], str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: TorchvisionBackbone("resnet18", ["layer9"], "random"),
         r"no map at node 'layer9': choose from layer4: 512 channels, stride 32; .*oddpatch backbone nodes resnet18"),
        (lambda: TorchvisionBackbone("resnet18", ["fc"], "random"), "no map at node 'fc'"),
        (lambda: TorchvisionBackbone("resnet18", [], "random"), "leaves resnet18 without features"),
        (lambda: TorchvisionBackbone("resnet18", ["layer1", "layer1"], "random"), "names a node twice"),
        (lambda: TorchvisionBackbone("resnt18", ["layer1"], "random"), "the nearest are .*resnet18"),
        (lambda: TorchvisionBackbone("resnet18", ["layer1"], "random", tag="V9"), "resnet18 has IMAGENET1K_V1"),
    ],
)  # fmt: skip
def test_wrong_names_list_the_right_ones(make, told):
    with pytest.raises(ConfigError, match=told) as error:
        make()
    assert "\n" not in str(error.value)
