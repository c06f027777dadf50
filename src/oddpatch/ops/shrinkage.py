"""Covariances from few samples in many dimensions: shrinkage, and the components of least variance."""

import torch
from torch import Tensor


def ledoit_wolf(samples: Tensor) -> tuple[Tensor, float]:
    """Covariance shrunk towards a multiple of the identity by as much as the samples themselves suggest.

    Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004; the result is that of
    `sklearn.covariance.LedoitWolf`.

    Args:
        samples: (N, D).

    Returns:
        covariance (D, D) float64 = (1 - s) S + s m I, with S = X^T X / N of the centred samples and m its mean
        diagonal, and the shrinkage s in [0, 1].
    """
    centred = samples.double() - samples.double().mean(0)  # (N, D)
    count, dim = centred.shape
    covariance = centred.mT @ centred / count  # (D, D)
    scale = covariance.diagonal().mean()
    # delta: how far S is from m I. beta: how far, in expectation, S is from the true covariance.
    delta = (covariance.square().sum() - dim * scale.square()) / dim
    fourth = centred.square().sum(1).square().mean()  # mean of |x|^4, which is that of |x x^T|^2
    beta = torch.minimum((fourth - covariance.square().sum()) / (dim * count), delta)
    shrinkage = float(beta / delta) if dim > 1 and beta > 0 else 0.0
    covariance *= 1 - shrinkage
    covariance.diagonal().add_(shrinkage * scale)
    return covariance, shrinkage


def sample_covariance(samples: Tensor, epsilon: float) -> Tensor:
    """Covariance (D, D) float64 of samples (N, D), with N - 1 in the denominator and epsilon added to its diagonal."""
    centred = samples.double() - samples.double().mean(0)  # (N, D)
    covariance = centred.mT @ centred / (len(centred) - 1)  # (D, D)
    covariance.diagonal().add_(epsilon)
    return covariance


def least_variance_components(samples: Tensor, retained: float) -> Tensor:
    """Principal components that hold the last `retained` share of the variance: negated PCA, the reverse of the usual.

    Rippel et al., arXiv 2005.14140: what varies little among good images is what tells anomalies apart. As in their
    code, the component at which the leading ones pass 1 - retained of the variance is kept, and the one before it.
    Unlike there, the direction without any variance that N <= D samples leave, which is arbitrary, is not.

    Args:
        samples: (N, D).
        retained: share in (0, 1), such as 0.01.

    Returns:
        (D', D) float64 orthonormal rows, by falling variance, D' <= min(N - 1, D).
    """
    centred = samples.double() - samples.double().mean(0)  # (N, D)
    _, singular, components = torch.linalg.svd(centred, full_matrices=False)  # (R,), (R, D)
    rank = int((singular > singular[0] * max(centred.shape) * torch.finfo(torch.float64).eps).sum())
    share = singular[:rank].square().cumsum(0)
    passed = int((share <= (1 - retained) * share[-1:]).sum())
    return components[max(min(passed, rank - 1) - 1, 0) : rank]


def left_out_distances(samples: Tensor, epsilon: float | None) -> Tensor:
    """Mahalanobis distance of each sample to the mean and covariance of all others: as n refits give it, from one SVD.

    Leaving sample i out takes n / (n - 1) u u^T off the scatter, u being its deviation from the mean. The shrinkage of
    Ledoit and Wolf is that of the other samples, too: every sum that it is made of follows from those over all.

    Args:
        samples: (N, D), N at least 3.
        epsilon: of `sample_covariance`; None for the covariance of `ledoit_wolf`.

    Returns:
        (N,) float64; infinite where the covariance of the others is singular.
    """
    count, dim = samples.shape
    rest, ratio = count - 1, count / (count - 1)
    deviations = samples.double() - samples.double().mean(0)  # (N, D)
    left, singular, _ = torch.linalg.svd(deviations, full_matrices=False)  # (N, R), (R,)
    spectrum, along = singular.square(), (left * singular).square()  # (R,), (N, R) squares along the principal axes
    if epsilon is not None:
        weight, added = torch.full((count, 1), 1 / (rest - 1), dtype=along.dtype, device=along.device), epsilon
    else:
        squared = along.sum(1)  # (N,) |u|^2
        scale = (squared.sum() - ratio * squared) / rest / dim
        across = along @ spectrum  # (N,) u^T scatter u
        of_square = (spectrum.square().sum() - 2 * ratio * across + ratio**2 * squared.square()) / rest**2
        # sum over j of |u_j + u / (n - 1)|^4, less that of the sample itself
        cubic = deviations @ (squared[:, None] * deviations).sum(0)  # (N,) sum of |u_j|^2 u_j u
        fourth = squared.square().sum() + 4 * across / rest**2 + count * squared.square() / rest**4
        fourth = fourth + 4 * cubic / rest + 2 * squared * squared.sum() / rest**2 - (ratio**2 * squared).square()
        delta = (of_square - dim * scale.square()) / dim
        beta = torch.minimum((fourth / rest - of_square) / (dim * rest), delta)
        shrinkage = (beta / delta).where((beta > 0) & (dim > 1), torch.zeros_like(beta))  # (N,)
        weight, added = ((1 - shrinkage) / rest)[:, None], (shrinkage * scale)[:, None]
    whitened = (along / (weight * spectrum + added)).sum(1)  # (N,)
    remaining = (1 - ratio * weight[:, 0] * whitened).clamp(min=0)
    return ratio * (whitened / remaining).sqrt()
