"""Rows of several devices: two processes against one. A GPU has tables of its own: gpu.py.

python benchmarks/run.py --only devices
"""

import sys
import tempfile
from collections.abc import Callable, Iterator

import torch

from common import ROOT, Options, Row, Used, alternate, compare, run


def rows(options: Options) -> Iterator[Row]:
    """Fit and test of PaDiM and PatchCore on two ranks, and where a GPU is measured."""
    for model in ("padim", "patchcore"):
        used = alternate({"one": _train(model, options), "two": _train(model, options, ranks=2)}, options.rounds)
        what, against = f"{model}, fit + test, 2 ranks on CPU cores", "1 process, start-up included"
        yield compare(what, against, used["two"], used["one"], note="CPU time of both ranks and their start-up")
        yield compare(what, against, used["two"], used["one"], take=lambda it: it.wall, unit="s of wall time")
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU here"
    yield Row(
        "a GPU", "its backbone, the CPU", note=f"{here}: its tables are in docs/gpu.md",
        command="python benchmarks/gpu.py rate",
    )  # fmt: skip


def _train(model: str, options: Options, ranks: int = 1) -> Callable[[], Used]:
    few = ["debug=smoke"] if options.quick else []
    ddp = ["trainer=ddp", f"trainer.devices={ranks}"] if ranks > 1 else []

    def call() -> Used:
        with tempfile.TemporaryDirectory() as folder:
            settings = [
                f"model={model}", "data=mvtec", f"data.root={options.images().parent}", "logger=none", *few, *ddp,
                f"data.category={options.category}", f"hydra.run.dir={folder}/run", "trainer.accelerator=cpu",
            ]  # fmt: skip
            return run([sys.executable, ROOT / "train.py", *settings])

    return call
