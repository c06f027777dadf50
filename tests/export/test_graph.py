"""What no engine can run is one line, whatever its converter raises; the graphs themselves: test_methods.py."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from oddpatch.errors import ConfigError
from oddpatch.export import graph
from oddpatch.export.graph import to_onnx, to_openvino, to_program


class Untraceable(nn.Module):
    """Branches on what it is given, as no graph can."""

    image_size = (8, 8)
    detector = nn.Identity()

    def forward(self, image):
        return image * 2 if image.sum() > 0 else image


def program(**tensors):
    return SimpleNamespace(state_dict=tensors, constants={})


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.slow
def test_a_model_that_cannot_be_traced_is_one_line():
    with pytest.raises(ConfigError) as error:
        to_program(cast(Any, Untraceable()))
    told = one_line(error)
    assert told.startswith("Identity cannot be exported with this backbone (")
    assert told.endswith("): choose another model")


def test_what_a_model_refuses_itself_is_told_as_it_is(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConfigError("it cannot be exported: choose another model")

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(ConfigError, match=r"^it cannot be exported: choose another model$"):
        to_program(cast(Any, Untraceable()))


def test_what_torch_cannot_write_as_onnx_is_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no operator\nand much more") from ValueError("of this kind\nat line 3")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ConfigError, match=r"ONNX \(of this kind\): export with --format torch$") as error:
        to_onnx(program(), ["score"])
    one_line(error)


def test_a_model_too_large_for_onnx_is_refused_before_it_is_converted():
    large = torch.empty(2**29 - 2**18 + 1, device="meta")  # float32
    with pytest.raises(ConfigError, match=r"the model takes 2\.0 GiB, .* or export with --format torch") as error:
        to_onnx(program(bank=large), ["score"])
    one_line(error)
    assert large.nbytes - 4 == graph.MOST_BYTES


def test_what_openvino_cannot_read_is_one_line():
    pytest.importorskip("openvino")
    with pytest.raises(
        ConfigError, match=r"OpenVINO cannot read this model \(.*\): export with --format onnx$"
    ) as error:
        to_openvino(b"no model")
    one_line(error)
