"""What a GPU gives, and whether it gives the same: CPU against GPU, rates against the backbone's own, coreset picks.

    python benchmarks/gpu.py methods --root ../shared/data/mvtec    # every method on both: the same scores?
    python benchmarks/gpu.py rate                                   # images a second: backbone, with fit, with scores
    python benchmarks/gpu.py coreset                                # picks a second, and the picks of the CPU
    python benchmarks/gpu.py loop --root ../shared/data/mvtec       # fit and test from files; what waits for the GPU

Wall times, as the work is the GPU's; rates are medians of five after a warm-up, on images that are on the device.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

HERE = Path(__file__).resolve().parent.parent
QUIET = ["logger=none", "callbacks.pictures=null", "callbacks.report=null", "callbacks.progress=null"]
METRICS = ("image_auroc", "pixel_auroc", "au_pro")


def methods(args: argparse.Namespace) -> None:
    """Fit and test every method on CPU and GPU, and compare scores and metrics."""
    names = args.models or sorted(path.stem for path in (HERE / "configs/model").glob("*.yaml"))
    places = ("cpu", args.device)
    pool = ThreadPoolExecutor(args.jobs)
    jobs = {(name, place): pool.submit(_train, args, name, place) for name in names for place in places}
    print(
        f"{'method':20} {'scores apart':>12} " + " ".join(f"{name:>17}" for name in METRICS) + f" {'wall s':>11}",
        flush=True,
    )
    for name in names:
        end, other_end = (jobs[name, place].result() for place in places)
        if isinstance(end, str) or isinstance(other_end, str):
            print(f"{name:20} {end if isinstance(end, str) else other_end}", flush=True)
            continue
        (scores, here, seconds), (others, there, other_seconds) = end, other_end
        spread = max(scores.values()) - min(scores.values())
        apart = max(abs(scores[path] - others[path]) for path in scores) / spread
        cells = [f"{here.get(key, float('nan')):.5f}/{there.get(key, float('nan')):.5f}" for key in METRICS]
        print(f"{name:20} {apart:12.1e} " + " ".join(f"{cell:>17}" for cell in cells)
              + f" {seconds:5.1f}/{other_seconds:5.1f}", flush=True)  # fmt: skip


def _train(args: argparse.Namespace, model: str, place: str) -> tuple[dict[str, float], dict[str, Any], float] | str:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "train.py", f"model={model}", "data=mvtec", f"data.root={args.root.resolve()}",
            f"trainer.accelerator={place}", "callbacks.results.confidence.draws=0", "data.num_workers=1", *QUIET,
            f"hydra.run.dir={folder}", *args.overrides,
        ]  # fmt: skip
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // args.jobs))}
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=HERE, env=os.environ | threads, capture_output=True, text=True, check=False, timeout=1800
        )
        if done.returncode:
            return f"on {place}: {(done.stderr.strip() or done.stdout.strip())[-1500:]}"
        with (Path(folder) / "predictions.csv").open(newline="") as file:
            scores = {row["path"]: float(row["score"]) for row in csv.DictReader(file)}
        return scores, json.loads((Path(folder) / "metrics.json").read_text()), time.perf_counter() - start


def prepare(args: argparse.Namespace, folder: str, *overrides: str) -> Any:
    """A built run of the pipeline, as train.py makes it."""
    from hydra import compose, initialize_config_dir

    from oddpatch import pipeline

    with initialize_config_dir(str((HERE / "configs").resolve()), version_base="1.3"):
        cfg = compose("train", [
            "data=mvtec", f"data.root={args.root.resolve()}", f"trainer.accelerator={args.device}", *QUIET,
            "callbacks.results=null", f"paths.output_dir={folder}", *args.overrides, *overrides,
        ])  # fmt: skip
    return pipeline.build(cfg)


def seconds(call: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Median wall time of a call, from an idle device to an idle device."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(args: argparse.Namespace) -> None:
    """Images a second of the backbone alone, of backbone and `update`, of backbone and score with map."""
    device = torch.device(args.device)
    print(f"batches of {args.batch_size} images of {args.size} x {args.size}; rates in images/s, and of the backbone's")
    print(
        f"{'backbone':16} {'method':10} {'precision':9} {'compile':7} {'backbone':>8} {'fit':>15} {'test':>15}    MiB"
    )
    for backbone in args.backbones:
        for model in args.models or ("padim", "patchcore model.coreset_size=1000"):
            for precision in args.precisions:
                for compiled in args.compiled:
                    head = f"{backbone:16} {model.split()[0]:10} {precision:9} {compiled:7}"
                    try:
                        print(head, _rate(args, device, backbone, model, precision, compiled), flush=True)
                    except Exception as error:
                        print(head, f"{type(error).__name__}: {str(error)[:300]}", flush=True)


def _rate(
    args: argparse.Namespace, device: torch.device, backbone: str, model: str, precision: str, compiled: str
) -> str:
    weights = [] if backbone == "effnet_lite0" else ["backbone.weights=random"]
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(
            args, folder, *f"model={model}".split(), f"backbone={backbone}", *weights, "calibration=none",
            "resume=false", f"backbone.precision={precision}", f"backbone.compile={compiled}",
            f"data.resize={args.size}", "data.crop=null",
        )  # fmt: skip
    whole = run.module.model.to(device)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(args.batch_size, 3, args.size, args.size, generator=generator) for _ in range(4)]
    batches = [batch.to(device) for batch in batches]
    count = sum(map(len, batches))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def forward() -> None:
        for batch in batches:
            whole.backbone(batch)

    position = 0

    def update() -> None:
        nonlocal position
        for batch in batches:
            whole.update(batch, torch.arange(position, position + len(batch), device=device))
            position += len(batch)

    def score() -> None:
        for batch in batches:
            whole(batch)

    with torch.no_grad():
        alone = count / seconds(forward, device)
        fitting = count / seconds(update, device)
        whole.detector.fit()
        scoring = count / seconds(score, device)
    memory = torch.cuda.max_memory_allocated(device) / (1 << 20) if device.type == "cuda" else float("nan")
    return f"{alone:8.0f} {fitting:8.0f} ({fitting / alone:.2f}) {scoring:8.0f} ({scoring / alone:.2f}) {memory:6.0f}"


def coreset(args: argparse.Namespace) -> None:
    """Picks a second of `k_center_greedy` and of plain greedy, and whether both devices pick the same."""
    from coreset import plain_greedy, synthetic_features
    from oddpatch.ops.coreset import k_center_greedy

    device = torch.device(args.device)
    print(
        f"{'rows':>8} {'dim':>5} {'picks':>6} {'ours/s':>8} {'plain/s':>8} {'plain fp16/s':>12}   CPU/s  as on the CPU"
    )
    for rows, dim in ((50_000, 152), (163_856, 152), (163_856, 1536)):
        points = synthetic_features(rows, dim, seed=0)
        count = rows // 100
        there = points.to(device)
        ours = count / seconds(lambda: k_center_greedy(there, count, start=0), device, 3)  # noqa: B023
        plain = count / seconds(lambda: plain_greedy(there, count), device, 1)  # noqa: B023
        half = count / seconds(lambda: plain_greedy(there.half(), count), device, 1)  # noqa: B023
        picks: Tensor = k_center_greedy(there, count, start=0).cpu()
        same, cpu = "not compared", float("nan")
        if dim < 1000:
            start = time.perf_counter()
            reference = k_center_greedy(points, count, start=0)
            cpu = count / (time.perf_counter() - start)
            equal = int((reference == picks).long().cumprod(0).sum())
            same = (
                "all"
                if equal == count
                else f"the first {equal}, of all {len(set(reference.tolist()) & set(picks.tolist()))}"
            )
        print(f"{rows:8} {dim:5} {count:6} {ours:8.0f} {plain:8.0f} {half:12.0f} {cpu:7.0f}  {same}", flush=True)


def loop(args: argparse.Namespace) -> None:
    """Fit and test from files: rates, memory, and the lines of ours that wait for the GPU."""
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        args.root = _many(args.root, Path(folder) / "data", args.train_images, args.test_images)
        for model in args.models or ("padim", "patchcore model.coreset_ratio=0.01"):
            for backbone in args.backbones:
                weights = [] if backbone == "effnet_lite0" else ["backbone.weights=random"]
                out = str(Path(folder) / f"{model.split()[0]}-{backbone}")
                run = prepare(
                    args, out, *f"model={model}".split(), f"backbone={backbone}", *weights, "calibration=none",
                    f"data.num_workers={args.workers}", f"data.batch_size={args.batch_size}",
                )  # fmt: skip
                waits: Counter[str] = Counter()
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    if device.type == "cuda":
                        torch.cuda.reset_peak_memory_stats(device)
                        torch.cuda.set_sync_debug_mode("warn")
                    start = time.perf_counter()
                    run.fit()
                    fitted = time.perf_counter()
                    run.test()
                    tested = time.perf_counter()
                    if device.type == "cuda":
                        torch.cuda.set_sync_debug_mode("default")
                for warning in caught:
                    if "synchronizing" in str(warning.message):
                        name = Path(warning.filename)
                        waits[f"{'/'.join(name.parts[-3:])}:{warning.lineno}"] += 1
                timing = {key: round(value, 2) for key, value in run.module.timing.items()}
                peak = torch.cuda.max_memory_allocated(device) / (1 << 20) if device.type == "cuda" else float("nan")
                print(f"{model} on {backbone}: {args.train_images} images fitted in {fitted - start:.2f} s, "
                      f"{args.test_images} tested in {tested - fitted:.2f} s; {timing}; {peak:.0f} MiB")  # fmt: skip
                for place, count in waits.most_common(15):
                    print(f"    waits {count:5} times at {place}")
                sys.stdout.flush()


def _many(root: Path, target: Path, train: int, test: int) -> Path:
    """A category of so many images, which are links to those of `root`'s bottle."""
    source = root.resolve() / "bottle"
    for part, wanted in (("train", train), ("test", test)):
        files = sorted(path for path in (source / part).rglob("*") if path.is_file())
        for number in range(wanted):
            path = files[number % len(files)]
            kind = path.parent.name
            link = target / "bottle" / part / kind / f"{number:06}{path.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
            mask = source / "ground_truth" / kind / f"{path.stem}_mask.png"
            if part == "test" and mask.exists():
                place = target / "bottle/ground_truth" / kind / f"{number:06}_mask.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(mask)
    return target


def main() -> None:
    """Run the parts that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"methods": methods, "rate": rate, "coreset": coreset, "loop": loop}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--root", type=Path, default=Path("../shared/data/mvtec"), help="MVTec AD, for bottle")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--backbones", nargs="+", default=["effnet_lite0", "wide_resnet50"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "fp16"])
    parser.add_argument("--compiled", nargs="+", default=["false"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--train-images", type=int, default=2000)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--overrides", nargs="*", default=[])
    args = parser.parse_args()
    if torch.device(args.device).type == "cuda":
        if not torch.cuda.is_available():
            sys.exit("torch finds no GPU here: nothing was measured; --device cpu tries the benchmark itself")
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {os.cpu_count()} cores")
    parts[args.part](args)


if __name__ == "__main__":
    main()
