"""Folding BatchNorm into convolutions changes the speed of a backbone, not its features, and nothing that is saved."""

import copy
import gc
import logging
import pickle
import weakref
from types import SimpleNamespace

import pytest
import torch
from narrowing import present
from torch import nn

from oddpatch.backbones import engine
from oddpatch.backbones.base import Backbone
from oddpatch.backbones.efficientnet import EfficientNetBackbone
from oddpatch.backbones.engine import Runtime
from oddpatch.backbones.folding import ActivatedConv2d, fold
from oddpatch.backbones.timm import TimmBackbone
from oddpatch.backbones.torchvision import TorchvisionBackbone
from oddpatch.types import FeatureInfo

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def trained(backbone):
    """As if it had been trained: its BatchNorms do something."""
    drawn = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            present(module.running_mean).normal_(0, 0.1, generator=drawn)
            present(module.running_var).uniform_(0.5, 2, generator=drawn)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=drawn)
            nn.init.normal_(module.bias, 0, 0.1, generator=drawn)
    return backbone


def same(ours, theirs, relative=1e-5):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= relative * b.abs().max()
        assert (a.stride(), a.dtype) == (b.stride(), b.dtype)


def norms(backbone):
    return sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())


@torch.no_grad()
def run(backbone):
    """Its features, those of the network itself, and the folded network if one was made."""
    made = []

    def note(*given):
        made.append(fold(*given))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "fold", note)
        found, expected = backbone(IMAGES), backbone.forward(IMAGES)
    return found, expected, made[-1] if made else None


class TwoUses(Backbone):
    """A convolution that a BatchNorm follows, and whose output is added as it was."""

    def __init__(self, feature=False):
        super().__init__()
        self.info, self.feature = FeatureInfo([4], [1], layers=[0]), feature
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.freeze(channels_last=False)

    def forward(self, images):
        x = self.conv(images)
        return [x, self.norm(x)] if self.feature else [self.norm(x) + x]


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda: TimmBackbone("tf_efficientnet_lite0", [1, 2, 3], "random"), 0),
        (lambda: TimmBackbone("tf_efficientnet_lite0", ["blocks.1", "blocks.2"], "random"), 0),
        (lambda: TimmBackbone("resnet18", [1, 2, 3], "random"), 0),
        (lambda: TimmBackbone("resnet34", ["layer3.5.bn2", "layer2"], "random"), 0),
        (lambda: TimmBackbone("mobilenetv3_large_100", [1, 2, 3], "random", channels_last=False), 0),
        (lambda: EfficientNetBackbone("efficientnet-b0", [3, 5, 11], "random"), 0),
        (lambda: TorchvisionBackbone("resnet18", ["layer1", "layer2"], "random"), 0),
        (lambda: TorchvisionBackbone("resnet18", ["layer1.0.bn1", "layer2"], "random"), 0),
        # A node within a pair is a feature: this one pair is left as it is.
        (lambda: TorchvisionBackbone("resnet18", ["layer1.0.conv1", "layer2"], "random"), 1),
        # A dense layer has a BatchNorm before its convolutions and one between them; a transition has one before.
        (lambda: TimmBackbone("densenet121", [1, 2], "random"), 19),
    ],
    ids=[
        "lite",
        "lite nodes",
        "timm",
        "timm nodes",
        "act",
        "effnet",
        "torchvision",
        "a norm",
        "a convolution",
        "dense",
    ],
)
def test_features_are_equal_without_batch_norm(make, left):
    torch.manual_seed(0)
    backbone = trained(make())
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    found, expected, folded = run(backbone)
    same(found, expected)
    assert not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))  # it was run
    assert norms(folded) == left < norms(backbone)
    after = backbone.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())


@pytest.mark.parametrize(
    ("size", "padded"),
    [((64, 64), 1), ((96, 32), 1), ((50, 36), 4), ((65, 64), 4), ((71, 47), 2)],
    ids=["even", "oblong", "odd on the way", "odd", "odd, then even"],
)
@torch.no_grad()
def test_where_sides_are_even_no_pass_only_pads_but_that_of_the_first_convolution(size, padded):
    backbone = trained(TimmBackbone("tf_efficientnet_lite0", [1, 2, 3], "random"))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))

    def passes(network):
        with torch.profiler.profile() as profile:
            features = network(images)
        return features, sum(event.name == "aten::constant_pad_nd" for event in profile.events())

    backbone(IMAGES)  # is folded
    found, few = passes(backbone)
    expected, all_of_them = passes(backbone.forward)
    same(found, expected)
    assert (few, all_of_them) == (padded, 4)


class Leaky(nn.ReLU):
    def forward(self, maps):
        return super().forward(maps) + 0.1 * maps


class Branching(Backbone):
    """Four convolutions that a BatchNorm and an activation follow; `use` says what else becomes of these."""

    def __init__(self, use=""):
        super().__init__()
        self.info, self.use = FeatureInfo([4], [1], layers=[0]), use
        convs = [nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(4)]
        if use == "reflected":
            convs[1].padding_mode = "reflect"
        if use == "named":
            convs[1].padding = "same"
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))
        self.acts = nn.ModuleList([nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish()])
        if use == "shared":
            self.acts[1] = self.acts[0]
        if use == "of another kind":
            self.acts[1] = Leaky()
        self.freeze(channels_last=True)

    def forward(self, images):
        features = []
        for conv, norm, act in zip(self.convs, self.norms, self.acts, strict=True):
            inside = norm(conv(images))
            images = act(inside)
            if self.use == "added":
                images = images + inside
            if self.use == "feature":
                features.append(inside)
        return [*features, images]


def activated(network):
    return sum(isinstance(module, ActivatedConv2d) for module in network.modules())


@pytest.mark.parametrize(
    ("use", "count"),
    [("", 4), ("shared", 2), ("of another kind", 3), ("reflected", 3), ("named", 3), ("added", 0), ("feature", 0)],
)
def test_activations_are_within_convolutions_where_nothing_else_sees_what_goes_into_them(use, count, caplog):
    with caplog.at_level(logging.INFO):
        found, expected, folded = run(trained(Branching(use)))
    assert ("activations are not folded into convolutions: that would change" in caplog.text) == (use == "added")
    same(found, expected)
    assert (norms(folded), activated(folded)) == (0, count)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: TimmBackbone("tf_efficientnet_lite0", [1, 2, 3], "random"), 21),
        (lambda: TimmBackbone("resnet18", [1, 2, 3], "random"), 7),  # those before an addition stay
        (lambda: TimmBackbone("mobilenetv3_large_100", [1, 2, 3], "random"), 29),
    ],
)
def test_networks_have_their_activations_within_convolutions(make, count, monkeypatch):
    backbone = trained(make())
    found, expected, folded = run(backbone)
    same(found, expected)
    assert activated(folded) == count
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())  # as in a torch without it
    other, _, plain = run(copy.deepcopy(backbone))
    assert activated(plain) == 0
    same(other, found, 2e-6)


@torch.no_grad()
def test_in_float64_activations_stay_where_they_are():
    backbone = trained(TimmBackbone("tf_efficientnet_lite0", [1, 2, 3], "random")).double()
    same(backbone(IMAGES.double()), backbone.forward(IMAGES.double()))


@torch.no_grad()
def test_where_activations_are_in_convolutions_autocast_gets_what_it_would():
    backbone = trained(Branching())
    backbone(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        same(backbone(IMAGES), backbone.forward(IMAGES), 0.02)
        assert backbone(IMAGES)[0].dtype == torch.bfloat16


@torch.no_grad()
def test_a_single_image_gets_to_the_bit_what_it_gets_in_a_batch():
    backbone = trained(TimmBackbone("mobilenetv3_large_100", [1, 2, 3], "random"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several divide the sums of a batch otherwise
    try:
        for one, both in zip(backbone(IMAGES[:1]), backbone(IMAGES), strict=True):
            assert torch.equal(one, both[:1])
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_images_that_are_not_finite_give_what_the_network_gives(value):
    backbone = trained(TimmBackbone("resnet18", [1, 2], "random"))
    assert activated(present(run(backbone)[2]))
    images = IMAGES.clone()
    images[1, 0, 30, 30] = value
    for ours, theirs in zip(backbone(images), backbone.forward(images), strict=True):
        assert theirs[1].isnan().any()
        assert torch.equal(ours.isnan(), theirs.isnan())


class Two(Backbone):
    """Two maps, one made of the other."""

    def __init__(self):
        super().__init__()
        self.info = FeatureInfo([4, 4], [1, 1], layers=[0, 1])
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.freeze(channels_last=True)

    def forward(self, images):
        first = self.norms[0](self.convs[0](images)).relu()
        return [first, self.norms[1](self.convs[1](first)).relu()]


@pytest.mark.parametrize("place", [0, 1])
@torch.no_grad()
def test_weights_that_are_not_finite_are_not_folded(place):
    backbone = Two()
    backbone.convs[place].weight[0, 0, 0, 0] = torch.nan
    found, expected, folded = run(backbone)
    assert folded is None
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
    assert found[1].isnan().any()


@pytest.mark.parametrize("place", [0, 1])
@torch.no_grad()
def test_a_map_of_zeros_is_no_obstacle(place):
    backbone = trained(Two())
    backbone.norms[place].weight.zero_()
    backbone.norms[place].bias.zero_()
    found, expected, folded = run(backbone)
    assert folded is not None
    assert not found[place].any()
    same(found, expected)


def test_networks_without_batch_norm_are_run_as_they_are():
    found, expected, folded = run(TimmBackbone("vgg11", [1, 2], "random"))
    same(found, expected, 0)
    assert folded is None


def test_what_folding_would_change_is_not_folded_and_a_line_says_so(caplog):
    with caplog.at_level(logging.INFO):
        found, expected, folded = run(trained(TwoUses()))
    same(found, expected, 0)
    assert folded is None
    assert "BatchNorm is not folded into convolutions: that would change features by" in caplog.text
    found, expected, _ = run(trained(TwoUses(feature=True)))
    same(found, expected, 0)


def test_changed_weights_are_folded_again():
    backbone = trained(TimmBackbone("resnet18", [1], "random"))
    before = run(backbone)[0]
    backbone.load_state_dict({key: value * 2 for key, value in backbone.state_dict().items()})
    same(*run(backbone)[:2])
    assert not torch.allclose(backbone.forward(IMAGES)[0], before[0])
    with torch.no_grad():
        backbone.network.layer1[0].conv1.weight.mul_(3)
        backbone.network.layer1[1].bn2.running_mean.add_(1)
    same(*run(backbone)[:2])
    backbone.double()
    with torch.no_grad():
        same(backbone(IMAGES.double()), backbone.forward(IMAGES.double()))


def replaced(backbone, change):
    if change == "weight":
        backbone.network.conv1.weight = nn.Parameter(backbone.network.conv1.weight * 3, requires_grad=False)
    elif change == "buffer":
        backbone.network.bn1.running_mean = backbone.network.bn1.running_mean + 1
    elif change == "module":
        backbone.network.conv1 = trained(TimmBackbone("resnet18", [1], "random")).network.conv1
    else:
        weights = {name: value * 2 for name, value in backbone.network.state_dict().items()}
        backbone.network.load_state_dict(weights, assign=True)


@pytest.mark.parametrize("change", ["weight", "buffer", "module", "assigned"])
@pytest.mark.parametrize("runtime", [Runtime(), Runtime("openvino")])
@torch.no_grad()
def test_what_is_put_in_place_of_a_part_is_seen(change, runtime):
    if runtime.engine == "openvino":
        pytest.importorskip("openvino")
    backbone = trained(TimmBackbone("resnet18", [1], "random"))
    backbone.run_with(runtime)
    before = backbone(IMAGES)
    replaced(backbone, change)
    found, expected = backbone(IMAGES), backbone.forward(IMAGES)
    assert not torch.allclose(found[0], before[0], rtol=1e-3)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-3, atol=1e-3)


def test_a_network_is_gone_with_its_last_user():
    backbone = trained(TimmBackbone("resnet18", [1], "random"))
    run(backbone)
    weight = weakref.ref(backbone.network.conv1.weight)
    gc.disable()
    try:
        del backbone
        assert weight() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda backbone: pickle.loads(pickle.dumps(backbone))])
def test_a_copy_runs_its_own_weights(copied):
    backbone = trained(TimmBackbone("resnet18", [1], "random"))
    run(backbone)
    other = copied(backbone)
    with torch.no_grad():
        other.network.conv1.weight.mul_(3)
    same(*run(other)[:2])
    same(*run(backbone)[:2])


def test_gradients_hooks_and_other_precisions_get_the_network_itself(monkeypatch):
    monkeypatch.setattr(engine, "fold", lambda *_: pytest.fail("it was folded"))
    backbone = trained(TimmBackbone("resnet18", [1], "random"))
    same(backbone(IMAGES), backbone.forward(IMAGES), 0)
    images = IMAGES.clone().requires_grad_()
    backbone(images)[0].sum().backward()
    assert images.grad is not None
    seen = []
    handle = backbone.network.bn1.register_forward_hook(lambda module, given, output: seen.append(output))
    with torch.no_grad():
        same(backbone(IMAGES), backbone.forward(IMAGES), 0)
    assert len(seen) == 2
    handle.remove()


@torch.no_grad()
def test_folding_can_be_left_out(monkeypatch):
    monkeypatch.setattr(engine, "fold", lambda *_: pytest.fail("it was folded"))
    backbone = trained(TimmBackbone("resnet18", [1], "random", fold=False))
    same(backbone(IMAGES), backbone.forward(IMAGES), 0)
    backbone = trained(EfficientNetBackbone("efficientnet-b0", [1], "random", fold=False))
    same(backbone(IMAGES), backbone.forward(IMAGES), 0)
    backbone = trained(TorchvisionBackbone("resnet18", ["layer1"], "random", fold=False))
    same(backbone(IMAGES), backbone.forward(IMAGES), 0)


def test_inference_mode_is_no_obstacle():
    with torch.inference_mode():
        backbone = trained(TimmBackbone("resnet18", [1], "random"))
        found, expected, folded = run(backbone)
        same(found, expected)
        assert folded is not None
