"""Smaller weights on request: half precision, or 8 bits, of an `onnx.ModelProto` in either format."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oddpatch.inference.artifact import INPUT

PRECISIONS = ("float32", "float16", "int8")
#: Values of a tensor from which on halving its size is worth a step when the file is loaded.
_WORTH_IT = 1024
_HIGHEST_HALF = float(np.finfo(np.float16).max)


def to_float16(model: Any) -> None:
    """Store weights and memory bank in half precision, in place; what runs them computes in float32.

    Tensors with values beyond what half precision holds stay as they are.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < _WORTH_IT or not np.abs(values).max() <= _HIGHEST_HALF:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.float16"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def to_int8(model: Any, images: Iterable[NDArray[np.float32]]) -> Any:
    """The model with the backbone's convolutions and matrix products in 8 bits; what follows stays in float32.

    Args:
        model: an `onnx.ModelProto`.
        images: (1, 3, h, w) each, good ones: the range of every activation is found on them.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self, images: Iterable[NDArray[np.float32]]) -> None:
            self.images: Iterator[NDArray[np.float32]] = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self.images, None)
            return None if image is None else {INPUT: image}

    of_backbone = {tensor.name for tensor in model.graph.initializer if tensor.name.startswith("backbone.")}
    kinds = ["Conv", "Gemm", "MatMul"]
    nodes = [node.name for node in model.graph.node if node.op_type in kinds and of_backbone & set(node.input)]
    with tempfile.TemporaryDirectory(prefix="oddpatch-int8-") as folder:
        path = Path(folder, "model.onnx")
        # Weights of 7 bits: without VNNI, processors add two products of 8 bits in 16, where the largest are cut off,
        # and an artifact would give other scores there than where it was made.
        quantize_static(
            model, path, Reader(images), quant_format=QuantFormat.QDQ, op_types_to_quantize=kinds, reduce_range=True,
            nodes_to_quantize=nodes, per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(path)
