"""How fast a run or an artifact is on this machine: `measure` in a process of its own, so that nothing is warm.

`python -m oddpatch.inference.bench` prints what `measure` returns, as JSON; `oddpatch bench` calls it.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from oddpatch.errors import in_one_line

#: Seconds and batches that are measured at least, after one batch that is not.
SECONDS, BATCHES = 3.0, 10


@dataclass(frozen=True)
class Measured:
    """What one engine does with one size of batches."""

    engine: str
    batch: int
    start_up: float  # seconds from the import to the first result, of one image
    p50: float  # seconds per batch, from resized pixels to score and map
    p95: float
    rate: float  # images per second
    memory: int  # bytes of main memory at the peak
    size: int  # bytes on disk


def measure(path: Path, batch: int, engine: str | None = None) -> Measured:
    """Score batches of grey images again and again.

    Args:
        path: a run's folder, a checkpoint or an artifact.
        batch: images at once.
        engine: see `AnomalyDetector.load`.

    Raises:
        OddpatchError: as `AnomalyDetector.load`.
    """
    start = time.perf_counter()
    from oddpatch.inference.detector import AnomalyDetector
    from oddpatch.inference.scorer import Preparing

    scorer = AnomalyDetector.load(path, engine=engine).scorer
    assert isinstance(scorer, Preparing), "what is loaded from a file prepares images"
    image = scorer.example()
    scorer.score([image])
    start_up = time.perf_counter() - start
    seconds: list[float] = []
    scorer.score([image] * batch)  # an engine prepares itself for the size of a batch
    while len(seconds) < BATCHES or sum(seconds) < SECONDS:
        begin = time.perf_counter()
        scorer.score([image] * batch)
        seconds.append(time.perf_counter() - begin)
    p50, p95 = np.quantile(seconds, [0.5, 0.95]).tolist()
    name = getattr(scorer, "engine", None) or engine or "torch"
    return Measured(name, batch, start_up, p50, p95, batch / p50, peak_memory(), size_on_disk(path))


def peak_memory() -> int:
    """Bytes of main memory that this process has taken at its peak."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def size_on_disk(path: Path) -> int:
    """Bytes of an artifact's files, or of a run's checkpoint."""
    if path.is_dir():
        return (path / "checkpoints" / "fitted.ckpt").stat().st_size
    files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    try:
        found = measure(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] or None)
    except Exception as error:
        sys.exit(in_one_line(error) or repr(error))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
