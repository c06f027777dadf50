"""How scores, labels, maps and masks come in: zero-copy where that is possible, checked, with one-line errors."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oddpatch.errors import ConfigError, DataError, OddpatchError

#: NumPy arrays, torch tensors of any device, or nested sequences.
ArrayLike: TypeAlias = NDArray[Any] | Tensor | Sequence[Any]
Floats: TypeAlias = NDArray[np.floating[Any]]


class UndefinedMetricError(OddpatchError, ValueError):
    """A metric has no value for this data, such as AUROC where every image is good; the message says why."""


class NonFiniteScoreError(OddpatchError, ValueError):
    """A detector gave NaN or infinite scores, which have no rank."""


def to_numpy(values: ArrayLike) -> NDArray[Any]:
    """The values as an array; memory is shared unless they are on another device or bfloat16."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype.itemsize == 2 and values.is_floating_point() else values).numpy()
    return np.asarray(values)


def to_floats(values: ArrayLike) -> Floats:
    """The values as float32 or float64, whichever holds them exactly; these two are not copied."""
    array = to_numpy(values)
    if array.dtype in (np.float32, np.float64):
        return array
    return array.astype(np.float32 if np.can_cast(array.dtype, np.float32) else np.float64)


def to_scores_and_labels(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Finite scores (N,) and labels (N,) as booleans, True for anomalous.

    Raises:
        DataError: shapes differ, or a label is neither 0 nor 1.
        NonFiniteScoreError: a score is NaN or infinite.
    """
    scores, labels = to_floats(scores), to_numpy(labels)
    if scores.shape != labels.shape or scores.ndim != 1:
        raise DataError(f"scores {scores.shape} and labels {labels.shape} must both be of one shape (N,)")
    anomalous = labels == 1
    if not np.all(anomalous | (labels == 0)):
        wrong = labels[~(anomalous | (labels == 0))][0]
        raise DataError(f"labels hold {wrong}: give 0 for good and 1 for anomalous")
    require_finite(scores, "scores")
    return scores, anomalous


def to_both_classes(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """`to_scores_and_labels` of good and anomalous images.

    Raises:
        UndefinedMetricError: there is only one class.
        DataError: shapes differ, or a label is neither 0 nor 1.
        NonFiniteScoreError: a score is NaN or infinite.
    """
    scores, anomalous = to_scores_and_labels(scores, labels)
    count = int(anomalous.sum())
    if not 0 < count < anomalous.size:
        raise UndefinedMetricError(f"needs both good and anomalous: got {anomalous.size - count} and {count}")
    return scores, anomalous


def to_stack(images: ArrayLike, name: str) -> NDArray[Any]:
    """Images (N, H, W) or (N, 1, H, W) as an array (N, H, W).

    Raises:
        DataError: they have another shape.
    """
    stack = to_numpy(images)
    if stack.ndim == 4 and stack.shape[1] == 1:
        stack = stack[:, 0]
    if stack.ndim != 3:
        raise DataError(f"{name} of shape {stack.shape}: give (N, H, W) or (N, 1, H, W)")
    return stack


def require_finite(scores: Floats, name: str) -> None:
    """Let only finite scores through.

    Raises:
        NonFiniteScoreError: names how many are not, and the first position along the first axis.
    """
    bad = ~np.isfinite(scores)
    if bad.any():
        first = np.argwhere(bad)[0][0]
        raise NonFiniteScoreError(non_finite_message(int(bad.sum()), scores.size, f"{name}, first at position {first}"))


def non_finite_message(count: int, total: int, where: str) -> str:
    """One line that says how many scores cannot be ranked, where, and what usually helps."""
    return f"{count} of {total} values are NaN or infinite in {where}: score in float32, or leave those images out"


def check_fpr_limits(limits: Sequence[float]) -> tuple[float, ...]:
    """The limits of AU-PRO, if each is in (0, 1].

    Raises:
        ConfigError: one is not, or there is none.
    """
    if not limits or any(not 0 < limit <= 1 for limit in limits):
        raise ConfigError(f"fpr_limits={tuple(limits)}: give one or more false-positive rates in (0, 1], such as 0.3")
    return tuple(float(limit) for limit in limits)


def product(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Matrix product (S, T) of (S, N) and (N, T) in float64, where counts are exact: none comes near 2 ** 53.

    It is torch's, since NumPy's threads go on spinning for a while after each product.
    """
    tensors = (torch.from_numpy(array.astype(np.float64, copy=False)) for array in (left, right))
    return torch.mm(*tensors).numpy()
