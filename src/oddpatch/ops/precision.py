"""How matrix products and convolutions of float32 are computed: TF32 of GPUs keeps 10 of the 23 bits of a fraction."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

Precision = Literal["ieee", "tf32"]
_lock = threading.Lock()
#: What is asked for at the moment, by all threads: the setting is one of the process.
_wanted: list[Precision] = []
_before: list[Any] = []


@contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """Have them computed in float32 here, or where a GPU can in TF32; whatever was set before is set again after.

    torch computes matrix products in float32 unless told otherwise, but convolutions in TF32. While one thread asks for
    float32, all of them get it.
    """
    with _lock:
        if not _wanted:
            _before[:] = _settings()
        _wanted.append(precision)
        _set_all()
    try:
        yield
    finally:
        with _lock:
            _wanted.remove(precision)
            if _wanted:
                _set_all()
            else:
                _set(_before)


@contextmanager
def full_precision() -> Iterator[None]:
    """Have products of float32 computed in float32 here: neither TF32, nor bfloat16, nor autocast."""
    with float32_products("ieee"), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def _set_all() -> None:
    exact = "ieee" in _wanted
    if _by_backend():
        _set(["ieee" if exact else "tf32"] * len(_backends()))
    else:
        _set(["highest", False] if exact else ["high", True])


def _by_backend() -> bool:
    return hasattr(torch.backends.cuda.matmul, "fp32_precision")  # torch before 2.9 has two settings for all


def _backends() -> list[Any]:
    cudnn: Any = torch.backends.cudnn  # of whose two parts torch wants the same; mypy does not see them
    mkldnn: Any = torch.backends.mkldnn
    return [torch.backends.cuda.matmul, mkldnn.matmul, cudnn.conv, cudnn.rnn]


def _settings() -> list[Any]:
    if _by_backend():
        return [backend.fp32_precision for backend in _backends()]
    return [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32]


def _set(settings: list[Any]) -> None:
    if _by_backend():
        for backend, precision in zip(_backends(), settings, strict=True):
            backend.fp32_precision = precision
    else:
        torch.set_float32_matmul_precision(settings[0])
        torch.backends.cudnn.allow_tf32 = settings[1]
