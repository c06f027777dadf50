"""The `TestResult` that a module ends its test with."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from oddpatch.checkpoint import relative_name
from oddpatch.data.inspected import describe_share
from oddpatch.data.layout import GOOD
from oddpatch.environment import git_commit, library_versions
from oddpatch.known import with_defaults
from oddpatch.learning.examples import KeptExamples, pixels_of
from oddpatch.metrics.configured import Metrics
from oddpatch.metrics.ranking import auroc_by_type
from oddpatch.metrics.thresholds import at_threshold
from oddpatch.metrics.uncertainty.bootstrap import confidence_intervals
from oddpatch.resources import peak_memory
from oddpatch.results.examples import Example, Neighbour
from oddpatch.results.test_result import OfCategory, ScoredImage, TestResult, Thresholds

if TYPE_CHECKING:
    from oddpatch.learning.scoring import AnomalyModule

#: Parts of a config that say what the model is; they go into the checkpoint.
MODEL_KEYS = ("model", "backbone", "data", "calibration", "learning")


def make_result(
    module: "AnomalyModule",
    metrics: dict[str, float],
    absent: dict[str, str],
    rows: list[ScoredImage],
    by_category: Mapping[str, OfCategory],
) -> TestResult:
    """The result; called on every rank, intervals, statistics and examples are on the first only.

    Args:
        module: after its test.
        metrics: values by name.
        absent: why others have none.
        rows: the test images, in the order of the dataset.
        by_category: what was found on each of several.
    """
    data, calibration = module.data, module.model.calibration
    wanted, thresholds = module.wanted, thresholds_of(module)
    scores, labels = [row.score for row in rows], [row.label for row in rows]
    if rows and thresholds.conformal is not None:
        p_values = calibration.p_values(scores).tolist()
        rows = [
            replace(row, p_value=p_value, is_anomalous=row.judged > thresholds.conformal)
            for row, p_value in zip(rows, p_values, strict=True)
        ]
    pixel = next(iter(module.pixel_metrics), None)
    statistics = pixel.statistics if pixel else None
    confidence = None
    if module.trainer.is_global_zero and wanted.confidence and wanted.confidence.draws:
        with module.timed("confidence"):
            intervals = confidence_intervals(scores, labels, statistics, wanted.confidence)
            confidence = {name: ends for name, ends in intervals.items() if name in metrics}
    good = _good(module)
    examples, levels = None, np.empty((0, 3), np.float32)
    if wanted.examples:
        with module.timed("figures"):
            of_test, of_good = module.kept_examples.gather(), module.kept_good.gather()
            levels = of_test if data.test_samples else of_good
            examples = _examples(module, rows, good) if module.trainer.is_global_zero else {}
            module.kept_examples, module.kept_good = KeptExamples(0, 0), KeptExamples(0, 0)  # the images need not stay
    return TestResult(
        rows=tuple(rows),
        good=tuple(good),
        metrics=metrics,
        absent=absent,
        auroc_by_type=_auroc_by_type(rows, by_category),
        by_category=by_category,
        thresholds=thresholds,
        fpr_limits=pixel.fpr_limits if pixel else (),
        pixels=pixel.computed if pixel else None,
        statistics=statistics,
        confidence=confidence,
        confidence_settings=wanted.confidence if confidence is not None else None,
        examples=examples,
        levels=levels,
        timing=dict(module.timing),
        features_found=module.num_without_pixels > 0,
        num_fitted=module.num_fitted,
        test_set=data.test_set,
        skipped=data.skipped(),
        left_out=[f"{path}: {reason}" for path, reason in data.left_out],
        inspected=data.inspected and data.inspected.to_dict(),
        inspected_text=describe_share(data.preprocess, data.inspected) if data.inspected else "",
        alignment=data.reference.to_dict() if data.reference else None,
        config=module.config,
        settings={key: with_defaults(module.config[key]) for key in MODEL_KEYS if key in module.config},
        detector=type(module.model.detector).__name__,
        weights=module.model.backbone.weights_origin,
        versions=library_versions(),
        git_commit=git_commit(),
        peak_memory=peak_memory(module.device),
    )


def _auroc_by_type(rows: list[ScoredImage], by_category: Mapping[str, OfCategory]) -> Mapping[str, float | None]:
    """Each type against the good images of its category."""
    if by_category:
        return {
            f"{name} {kind}": auroc for name, one in by_category.items() for kind, auroc in one.auroc_by_type.items()
        }
    return auroc_by_type([row.score for row in rows], [row.defect_type for row in rows]).values


def of_category(
    module: "AnomalyModule", name: str, metrics: Metrics, rows: list[ScoredImage], pixels_unknown: str
) -> OfCategory:
    """What was found on one of several categories; called on every rank.

    Args:
        module: after its test.
        name: of the category.
        metrics: which have seen its images alone.
        rows: the test images of all categories.
        pixels_unknown: why nothing can be measured on its pixels; empty if it can.
    """
    values, absent = metrics.compute(with_pixels=not pixels_unknown)
    if pixels_unknown:
        absent |= metrics.absent(pixels_unknown, of_pixels_only=True)
    own = [row for row in rows if row.category == name]
    scores, kinds = [row.score for row in own], [row.defect_type for row in own]
    values |= rates(module, [row.judged for row in own], [row.label for row in own])
    by_type = auroc_by_type(scores, kinds).values if own else {}
    return OfCategory(values, absent, by_type, len(own), module.data.test_sets[name])


def rates(module: "AnomalyModule", scores: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """What each threshold of images gives on images, by the names of metrics.json."""
    return {
        f"image_{name}@{source}": value
        for source, threshold in module.model.calibration.thresholds().items()
        for name, value in at_threshold(scores, labels, threshold).items()
    }


def thresholds_of(module: "AnomalyModule") -> Thresholds:
    """What images and pixels are judged by; names of good images are relative to the folder of the categories."""
    calibration, root = module.model.calibration, module.data.root
    described, pixel, set_by = calibration.to_dict(), calibration.pixel, calibration.set_by
    if described is not None:
        described["set_by"] = [relative_name(module.train_paths[i], root) for i in set_by]
        scores = module.model.good_scores
        if (product := scores.product_at(scores.target_fpr)) is not None:
            described["product"] = {
                "names": list(scores.products), "ratio": product.value, "promised_fpr": product.promised,
                "supported_fpr": product.fpr, "fpr_bound_95": product.fpr_bound(), "num_images": product.num_images,
            }  # fmt: skip
    return Thresholds(
        calibration.thresholds(), pixel.value if pixel else None, described, tuple(set_by), calibration.absent
    )


def _good(module: "AnomalyModule") -> list[ScoredImage]:
    """The good images that the threshold was set on, in the order of the dataset."""
    calibration, paths = module.model.calibration, module.train_paths
    found = zip(calibration.image_index.tolist(), calibration.image_scores.tolist(), strict=True)
    return [ScoredImage(paths[i], 0, GOOD, score, i) for i, score in sorted(found)]


def _examples(module: "AnomalyModule", rows: list[ScoredImage], good: list[ScoredImage]) -> dict[str, list[Example]]:
    """What is shown, by kind."""
    data, reasons = module.data, {row.index: row.reason for row in rows}
    chosen = {
        kind: [_decoded(replace(one, note=reasons[one.index]), data.test_image, module) for one in examples]
        for kind, examples in module.kept_examples.choose(rows).items()
    }
    if module.wanted.neighbours:
        chosen = {kind: [_with_neighbour(example, module) for example in found] for kind, found in chosen.items()}
    # A good image of the threshold was fitted to: its own patches are the nearest.
    worst, _ = module.wanted.examples or (0, 0)
    shown = module.kept_good.choose_good(
        good,
        module.model.calibration.set_by,
        worst if data.test_samples else 2 * worst,
        module.model.preprocess.image_size,
    )
    if shown:
        chosen["calibration"] = [_decoded(example, data.train_image, module) for example in shown]
    return chosen


def _decoded(example: Example, image: Callable[[int], Tensor], module: "AnomalyModule") -> Example:
    """The example with its image, which `image` gives by index where only features were at hand."""
    if example.image.size:
        return example
    return replace(example, image=pixels_of(image(example.index), module.model.preprocess))


def _with_neighbour(example: Example, module: "AnomalyModule") -> Example:
    """The example with its most anomalous patch and the normal patch nearest to it, if the detector keeps patches."""
    from oddpatch.inference.explain import find_matches
    from oddpatch.models.patchcore import PatchCore

    model, names = module.model, module.train_paths
    if not isinstance(model.detector, PatchCore) or not names:
        return example
    image = model.preprocess.load(example.path)  # (3, H, W)
    matches = find_matches(model, model.detector, image.to(module.device), names)
    match = max(matches, key=lambda match: match.distance)
    if not Path(match.train_image).is_file():  # tested again where the training images are not at hand
        return example
    normal = pixels_of(model.preprocess.load(match.train_image), model.preprocess)
    return replace(example, neighbour=Neighbour(match, normal))
