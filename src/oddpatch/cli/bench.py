"""`oddpatch bench`: latency, rate, memory and start-up of runs and artifacts on this machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from oddpatch.cli.common import split_names, tell
from oddpatch.errors import CheckpointError, ConfigError


def bench(
    models: Annotated[list[Path], typer.Argument(help="Folders of finished runs, or artifacts.")],
    engine: Annotated[
        str, typer.Option(help="Of runs: torch,openvino. An artifact has one only. (default: the run's own)")
    ] = "",
    batch_size: Annotated[str, typer.Option(help="Images at once, such as 1,8.")] = "1,8",
) -> None:
    """Measure runs and artifacts: a line for each engine and size of batch, each in a process of its own.

    From resized pixels to score and map: p50 and p95 of the time of a batch, images per second. Start-up is from
    nothing loaded to the first score. Memory is the peak of the process.

    Examples:
      oddpatch bench outputs/RUN outputs/RUN/model.onnx outputs/RUN/model.xml
      oddpatch bench outputs/RUN --engine torch,openvino --batch-size 1,8,32
    """
    batches = [_number(text, batch_size) for text in split_names(batch_size)]
    engines = split_names(engine) or [""]
    for model in models:
        if not model.exists():
            raise CheckpointError(f"{model} does not exist: give the folder of a finished run, or an artifact")
    tell(f"{'model':<40} {'engine':<12} {'batch':>5} {'p50 ms':>8} {'p95 ms':>8} {'images/s':>9} {'start s':>8} "
         f"{'memory MB':>10} {'size MB':>8}")  # fmt: skip
    for model in models:
        for name in engines if model.is_dir() or model.suffix == ".ckpt" else [""]:
            for batch in batches:
                _tell(model, measure_apart(model, batch, name))


def measure_apart(model: Path, batch: int, engine: str) -> "dict[str, float | str]":
    """What `oddpatch.inference.bench` measures, in a process of its own: nothing is loaded before.

    Raises:
        CheckpointError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "oddpatch.inference.bench", str(model), str(batch), engine],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise CheckpointError(lines[-1] if lines else f"{model}: measuring it ended with code {done.returncode}")
    found: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return found


def _tell(model: Path, found: "dict[str, float | str]") -> None:
    name = str(model)
    tell(
        f"{name if len(name) <= 40 else '...' + name[-37:]:<40} {found['engine']:<12} {found['batch']:>5} "
        f"{1e3 * float(found['p50']):>8.1f} {1e3 * float(found['p95']):>8.1f} {found['rate']:>9.1f} "
        f"{found['start_up']:>8.2f} {float(found['memory']) / 1e6:>10.0f} {float(found['size']) / 1e6:>8.1f}"
    )


def _number(text: str, given: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--batch-size={given}: give numbers of 1 or more, such as 1,8")
    return int(text)
