"""How matrix products and convolutions of float32 are computed: TF32 of GPUs keeps 10 of the 23 bits of a fraction."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch


@contextmanager
def float32_products(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Have them computed in float32 here, or where a GPU can in TF32; whatever was set before is set again after.

    torch computes matrix products in float32 unless told otherwise, but convolutions in TF32.
    """
    cudnn: Any = torch.backends.cudnn  # mypy does not see its `conv`
    backends: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    if hasattr(backends[0], "fp32_precision"):
        backends.append(cudnn.conv)
        before = [backend.fp32_precision for backend in backends]
        try:
            for backend in backends:
                backend.fp32_precision = precision
            yield
        finally:
            for backend, was in zip(backends, before, strict=True):
                backend.fp32_precision = was
        return
    products, convolutions = torch.get_float32_matmul_precision(), cudnn.allow_tf32  # torch before 2.9
    try:
        torch.set_float32_matmul_precision("highest" if precision == "ieee" else "high")
        cudnn.allow_tf32 = precision == "tf32"
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        cudnn.allow_tf32 = convolutions


@contextmanager
def full_precision() -> Iterator[None]:
    """Have products of float32 computed in float32 here: neither TF32, nor bfloat16, nor autocast."""
    with float32_products("ieee"), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield
