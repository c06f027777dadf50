"""Any outlier detector of PyOD on patch features (Zhao et al., JMLR 20, 2019; https://pyod.readthedocs.io)."""

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oddpatch.errors import ConfigError
from oddpatch.models.base import ProgressFn, no_progress
from oddpatch.models.memory_bank import MemoryBankDetector
from oddpatch.models.selectors import Selector
from oddpatch.ops.neighbours import require_finite

log = logging.getLogger(__name__)


class PyOD(MemoryBankDetector):
    """A detector of PyOD, fitted to patches of good images.

    What PyOD has fitted is not saved: the patches are, and it is fitted to them again when they are loaded. It runs on
    the CPU, on the patches of one image at a time: some detectors (ECOD, COPOD) rank what they score among itself.

    Args:
        channels, strides: see `MemoryBankDetector`.
        detector: makes it, without arguments.
        coreset_size, selector, patch_size, top, smoothing, seed, finest_stride: see `MemoryBankDetector`. The seed is
            also that of NumPy, Python and torch wherever PyOD runs.

    Raises:
        ConfigError: it makes no detector of PyOD.

    Examples:
        >>> import torch
        >>> from oddpatch.models.pyod import PyOD
        >>> from pyod.models.knn import KNN
        >>> good = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))  # a feature map of 8 images
        >>> detector = PyOD(channels=[4], strides=[8], detector=KNN)
        >>> detector.update([good], torch.arange(8))
        >>> detector.fit()
        >>> odd = good[:1].clone()
        >>> odd[..., 3, 2] += 9
        >>> score, anomaly_map = detector([odd], (48, 48))
        >>> [position // 8 for position in divmod(int(anomaly_map.argmax()), 48)]  # the patch with the highest pixel
        [3, 2]
    """

    parts: ClassVar = {**MemoryBankDetector.parts, "detector": ("outlier", "maker")}
    exportable = False

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        detector: Callable[[], Any],
        coreset_size: int | None = 5000,
        selector: str | Selector = "random",
        patch_size: int = 3,
        top: float | None = None,
        smoothing: float = 4.0,
        seed: int = 0,
        finest_stride: int = 8,
    ) -> None:
        super().__init__(channels, strides, coreset_size, selector, patch_size, top, smoothing, seed, finest_stride)
        self.make = detector
        self._require_outlier_detector()
        #: Fitted to the memory bank; None where that has yet to be done.
        self.outliers: Any = None

    def _require_outlier_detector(self) -> None:
        try:
            from pyod.models.base import BaseDetector

            with _running(self.seed):
                made = self.make()
        except Exception as error:  # PyOD's constructors raise errors of any type
            raise ConfigError(f"model.detector cannot be made ({_reason(error)}): change its settings") from error
        if not isinstance(made, BaseDetector):
            raise ConfigError(
                f"model.detector makes a {type(made).__name__}, which is no detector of PyOD: choose one of pyod.models"
            )

    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Fit the detector of PyOD.

        Raises:
            DataError: there is no image.
            ConfigError: PyOD cannot be fitted to them.
        """
        with torch.no_grad():
            self.memory_bank = self.take_bank(torch.Generator().manual_seed(self.seed), progress).float()
        self._fit_to_bank()
        self.finish()

    def _fit_to_bank(self) -> None:
        outliers = None
        with _running(self.seed):
            try:
                outliers = self.make()
                outliers.fit(_array(self.memory_bank))
            except Exception as error:  # PyOD and what it is made of raise errors of any type
                raise ConfigError(
                    f"{type(outliers).__name__} cannot be fitted to patches of shape {tuple(self.memory_bank.shape)} "
                    f"({_reason(error)}): choose another model.detector, or other settings of it"
                ) from error
        self.outliers = outliers

    def score_patches(self, patches: Tensor) -> Tensor:
        """Scores (B, P), of any sign."""
        if torch.compiler.is_exporting():
            raise ConfigError("PyOD is not made of torch operations and cannot be exported: choose another model")
        require_finite(patches.flatten(0, 1), "patches")  # some of PyOD's detectors make numbers of NaN
        if self.outliers is None:  # on a device that was given the state of another
            self._fit_to_bank()
        scores = []
        for image in patches:
            with _running(self.seed):
                scores.append(torch.from_numpy(np.asarray(self.outliers.decision_function(_array(image)))))
        return torch.stack(scores).to(patches.device, torch.float32)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.outliers = None
        if self.is_fitted:
            start = time.perf_counter()
            self._fit_to_bank()
            log.info(
                "fitted %s again, to the %d patches that were stored, in %.1f s",
                type(self.outliers).__name__,
                len(self.memory_bank),
                time.perf_counter() - start,
            )


def _array(patches: Tensor) -> NDArray[np.float64]:
    return patches.detach().cpu().double().numpy()


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@contextmanager
def _running(seed: int) -> Iterator[None]:
    """Have what draws from a global generator draw the same each time, start no process, and compute gradients."""
    from joblib import parallel_config

    # PyOD and scikit-learn draw from NumPy's global generator unless told otherwise.
    before, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    with (
        parallel_config(backend="threading"), torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad()
    ):  # fmt: skip
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002
            random.setstate(python)
