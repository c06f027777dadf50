"""Plants faults in a copy of the source, one at a time, and shows which the tests notice.

python tests/planted_faults.py                all of them, some minutes
python tests/planted_faults.py patchcore      those with this text in their name or path

A fault is exact text and what takes its place, in a file of src/oddpatch. Text that is not found exactly once, tests
that fail without a fault, and tests that cannot be collected with it are errors: nothing is said to be caught that was
not seen failing. The exit code is 0 if all were caught, 1 if one was missed, 2 for an error.
"""

import importlib
import os
import shlex
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
#: Exit codes of pytest.
PASSED, FAILED, BROKEN = 0, 1, 3
#: What takes seconds to import, and is not what is tested.
OTHERS = ("cv2", "hydra", "hypothesis", "lightning", "matplotlib.pyplot", "scipy.ndimage", "scipy.stats", "timm")


class Fault(NamedTuple):
    """A wrong program, and the tests that should notice."""

    name: str
    path: str  # below src/oddpatch
    old: str
    new: str
    tests: str  # arguments of pytest, below tests


FAULTS = [
    # Methods
    Fault(
        "an image is retrieved for itself", "models/rad.py",
        "similarity.masked_fill(index[:, None] == self.source, -torch.inf)", "similarity",
        "models/test_rad.py -k left_out",
    ),
    Fault(
        "tiles count up to their ends", "ops/tiles.py",
        "(a + self.side + b) // 2 // self.multiple", "(a + self.side) // self.multiple", "ops/test_tiles.py",
    ),
    Fault(
        "search index not rebuilt for a new bank", "models/patchcore.py",
        "if self._index is None or self._index[0] is not self.memory_bank:", "if self._index is None:",
        "models/test_patchcore.py",
    ),
    Fault(
        "weights of the neighbourhood without the sum", "models/patchcore.py",
        "torch.logsumexp(to_members, dim=1)", "to_members.amax(dim=1)", "models/test_patchcore.py",
    ),
    Fault(
        "coreset depends on the order of the images", "models/state.py",
        "else index.argsort(stable=True)", "else torch.arange(len(index))", "models/test_patchcore.py",
    ),
    Fault(
        "size of the coreset rounded up", "models/patchcore.py",
        "max(1, int(self.coreset_ratio * total))", "max(1, -int(-self.coreset_ratio * total // 1))",
        "models/test_patchcore.py",
    ),
    Fault(
        "nearest neighbour in place of the mean of k", "models/patchcore.py",
        "return distances.mean(dim=1).view", "return distances[:, 0].view", "models/test_patchcore.py",
    ),
    Fault(
        "raw score of PaDiM outside the region", "models/padim.py",
        "raw = self.region.cut(anomaly_map(scores, image_size, 0, self.interpolation))",
        "raw = anomaly_map(scores, image_size, 0, self.interpolation)", "models/test_padim.py",
    ),
    Fault(
        "raw score of PaDiM is the smoothed one", "models/padim.py",
        'if self.score_from == "smoothed":', "if self.score_from:", "models/test_padim.py",
    ),
    Fault(
        "channels of a layer counted from the first", "models/padim.py",
        "bisect_left(self._drawn, last)] - first", "bisect_left(self._drawn, last)]", "models/test_padim.py",
    ),
    Fault(
        "score of Gaussian-AD squared", "models/gaussian.py",
        "@ whitening.mT).norm(dim=1)", "@ whitening.mT).norm(dim=1) ** 2", "models/test_gaussian.py",
    ),
    Fault(
        "score of SPADE from the nearest image alone", "models/spade.py",
        "Prediction(distances.mean(1),", "Prediction(distances[:, 0],", "models/test_spade.py",
    ),
    Fault(
        "the last of ProCon's neighbours counts in full", "models/banks.py",
        "/ (fade * scale)).clamp(min=tiny, max=1.0)", "/ (fade * scale)).clamp(min=1.0, max=1.0)",
        "models/test_banks.py",
    ),
    # Numbers
    Fault(
        "no patch nominated beyond those wanted", "ops/neighbours.py",
        "min(k + max(LEAST_SPARE, int(SPARE_SHARE * b.shape[-2])), b.shape[-2])", "min(k, b.shape[-2])",
        "ops/test_neighbours.py",
    ),
    Fault(
        "covariance over n", "ops/statistics.py",
        "double().div_(count - 1)", "double().div_(count)", "ops/test_statistics.py",
    ),
    Fault(
        "shift between two means left out", "ops/statistics.py",
        "first.scatter.add_(second.scatter).baddbmm_(weighted.unsqueeze(2), weighted.unsqueeze(1))",
        "first.scatter.add_(second.scatter)", "ops/test_statistics.py",
    ),
    Fault(
        "mean of a batch in float32", "ops/statistics.py",
        "batch_mean = centre.double() + rows[:, :batch].mean(dim=1)", "batch_mean = centre.double()",
        "ops/test_statistics.py",
    ),
    Fault(
        "a map smoothed with another border", "ops/maps.py",
        'mode = "reflect" if', 'mode = "nearest" if', "ops/test_maps.py",
    ),
    # Backbones
    Fault(
        "prefix tokens cut from the wrong end", "backbones/timm.py",
        "tokens[:, prefix:]", "tokens[:, : tokens.shape[1] - prefix]", "backbones/test_backbones.py -k prefix_tokens",
    ),
    Fault(
        "strides in the order the layers were given in", "backbones/timm.py",
        "taken = sorted(chosen)", "taken = chosen",
        "backbones/test_backbones.py -k any_order",
    ),
    Fault(
        "batch statistics of a frozen network drift", "backbones/base.py",
        "return super().train(False)", "return super().train(mode)", "backbones/test_backbones.py -k drift",
    ),
    Fault(
        "an activation is taken into a convolution whose output goes elsewhere too", "backbones/folding.py",
        "return folded\n        return activated", "return activated\n        return activated",
        "backbones/test_folding.py -k nothing_else_sees",
    ),
    Fault(
        "ReLU6 without its upper limit", "backbones/folding.py",
        '("hardtanh", [0.0, 6.0])', '("relu", [])', "backbones/test_folding.py -k within_convolutions",
    ),
    Fault(
        "images with NaN go to oneDNN, which makes numbers of it", "backbones/engine.py",
        " or not images.sum().isfinite()", "", "backbones/test_folding.py -k not_finite_give",
    ),
    Fault(
        "the last images of a batch taken in parts left out", "backbones/base.py",
        "for start in range(0, len(images), step):", "for start in range(0, len(images) - step + 1, step):",
        "backbones/test_backbones.py -k in_parts",
    ),
    # Data
    Fault(
        "an opaque black mask is a defect", "data/masks.py",
        "uniform = (colour == colour[0, 0]).all() and not (alpha == alpha[0, 0]).all()",
        "uniform = (colour == colour[0, 0]).all()", "data/test_mask_files.py",
    ),
    Fault(
        "a mask's value at the threshold is a defect", "data/masks.py",
        "array > threshold * full_scale", "array >= threshold * full_scale",
        "data/test_mask_files.py -k threshold",
    ),
    Fault(
        "a mask repeated beyond the image", "data/alignment.py",
        "flags=cv2.INTER_NEAREST, borderValue=outside", "flags=cv2.INTER_NEAREST, borderMode=1",
        "data/test_alignment.py -k mask",
    ),
    Fault(
        "a map half a pixel beside its image", "data/laying.py",
        "(position - 0.5).clip(0, size - 1)", "position.clip(0, size - 1)", "data/test_laying.py",
    ),
    Fault(
        "the rows that a PNG lacks are black", "data/png.py",
        "if held < wanted:", "if held > wanted:", "data/test_png.py -k fewer",
    ),
    Fault(
        "the rest of a JPEG that ends early is grey", "data/jpeg.py",
        "(0, 0)) - 128) > 2:", "(0, 0)) - 128) > -1:", "data/test_decoding.py -k jpeg",
    ),
    Fault(
        "a PNG is not turned as its XMP says", "data/png.py",
        "return packed or any(", "return False and any(", "data/test_png.py",
    ),
    Fault(
        "the header of a PNG is that of its pixels as stored", "data/png.py",
        'if kind in (b"eXIf", b"zTXt") or (', "if (", "data/test_headers.py -k turned",
    ),
    Fault(
        "a mask half a pixel beside its image", "data/transforms.py",
        'mode="nearest-exact"', 'mode="nearest"', "data/test_transforms.py",
    ),
    Fault(
        "validation share not by defect type", "data/splits.py",
        "(sample.path for sample in samples if sample.kind == kind)", "(sample.path for sample in samples)",
        "data/test_splits.py -k validation_share",
    ),
    Fault(
        "validation share takes all of a type", "data/splits.py",
        "min(max(round(share * len(own)), 1), len(own) - 1)", "max(round(share * len(own)), 1)",
        "data/test_splits.py -k validation_share",
    ),
    Fault(
        "share of a split rounded down", "datatools/splitting.py",
        "max(round(train_share * len(samples)), 1)", "max(int(train_share * len(samples)), 1)",
        "datatools/test_splitting.py",
    ),
    Fault(
        "the last image of a shard left out", "data/sharding.py",
        "own[i * self.batch_size : (i + 1) * self.batch_size]",
        "own[i * self.batch_size : (i + 1) * self.batch_size][: len(own) - 1 - i * self.batch_size]",
        "data/test_datamodule.py -k two_ranks",
    ),
    Fault(
        "a batch less on some ranks", "data/sharding.py",
        "longest = -(-len(self.positions) // Ranks().size)",
        "longest = len(self.positions[Ranks().rank :: Ranks().size])",
        "data/test_datamodule.py -k two_ranks",
    ),
    # Whole runs
    Fault(
        "rows numbered by their place", "learning/scoring.py",
        "for i, score in zip(index.tolist(), scores.tolist(), strict=True)",
        "for i, score in enumerate(scores.tolist())",
        "learning/test_module.py -k rows_after_a_skipped_file",
    ),
    Fault(
        "good images numbered by their place", "learning/outcome.py",
        "for i, score in sorted(found)]", "for i, (_, score) in enumerate(sorted(found))]",
        "learning/test_module.py -k rows_after_a_skipped_file",
    ),
    Fault(
        "images judged at the threshold of validation", "results/files.py",
        "result.labels, thresholds.conformal, seconds", 'result.labels, thresholds.sources.get("validation"), seconds',
        "learning/test_module.py -k operating_figures",
    ),
    Fault(
        "regions judged at the threshold of images", "results/files.py",
        "pixel, method = thresholds.pixel,", "pixel, method = thresholds.conformal,",
        "learning/test_module.py -k operating_figures",
    ),
    Fault(
        "latency of another stage", "results/files.py",
        'result.timing.get("test")', 'result.timing.get("embed")', "learning/test_module.py -k latency",
    ),
    # Several devices
    Fault(
        "size of a bounded coreset from what is held", "models/state.py",
        "coreset.num_seen = sum(seen)", "coreset.num_seen = sum(held)",
        "learning/test_detectors.py -m slow -k share_of_all",
    ),
    Fault(
        "the smallest of all ranks", "ops/ranks.py",
        "dist.ReduceOp.MAX", "dist.ReduceOp.MIN", "ops/test_ranks.py",
    ),
    Fault(
        "ranks collected from last to first", "ops/ranks.py",
        "for source in range(1, self.size)", "for source in range(self.size - 1, 0, -1)", "ops/test_ranks.py",
    ),
    # Thresholds
    Fault(
        "conformal rank without the new image", "metrics/thresholds.py",
        "math.ceil((count + 1) * (1 - target_fpr) - 1e-9)", "math.ceil(count * (1 - target_fpr) - 1e-9)",
        "metrics/test_thresholds.py",
    ),
    Fault(
        "at the threshold is an alarm, in the metrics", "metrics/thresholds.py",
        "np.asarray(scores, dtype=np.float64) > threshold", "np.asarray(scores, dtype=np.float64) >= threshold",
        "metrics/test_thresholds.py",
    ),
    Fault(
        "at the threshold is an alarm, in predictions.csv", "learning/outcome.py",
        "row.judged > thresholds.conformal", "row.judged >= thresholds.conformal",
        "models/test_calibration.py -k set_the_threshold",
    ),
    Fault(
        "at the threshold is an alarm, in the detector", "inference/detector.py",
        "None if threshold is None else score > threshold", "None if threshold is None else score >= threshold",
        "inference/test_detector.py -k exactly_at",
    ),
    Fault(
        "a score that is no number is that of a good part", "inference/detector.py",
        "if not _is_finite(one):", "if False:", "inference/test_detector.py -k no_number",
    ),
    Fault(
        "a map at its threshold has a region", "inference/regions.py",
        "(anomaly_map > threshold).view", "(anomaly_map >= threshold).view",
        "inference/test_detector.py -k exactly_at",
    ),
    Fault(
        "region overlaps without the pixel at F1-max", "metrics/uncertainty/pixel_statistics.py",
        "self.defect_scores > np.float64(threshold)", "self.defect_scores > threshold",
        "models/test_calibration.py -k f1_max",
    ),
    Fault(
        "recall with one false alarm too many", "metrics/operating.py",
        "math.floor(rate * good.size + 1e-9)", "math.ceil(rate * good.size - 1e-9)", "metrics/test_operating.py",
    ),
    Fault(
        "min_area ignored", "learning/scoring.py",
        "self.model.calibration.min_area)", "0)", "learning/test_module.py -k min_area",
    ),
    Fault(
        "min_area ignored by an update", "inference/update.py",
        "numpy(), model.calibration.min_area)", "numpy(), 0)", "cli/test_explain_update.py -k held_out_images",
    ),
    # Reports
    Fault(
        "two data sets with one category name averaged", "report/columns.py",
        "runs = [run for run in self.runs if (run_dataset(run), run.title) == (dataset, category)]",
        "runs = [run for run in self.runs if run.category == category]", "report/test_table.py -k two_datasets",
    ),
    Fault(
        "average though a category is missing", "report/columns.py",
        "if len(there) == len(values) else", "if there else", "report/test_table.py -k averages",
    ),
    Fault(
        "published mean though a category is missing", "report/table.py",
        "fmean(found) if len(found) == len(categories) else None", "fmean(found) if found else None",
        "report/test_published.py -k category_is_missing",
    ),
    # Learning by gradients
    Fault(
        "every epoch in one order", "learning/augmenting.py",
        "default_rng((self.seed, self.epoch))", "default_rng((self.seed, 0))",
        "learning/test_supervised.py -k order_of_its_own",
    ),
    Fault(
        "masks stay as they were", "learning/augmenting.py", "tv_tensors.Mask(item.mask)", "item.mask.clone()",
        "learning/test_supervised.py -k together_with_their_masks",
    ),
    Fault(
        "what is drawn is not seeded", "learning/supervised.py",
        "torch.manual_seed(derive(self.seed, self.global_step, Ranks().rank))", "pass",
        "learning/test_supervised.py -m slow -k killed",
    ),
    Fault(
        "the last epoch is tested", "learning/supervised.py",
        'Path(str(self.best.dirpath)) / "best.ckpt"', 'Path(str(self.best.dirpath)) / "last.ckpt"',
        "learning/test_supervised.py -k no_longer_falls",
    ),
    Fault(
        "a rank counts as much as another", "learning/supervised.py",
        "return loss * (count * ranks.size / total)", "return loss",
        "learning/test_supervised.py -m slow -k two_devices",
    ),
    # Cache and sweeps
    Fault(
        "a changed cache entry is used", "cache/features.py",
        "if digest.tolist() != list(hash_tensors(tensors, key)):", "if not digest.numel():",
        "cache/test_cache.py -k 'flipped_bit or another_name'",
    ),
    Fault(
        "what was used last goes first", "cache/features.py",
        "for _, size, path in sorted(entries):", "for _, size, path in sorted(entries, reverse=True):",
        "cache/test_cache.py -k longest_ago",
    ),
    Fault(
        "a trial is worth its best category", "sweep/search.py",
        "self.study.tell(trial, sum(given) / len(given))", "self.study.tell(trial, max(given))",
        "sweep/test_search.py -k worth_the_mean",
    ),
    # Words, files, limits, locks
    Fault(
        "half a GPU in the singular", "wording.py",
        "number == 1 else plural", "number <= 1 else plural", "test_wording.py",
    ),
    Fault(
        "the last of a list left out", "wording.py",
        "*names[-1:]]))", "]))", "test_wording.py",
    ),
    Fault(
        "a formula that begins with a plus", "files.py",
        "value.lstrip(_TEXT).startswith(_FORMULA):\n        return _TEXT + value",
        'value.startswith("="):\n        return _TEXT + value', "test_files.py -k cell",
    ),
    Fault(
        "a name may lead out of its folder by a link", "files.py",
        "path.resolve().is_relative_to(base.resolve())", "path.absolute().is_relative_to(base.absolute())",
        "test_files.py -k 'inside or lead_out or link'",
    ),
    Fault(
        "control characters reach the terminal", "files.py",
        "c if c.isprintable() else", "c if c.isprintable() or c < ' ' else", "test_files.py -k shown",
    ),
    Fault(
        "half a core is none", "limits.py",
        "math.ceil(share) for folder", "int(share) for folder", "test_limits.py -k version",
    ),
    Fault(
        "pages of files that nobody uses are not free", "limits.py",
        "return limit - used + _statistic(folder / \"memory.stat\", cached)", "return limit - used",
        "test_limits.py -k version",
    ),
    Fault(
        "groups around a process do not limit it", "limits.py",
        "for part in (inner, *inner.parents):", "for part in (inner,):", "test_limits.py -k version",
    ),
    Fault(
        "true is a number", "settings.py",
        "    if value is None or isinstance(value, bool):\n        return type(value) is hint\n", "",
        "test_settings.py",
    ),
    Fault(
        "NaN is a number", "settings.py",
        " and not (isinstance(value, float) and math.isnan(value))", "", "test_settings.py",
    ),
    Fault(
        "a run is not waited for", "locking.py",
        "_acquire(folder / RUN, patience).release()\n        yield", "yield",
        "sweep/test_job.py -m slow -k 'died_is_waited'",
    ),
    Fault(
        "an extra is not named", "errors.py",
        "if isinstance(error, ModuleNotFoundError) and (remedy := installing(", "if False and (remedy := installing(",
        "test_light_install.py -k missing",
    ),
    # Inference
    Fault(
        "regions do not touch at a corner", "inference/regions.py",
        "connectivity=8", "connectivity=4", "inference/test_regions.py",
    ),
    Fault(
        "a region of the least area is too small", "inference/regions.py",
        "large = areas >= min_area", "large = areas > min_area", "inference/test_regions.py",
    ),
    Fault(
        "regions merge a pixel too late", "inference/regions.py",
        "np.ones((merge_distance + 1, merge_distance + 1), np.uint8)",
        "np.ones((merge_distance, merge_distance), np.uint8)", "inference/test_regions.py",
    ),
    Fault(
        "a region counts what it grew by", "inference/regions.py",
        "labels = np.where(anomalous > 0, labels, 0)", "labels = np.asarray(labels)", "inference/test_regions.py",
    ),
    Fault(
        "regions from the least anomalous", "inference/regions.py",
        "key=lambda region: -region.peak", "key=lambda region: region.peak", "inference/test_regions.py",
    ),
    Fault(
        "a box at the place of its window", "inference/regions.py",
        "left + int(x), top + int(y))", "left, top)", "inference/test_regions.py",
    ),
    Fault(
        "one output for two images", "inference/sources.py",
        "if counts[name] > 1:", "if counts[name] > 2:", "inference/test_sources.py",
    ),
    Fault(
        "an image twice", "inference/sources.py",
        "self.paths, self.left_out = list(images), list(left_out)",
        "self.paths, self.left_out = [*images, *found.files], list(left_out)", "inference/test_sources.py",
    ),
    Fault(
        "two stars stand for one folder", "inference/sources.py",
        "for k in range(len(parts) + 1)", "for k in range(1, 2)", "inference/test_sources.py",
    ),
    Fault(
        "a source without images is silent", "inference/sources.py",
        "if not found.files:", "if not found.files and not found.left_out:", "inference/test_sources.py",
    ),
    # Results and pictures
    Fault(
        "metrics of a category are of all images", "learning/scoring.py",
        "if category == name]", "]", "test_several_categories.py",
    ),
    Fault(
        "ranks do not read the grid they receive", "models/base.py",
        "detector.is_fitted = True\n            detector.read_buffers()", "detector.is_fitted = True",
        "learning/test_detectors.py -m slow -k padim",
    ),
    Fault(
        "a patch is looked for at x for y", "inference/explain.py",
        "embeddings[:, row, column]", "embeddings[:, column, row]", "cli/test_explain_update.py -k given",
    ),
    Fault(
        "good types last", "results/summary.py",
        'key=lambda it: (it[1], it[0])', 'key=lambda it: (-it[1], it[0])', "report/test_html.py",
    ),
    Fault(
        "statistics of an earlier test stay", "results/files.py",
        "(folder / FILE_NAME).unlink(missing_ok=True)", "pass", "results/test_written_files.py -k earlier",
    ),
    # Reports
    Fault(
        "half the spread over seeds", "report/columns.py",
        "Value(fmean(numbers), len(numbers), stdev(numbers))",
        "Value(fmean(numbers), len(numbers), stdev(numbers) / 2)", "report/test_table.py -k seeds",
    ),
    Fault(
        "seeds are settings", "report/columns.py",
        '_NOT_SETTINGS = {"seed", ', "_NOT_SETTINGS = {", "report/test_table.py -k seeds",
    ),
    Fault(
        "a dataset is known by its categories' names", "report/datasets.py",
        "and dataset.categories[category].test == num_test_images", "", "report/test_table.py -k recognised",
    ),
    Fault(
        "another image size is the same", "report/published.py",
        'sized = [entry for entry in named if entry.image_size in ("", ours.image_size)]', "sized = named",
        "report/test_published.py",
    ),
    Fault(
        "a bar in a name parts a cell", "report/formats.py",
        '_MARKDOWN = {"|": r"\\|", ', "_MARKDOWN = {", "report/test_table.py -k markdown",
    ),
    Fault(
        "colours by what there is", "report/roc.py",
        "dict(zip(dict.fromkeys(names), styles, strict=False))", "dict(zip(sorted(names)[1:], styles, strict=False))",
        "report/test_roc.py",
    ),
    # Sweeps
    Fault(
        "changed data is not noticed", "sweep/identity.py",
        "\\0{stat.st_size}\\0{stat.st_mtime_ns}", "", "sweep/test_job.py -m slow -k what_has_changed",
    ),
    Fault(
        "resume is a setting of the job", "sweep/identity.py",
        'NOT_THE_JOBS = ("hydra", "resume")', 'NOT_THE_JOBS = ("hydra",)', "sweep/test_job.py -m slow -k identity_is",
    ),
    Fault(
        "a changed split is not noticed", "sweep/identity.py",
        "for key, text in _texts(data) if key", "for key, text in () if key",
        "sweep/test_job.py -m slow -k identity_is",
    ),
    Fault(
        "a job twice is two", "sweep/plan.py",
        "jobs[folder] = Job(", "jobs[folder / str(len(jobs))] = Job(", "sweep/test_plan.py -k asked_for_twice",
    ),
    Fault(
        "the end of a range is drawn", "sweep/space.py",
        "IntDistribution(int(numbers[0]), int(numbers[-1]), step=step)",
        "IntDistribution(int(numbers[0]), int(numbers[-1]) + step, step=step)", "sweep/test_search.py -k drawn_follows",
    ),
    Fault(
        "categories are drawn", "sweep/space.py",
        "if override.is_sweep_override() and override.key_or_group != CATEGORY:", "if override.is_sweep_override():",
        "sweep/test_search.py -k categories_are_run",
    ),
    # Data tools
    Fault(
        "folds without the next type's start", "datatools/splitting.py",
        "start += len(samples)", "start += 0", "datatools/test_splitting.py -k folds",
    ),
    Fault(
        "defective images are trained on", "datatools/splitting.py",
        'or (split == "train" and item.defect_type != GOOD)', "", "datatools/test_splitting.py -k manifest",
    ),
    Fault(
        "few shots are others for each number", "datatools/splitting.py",
        "default_rng(seed).permutation(len(found.train))[:shots]",
        "default_rng(seed + shots).permutation(len(found.train))[:shots]", "datatools/test_splitting.py -k few_shot",
    ),
    Fault(
        "a shifted image is another", "datatools/fingerprints.py",
        "span = np.stack([np.ones_like(own), own, vertical, horizontal], axis=-1)",
        "span = np.stack([np.ones_like(own), own], axis=-1)", "datatools/test_checking.py -k distances",
    ),
    Fault(
        "outliers widen the spread", "datatools/fingerprints.py",
        "1.4826 * np.median(deviations) or", "deviations.std() or", "datatools/test_checking.py -k robust_z",
    ),
    Fault(
        "empty masks are in order", "datatools/checking.py",
        "if not mask.any():", "if mask is None:", "datatools/test_checking.py -k all_trouble",
    ),
    Fault(
        "a copy that is there is copied again", "datatools/extracting.py",
        "if goal.is_file() and sha256(goal) == digest:", "if goal.is_file() and not digest:",
        "datatools/test_extracting.py",
    ),
    # Pictures and loggers
    Fault(
        "an outline leaves out values on the threshold", "figures/drawing.py",
        "np.nextafter(np.float32(threshold), np.float32(-np.inf))", "np.float32(threshold)",
        "figures/test_figures.py -k outline",
    ),
    Fault(
        "the colours of a picture are its own", "figures/drawing.py",
        "(anomaly_map - self.low) / (self.high - self.low)",
        "(anomaly_map - anomaly_map.min()) / (anomaly_map.max() - anomaly_map.min() + 1e-9)",
        "figures/test_figures.py -k heat",
    ),
    Fault(
        "an image on the threshold is a false alarm in pictures", "figures/run.py",
        "math.nextafter(thresholds.conformal, math.inf)", "thresholds.conformal",
        "callbacks/test_pictures.py -k without_test_images",
    ),
    Fault(
        "as many typical images as worst ones are asked for", "callbacks/writers.py",
        "self.examples = (worst, typical)", "self.examples = (typical, worst)", "callbacks/test_pictures.py -k worst",
    ),
    Fault(
        "names of metrics that MLflow refuses", "callbacks/mlflow.py",
        'name.replace("@", "_at_")', "name", "callbacks/test_pictures.py -m slow -k mlflow",
    ),
    # Drift
    Fault(
        "p-values are not drawn within their gap", "drift/martingale.py",
        "(1 - uniform) * own", "own", "drift/test_martingale.py",
    ),
    Fault(
        "a change is bet on from the first part alone", "drift/martingale.py",
        "(1 + self.sums) * bets", "self.sums * bets", "drift/test_martingale.py -k evidence",
    ),
    Fault(
        "every stream may raise all false alarms", "drift/monitor.py",
        "PARTS / false_alarms * len(self.watched)", "PARTS / false_alarms", "drift/test_monitor.py",
    ),
    # A line
    Fault(
        "a score on the threshold is taken out", "watch/watcher.py",
        "if score > self.reject or", "if score >= self.reject or", "watch/test_watcher.py",
    ),
    Fault(
        "a part of no product is accepted", "watch/watcher.py",
        " or reason is not None:", ":", "watch/test_watcher.py -k product",
    ),
    Fault(
        "good parts that are taken for strangers are not expected", "drift/monitor.py",
        "min(float(share) + strangers,", "min(float(share),", "drift/test_monitor.py -k strangers",
    ),
    Fault(
        "of a moving picture the first frame is inspected", "data/deep.py",
        'image.format not in ("MPO", "PSD", "TIFF"):', "False:", "data/test_decoding.py -k several_frames",
    ),
    Fault(
        "of a stack in a TIFF the first page is inspected", "data/deep.py",
        "_REDUCED_OR_MASK = 0b101", "_REDUCED_OR_MASK = ~0", "data/test_decoding.py -k smaller_copies",
    ),
    Fault(
        "a frame that waits at the end is not counted", "watch/slot.py",
        "dropped=len(self._items))", "dropped=0)", "watch/test_slot.py",
    ),
    Fault(
        "what creeps is still", "watch/triggers.py",
        "        if self._told or time", "        self._reference = small\n        if self._told or time",
        "watch/test_triggers.py -k creeps",
    ),
    Fault(
        "the newest alarm is lost in place of the oldest", "watch/sinks/outbox.py",
        "alarm = self._alarms.popleft()", "alarm = self._alarms.pop()", "watch/sinks/test_outbox.py",
    ),
    # Artifacts
    Fault(
        "a threshold is rounded to float32", "export/graph.py",
        "return float(nearest if float(nearest) > threshold else np.nextafter(nearest, np.float32(np.inf)))",
        "return float(nearest)", "export/test_exporting.py -m slow -k two_float32",
    ),
    Fault(
        "an artifact may decide otherwise", "export/parity.py",
        " and not self.changed", "", "export/test_exporting.py -m slow -k decides_otherwise",
    ),
    # The page, the command line, configs
    Fault(
        "a score on the threshold is an alarm on the page", "demo/inspecting.py",
        "return self.score > threshold or", "return self.score >= threshold or", "demo/test_inspecting.py",
    ),
    Fault(
        "the last file may exceed what a session holds", "demo/uploads.py",
        "if size + file.size > BYTES:", "if size > BYTES:", "demo/test_uploads.py",
    ),
    Fault(
        "a file that could not be read is no error", "cli/predict.py",
        'failed = tally.counts["failed"] or (strict', "failed = (strict", "cli/test_predict.py -k exit_codes",
    ),
    Fault(
        "files that were left out are no error if that is asked for", "cli/predict.py",
        "(strict and source.left_out)", "(strict and source.errors)", "cli/test_predict.py -k left_out",
    ),
    Fault(
        "the home folder is a folder named ~", "hydra_entry/overrides.py",
        "os.path.expanduser(text) if key in PATHS else text", "text", "hydra_entry/test_overrides.py -k home",
    ),
    Fault(
        "misspelt settings have no near ones", "hydra_entry/composition.py",
        "near = difflib.get_close_matches(key, keys, n=1)", "near: list[str] = []",
        "hydra_entry/test_composition.py -k misspelt",
    ),
    # Rendering
    Fault(
        "a misplaced object is marked where it is alone", "scenes/dataset.py",
        "np.isin(before, wrong_ids) | np.isin(scene", "np.isin(scene", "scenes/test_rendering.py -k misplaced",
    ),
    Fault(
        "the same boards for every seed", "scenes/dataset.py",
        "np.random.SeedSequence([seed, zlib", "np.random.SeedSequence([0, zlib", "scenes/test_rendering.py -k seed",
    ),
    # What files may ask for
    Fault(
        "trust in a package reaches those whose names begin alike", "known.py",
        'target.startswith(f"{package}.")', "target.startswith(package)", "test_known.py -k own_code",
    ),
    Fault(
        "a class that a module has merely imported is built", "known.py",
        "if not inspect.isclass(found) or not own or not", "if not inspect.isclass(found) or not",
        "test_known.py -m slow -k reached",
    ),
    Fault(
        "a changed file of the hub is loaded", "hub.py",
        "if not (found / name).is_file() or sha256(found / name) != digest:", "if not (found / name).is_file():",
        "test_hub.py -k wrong_file",
    ),
    Fault(
        "results in the order in which workers are done", "pool.py",
        "yield lambda function, items: pool.map(function, items, chunksize=4)",
        "yield lambda function, items: reversed(list(pool.map(function, items, chunksize=4)))", "test_pool.py",
    ),
    # Secrets, refusals, receivers, uploads at the line
    Fault(
        "a slow model falls behind", "watch/slot.py",
        "                self._items.clear()\n                self._count(arrived=1, dropped=1)\n            else:",
        "                self._count(arrived=1, waiting=1)\n            else:", "watch/test_slot.py",
    ),
    Fault(
        "frames between triggers are in no count", "watch/slot.py",
        "self._count(arrived=1, skipped=1)", "pass", "watch/test_slot.py",
    ),
    Fault(
        "a camera that is restarted ends the watch", "watch/capture.py",
        "if isinstance(error, RefusedError) and not ever:", "if isinstance(error, RefusedError):",
        "watch/test_capture.py -k later_is_not",
    ),
    Fault(
        "pauses between attempts never end to grow", "watch/pauses.py",
        "min(most, first * 2.0 ** min(failures - 1, 30))", "first * 2.0 ** min(failures - 1, 30)",
        "watch/test_pauses.py",
    ),
    Fault(
        "a playlist is read like a camera", "watch/sources.py",
        '(container.format.name == "hls" or container.duration is not None)', "container.duration == 0",
        "watch/test_capture.py -k pieces",
    ),
    Fault(
        "a device is opened as a file", "watch/sources.py",
        '_live(self.name, {}, "v4l2", stop', "_live(self.name, {}, None, stop", "watch/test_capture.py -k video4linux",
    ),
    Fault(
        "a lost connection keeps its decoder", "watch/sources.py",
        "del reading  # else", "pass  # else", "watch/test_capture.py -k leaves_nothing",
    ),
    Fault(
        "a secret in a query is not seen", "watch/addresses.py",
        "if value and _SECRET.search(name):", "if value and _SECRET.fullmatch(name):", "watch/test_addresses.py",
    ),
    Fault(
        "a password is not quoted", "watch/addresses.py",
        'quote(os.environ[found[1]], safe="/" if in_path else "")', "os.environ[found[1]]", "watch/test_addresses.py",
    ),
    Fault(
        "half a file is read", "watch/folder.py",
        "if still > PATIENCE:", "if still > 0:", "watch/test_folder.py -k half",
    ),
    Fault(
        "the same stop is judged again", "watch/triggers.py",
        "        self._told = True\n", "", "watch/test_triggers.py",
    ),
    Fault(
        "an alarm is forgotten before it is accepted", "watch/sinks/sender.py",
        "                failures += 1\n", "                failures += 1\n                self.outbox.done(alarm)\n",
        "watch/sinks/test_webhook.py -k 'may_pass and 500'",
    ),
    Fault(
        "each part is compared with the good images alone", "drift/monitor.py",
        "        self._counts[gap] += 1\n", "", "drift/test_monitor.py -k reimplementation",
    ),
    Fault(
        "rejected parts count as drift of the score", "drift/monitor.py",
        "if not rejected and (self.threshold is None or score < self.threshold):", "if not failed:",
        "drift/test_monitor.py -k reimplementation",
    ),
    Fault(
        "bets are no longer fair", "drift/martingale.py",
        "np.exp(shifts * score - shifts**2 / 2)", "np.exp(shifts * score - shifts**2 / 4)",
        "drift/test_martingale.py -k mean_of_one",
    ),
    Fault(
        "the state of another calibration is taken", "drift/monitor.py",
        'same = state["calibration"] == self._calibration', "same = True", "drift/test_monitor.py -k another_monitor",
    ),
    Fault(
        "images that were fitted to set the threshold", "inference/recalibration.py",
        "            if filecmp.cmp(image, path, shallow=False):\n", "            if image == path:\n",
        "cli/test_drift.py -k cannot_be_calibrated",
    ),
    Fault(
        "the history of thresholds begins again", "inference/recalibration.py",
        '[*about.get("calibrations", []), step]', "[step]", "cli/test_drift.py -k remembers_the_last",
    ),
    Fault(
        "the name of an upload becomes a path", "demo/uploads.py",
        'path = folder / f"{count + len(kept):05}{PurePath(file.name).suffix.lower()}"', "path = folder / file.name",
        "demo/test_uploads.py -k 'path or numbers'",
    ),
    Fault(
        "an upload of any size", "demo/uploads.py",
        "if file.size > FILE_BYTES:", "if file.size < 0:", "demo/test_uploads.py -k no_image",
    ),
    Fault(
        "files beyond what a session holds are sent", "demo/sessions.py",
        "if self.num_files + len(others) > FILES or self.num_bytes + sum(others) > BYTES:",
        "if self.num_files + len(others) > FILES:", "demo/test_demo_page.py -k so_many_files",
    ),
]  # fmt: skip


def run(copy: Path, tests: list[str]) -> tuple[int, str]:
    """Exit code and output of some tests on the copy, until one fails; a fork need not import everything again."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        child = os.fork()
        if not child:
            code = BROKEN
            try:
                os.chdir(copy)
                for stream in (sys.stdout, sys.stderr):
                    os.dup2(said.fileno(), stream.fileno())
                os.environ["PYTHONPATH"] = sys.path[0] = str(copy / "src")  # in place of the folder of this file
                code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", *tests])
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read()


def arguments(tests: str) -> list[str]:
    """Of pytest, from a fault's `tests`."""
    path, *chosen = shlex.split(tests)
    return [f"tests/{path}", *chosen]


@cache
def without_a_fault(copy: Path, tests: str) -> str:
    """What some tests say of the source as it is; empty if they pass."""
    code, said = run(copy, arguments(tests))
    return "" if code == PASSED else f"its tests fail without it:\n{said[-2000:]}"


def problem(copy: Path, fault: Fault) -> str:
    """Why a fault cannot be planted, or its tests say nothing; empty if they can and do."""
    count = (copy / "src/oddpatch" / fault.path).read_text(encoding="utf-8").count(fault.old)
    if count != 1:
        return f"{fault.old!r} is in it {count} times, not once"
    return without_a_fault(copy, fault.tests)


def plant(copy: Path, fault: Fault) -> tuple[str, str]:
    """Plant a fault, run its tests and take it out again: "caught", "MISSED" or "ERROR", and which test or why."""
    if told := problem(copy, fault):
        return "ERROR", told
    path = copy / "src/oddpatch" / fault.path
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(fault.old, fault.new), encoding="utf-8")
    try:
        code, said = run(copy, arguments(fault.tests))
    finally:
        path.write_text(source, encoding="utf-8")
    if code == FAILED:
        last = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return "caught", last[0].removeprefix("FAILED ").partition(" - ")[0] if last else ""
    return ("MISSED", "") if code == PASSED else ("ERROR", said[-2000:])


def main(wanted: str = "") -> int:
    """Plant all faults, or those with `wanted` in their name or path."""
    chosen = [fault for fault in FAULTS if wanted in fault.name or wanted in fault.path]
    outcomes = []
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1", PYTHONDONTWRITEBYTECODE="1")  # read when imported
    sys.dont_write_bytecode = True
    for name in OTHERS:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="planted-") as scratch:
        copy = Path(scratch) / "oddpatch"
        if (shared := ROOT.parent / "shared").is_dir():
            (Path(scratch) / "shared").symlink_to(shared.resolve())
        for name in ("src", "tests", "configs", "sweeps"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("train.py", "eval.py", "pyproject.toml"):
            shutil.copy(ROOT / name, copy / name)
        for fault in chosen:
            outcome, told = plant(copy, fault)
            outcomes.append(outcome)
            sys.stdout.write(f"{outcome}  {fault.path}: {fault.name}  {told}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{outcomes.count('caught')} of {len(outcomes)} caught\n")
    return 2 if "ERROR" in outcomes or not outcomes else int("MISSED" in outcomes)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
