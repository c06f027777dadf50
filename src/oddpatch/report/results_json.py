"""Results of one model over its categories in the form of PatchCoreViT's `results.json`.

Each category has the confusion matrix `cm` ([[true good, false alarms], [misses, found]]), `prfs` (precision, recall,
F1 and null for support) at the threshold of the highest F1 on the test images, an oracle, and `auc_img` and `auc_pxl`;
then follow their averages, the number of misclassified images, and what the model was.
"""

from collections.abc import Sequence
from typing import Any

from oddpatch.errors import ConfigError
from oddpatch.report.columns import Column
from oddpatch.report.runs import FinishedRun, read_predictions
from oddpatch.results import PREDICTIONS


def results_of(columns: Sequence[Column]) -> dict[str, Any]:
    """The content of the file.

    Args:
        columns: of one model; the form has no place for a second.

    Raises:
        ConfigError: there are several models, or a category has several runs, or no good or no anomalous images.
        CheckpointError: a run's predictions cannot be read.
    """
    if len(columns) != 1:
        names = "; ".join(column.label for column in columns)
        raise ConfigError(f"results.json holds one model, these runs are of {len(columns)} ({names}): give one's runs")
    (column,) = columns
    results: dict[str, Any] = {}
    misclassified = 0
    for run in sorted(column.runs, key=lambda run: run.title):
        if run.title in results:
            raise ConfigError(f"results.json holds one run of {run.title}, there are several: leave out {run.folder}")
        results[run.title] = _of_category(run)
        (_, alarms), (misses, _) = results[run.title]["cm"]
        misclassified += alarms + misses
    averages = {name: _mean([result[name] for result in results.values()]) for name in ("auc_img", "auc_pxl")}
    return {
        **results,
        **{f"avg_{name}": value for name, value in averages.items()},
        "misclassified": misclassified,
        "model_params": _parameters(column),
        "metric": column.runs[0].settings["model"].get("distance", "euclidean"),
        "threshold": "image F1-max (oracle)",
        "random_weights": column.is_random,
    }


def _of_category(run: FinishedRun) -> dict[str, Any]:
    if not {"image_f1_max_threshold", "image_auroc"} <= run.metrics.keys():
        reason = run.metrics.get("absent", {}).get("image_f1_max", "not measured")
        raise ConfigError(f"{run.folder} has no image F1-max ({reason}): leave the run out")
    threshold = run.metrics["image_f1_max_threshold"]
    counts = [[0, 0], [0, 0]]
    for row in read_predictions(run):
        counts[row.label][int(row.score >= threshold)] += 1
    (_, alarms), (misses, found) = counts
    if not found:
        raise ConfigError(f"{run.folder}: no anomalous image of {PREDICTIONS} reaches its F1-max: test the run again")
    precision, recall = found / (found + alarms), found / (found + misses)
    return {
        "cm": counts,
        "prfs": [precision, recall, 2 * found / (2 * found + alarms + misses), None],
        "auc_img": run.metrics["image_auroc"],
        "auc_pxl": run.metrics.get("pixel_auroc"),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """The average; None unless every category has the metric."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _parameters(column: Column) -> dict[str, Any]:
    settings = column.runs[0].settings
    model = {key: value for key, value in settings["model"].items() if key not in ("_target_", "seed")}
    backbone = settings["backbone"]
    return {
        "method": column.model,
        "backbone": backbone.get("name", column.backbone),
        "layers": backbone.get("layers"),
        "image_size": column.image_size,
        **model,
    }
