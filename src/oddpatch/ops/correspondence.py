"""Distance of every patch of one image to its nearest patches in other images, exactly and in bounded memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from oddpatch.ops.chunks import lengths
from oddpatch.ops.precision import full_precision

#: Patches that share one minimum: few enough that little is measured twice, enough for efficient products.
BLOCK = 512
#: Queries that are multiplied at a time on a CPU, where the products then stay in the second-level cache.
QUERY_ROWS = 512


@torch.no_grad()
def correspondence_distances(
    queries: Tensor, load: Callable[[int], Tensor], count: int, kappa: int = 1, *, metric: str = "euclidean"
) -> Tensor:
    """Mean distance of each query to its `kappa` nearest among the patches of `count` images.

    Float32 matrix products find each query's least distance in every block of patches. Only blocks that can hold one of
    the `kappa` nearest, given a bound on the rounding errors, are measured again, in float64. One image is held at a
    time, and Q * P * count / BLOCK minima.

    Args:
        queries: (Q, C) float32.
        load: gives the patches (P, C) of image 0..count-1, of any float type; it may be called twice for an image.
        count: number of images.
        kappa: neighbours, at most the number of all patches.
        metric: "euclidean", or of unit vectors "cosine": 1 - cos.

    Returns:
        (Q,) float32.
    """
    with full_precision():
        per_image, largest = _block_minima(queries, load, count)  # count x [(blocks, Q)]
        # Blocks whose minimum is beyond the kappa smallest minima cannot hold any of the kappa nearest patches.
        minima = torch.cat(per_image)  # (all blocks, Q)
        slack = (queries.shape[1] + 8) * torch.finfo(torch.float32).eps * (lengths(queries) + largest).square()  # (Q,)
        limit = minima.topk(min(kappa, len(minima)), dim=0, largest=False).values[-1] + slack
        if kappa > len(minima):
            limit = torch.full_like(limit, torch.inf)
        nearest = queries.new_full((len(queries), kappa), torch.inf, dtype=torch.float64)  # squared, short of |query|²
        for image, least in enumerate(per_image):
            wanted = least <= limit  # (blocks, Q)
            if not wanted.any():
                continue
            patches = load(image)  # (P, C)
            for block in wanted.any(1).nonzero()[:, 0].tolist():
                rows = wanted[block].nonzero()[:, 0]
                members = patches[block * BLOCK : (block + 1) * BLOCK].to(queries.device, torch.float64)  # (p, C)
                found = _left(queries[rows].double()) @ _right(members).T  # (q, p)
                nearest[rows] = _smallest(torch.cat([nearest[rows], _smallest(found, kappa)], dim=1), kappa)
        squared = nearest + queries.double().square().sum(1, keepdim=True)
    squared.clamp_(min=0)
    return (squared / 2 if metric == "cosine" else squared.sqrt_()).mean(1).float()


def _block_minima(queries: Tensor, load: Callable[[int], Tensor], count: int) -> tuple[list[Tensor], Tensor]:
    """Least `|patch|² - 2 query·patch` in each block of each image, (blocks, Q), and the largest norm of all."""
    on_gpu = queries.device.type == "cuda"
    step = len(queries) if on_gpu else min(QUERY_ROWS, len(queries))
    left = _left(queries)  # (Q, C+1)
    buffer = queries.new_empty(step * BLOCK)
    result = []
    largest = queries.new_zeros((), dtype=torch.float64)
    for image in range(count):
        right = _right(load(image).to(queries.device, torch.float32))  # (P, C+1)
        largest = torch.maximum(largest, right[:, -1].max().double().sqrt())
        blocks = right.split(BLOCK)
        minima = queries.new_empty(len(blocks), len(queries))
        for rows in range(0, len(queries), step):
            some = left[rows : rows + step]
            for number, block in enumerate(blocks):
                products = buffer[: len(some) * len(block)].view(len(some), len(block))
                torch.mm(some, block.T, out=products)
                torch.amin(products, 1, out=minima[number, rows : rows + step])
        result.append(minima)
    return result, largest


def _left(queries: Tensor) -> Tensor:
    return torch.cat([-2 * queries, queries.new_ones(len(queries), 1)], 1)  # (Q, C+1)


def _right(patches: Tensor) -> Tensor:
    # The squared norm is one more term of the product: adding it afterwards would be another pass over the products.
    return torch.cat([patches, patches.square().sum(1, keepdim=True)], 1)  # (P, C+1)


def _smallest(values: Tensor, kappa: int) -> Tensor:
    """The kappa smallest of each row, or all of it."""
    if kappa == 1:
        return values.amin(1, keepdim=True)
    return values.topk(min(kappa, values.shape[1]), dim=1, largest=False, sorted=False).values
