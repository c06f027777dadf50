"""What a run costs beyond decoding images and running the backbone, in CPU seconds of one run on the same images.

    python benchmarks/overhead.py --root ../shared/data/mvtec --category bottle
    python benchmarks/overhead.py --root ... --memory 50 200      # peak memory for so many training images

The floor decodes every training and test image and runs the backbone, with the same workers and batches, and nothing
else. The run is the whole fit and test of the pipeline with all metrics, confidence intervals, result files and the
report; start-up is not counted, and pictures are off.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import cpu_seconds, decode_with_opencv

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def prepare(args: argparse.Namespace, out: str) -> Any:
    """A built run of the pipeline, as train.py makes it."""
    from hydra import compose, initialize_config_dir

    from oddpatch import pipeline

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(
            "train",
            [
                f"model={args.model}", f"backbone={args.backbone}", "data=mvtec", f"data.root={args.root}",
                f"data.category={args.category}", f"paths.output_dir={out}", "callbacks.pictures=null",
                "callbacks.progress=null", "trainer.accelerator=cpu", *args.overrides,
            ],
        )  # fmt: skip
    return pipeline.build(cfg)


def floor(run: Any, opencv: bool = False) -> None:
    """Decode every image and run the backbone, with the workers and batches of the run.

    Args:
        run: see `prepare`.
        opencv: decode by OpenCV, as most programs do.
    """
    import torch

    from oddpatch.data.decoding import read_image

    model = run.module.model

    def decode(path: Path) -> tuple[int, int]:
        if opencv:
            return decode_with_opencv(path)
        _, height, width = read_image(path, keep_uint8=True).shape
        return height, width

    with torch.inference_mode():
        for loader in (run.data.train_dataloader(), run.data.test_dataloader()):
            loader.dataset.preprocess = _skip(
                decode, model.preprocess.image_size, model.preprocess.alignment is not None
            )
            for batch in loader:
                model.backbone(batch.image.to(run.module.device))
            loader.dataset.preprocess = model.preprocess


def measure(args: argparse.Namespace) -> None:
    """Print the CPU seconds of floor and run, and their ratio."""
    with tempfile.TemporaryDirectory() as out:
        run = prepare(args, out)
        run.data.setup("fit")
        samples = run.data.train_samples + run.data.test_samples
        floors, runs = [], []
        for repeat in range(args.repeats):
            start = cpu_seconds()
            floor(run)
            floors.append(cpu_seconds() - start)
            if repeat:
                run = prepare(args, out)
            start = cpu_seconds()
            run.fit()
            run.test()
            runs.append(cpu_seconds() - start)
            print(f"floor {floors[-1]:6.2f} s   run {runs[-1]:6.2f} s   ratio {runs[-1] / floors[-1]:.2f}", flush=True)
        ratios = sorted(r / f for r, f in zip(runs, floors, strict=True))
        print(f"{len(samples)} images, {args.model} on {args.backbone}: median ratio {ratios[len(ratios) // 2]:.2f}")


def _skip(decode: Callable[[Path], tuple[int, int]], size: tuple[int, int], aligned: bool) -> Any:
    """A stand-in for preprocessing that only gives a tensor of the right shape: the floor decodes and no more."""
    import numpy as np
    import torch

    from oddpatch.data.alignment import Registration
    from oddpatch.data.light import Light
    from oddpatch.data.transforms import Placement

    registration = Registration(np.eye(3), 1.0) if aligned else None

    class Skip:
        image_size = size
        roi_mask = None

        def prepare(self, path: Path) -> tuple[torch.Tensor, Placement]:
            return torch.zeros(3, *size), Placement(decode(path), Light(0, 0), registration)

        def mask(self, mask: Any, registration: Any) -> torch.Tensor:
            return torch.ones(1, *size, dtype=torch.uint8)  # zeros would be warned about

        def uniform_mask(self, value: int, original_size: Any, registration: Any) -> torch.Tensor:
            return torch.full((1, *size), value, dtype=torch.uint8)

    return Skip()


def measure_memory(args: argparse.Namespace) -> None:
    """Print the peak memory of a fit and test on the first so many training images, each in a process of its own."""
    peaks = {}
    for count in args.memory:
        with tempfile.TemporaryDirectory() as out:
            root = Path(out) / "data"
            source = Path(args.root).resolve() / args.category
            good = root / args.category / "train/good"
            good.mkdir(parents=True)
            for path in sorted((source / "train/good").iterdir())[:count]:
                (good / path.name).symlink_to(path)
            for part in ("test", "ground_truth"):
                (root / args.category / part).symlink_to(source / part)
            train = [
                sys.executable, str(CONFIGS.parent / "train.py"), f"model={args.model}", f"backbone={args.backbone}",
                "data=mvtec", f"data.root={root}", f"data.category={args.category}", f"hydra.run.dir={out}/run",
                "callbacks.pictures=null", "trainer.accelerator=cpu", *args.overrides,
            ]  # fmt: skip
            subprocess.run(train, check=True, capture_output=True)
            peaks[count] = json.loads(Path(out, "run/metrics.json").read_text())["peak_memory_bytes"]
        print(f"{count:5d} training images: peak {peaks[count] / 2**20:8.1f} MiB", flush=True)
    print(f"largest / smallest: {max(peaks.values()) / min(peaks.values()):.3f}")


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--model", default="padim")
    parser.add_argument("--backbone", default="effnet_lite0")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="+", metavar="N")
    parser.add_argument("overrides", nargs="*", help="further settings, as for train.py")
    args = parser.parse_args()
    if args.memory:
        measure_memory(args)
    else:
        measure(args)


if __name__ == "__main__":
    main()
