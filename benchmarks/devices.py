"""Rows of several devices: two processes against one, and a GPU against its backbone alone where there is one.

python benchmarks/run.py --only devices
python benchmarks/run.py --only devices --device cuda
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from common import ROOT, Options, Row, Used, alternate, compare, run, timed


def rows(options: Options) -> Iterator[Row]:
    """Fit and test of PaDiM and PatchCore on two ranks; rates of a GPU."""
    for model in ("padim", "patchcore"):
        used = alternate({"one": _train(model, options), "two": _train(model, options, ranks=2)}, options.rounds)
        what, against = f"{model}, fit + test, 2 ranks on CPU cores", "1 process, start-up included"
        yield compare(what, against, used["two"], used["one"], note="CPU time of both ranks and their start-up")
        yield compare(what, against, used["two"], used["one"], take=lambda it: it.wall, unit="s of wall time")
    yield from _gpu(options)


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


def _gpu(options: Options) -> Iterator[Row]:
    """Images per second of the test loop's steps on a GPU, against the backbone alone."""
    what = "score a batch of 32 images, GPU"
    if not torch.cuda.is_available():
        yield Row(what, "its backbone alone", note="no GPU here: not measured")
        return
    from oddpatch import AnomalyDetector
    from oddpatch.inference.torch_scorer import TorchScorer

    good = sorted(str(path) for path in (options.images() / "train/good").iterdir())
    for model in ("padim", "patchcore"):
        detector = AnomalyDetector.fit(good, model=model, backbone=options.backbone)
        with tempfile.TemporaryDirectory() as folder:
            detector.save(Path(folder) / "run")
            scorer = AnomalyDetector.load(Path(folder) / "run", device="cuda").scorer
        assert isinstance(scorer, TorchScorer)
        network = scorer.model
        images = torch.rand(32, 3, *network.preprocess.image_size, device="cuda")

        def steps(call: Callable[[torch.Tensor], object], images: torch.Tensor = images) -> Callable[[], Used]:
            def work() -> None:
                with torch.inference_mode():
                    for _ in range(50):
                        call(images)
                torch.cuda.synchronize()

            work()
            return lambda: timed(work)

        used = alternate({"ours": steps(network), "floor": steps(network.backbone)}, options.rounds)
        name = f"{what}, {model}, {torch.cuda.get_device_name()}"
        yield compare(name, "its backbone alone", used["ours"], used["floor"], 1 / 0.9, take=lambda it: it.wall / 50,
                      unit="s of wall time", note=f"{32 / (used['ours'][0].wall / 50):.0f} images/s")  # fmt: skip
