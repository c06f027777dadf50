"""Streaming means and covariances at many positions at once, and what the Mahalanobis distance needs of them."""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from oddpatch.errors import ConfigError, DataError

#: Channels up to which covariances are small: beyond, the threads of NumPy's BLAS cost more than they gain.
SMALL = 128
#: Bytes of samples that are measured at a time on a CPU: with what is made of them, they stay in its cache.
CACHED = 2**20
#: Columns of a block of whitening matrices: they fill the vectors of a CPU.
COLUMNS = 32
#: Images whose products with matrices of `SMALL` channels OpenBLAS forms without threads of its own.
FEW = 64


class Moments(NamedTuple):
    """Count, mean and scatter (sum of outer products of deviations from the mean) of samples at P positions."""

    count: int  # type: ignore[assignment]
    mean: Tensor  # (P, D) float64: near offsets a thousand times the spread, float32 would lose the spread
    scatter: Tensor  # (P, D, D) float32 or float64


def empty_moments(
    positions: int, dim: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Moments:
    """Moments of no samples, with a scatter of type `dtype`."""
    mean = torch.zeros(positions, dim, dtype=torch.float64, device=device)
    return Moments(0, mean, torch.zeros(positions, dim, dim, dtype=dtype, device=device))


def add_samples(moments: Moments, samples: Tensor) -> Moments:
    """Add a batch of samples (P, B, D), in place, by the merge of Chan, Golub and LeVeque (1983).

    The batch is centred on its own mean before its outer products are formed, so an offset far larger than the spread
    costs no digits; the shift between the means enters as one more row of the same product.
    """
    batch = samples.shape[1]
    if batch == 0:
        return moments
    total = moments.count + batch
    samples = samples.to(torch.promote_types(samples.dtype, moments.scatter.dtype))
    centre = samples.mean(dim=1)  # (P, D)
    shape = (samples.shape[0], batch + 1, samples.shape[2])
    rows = samples.new_empty(shape, dtype=moments.scatter.dtype)  # (P, B+1, D)
    torch.sub(samples, centre.unsqueeze(1), out=rows[:, :batch])
    # The type of the samples rounds the centre; what the deviations still average to is put back in float64.
    batch_mean = centre.double() + rows[:, :batch].mean(dim=1)
    shift = batch_mean - moments.mean
    rows[:, batch] = shift * math.sqrt(moments.count * batch / total)
    moments.scatter.baddbmm_(rows.mT, rows)  # (P, D, D)
    moments.mean.add_(shift, alpha=batch / total)
    return Moments(total, moments.mean, moments.scatter)


def merge(first: Moments, second: Moments) -> Moments:
    """Moments of the samples of both, as if added together; written into `first`'s tensors."""
    total = first.count + second.count
    if total == 0:
        return first
    shift = second.mean - first.mean  # (P, D)
    weighted = (shift * math.sqrt(first.count * second.count / total)).to(first.scatter.dtype)
    first.scatter.add_(second.scatter).baddbmm_(weighted.unsqueeze(2), weighted.unsqueeze(1))
    first.mean.add_(shift, alpha=second.count / total)
    return Moments(total, first.mean, first.scatter)


def whiten_(scatter: Tensor, count: int, epsilon: float, start: int, stop: int) -> None:
    """Turn scatter[start:stop] into whitening matrices, in place.

    With the covariance S = scatter / (count - 1) + epsilon * I = L L^T, the whitening matrix is W = L^-1, so that the
    Mahalanobis distance is the plain length of W (x - mean). Keeping the factor in place of the precision
    W^T W costs the same and can never give a negative square. Computed in float64.

    Args:
        scatter: (P, D, D).
        count: number of samples in it.
        epsilon: added to the diagonal.
        start: first position.
        stop: position after the last.

    Raises:
        ConfigError: a covariance is not positive definite.
        DataError: one is not finite.
    """
    covariance = scatter[start:stop].double().div_(count - 1)  # (p, D, D)
    covariance.diagonal(dim1=1, dim2=2).add_(epsilon)
    inverse = _invert_factors_of_small if scatter.is_cpu and scatter.shape[-1] <= SMALL else _invert_factors
    # What is NaN or infinite in a feature is so in its variance; of matrices, not every LAPACK says so.
    finite = covariance.diagonal(dim1=1, dim2=2).isfinite().all(1)  # (p,)
    if not finite.all():
        raise DataError(
            f"features at position {start + int((~finite).nonzero()[0])} hold NaN, infinity or values too large: check "
            "the backbone's precision"
        )
    try:
        scatter[start:stop] = inverse(covariance)
    except (torch.linalg.LinAlgError, np.linalg.LinAlgError):
        position = start + _first_refused(inverse, covariance)
        raise ConfigError(
            f"epsilon={epsilon} with {count} images: the covariance at position {position} is not positive definite: "
            "raise epsilon (0.01 is usual), lower num_features, or give more images"
        ) from None


def _first_refused(inverse: Callable[[Tensor], Tensor], covariance: Tensor) -> int:
    """Which of matrices (p, D, D) the same routine does not factor; another one may get through by a rounding."""
    for position in range(len(covariance)):
        try:
            inverse(covariance[position : position + 1])
        except (torch.linalg.LinAlgError, np.linalg.LinAlgError):
            return position
    return 0


def _invert_factors(covariance: Tensor) -> Tensor:
    """Inverse Cholesky factors of matrices (p, D, D)."""
    factor = torch.linalg.cholesky(covariance)
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)


def _invert_factors_of_small(covariance: Tensor) -> Tensor:
    """The same on a CPU by the LAPACK of NumPy and SciPy: up to 100 channels it takes half of what torch's does."""
    from scipy.linalg.lapack import dtrtri

    factors = np.linalg.cholesky(covariance.numpy())
    for factor in factors:
        dtrtri(factor.T, lower=0, overwrite_c=1)  # in place: the transpose is in LAPACK's order
    return torch.from_numpy(factors)


def are_split(dim: int) -> bool:
    """Whether whitening matrices of so many channels are kept in blocks, or else whole."""
    return COLUMNS < dim <= SMALL


def empty_blocks(positions: int, dim: int, device: torch.device | str = "cpu") -> list[Tensor]:
    """Room for the whitening matrices of P positions, which `fill_blocks` fills.

    They are triangular, and reading them is most of what the distances of a single image cost. So most of the zeros are
    left out: of rows start to stop, 32 at a time, the first `stop` columns are kept, transposed, as one block
    (P, stop, stop - start), which products with samples read in one go. Of 100 channels 65 % remain. Large matrices,
    which are fitted in place, and tiny ones stay as they are, one "block" (P, D, D).
    """
    stops = [*range(COLUMNS, dim, COLUMNS), dim] if are_split(dim) else [dim]
    shapes = [(positions, stop, stop - start) for start, stop in zip([0, *stops], stops, strict=False)]
    if torch.device(device).type == "cpu":  # NumPy asks Linux for huge pages, torch does not: up to a third less time
        return [torch.from_numpy(np.empty(shape, np.float32)) for shape in shapes]
    return [torch.empty(shape, device=device) for shape in shapes]


def fill_blocks(blocks: Sequence[Tensor], part: slice, whitening: Tensor) -> None:
    """Write the whitening matrices (p, D, D) of some positions into the blocks."""
    for block, kept in zip(blocks, _triangle(blocks, whitening), strict=True):
        block[part] = kept


def from_blocks(blocks: Sequence[Tensor]) -> Tensor:
    """The whitening matrices (P, D, D)."""
    if len(blocks) == 1:
        return blocks[0]
    positions, dim = blocks[-1].shape[:2]
    whitening = blocks[-1].new_zeros(positions, dim, dim)
    for block, kept in zip(blocks, _triangle(blocks, whitening), strict=True):
        kept.copy_(block)
    return whitening


def _triangle(blocks: Sequence[Tensor], whitening: Tensor) -> list[Tensor]:
    """What is kept of matrices (p, D, D), as views like `blocks`."""
    if len(blocks) == 1:
        return [whitening]
    ends = [(block.shape[1] - block.shape[2], block.shape[1]) for block in blocks]
    return [whitening[:, start:stop, :stop].mT for start, stop in ends]


def mahalanobis(samples: Tensor, mean: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    """Mahalanobis distances.

    Args:
        samples: (P, B, D).
        mean: (P, D).
        blocks: whitening matrices of the positions, see `empty_blocks`.

    Returns:
        (P, B).
    """
    small = samples.device.type == "cpu" and samples.dtype == torch.float32
    if small and len(blocks) > 1 and not samples.requires_grad and not torch.compiler.is_compiling():
        return _mahalanobis_of_small(samples, mean, blocks)
    centred = samples - mean.unsqueeze(1)  # (P, B, D)
    if len(blocks) > 1:
        return torch.cat([torch.bmm(centred[:, :, : block.shape[1]], block) for block in blocks], dim=2).norm(dim=2)
    if not torch.compiler.is_exporting() and samples.shape[1] == 1:
        # Of one sample at each position all time goes into reading the matrices, which is done faster row by row.
        return torch.bmm(blocks[0], centred.mT).norm(dim=1)
    return torch.bmm(centred, blocks[0].mT).norm(dim=2)


def _mahalanobis_of_small(samples: Tensor, mean: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    """The same on a CPU by NumPy, whose products of small matrices take a third to a half of the time of torch's."""
    values, centre, factors = samples.numpy(), mean.numpy(), [block.numpy() for block in blocks]
    distances = np.empty(values.shape[:2], np.float32)  # (P, B)

    def measure(part: tuple[slice, slice]) -> None:
        centred = values[part] - centre[part[0], None]  # (p, b, D)
        whitened = np.empty_like(centred)
        for factor in factors:
            stop, width = factor.shape[1:]
            np.matmul(centred[..., :stop], factor[part[0]], out=whitened[..., stop - width : stop])
        np.sqrt(np.vecdot(whitened, whitened), out=distances[part])

    # NumPy multiplies each pair of small matrices in the thread that asks for it.
    threads, (positions, count, _) = torch.get_num_threads(), values.shape
    shares = threads * math.ceil(values.nbytes / (threads * CACHED))
    step = max(1, math.ceil(positions / max(1, shares)))
    parts = [
        (slice(start, start + step), slice(first, first + FEW))
        for start in range(0, positions, step)
        for first in range(0, count, FEW)
    ]
    for _ in map(measure, parts) if threads == 1 else workers(threads, os.getpid()).map(measure, parts):
        pass
    return torch.from_numpy(distances)


@lru_cache(maxsize=1)
def workers(count: int, process: int) -> ThreadPoolExecutor:
    """So many threads, which are kept; a process that was forked has none of them, and so asks by its number."""
    return ThreadPoolExecutor(count)


def left_out_mahalanobis(samples: Tensor, mean: Tensor, blocks: Sequence[Tensor], count: int) -> Tensor:
    """Mahalanobis distances of samples that mean and whitening were fitted to, as if each had not been.

    By the Sherman-Morrison formula the distance to the mean and covariance of the other n - 1 samples follows from the
    distance d to those of all n: with k = n / (n - 1), it is k d / sqrt(1 - k d^2 / (n - 1)). The epsilon on the
    diagonal then counts as (n - 2) / (n - 1) of itself, which makes the result an upper bound: too large by
    sqrt((n - 1) / (n - 2)) at most, 0.5 % with 100 samples. Where n is hardly more than the dimension the difference is
    of nearly equal numbers, and `left_out_from_samples` is to be used.

    Args:
        samples: (P, B, D), each one of those fitted to.
        mean: (P, D).
        blocks: whitening matrices of the positions, see `empty_blocks`.
        count: samples n it was fitted to, at least 3.

    Returns:
        (P, B).
    """
    squared = mahalanobis(samples, mean, blocks).double().square()  # (P, B)
    ratio = count / (count - 1)
    remaining = (1 - ratio / (count - 1) * squared).clamp_(min=torch.finfo(torch.float32).eps)
    return (ratio * (squared / remaining).sqrt()).float()


def left_out_from_samples(samples: Tensor, epsilon: float) -> Tensor:
    """Mahalanobis distance of each sample to the mean and covariance, with epsilon, of all others.

    Exact, and stable where there are fewer samples than dimensions. With the Gram matrix K of the centred samples and
    e_i the i-th diagonal element of epsilon (epsilon I + K / (n - 2))^-1 on the space that centring leaves, the squared
    distance of sample i is n (n - 2) / (n - 1) ((n - 1) / n - e_i) / e_i (Woodbury, then Sherman-Morrison).

    Args:
        samples: (P, N, D), N at least 3.
        epsilon: added to the diagonal of the covariances, above 0.

    Returns:
        (P, N).
    """
    count = samples.shape[1]
    centred = samples.double() - samples.double().mean(dim=1, keepdim=True)  # (P, N, D)
    gram = centred @ centred.mT / (count - 2)  # (P, N, N)
    # Centring leaves a direction without variance. It is given the mean variance, and taken off the inverse again.
    along = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]  # (P, 1, 1)
    gram = gram + along / count
    gram.diagonal(dim1=1, dim2=2).add_(epsilon)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram)).diagonal(dim1=1, dim2=2)  # (P, N)
    remaining = epsilon * (inverse - 1 / (count * (epsilon + along[:, 0])))
    squared = count * (count - 2) / (count - 1) * ((count - 1) / count - remaining) / remaining
    return squared.clamp_(min=0).sqrt().float()


def leading(variances: Tensor, share: float) -> int:
    """The fewest of `variances` (D,), the largest first, that make up a share of their sum.

    Raises:
        DataError: there is no variance.
    """
    held = variances.clamp(min=0).cumsum(0)
    if not held[-1] > 0:
        raise DataError("all of the good images have the same features: add images that differ")
    return int((held < share * held[-1]).sum()) + 1


def principal_components(scatter: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues (r,) and eigenvectors (D, r) of a scatter (D, D), rising, that hold a share of the variance."""
    values, vectors = torch.linalg.eigh(scatter)  # rising
    rank = leading(values.flip(0), share)
    return values[-rank:], vectors[:, -rank:].contiguous()


def lower_median(values: Tensor, dim: int) -> Tensor:
    """As `values.median(dim).values`, the lower of the two in the middle, which ONNX has no operator for."""
    if not torch.compiler.is_exporting():
        return values.median(dim=dim).values
    half = (values.shape[dim] - 1) // 2 + 1
    return values.topk(half, dim=dim, largest=False).values.select(dim, half - 1)
