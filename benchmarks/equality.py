"""Whether another checkout gives the same results as this one: every score and metric, to the last bit.

git worktree add ../before COMMIT
python benchmarks/equality.py ../before --root ../shared/data/mvtec
python benchmarks/equality.py ../before --models padim --data pcb

Fits and tests each method on MVTec AD bottle and on rendered boards and tool boxes with the code of both, one after the
other, on the same images and without a threshold. What is in `--out` already is not repeated. The exit code
is 0 only if all are equal; what takes time or memory, versions and settings are not compared.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
MODELS = ("padim", "patchcore", "patchcore model.coreset_ratio=0.01", "spade", "gaussian")
#: Only what one run alone can tell, and what says how it was made.
SKIPPED = (
    "run", "settings", "timing", "peak_memory_bytes", "git_commit", "versions", "test_set", "fpr_limits", "thresholds",
    "inspected", "alignment", "left_out",
)  # fmt: skip


def fit_and_test(checkout: Path, folder: Path, model: str, data: list[str]) -> None:
    """Run `train.py` of a checkout, unless its results are there."""
    if (folder / "metrics.json").is_file():
        return
    command = [
        sys.executable, "train.py", *f"model={model}".split(), *data, "calibration=none", "logger=none",
        "callbacks.pictures=null", "callbacks.report=null", "callbacks.results.confidence.draws=0",
        f"hydra.run.dir={folder}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{checkout}: model={model} {' '.join(data)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def results(folder: Path) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """(path, score) of every test image, and the metrics."""
    with (folder / "predictions.csv").open(newline="") as file:
        scores = [(row["path"], row["score"]) for row in csv.DictReader(file)]
    metrics = json.loads((folder / "metrics.json").read_text())
    operating = {k: v for k, v in metrics.pop("operating", {}).items() if k != "average_latency_ms"}
    return scores, {**{k: v for k, v in metrics.items() if k not in SKIPPED}, **operating}


def largest(found: Sequence[tuple[list[tuple[str, str]], dict[str, Any]]]) -> str:
    """The largest difference of the metrics, thresholds left out, and that of the scores as a share of the largest."""
    (scores, metrics), (new_scores, new_metrics) = ((dict(scores), metrics) for scores, metrics in found)
    if scores.keys() != new_scores.keys():
        return "other images"
    moved = max(abs(float(new_scores[path]) - float(score)) for path, score in scores.items())
    moved /= max(abs(float(score)) for score in scores.values())
    values = {name: value for name, value in metrics.items() if isinstance(value, float) and "threshold" not in name}
    gaps = [abs(new - value) for name, value in values.items() if isinstance(new := new_metrics.get(name), float)]
    return f"metrics by {max(gaps, default=0):.1e} at most, scores by {moved:.1e} of the largest"


def main() -> None:
    """Compare, and print a line for each method and data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--root", type=Path, help="MVTec AD, for bottle; without it rendered images only")
    parser.add_argument("--models", nargs="+", default=MODELS, help="with their settings, each in quotes")
    parser.add_argument("--data", nargs="+", default=["bottle", "pcb", "toolbox"])
    parser.add_argument("--out", type=Path, default=HERE / "outputs/equality", help="where the runs go")
    options = parser.parse_args()
    out = options.out.resolve()
    different = 0
    for data in options.data:
        if data == "bottle" and options.root is None:
            print("bottle: left out, give --root")
            continue
        overrides = [f"data={data}", "data.align=null", f"paths.data_dir={out / 'data'}"]
        if data == "bottle":
            overrides = ["data=mvtec", f"data.root={options.root.resolve()}"]
        for model in options.models:
            found = []
            for side, checkout in (("other", options.other.resolve()), ("this", HERE)):
                folder = out / side / f"{model.replace(' ', '_').replace('=', '_')}-{data}"
                fit_and_test(checkout, folder, model, overrides)
                found.append(results(folder))
            (scores, metrics), (new_scores, new_metrics) = found
            unlike = [name for name in metrics if metrics[name] != new_metrics.get(name)]
            unlike += ["scores"] if scores != new_scores else []
            different += bool(unlike)
            told = f"DIFFERS: {', '.join(unlike)}; {largest(found)}" if unlike else "equal"
            print(f"{data:8} {model:36} {told}", flush=True)
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
