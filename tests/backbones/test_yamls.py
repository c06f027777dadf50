"""Every backbone of configs/backbone: its maps are what it says, and every method works on them."""

import copy
import functools

import pytest
import torch
from conftest import CONFIGS

from oddpatch.backbones.inspection import describe, on_meta, settings_of
from oddpatch.hydra_entry import building
from oddpatch.models.gaussian import GaussianAD
from oddpatch.models.padim import PaDiM
from oddpatch.models.patchcore import PatchCore
from oddpatch.models.spade import SPADE

SINGLE = sorted(p.stem for p in (CONFIGS / "backbone").glob("*.yaml") if "EnsembleBackbone" not in p.read_text())
SIZE = 224  # a multiple of every stride
SMALL = ["effnet_lite0", "mobilenetv3", "resnet18"]
TRANSFORMERS = {"vit_b16": 16, "vit_b32": 32, "deit_b": 16}
DINO = {f"dinov2{kind}": 14 for kind in ("_s", "_b", "_l", "reg_s", "reg_b", "reg_l")}
DINO |= {f"dinov3_{size}": 16 for size in "sbl"}
TRANSFORMERS |= DINO
METHODS = {
    "gaussian": lambda c, s: GaussianAD(c, s),
    "padim": lambda c, s: PaDiM(c, s, num_features=min(16, sum(c))),
    "patchcore": lambda c, s: PatchCore(c, s, coreset_ratio=0.5, num_neighbors=3),
    "spade": lambda c, s: SPADE(c, s, k=2),
}


@pytest.fixture(scope="module")
def metas():
    """Each backbone without numbers in it, made when first asked for."""
    return functools.cache(lambda name: on_meta(settings_of(name)))


@pytest.mark.parametrize("name", SINGLE)
def test_maps_are_as_told_and_nothing_learns(name, metas):
    backbone = metas(name)
    about = describe(backbone, (SIZE, SIZE))
    assert [c for c, _, _ in about.shapes] == backbone.info.channels
    for (_, height, width), stride in zip(about.shapes, backbone.info.strides, strict=True):
        assert height == width
        assert height == SIZE // stride
    assert backbone.info.strides == sorted(backbone.info.strides)
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert about.flops > 0


@pytest.mark.parametrize(("name", "stride"), TRANSFORMERS.items())
def test_transformers_give_their_patches_alone_at_other_sizes_too(name, stride, metas):
    assert {s[1:] for s in metas(name).feature_shapes((8 * stride, 8 * stride))} == {(8, 8)}


@pytest.mark.parametrize(("name", "stride"), DINO.items())
def test_dino_gives_normed_blocks_and_class_tokens_at_published_sizes(name, stride):
    backbone = on_meta({**settings_of(name), "norm": True, "class_token": True})
    (channels,) = set(backbone.info.channels)
    for size in (size for size in (392, 448, 672) if size % stride == 0):
        grid = (channels, size // stride, size // stride)
        assert backbone.feature_shapes((size, size)) == [grid, grid, (channels, 1, 1), (channels, 1, 1)]
    assert backbone.info.strides == [stride, stride, 0, 0]


#: Large ones differ from the small ones of their family in width and depth alone.
ONE_OF_EACH = [name for name in SINGLE if not name.endswith("_l")]


@pytest.mark.parametrize("name", [n if n in SMALL else pytest.param(n, marks=pytest.mark.slow) for n in ONE_OF_EACH])
def test_a_state_dict_goes_round(name):
    first = building.make({**settings_of(name), "weights": "random"})
    second = copy.deepcopy(first)  # which draws no weights
    images = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tensor in second.state_dict().values():
            tensor.zero_()
        second.load_state_dict(first.state_dict())
        for a, b in zip(first(images), second(images), strict=True):
            torch.testing.assert_close(a, b)
            assert a.shape[0] == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SINGLE)
def test_every_method_works_on_every_backbone(name, method, metas):
    backbone = metas(name)
    channels = [
        min(c, 24) for c in backbone.info.channels
    ]  # the shapes matter here, and methods do not read the channels
    generator = torch.Generator().manual_seed(0)

    def features(count):
        sides = [max(2, 64 // stride) for stride in backbone.info.strides]
        return [torch.randn(count, c, s, s, generator=generator) for c, s in zip(channels, sides, strict=True)]

    detector = METHODS[method](channels, backbone.info.strides)
    detector.update(features(5), torch.arange(5))
    detector.fit()
    good = features(2)
    anomalous = [f + 9 for f in good]
    prediction = detector(good, (64, 64))
    assert prediction.score.shape == (2,)
    assert prediction.score.isfinite().all()
    assert (detector(anomalous, (64, 64)).score > prediction.score).all()
    if detector.localizes:
        assert prediction.anomaly_map.shape == (2, 1, 64, 64)
