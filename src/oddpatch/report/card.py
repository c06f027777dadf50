"""The model card of a run, for the Hugging Face Hub."""

from oddpatch.report.runs import FinishedRun
from oddpatch.report.templates import render
from oddpatch.results.summary import metric_name


def render_card(run: FinishedRun, repo: str) -> str:
    """Markdown with what was fitted, how to load it, the threshold and what was measured.

    Args:
        run: finished.
        repo: OWNER/NAME on the hub.
    """
    intervals = run.metrics.get("confidence", {})
    measured = [key for key in run.metrics if key.startswith(("image_", "pixel_", "au_pro")) and metric_name(key)]
    return render(
        "card.md",
        name=repo.partition("/")[2],
        repo=repo,
        run=run.names,
        metrics=run.metrics,
        thresholds=run.metrics.get("thresholds"),
        random_weights=run.is_random,
        rows=[
            (metric_name(key), run.metrics[key], intervals.get(key))
            for key in measured
            if isinstance(run.metrics[key], float)
        ],
    )
