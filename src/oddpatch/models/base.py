"""What every method shares: `Detector` and `PatchDetector`, which know feature maps only."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from oddpatch.errors import ConfigError, NotFittedError
from oddpatch.models.region import RegionOfInterest
from oddpatch.models.state import Accumulator
from oddpatch.ops.maps import anomaly_map, mean_of_highest
from oddpatch.ops.patches import align
from oddpatch.types import Prediction

if TYPE_CHECKING:
    from oddpatch.ops.ranks import Ranks

#: Told how far a long `fit` has come: (steps done, steps in all, what is being done).
ProgressFn = Callable[[int, int, str], None]
FeatureShape = tuple[int, int, int]  # (C, h, w)
#: What patches can be compared by.
DISTANCES = ("euclidean", "cosine")


def no_progress(done: int, total: int, what: str) -> None:
    """Say nothing."""


class Detector(nn.Module, ABC):
    """Learns what the feature maps of good images look like, and scores how far others are from it.

    Life of a detector: `update` once per batch of good images, `fit` once, then `forward` as often as wanted. A method
    writes these three. What `update` keeps, it keeps in accumulators (`oddpatch.models.state`), from which order,
    several devices and memory follow. `fit` puts its result into buffers (named in `fitted_buffers`), so that it
    travels in a state dict, whatever its shape, and ends with `finish`. A detector sees features, never images.

    Args:
        channels: channels C_l of each feature map the backbone gives, finest first.
        strides: its strides, in image pixels per feature position; 0 of a class token, a map of a single position
            that describes the whole image.
        finest_stride: maps of a smaller stride are left out (their features are too generic for most methods).
    """

    fitted_buffers: tuple[str, ...] = ()
    #: False for methods that score whole images only: their predictions have no anomaly map.
    localizes: bool = True
    #: Whether `torch.export` can follow `forward`; where it cannot, `forward` says so in one line.
    exportable: bool = True
    #: What to do where an artifact gives other numbers.
    parity_remedy: str = "export with another --format"
    #: Whether `update` and `forward` look at nothing outside `self.region`; others refuse `data.roi`.
    inspects_regions: bool = False
    #: Whether `score_left_out` leaves out all views of an image where it was shown several (`data.views`).
    leaves_out_views: bool = False
    #: By what patches are compared, "euclidean" or "cosine", where a fitted detector can go over to the other.
    distance: str | None = None
    #: The settings that lower `required_memory`, as an error suggests them.
    memory_remedy: str = "lower data.resize and data.crop, or drop the backbone's finest layer"
    #: Arguments that describe further objects in a checkpoint: their kind, and how they are given, see `known.py`.
    parts: ClassVar[dict[str, tuple[str, str]]] = {}
    fitted: Tensor
    left_out: Tensor

    def __init__(self, channels: Sequence[int], strides: Sequence[int], finest_stride: int = 1) -> None:
        super().__init__()
        self.layers = [i for i, stride in enumerate(strides) if stride and stride >= finest_stride]
        self.token_layers = [i for i, stride in enumerate(strides) if not stride]
        if not self.layers:
            raise ConfigError(
                f"finest_stride={finest_stride} leaves none of the backbone's maps (strides {list(strides)}): "
                f"choose at most {max(strides)}"
            )
        self.channels = [channels[i] for i in self.layers]
        self.strides = [strides[i] for i in self.layers]
        #: Smallest shapes (C, h, w) of the backbone's maps whose grids divide each other as those of an image do.
        sides = [max(strides) // stride if stride else 1 for stride in strides]
        self._least_shapes = [(c, side, side) for c, side in zip(channels, sides, strict=True)]
        #: What the buffer `fitted` says, known without reading a tensor.
        self.is_fitted = False
        self.register_buffer("fitted", torch.tensor(False))
        #: Patches outside are neither fitted to nor scored.
        self.region = RegionOfInterest()
        #: Whether `score_left_out` will be asked for, see `expect_left_out`.
        self.left_out_expected = False
        self.images_expected: int | None = None
        #: Row i is what a method keeps of training image i for `score_left_out`; it is not saved.
        self.register_buffer("left_out", torch.empty(0), persistent=False)

    @classmethod
    def draws(cls, settings: Mapping[str, Any]) -> bool:
        """Whether another `seed` gives another fit, with these arguments, defaults among them.

        True for every method that has a seed, unless it says when nothing is drawn.
        """
        return "seed" in settings

    def restrict(self, mask: Tensor) -> None:
        """Inspect nothing but the pixels where mask (H, W) bool is true; to be called before `update`.

        Raises:
            ConfigError: this method would look at the others, too.
        """
        if not self.inspects_regions:
            raise ConfigError(
                f"{type(self).__name__} cannot leave out what lies outside data.roi: set data.roi=null, or choose "
                "another model"
            )
        self.region = RegionOfInterest(mask)

    def select(self, features: list[Tensor]) -> list[Tensor]:
        """The maps this detector uses, of all that the backbone gave."""
        return [features[i] for i in self.layers]

    def aligned(self, features: list[Tensor]) -> list[Tensor]:
        """Those of `select`, brought to the grid of the first: [(B, C_l, h, w)]."""
        maps = self.select(features)
        return [align(one, (maps[0].shape[2], maps[0].shape[3]), "bilinear") for one in maps]

    def class_token(self, features: list[Tensor]) -> Tensor:
        """Unit vectors (B, C) that describe whole images: the deepest class token, or the mean of the deepest map.

        The mean is of the patches that are inspected, and stands in where the backbone gives no class token.
        """
        if self.token_layers:
            token = features[self.token_layers[-1]].flatten(1)
        else:
            token = self.region.average(features[self.layers[-1]])
        return nn.functional.normalize(token.double()).float()

    @abstractmethod
    def update(self, features: list[Tensor], index: Tensor) -> None:
        """Accumulate one batch of good images.

        Args:
            features: [(B, C_l, h_l, w_l)], finest first, as the backbone gave them.
            index: (B,) positions of the images in the dataset; the fitted state must not depend on their order.
        """

    @abstractmethod
    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Turn what was accumulated into the fitted buffers, and `finish`."""

    @abstractmethod
    def forward(self, features: list[Tensor], image_size: tuple[int, int]) -> Prediction:
        """Score a batch: `Prediction(score (B,), anomaly_map (B, 1, *image_size))`.

        Raises:
            NotFittedError: before `fit`.
        """

    @property
    def detectors_within(self) -> list["Detector"]:
        """This detector, and the members of an ensemble."""
        return [part for part in self.modules() if isinstance(part, Detector)]

    @property
    def accumulators(self) -> list[Accumulator]:
        """What `update` of this detector adds to."""
        return [value for value in vars(self).values() if isinstance(value, Accumulator)]

    def finish(self) -> None:
        """Free what was accumulated; from now on the detector is fitted."""
        for accumulator in self.accumulators:
            accumulator.clear()
        self._set_fitted(True)

    def _set_fitted(self, fitted: bool) -> None:
        self.is_fitted = fitted
        self.fitted.fill_(fitted)

    def probe(self, shapes: Sequence[FeatureShape]) -> Self:
        """A copy of this detector, nothing having been accumulated, that was shown one image of these shapes."""
        copy, drawn = deepcopy(self), torch.Generator().manual_seed(0)
        for accumulator in (a for detector in copy.detectors_within for a in detector.accumulators):
            accumulator.probing = True
        features = [torch.randn(1, *shape, generator=drawn).to(self.fitted.device) for shape in shapes]
        copy.update(features, torch.tensor([0]))
        return copy

    @torch.no_grad()
    def merge(self, ranks: "Ranks") -> None:
        """Bring what all ranks accumulated to rank zero, as if it had seen all of it; the others free theirs.

        Called on every rank before rank zero fits; a rank may have seen nothing.
        """
        for detector in self.detectors_within:
            for accumulator in detector.accumulators:
                accumulator.merge(ranks, self.fitted.device)

    @torch.no_grad()
    def require_mergeable(self) -> None:
        """Raise a `ConfigError` if this method, or one that it is made of, keeps anything that `merge` does not see."""
        copy = deepcopy(self)
        before = [_state(detector) for detector in copy.detectors_within]
        copy.update([torch.randn(1, *shape).to(self.fitted.device) for shape in self._least_shapes], torch.tensor([0]))
        for detector, old in zip(copy.detectors_within, before, strict=True):
            new = _state(detector)
            outside = [k for k in new if k not in old or new[k][0] is not old[k][0] or new[k][1:] != old[k][1:]]
            if outside or not (detector.accumulators or len(copy.detectors_within) > 1):
                kept = f"keeps {', '.join(outside)} outside of accumulators" if outside else "keeps no accumulator"
                raise ConfigError(
                    f"{type(detector).__name__} cannot be fitted on several devices, as it {kept}: set trainer=default"
                )

    @torch.no_grad()
    def share(self, ranks: "Ranks") -> None:
        """Give every rank the state of rank zero, which has fitted."""
        for detector in self.detectors_within:
            for tensor in detector._learned():
                ranks.broadcast_(tensor)
            own = dict(detector.named_buffers(recurse=False))
            shapes = ranks.exchange({name: (tuple(b.shape), b.dtype) for name, b in own.items()})[0]
            for name, (shape, dtype) in shapes.items():
                buffer = own[name].contiguous() if ranks.first else detector.allocate(name, shape, dtype)
                ranks.broadcast_(buffer)
                if not ranks.first:
                    setattr(detector, name, buffer)
            detector.is_fitted = True
            detector.read_buffers()

    def read_buffers(self) -> None:
        """Derive what a detector keeps beside its buffers; called when they come from a file or from another rank."""

    def _learned(self) -> list[Tensor]:
        """Parameters and buffers of the networks within, but of no other detector: their shapes are known unfitted."""
        others = tuple(f"{name}." for name, part in self.named_modules() if isinstance(part, Detector) and name)
        return [value for name, value in self.state_dict().items() if "." in name and not name.startswith(others)]

    def allocate(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for one of the buffers, to be filled."""
        return torch.empty(shape, dtype=dtype, device=self.fitted.device)

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
        return all(type(part).score_left_out is not Detector.score_left_out for part in self.detectors_within)

    @property
    def leaves_out_all_views(self) -> bool:
        """Whether it does so where an image was shown in several views."""
        return self.leaves_out and all(part.leaves_out_views for part in self.detectors_within)

    def require_views(self) -> None:
        """Raise a `ConfigError` if this method would keep the first view of each image only."""
        for part in self.detectors_within:
            if any(accumulator.unique for accumulator in part.accumulators):
                raise ConfigError(
                    f"{type(part).__name__} keeps one row of each image, and would see none of its other views: set "
                    "data.views=null"
                )

    def expect_left_out(self, num_images: int | None = None) -> None:
        """Say, before `update`, that `score_left_out` will be asked for: what makes it cheap can then be kept.

        Args:
            num_images: good images that there will be, but for those that cannot be read; None if that is not known.
        """
        for part in self.detectors_within:
            part.left_out_expected, part.images_expected = True, num_images

    def require_left_out(self) -> None:
        """Raise `NotFittedError` unless `fit` has kept what `score_left_out` needs."""
        if not len(self.left_out):
            raise NotFittedError(f"{type(self).__name__}: call expect_left_out() before update() and fit()")

    def keep_left_out(self, index: Tensor, values: Tensor) -> None:
        """Keep values (n, ...) of the training images `index` (n,), which rises, for `score_left_out`."""
        self.left_out = values.new_full((int(index[-1]) + 1, *values.shape[1:]), torch.nan, device=self.fitted.device)
        self.left_out[index.to(self.fitted.device)] = values.to(self.fitted.device)

    def required_memory(self, shapes: Sequence[FeatureShape], num_images: int) -> tuple[int, str]:
        """Bytes needed at the peak of `update` and `fit`, and the settings that lower them.

        Here it is what the accumulators need; a method whose `fit` needs more, or that asks for a number of images,
        adds to it.

        Args:
            shapes: (C, h, w) of every map the backbone gives for one image.
            num_images: good images that there will be.
        """
        accumulators = self.probe(shapes).accumulators
        return sum(accumulator.required(num_images) for accumulator in accumulators), self.memory_remedy

    def measure(self, distance: str) -> None:
        """Compare patches by another distance from now on, with the state that was fitted; "euclidean" or "cosine".

        Raises:
            ConfigError: this method keeps no patches that it could compare otherwise.
        """
        if self.distance is None:
            raise ConfigError(
                f"{type(self).__name__} does not score by the distance to good patches, so there is no other distance "
                "to choose: leave out --distance"
            )
        if distance not in DISTANCES:
            raise ConfigError(f"--distance={distance}: choose {' or '.join(DISTANCES)}")
        if distance != self.distance:
            self._change_distance(distance)
            self.distance = distance

    def _change_distance(self, distance: str) -> None:
        """What `measure` needs of a method that compares patches."""

    def require_fitted(self) -> None:
        """Raise ``NotFittedError`` unless ``fit`` has run."""
        if not self.is_fitted:
            raise NotFittedError(f"{type(self).__name__} is not fitted: call update() with good images, then fit()")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Fitted buffers take their shape at fit, so an unfitted detector must take on the shapes it is about to load.
        for name in self.fitted_buffers:
            stored = state_dict.get(prefix + name)
            if stored is not None:
                setattr(self, name, torch.empty_like(stored, device=self.fitted.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.is_fitted = bool(self.fitted)
        self.read_buffers()


def _state(detector: Detector) -> dict[str, tuple[object, int | None, int | None]]:
    """What tells whether `update` has changed an attribute or a buffer, by name; accumulators are left out."""
    found: dict[str, tuple[object, int | None, int | None]] = {}
    for name, value in {**vars(detector), **detector._buffers}.items():
        if not isinstance(value, Accumulator):
            size = len(value) if isinstance(value, list | dict | set) else None
            found[name] = (value, size, value._version if isinstance(value, Tensor) else None)
    return found


class PatchDetector(Detector):
    """Scores patches, each by itself, wherever it lies: the part that such methods share.

    `data.roi` is applied here: patches outside are neither accumulated nor scored. A method writes `embed`,
    `accumulate`, `fit` and `score_patches`.

    Args:
        channels, strides, finest_stride: see `Detector`.
        smoothing: sigma of the Gaussian filter on the map, in pixels; 0 for none.
        smoothing_radius: cut-off of that filter in pixels; None for four sigma.
        top: share of the highest values whose mean is the score of an image; None for the largest patch score.
        top_of: whether these are "pixels" of the map or "patches".
    """

    inspects_regions = True

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        finest_stride: int = 1,
        smoothing: float = 4.0,
        smoothing_radius: int | None = None,
        top: float | None = None,
        top_of: str = "pixels",
    ) -> None:
        super().__init__(channels, strides, finest_stride)
        if top is not None and not 0 < top < 1:
            raise ConfigError(f"top={top} is a share: choose above 0 and below 1, or null for the largest patch score")
        if top_of not in ("pixels", "patches"):
            raise ConfigError(f"top_of={top_of!r}: choose pixels or patches")
        self.smoothing, self.smoothing_radius, self.top, self.top_of = smoothing, smoothing_radius, top, top_of

    @abstractmethod
    def embed(self, features: list[Tensor]) -> Tensor:
        """Embeddings (B, h, w, D) of every patch, of feature maps [(B, C_l, h_l, w_l)]."""

    @abstractmethod
    def accumulate(self, patches: Tensor, index: Tensor, positions: Tensor) -> None:
        """Accumulate patches (B, P, D) of the good images `index` (B,), at `positions` (P,) of their grid."""

    @abstractmethod
    def score_patches(self, patches: Tensor) -> Tensor:
        """Scores (B, P) of patches (B, P, D)."""

    def score_images(self, scores: Tensor, patches: Tensor, anomaly_map: Tensor) -> Tensor:
        """Scores (B,) of images, of their patches' scores (B, P) or of their map: the largest, or the `top` mean."""
        if self.top is None:
            return scores.amax(dim=1)
        if self.top_of == "pixels":
            scores = self.region.values(anomaly_map).view(anomaly_map.shape[0], -1)
        return mean_of_highest(scores, self.top)

    def patches(self, features: list[Tensor]) -> tuple[Tensor, tuple[int, int]]:
        """Embeddings (B, P, D) of the patches that are inspected, and the grid (h, w) in which they lie."""
        embeddings = self.embed(features)  # (B, h, w, D)
        grid = (embeddings.shape[1], embeddings.shape[2])
        return self.region.take(embeddings.flatten(1, 2), grid, dim=1), grid

    @torch.no_grad()
    def update(self, features: list[Tensor], index: Tensor) -> None:
        """Accumulate the patches of one batch."""
        patches, grid = self.patches(features)
        device = patches.device
        self.accumulate(patches, index.to(device), self.region.positions(grid).to(device))

    def forward(self, features: list[Tensor], image_size: tuple[int, int]) -> Prediction:
        """Score every patch; maps are resized bilinearly to the image and smoothed."""
        self.require_fitted()
        patches, grid = self.patches(features)
        return self.to_prediction(self.score_patches(patches), patches, grid, image_size)

    def to_prediction(
        self, scores: Tensor, patches: Tensor, grid: tuple[int, int], image_size: tuple[int, int]
    ) -> Prediction:
        """What the scores (B, P) of patches (B, P, D) say of their images."""
        anomaly_map = self.to_map(scores, grid, image_size)
        return Prediction(self.score_images(scores, patches, anomaly_map), anomaly_map)

    def to_map(self, scores: Tensor, grid: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
        """The anomaly map (B, 1, H, W) of the scores (B, P) of the patches that are inspected."""
        scores = self.region.spread(scores, grid)  # (B, h, w)
        return self.region.cut(anomaly_map(scores, image_size, self.smoothing, radius=self.smoothing_radius))
