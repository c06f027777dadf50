"""What a test found: one object, made once at the end of the test, of which every file, picture and log is a function.

It lies here and not in `oddpatch.types`, which nothing of oddpatch is below: its parts are those of `metrics`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

from oddpatch.metrics.good_scores import NO_PRODUCT
from oddpatch.results import RANDOM

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from oddpatch.metrics.pixel import PixelRanking
    from oddpatch.metrics.ranking import Ranking
    from oddpatch.metrics.uncertainty.bootstrap import Confidence
    from oddpatch.metrics.uncertainty.pixel_statistics import PixelStatistics
    from oddpatch.results.examples import Example


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """One image with its truth and its score; the last two are None where no threshold was set on good images."""

    path: str
    label: int  # 0 good, 1 anomalous
    defect_type: str
    score: float
    index: int  # in the dataset
    p_value: float | None = None
    is_anomalous: bool | None = None
    category: str = ""  # where there are several
    product: str | None = None  # that it was taken for, by a model of several
    stranger: bool = False  # it belongs to none of them, which makes it anomalous whatever its score

    @property
    def judged(self) -> float:
        """What an image threshold is compared with: its score, or the largest number where that does not count."""
        return sys.float_info.max if self.stranger else self.score

    @property
    def reason(self) -> str:
        """Why it is anomalous whatever its score; empty where it is not."""
        return NO_PRODUCT if self.stranger else ""

    @property
    def kind(self) -> str:
        """Its type, and of which category where there are several."""
        return f"{self.category} {self.defect_type}" if self.category else self.defect_type


@dataclass(frozen=True, slots=True)
class OfCategory:
    """What a test of several categories found on one of them."""

    metrics: Mapping[str, float]
    absent: Mapping[str, str]
    auroc_by_type: Mapping[str, float | None]
    num_test_images: int
    test_set: str


@dataclass(frozen=True)
class Thresholds:
    """What images and pixels are judged by; an image or a pixel is anomalous above its threshold."""

    sources: Mapping[str, float] = field(default_factory=dict)  # of images: "conformal", "validation", or neither
    pixel: float | None = None
    described: Mapping[str, Any] | None = None  # as in metrics.json; None if none was set on good images
    set_by: tuple[int, ...] = ()  # the training images whose score is the conformal threshold
    absent: str = ""  # why none was set on good images, and what to do

    @property
    def conformal(self) -> float | None:
        """The one that was set on good images."""
        return self.sources.get("conformal")


@dataclass
class Wanted:
    """What a test keeps and computes beside its metrics: whoever writes it says so before the test starts."""

    examples: tuple[int, int] | None = None  # how many of the worst of each class, and how many typical images
    neighbours: bool = False  # for each example the most anomalous patch and the normal one nearest to it
    statistics: bool = False  # pixel statistics that intervals and comparisons are made from
    confidence: "Confidence | None" = None  # how intervals are made


@dataclass(frozen=True, eq=False)
class TestResult:
    """Everything that is known at the end of a test; of one on no images, too, which has no rows."""

    __test__ = False  # pytest would collect it by its name

    rows: tuple[ScoredImage, ...]  # test images, in the order of the dataset
    good: tuple[ScoredImage, ...]  # good images that the threshold was set on, likewise
    metrics: Mapping[str, float]  # those that have a value
    absent: Mapping[str, str]  # why each of the others has none
    auroc_by_type: Mapping[str, float | None]
    by_category: Mapping[str, OfCategory]  # where there are several
    thresholds: Thresholds
    fpr_limits: tuple[float, ...]  # of AU-PRO; empty where it was not asked for
    pixels: "PixelRanking | None"  # of all pixels, for curves
    statistics: "PixelStatistics | None"
    confidence: Mapping[str, tuple[float, float]] | None  # intervals by metric; None where none were wanted
    confidence_settings: "Confidence | None"
    # By kind, worst first; None where none were wanted. The levels (N, 3) are label, median and highest value of the
    # maps of all test images, or of the good ones of the threshold where nothing was tested.
    examples: "Mapping[str, Sequence[Example]] | None"
    levels: "NDArray[np.float32]"
    timing: Mapping[str, float]  # seconds by stage, until the result was made
    features_found: bool  # whether features were known, so that `timing["test"]` lacks the backbone's time
    num_fitted: int
    test_set: str | None  # says which the test images are, wherever they lie
    skipped: Sequence[str]  # files that could not be read, and why
    left_out: Sequence[str]  # files that are no images of the dataset, and why
    inspected: Mapping[str, float] | None  # shares of the area of the images
    inspected_text: str  # the same in words
    alignment: Mapping[str, Any] | None  # the reference that data.align=auto chose, or why none; None if not asked to
    config: Mapping[str, Any]  # what the model was built from, as composed
    settings: Mapping[str, Any]  # the same with the defaults of the classes
    detector: str  # its class
    weights: str  # where those of the backbone come from
    versions: Mapping[str, str]
    git_commit: str | None
    peak_memory: int  # bytes

    @property
    def scores(self) -> list[float]:
        """Of the test images."""
        return [row.score for row in self.rows]

    @property
    def labels(self) -> list[int]:
        """Of the test images."""
        return [row.label for row in self.rows]

    @property
    def category_mean(self) -> Mapping[str, float]:
        """The mean over the categories of every metric that all of them have; a threshold has none."""
        found = [one.metrics for one in self.by_category.values()]
        names = [name for name in (found[0] if found else ()) if not name.endswith("_threshold")]
        return {name: fmean(one[name] for one in found) for name in names if all(name in one for one in found)}

    @property
    def names(self) -> Mapping[str, Any]:
        """What people call the run: model, backbone, data, category, experiment, image size."""
        return self.config.get("run") or {}

    @property
    def is_random(self) -> bool:
        """Whether the backbone had learned nothing, so that no number says anything about the method."""
        return self.weights == RANDOM

    @cached_property
    def ranking(self) -> "Ranking | None":
        """Of the image scores; None unless there are good and anomalous images."""
        from oddpatch.metrics.ranking import rank  # with torch, which who reads files only should not wait for

        return rank(self.scores, self.labels) if 0 < sum(self.labels) < len(self.rows) else None
