"""A fitted model as one graph, from resized pixels to the decision: a program of torch, and from that ONNX."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oddpatch.errors import ConfigError
from oddpatch.inference.artifact import DECISION, INPUT, MAP, PRODUCT, RATIO, SCORE
from oddpatch.models.anomaly_model import AnomalyModel

#: Bytes from which on protocol buffers hold no message, and so no ONNX file that is complete in itself.
MOST_BYTES = 2**31 - 2**20


class Inspection(nn.Module):
    """Normalisation, features, scoring, smoothing, image score and decision.

    Args:
        model: fitted.
        threshold: an image that scores above it is anomalous; None for no decision.
        product_threshold: so is one of a ratio above it, see `oddpatch.models.products`; None where there is none.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    least: Tensor
    least_ratio: Tensor

    def __init__(self, model: AnomalyModel, threshold: float | None, product_threshold: float | None = None) -> None:
        super().__init__()
        preprocess = model.preprocess
        # Some architectures take images of one size only once they are converted.
        self.backbone, self.detector = model.backbone.for_size(preprocess.image_size), model.detector
        self.products = model.products
        self.image_size, self.threshold = preprocess.image_size, threshold
        # Not "mean": of that name, torch's exporter makes constants of its own.
        for name, values in (("pixel_mean", preprocess.mean), ("pixel_std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])
        if threshold is not None:
            self.register_buffer("least", torch.tensor(least_above(threshold)))
        beyond = float("inf") if product_threshold is None else least_above(product_threshold)
        self.register_buffer("least_ratio", torch.tensor(beyond))
        self.eval()

    @property
    def outputs(self) -> list[str]:
        """Names of what `forward` returns."""
        maps = [MAP] if self.detector.localizes else []
        products = [RATIO, PRODUCT] if self.products is not None else []
        return [SCORE, *maps, *products, *([DECISION] if self.threshold is not None else [])]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Of images (B, 3, h, w) in [0, 1] what `outputs` names, as there are.

        Score (B,), anomaly map (B, 1, h, w), ratio (B,) and number (B,) of the product, decision (B,) bool.
        """
        features = self.backbone((image - self.pixel_mean) / self.pixel_std)
        score, anomaly_map = self.detector(features, self.image_size)
        found = [score.float(), *([] if anomaly_map is None else [anomaly_map.float()])]
        decision = None if self.threshold is None else score.float() >= self.least
        if self.products is not None:
            ratio, product = self.products.match(features)
            found += [ratio, product]
            decision = None if decision is None else decision | (ratio >= self.least_ratio)
        return (*found, *([] if decision is None else [decision]))


def least_above(threshold: float) -> float:
    """The smallest float32 above a threshold: engines compare in float32, and the threshold may lie between two."""
    nearest = np.float32(threshold)
    return float(nearest if float(nearest) > threshold else np.nextafter(nearest, np.float32(np.inf)))


def to_program(inspection: Inspection) -> torch.export.ExportedProgram:
    """The graph as `torch.export` has it, for batches of any size.

    Raises:
        ConfigError: the method cannot be exported.
    """
    height, width = inspection.image_size
    example = torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch", min=1, max=4096)
    with _quiet():
        with torch.inference_mode():
            inspection(example[:1])  # what is computed once and kept is not traced
        try:
            with torch.no_grad():
                return torch.export.export(inspection, (example,), dynamic_shapes={INPUT: {0: batch}})
        except ConfigError:
            raise
        except Exception as error:  # of a tracer, which has many
            method = type(inspection.detector).__name__
            raise ConfigError(
                f"{method} cannot be exported with this backbone ({_first_line(error)}): choose another model"
            ) from error


def to_onnx(program: torch.export.ExportedProgram, outputs: list[str]) -> Any:
    """The graph as an `onnx.ModelProto`.

    Raises:
        ConfigError: ONNX has no operators for it, or it is too large for a file of ONNX.
    """
    tensors = {**program.state_dict, **program.constants}.values()
    size = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
    if size > MOST_BYTES:
        raise ConfigError(
            f"the model takes {size / 2**30:.1f} GiB, and a file of ONNX holds less than 2: fit with a smaller memory "
            "bank (model.coreset_ratio) or fewer features, or export with --format torch"
        )
    with _quiet():
        try:
            exported = torch.onnx.export(
                program, (), dynamo=True, input_names=[INPUT], output_names=outputs, external_data=False, verbose=False
            )
        except Exception as error:  # of a converter, which has many
            raise ConfigError(
                f"torch cannot write this model as ONNX ({_first_line(error)}): export with --format torch"
            ) from error
    assert exported is not None
    return exported.model_proto


def to_openvino(onnx_model: bytes) -> Any:
    """The graph as an `openvino.Model`.

    Raises:
        ConfigError: OpenVINO has no operators for it.
    """
    from oddpatch.engines import openvino_core

    try:
        return openvino_core().read_model(io.BytesIO(onnx_model))
    except Exception as error:
        raise ConfigError(
            f"OpenVINO cannot read this model ({_first_line(error)}): export with --format onnx"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what tracers and converters tell of their own steps."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(level)


def _first_line(error: BaseException) -> str:
    """Of the error that all began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
