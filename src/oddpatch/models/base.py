"""What every method shares: `Detector`, which knows feature maps only, and `AnomalyModel`, which is what is saved."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from oddpatch.errors import ConfigError, NotFittedError
from oddpatch.models.calibration import Calibration
from oddpatch.models.region import Region
from oddpatch.types import Prediction

if TYPE_CHECKING:
    from oddpatch.backbones.base import Backbone
    from oddpatch.data.transforms import Preprocess
    from oddpatch.ops.ranks import Ranks

#: Told how far a long `fit` has come: (steps done, steps in all, what is being done).
ProgressFn = Callable[[int, int, str], None]
FeatureShape = tuple[int, int, int]  # (C, h, w)


def no_progress(done: int, total: int, what: str) -> None:
    """Say nothing."""


class Detector(nn.Module, ABC):
    """Learns what the feature maps of good images look like, and scores how far others are from it.

    Life of a detector: `update` once per batch of good images, `fit` once, then `forward` as often as wanted.
    Fitted state is registered as buffers (name them in `fitted_buffers`) so that it travels in a state dict, whatever
    its shape. A detector sees features, never images.

    Args:
        channels: channels C_l of each feature map the backbone gives, finest first.
        strides: its strides, in image pixels per feature position.
        finest_stride: maps of a smaller stride are left out (their features are too generic for most methods).
    """

    fitted_buffers: tuple[str, ...] = ()
    #: False for methods that score whole images only: their predictions have no anomaly map.
    localizes: bool = True
    fitted: Tensor
    left_out: Tensor

    def __init__(self, channels: Sequence[int], strides: Sequence[int], finest_stride: int = 1) -> None:
        super().__init__()
        self.layers = [i for i, stride in enumerate(strides) if stride >= finest_stride]
        if not self.layers:
            raise ConfigError(
                f"finest_stride={finest_stride} leaves none of the backbone's maps (strides {list(strides)}): "
                f"choose at most {max(strides)}"
            )
        self.channels = [channels[i] for i in self.layers]
        self.strides = [strides[i] for i in self.layers]
        self.register_buffer("fitted", torch.tensor(False))
        #: Patches outside are neither fitted to nor scored.
        self.region = Region()
        #: Whether `score_left_out` will be asked for, see `expect_left_out`.
        self.left_out_expected = False
        #: Row i is what a method keeps of training image i for `score_left_out`; it is not saved.
        self.register_buffer("left_out", torch.empty(0), persistent=False)

    def restrict(self, mask: Tensor) -> None:
        """Inspect nothing but the pixels where mask (H, W) bool is true; to be called before `update`."""
        self.region = Region(mask)

    def select(self, features: list[Tensor]) -> list[Tensor]:
        """The maps this detector uses, of all that the backbone gave."""
        return [features[i] for i in self.layers]

    @abstractmethod
    def update(self, features: list[Tensor], index: Tensor) -> None:
        """Take in one batch of good images.

        Args:
            features: [(B, C_l, h_l, w_l)], finest first, as the backbone gave them.
            index: (B,) positions of the images in the dataset; the fitted state must not depend on their order.
        """

    @abstractmethod
    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Turn what was taken in into the fitted buffers, and let go of the rest."""

    def merge(self, ranks: "Ranks") -> None:
        """Bring what all ranks took in to rank zero, as if it had taken in all of it; the others let go of theirs.

        Called on every rank before rank zero fits; a rank may have taken in nothing. A method that does not say how
        its state is merged runs on one device only.
        """
        self.require_mergeable()

    def require_mergeable(self) -> None:
        """Raise a `ConfigError` unless this method, and any that it is made of, says how to `merge`."""
        for part in self.modules():
            if isinstance(part, Detector) and type(part).merge is Detector.merge:
                raise ConfigError(f"{type(part).__name__} cannot be fitted on several devices: set trainer=default")

    @torch.no_grad()
    def share(self, ranks: "Ranks") -> None:
        """Give every rank the buffers of rank zero, which has fitted."""
        for detector in self.modules():  # the members of an ensemble are detectors too
            if not isinstance(detector, Detector):
                continue
            own = dict(detector.named_buffers(recurse=False))
            shapes = ranks.exchange({name: (tuple(b.shape), b.dtype) for name, b in own.items()})[0]
            for name, (shape, dtype) in shapes.items():
                buffer = own[name].contiguous() if ranks.first else detector.allocate(name, shape, dtype)
                ranks.broadcast_(buffer)
                if not ranks.first:
                    setattr(detector, name, buffer)

    def allocate(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for one of the buffers, to be filled."""
        return torch.empty(shape, dtype=dtype, device=self.fitted.device)

    @abstractmethod
    def forward(self, features: list[Tensor], image_size: tuple[int, int]) -> Prediction:
        """Score a batch: `Prediction(score (B,), anomaly_map (B, 1, *image_size))`.

        Raises:
            NotFittedError: before `fit`.
        """

    def image_score(self, features: list[Tensor], image_size: tuple[int, int]) -> Tensor:
        """The scores (B,) that `forward` gives, for whoever needs no maps; a method that saves work by it says how."""
        return self(features, image_size).score

    def score_left_out(self, features: list[Tensor], index: Tensor, image_size: tuple[int, int]) -> Prediction:
        """Score images that were fitted to, each as if it had been left out of the fit.

        Optional: the default calibration uses it where a method has it, and fits to folds of the images elsewhere.

        Args:
            features: [(B, C_l, h_l, w_l)], as given to `update`.
            index: (B,) as given to `update`.
            image_size: as for `forward`.
        """
        raise ConfigError(f"{type(self).__name__} cannot leave an image out: set calibration=cross")

    @property
    def leaves_out(self) -> bool:
        """Whether this method, and any that it is made of, has `score_left_out`."""
        parts = [part for part in self.modules() if isinstance(part, Detector)]
        return all(type(part).score_left_out is not Detector.score_left_out for part in parts)

    def expect_left_out(self) -> None:
        """Say, before `update`, that `score_left_out` will be asked for: what makes it cheap can then be kept."""
        for part in self.modules():
            if isinstance(part, Detector):
                part.left_out_expected = True

    def require_left_out(self) -> None:
        """Raise `NotFittedError` unless `fit` has kept what `score_left_out` needs."""
        if not len(self.left_out):
            raise NotFittedError(f"{type(self).__name__}: call expect_left_out() before update() and fit()")

    @abstractmethod
    def required_memory(self, shapes: Sequence[FeatureShape], num_images: int) -> tuple[int, str]:
        """Bytes needed at the peak of `update` and `fit`, and the setting that lowers them.

        Args:
            shapes: (C, h, w) of every map the backbone gives for one image.
            num_images: good images that will be taken in.
        """

    def require_fitted(self) -> None:
        """Raise ``NotFittedError`` unless ``fit`` has run."""
        if not self.fitted:
            raise NotFittedError(f"{type(self).__name__} is not fitted: call update() with good images, then fit()")

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        # Fitted buffers take their shape at fit, so an unfitted detector must take on the shapes it is about to load.
        for name in self.fitted_buffers:
            stored = state_dict.get(prefix + name)
            if stored is not None:
                setattr(self, name, torch.empty_like(stored, device=self.fitted.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class AnomalyModel(nn.Module):
    """Preprocessing, backbone, detector and its calibration: what is saved, predicted with and exported."""

    preprocess: "Preprocess"
    backbone: "Backbone"
    detector: Detector
    calibration: Calibration

    def __init__(
        self,
        preprocess: "Preprocess",
        backbone: "Backbone",
        detector: Detector,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.detector = detector
        self.calibration = calibration or Calibration()
        if preprocess.roi_mask is not None:
            detector.restrict(preprocess.roi_mask[0])

    def forward(self, images: Tensor) -> Prediction:
        """Score preprocessed images (B, 3, H, W)."""
        return self.detector(self.backbone(images), tuple(images.shape[-2:]))

    @torch.no_grad()
    def update(self, images: Tensor, index: Tensor) -> None:
        """Take preprocessed good images (B, 3, H, W) into the detector."""
        self.detector.update(self.backbone(images), index)
