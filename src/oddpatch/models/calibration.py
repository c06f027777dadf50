"""What a fitted model knows about scores of good images: thresholds and p-values come from here."""

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from oddpatch.data.light import STATISTICS
from oddpatch.errors import ConfigError
from oddpatch.metrics.good_scores import GoodScores
from oddpatch.metrics.thresholds import (
    Promise,
    Threshold,
    check_promise,
    check_target_fpr,
    fold_of,
    stands_out,
)

log = logging.getLogger(__name__)

Method = Literal["none", "leave_one_out", "holdout", "cross"]
CALIBRATIONS = get_args(Method)
#: Fewest good images that a threshold is set on, where each is left out in turn: it supports a rate of 1 in 6.
FEWEST = 5


class Calibration(nn.Module):
    """Scores of good images that the model was not fitted to, kept with the model.

    `leave_one_out` fits to all good images and scores each as if it had been left out, as the method itself can say
    (`Detector.score_left_out`); for a method that cannot, it is `cross`. `cross` fits to all of them, and scores each
    fold by a detector of its own that was fitted without it, at the price of as many fits more. For both the guarantee
    is that of docs/thresholds.md. `holdout` leaves a share of the good images out of the fit; its guarantee is that of
    `oddpatch.metrics.thresholds`. `none` has no threshold.

    Args:
        method: "leave_one_out", "holdout", "cross" or "none".
        target_fpr: wanted rate of false alarms, of good images called anomalous.
        promise: "marginal": that rate on average over sets of good images; "confident": with 95 % confidence of the
            good images at hand, see `conformal_threshold`.
        fraction: share of the good training images that `holdout` leaves out.
        minimum: the fewest images that `holdout` leaves out; with fewer than twice as many nothing is held out.
        folds: of `cross`; as many as there are images, if these are fewer.
        min_area: pixels of the anomaly map that may lie above the pixel threshold on an image without alarm.
        seed: of the choice.

    Raises:
        ConfigError: a setting cannot work.

    Examples:
        >>> import torch
        >>> from oddpatch.models.calibration import Calibration
        >>> calibration = Calibration("leave_one_out", target_fpr=0.1)
        >>> scores = torch.arange(1.0, 20.0)  # of 19 good images, each left out of the fit
        >>> calibration.calibrate(scores, torch.empty(0), torch.arange(19))
        >>> calibration.image.value, calibration.image_at(0.05).value
        (18.0, 19.0)
    """

    image_scores: Tensor
    pixel_scores: Tensor
    image_index: Tensor
    image_statistics: Tensor
    f1_threshold: Tensor

    def __init__(
        self,
        method: Method = "none",
        target_fpr: float = 0.01,
        fraction: float = 0.2,
        minimum: int = 20,
        folds: int = 5,
        min_area: int = 0,
        seed: int = 0,
        promise: Promise = "marginal",
    ) -> None:
        super().__init__()
        if method not in CALIBRATIONS:
            known = ", ".join(name for name in CALIBRATIONS if name != "none")
            raise ConfigError(f"calibration.method={method!r} is not known: choose {known} or none")
        check_target_fpr(target_fpr)
        check_promise(promise)
        if not 0 < fraction < 1:
            raise ConfigError(f"calibration.fraction={fraction} must lie between 0 and 1, such as 0.2")
        for name, value, least in (("minimum", minimum, 1), ("folds", folds, 2), ("min_area", min_area, 0)):
            if value < least:
                raise ConfigError(f"calibration.{name}={value} must be at least {least}")
        self.method, self.target_fpr, self.min_area, self.promise = method, target_fpr, min_area, promise
        self.fraction, self.minimum, self.num_folds, self.seed = fraction, minimum, folds, seed
        #: Why there is no threshold and what to do, where there is none.
        self.absent = "it was fitted with calibration=none: train again with calibration=leave_one_out"
        self.register_buffer("image_scores", torch.empty(0, dtype=torch.float64))  # (n,) ascending
        self.register_buffer("pixel_scores", torch.empty(0, dtype=torch.float64))  # (n,) ascending; none if no maps
        self.register_buffer("image_index", torch.empty(0, dtype=torch.int64))  # (n,) training image of each score
        # (n, 2) or, where images are aligned, (n, 3): of each score's image `oddpatch.data.light.STATISTICS`.
        self.register_buffer("image_statistics", torch.empty(0, 0, dtype=torch.float64))
        # F1-max threshold of labelled validation images; NaN if there were none.
        self.register_buffer("f1_threshold", torch.tensor(math.nan, dtype=torch.float64))

    @property
    def fits_all(self) -> bool:
        """Whether images that give the threshold are fitted to, too."""
        return self.method in ("leave_one_out", "cross")

    def num_held_out(self, num_images: int) -> int:
        """How many of the good images `holdout` leaves out, of at least twice as many."""
        return max(math.ceil(self.fraction * num_images), self.minimum)

    def folds(self, num_images: int) -> list[int]:
        """Which fold each training image is scored in; -1 for those that are only fitted to.

        The choice depends on the number of images and the seed alone. Too few images for a threshold give -1
        throughout, with a warning that says what to do.
        """
        if self.method == "none":
            return [-1] * num_images
        images = "1 good image is" if num_images == 1 else f"{num_images} good images are"
        held = self.num_held_out(num_images)
        if num_images < FEWEST:
            self.refuse(f"{images} too few, it takes at least {FEWEST}: add good images and train again")
        elif self.fits_all:
            return list(fold_of(num_images, min(self.num_folds, num_images), self.seed))
        elif num_images >= 2 * held:
            chosen = np.random.default_rng(self.seed).permutation(num_images)[:held]
            return [0 if held else -1 for held in np.isin(np.arange(num_images), chosen)]
        else:
            self.refuse(
                f"{images} too few for calibration=holdout, which takes at least {2 * held}: train again with "
                "calibration=leave_one_out"
            )
        return [-1] * num_images

    def refuse(self, reason: str) -> None:
        """Set no threshold, or remove those there are, and keep and log why."""
        self.absent = reason
        nothing = torch.empty(0, device=self.image_scores.device)
        self.calibrate(nothing, nothing, nothing.long())
        log.warning("there is no threshold: %s", reason)

    def calibrate(
        self, image_scores: Tensor, pixel_scores: Tensor, image_index: Tensor, statistics: Tensor | None = None
    ) -> None:
        """Keep the scores of good images.

        Args:
            image_scores: (n,).
            pixel_scores: (n,) what `max_excluding` gives of their maps; (0,) if they have none.
            image_index: (n,) which training images they are.
            statistics: (n, 2) or (n, 3), see `oddpatch.data.light.STATISTICS`; None where they were not measured.
        """
        self.image_scores, order = image_scores.double().sort(stable=True)
        self.image_index = image_index.to(order.device)[order]
        statistics = self.image_statistics.new_empty(len(order), 0) if statistics is None else statistics
        self.image_statistics = statistics.double().to(order.device)[order]
        self.pixel_scores = pixel_scores.double().sort().values

    @property
    def calibrated(self) -> bool:
        """Whether there is a threshold."""
        return len(self.image_scores) > 0

    @property
    def good_scores(self) -> GoodScores:
        """The scores apart from the model: what decisions are made by."""
        image, pixel = self.image_scores.cpu().numpy(), self.pixel_scores.cpu().numpy()
        columns = dict(zip(STATISTICS, self.image_statistics.T.cpu().numpy(), strict=False))  # (n,) each
        return GoodScores(image, pixel, float(self.f1_threshold), self.target_fpr, self.absent, self.promise, columns)

    def image_at(self, target_fpr: float) -> Threshold:
        """Threshold of image scores for a wanted rate of false alarms."""
        return self.good_scores.image_at(target_fpr)

    @property
    def image(self) -> Threshold:
        """Threshold of image scores at the rate of the settings."""
        return self.good_scores.image_at(self.target_fpr)

    @property
    def pixel(self) -> Threshold | None:
        """Threshold of pixels: on a good image more than `min_area` of them exceed it at most at this rate."""
        return self.good_scores.pixel_at(self.target_fpr)

    @property
    def set_by(self) -> list[int]:
        """The training images whose score is the image threshold."""
        return self.image_index[self.image_scores == self.image.value].tolist() if self.calibrated else []

    def thresholds(self, target_fpr: float | None = None) -> dict[str, float]:
        """Image thresholds by where they come from: "conformal", "validation"; an image above one is anomalous.

        Args:
            target_fpr: of the conformal one; None for that of the settings.
        """
        target = self.target_fpr if target_fpr is None else target_fpr
        return self.good_scores.thresholds(target)

    def p_values(self, scores: Any) -> Any:
        """Of image scores (...), see `conformal_p_values`."""
        return self.good_scores.p_values(scores)

    def to_dict(self) -> dict[str, Any] | None:
        """Plain values for metrics.json; None without a threshold."""
        if not self.calibrated:
            return None
        image, pixel = self.image, self.pixel
        return {
            "method": self.method,
            "promise": self.promise,
            "target_fpr": self.target_fpr,
            "promised_fpr": image.promised,
            "num_needed": image.num_needed,
            "supported_fpr": image.fpr,
            "fpr_bound_95": image.fpr_bound(),
            "num_images": image.num_images,
            "image": image.value,
            "pixel": None if pixel is None else pixel.value,
            "min_area": self.min_area,
            "validation": None if self.f1_threshold.isnan() else float(self.f1_threshold),
        }

    def report(self, names: Sequence[str]) -> None:
        """Log what the threshold promises and which good images set it.

        Args:
            names: of the training images, by index.
        """
        if not self.calibrated:
            return
        log.info("%s", self.in_words())
        log.info("the threshold is the score of %s", ", ".join(names[i] for i in self.set_by))
        if (doubt := self.doubt(names)) is not None:
            log.warning("%s? If it is not, move it out of the training images and train again", doubt)

    def in_words(self) -> str:
        """The threshold and what it promises, in one line."""
        image = self.image
        note = ""
        if not image.supported:
            note = (
                f"; {self.target_fpr:.3g} needs {image.num_needed} good images, {image.num_images} support "
                f"{image.promised:.3g}"
            )
        return (
            f"threshold {image.value:.4g}: good images exceed it at a rate of "
            f"{'about' if self.fits_all else 'at most'} {image.fpr:.3g} on average, {image.fpr_bound():.3g} with 95 % "
            f"confidence ({self.promise} promise, {self.method}, {image.num_images} good images){note}"
        )

    def doubt(self, names: Sequence[str]) -> str | None:
        """A question about the good image of the highest score, if that stands out, see `stands_out`."""
        if not stands_out(self.image_scores.cpu()):
            return None
        highest, following = self.image_scores[-1].item(), self.image_scores[-2].item()
        return (
            f"{names[int(self.image_index[-1])]} scores {highest:.4g}, the next highest good image {following:.4g}: it "
            "looks unlike the rest, is it good"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("image_scores", "pixel_scores", "image_index", "image_statistics"):
            if (stored := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(stored, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
