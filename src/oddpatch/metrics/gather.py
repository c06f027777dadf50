"""Bringing the rows that several devices hold together, whatever their number."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from oddpatch.errors import DataError


def gather_rows(rows: Tensor, group: Any | None = None) -> list[Tensor]:
    """All devices' rows (n_r, ...), on the CPU, in the order of the ranks; a rank may have none.

    Takes the place of torchmetrics' `gather_all_tensors`, which needs every rank to have data, and which NCCL refuses
    for tensors on the CPU.

    Raises:
        DataError: the rows of the devices differ in shape.
    """
    described: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(described, (tuple(rows.shape), rows.dtype), group=group)
    shapes = {shape[1:] for shape, _ in described if shape[0]}
    if len(shapes) > 1:
        raise DataError(f"the devices hold maps of different shapes {sorted(shapes)}: resize all to one size")
    # A rank that saw nothing knows neither the shape of a row nor its type: it learns them from one that does.
    shape, dtype = next((it for it in described if it[0][0]), described[0])
    counts = [it[0][0] for it in described]
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else "cpu"
    own = (rows if rows.shape[0] else rows.new_empty(0, *shape[1:])).to(device, dtype).contiguous()
    padded = F.pad(own, [0, 0] * (own.ndim - 1) + [0, max(counts) - own.shape[0]])
    received = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(received, padded, group=group)
    return [tensor[:count].cpu() for tensor, count in zip(received, counts, strict=True)]
