"""What a first run shows: `python train.py` in an empty folder, rendering included, for boards of other seeds.

python benchmarks/first_run.py                       # seeds 1, 2 and 3
python benchmarks/first_run.py 4 5 -- data=toolbox   # settings after --

A line for each seed: image AUROC, recall and false alarms at the threshold that the good training images set, seconds.
CPU seconds are those of all its processes: on a machine with other work they say more than the time that passed.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def first_run(seed: int, settings: list[str]) -> str:
    """Render, fit and test in a folder that is removed, and give the line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "train.py", f"data.root={folder}/data", f"data.render_seed={seed}",
            f"hydra.run.dir={folder}/run", *settings,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(HERE / "src")}
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(f"seed {seed} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        metrics = json.loads((Path(folder) / "run/metrics.json").read_text())
        with (Path(folder) / "run/predictions.csv").open(newline="") as file:
            alarms = [int(row["is_anomalous"]) for row in csv.DictReader(file) if row["label"] == "0"]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    cells = [
        seed, f"{metrics['image_auroc']:.4f}", f"{metrics['image_recall@conformal']:.3f}",
        f"{sum(alarms)} of {len(alarms)}", round(seconds), round(cpu),
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, default=[1, 2, 3])
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    arguments, settings = parser.parse_args(given[:cut]), given[cut + 1 :]
    print(
        "| seed | image AUROC | recall | false alarms | seconds | CPU seconds |\n|---|---|---|---|---|---|", flush=True
    )
    for seed in arguments.seeds:
        print(first_run(seed, settings), flush=True)


if __name__ == "__main__":
    main()
