"""What inspecting an archive costs beyond decoding its images and running the backbone, and whether memory stays flat.

    python benchmarks/archive.py                             # 2,000 images of 900x900
    python benchmarks/archive.py --memory 1000 20000         # peak memory for so many small images
    python benchmarks/archive.py --ray 1 2 --images 400      # images per second by the number of workers

The floor decodes every image and runs the backbone on batches, side by side in the same threads, and nothing else:
as we decode, and by OpenCV, as most programs do. The archive is inspected as `oddpatch predict RUN FOLDER --results
FILE --batch-size 32` does it. All take turns on a part of the images at a time, so that the ratio holds on a machine
that others use, too. Start-up is not counted.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from PIL import Image

from common import Options, Row, Used, decode_with_opencv
from common import compare as compared
from oddpatch import AnomalyDetector
from oddpatch.data.decoding import read_image
from oddpatch.inference.outputs import to_record
from oddpatch.inference.records import open_records
from oddpatch.inference.sources import Files
from oddpatch.inference.throughput import Overlap
from oddpatch.inference.torch_scorer import TorchScorer

#: Images that differ; the archive is links to them.
DIFFERENT, GOOD, BATCH = 40, 20, 32
FLOORS = ("decode + backbone", "decode by OpenCV + backbone")


def draw(folder: Path, size: int, suffix: str) -> list[Path]:
    """Images of a woven texture with noise and, in the last, a bright spot."""
    rng = np.random.default_rng(0)
    wave = np.sin(np.arange(size) / 9)
    folder.mkdir(parents=True)
    for number in range(DIFFERENT):
        image = 120 + 40 * (wave[:, None, None] * wave[None, :, None]) + rng.normal(0, 6, (size, size, 3))
        if number == DIFFERENT - 1:
            image[size // 3 : size // 2, size // 3 : size // 2] = 250
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02}{suffix}")
    return sorted(folder.iterdir())


def archive_of(images: list[Path], folder: Path, count: int) -> list[str]:
    """So many files, each a link to one of the images."""
    folder.mkdir(parents=True)
    for number in range(count):
        image = images[number % len(images)]
        os.link(image, folder / f"{number:06}{image.suffix}")
    return [str(path) for path in sorted(folder.iterdir())]


def seconds(work: Callable[[], None]) -> np.ndarray:
    """Wall and CPU seconds of all threads."""
    start = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter() - start[0], time.process_time() - start[1]])


def floor(detector: AnomalyDetector, files: list[str], opencv: bool = False) -> None:
    """Decode, and run the backbone."""
    assert isinstance(detector.scorer, TorchScorer)
    model = detector.scorer.model
    pixels = torch.zeros(BATCH, 3, *model.preprocess.image_size)
    decode = decode_with_opencv if opencv else lambda path: read_image(path, keep_uint8=True).shape
    with Overlap(holding=detector.scorer.leaves_python) as overlap, torch.inference_mode():
        decoded = overlap.map(decode, files, BATCH + overlap.workers)
        while batch := list(islice(decoded, BATCH)):
            model.backbone(pixels[: len(batch)])


def inspect(detector: AnomalyDetector, files: list[str], results: Path) -> None:
    """What `oddpatch predict --results` does with a model that is loaded."""
    with closing(detector.stream(Files(files), BATCH, maps=False)) as found, open_records(results) as records:
        for frame, result in found:
            records.write(to_record(frame, result))


def compare(run: Path, files: list[str], engine: str, out: Path, suffix: str) -> None:
    """Print seconds of the floor and of inspecting, and their ratio."""
    detector = AnomalyDetector.load(run, engine=engine, timeout=60.0)
    floor(detector, files[:BATCH])  # the engine prepares itself
    turns = np.zeros((3, 2))
    for start in range(0, len(files), 128):
        part = files[start : start + 128]
        turns[0] += seconds(lambda part=part: floor(detector, part))  # type: ignore[misc]
        turns[1] += seconds(lambda part=part: floor(detector, part, opencv=True))  # type: ignore[misc]
        results = out / f"{engine}-{start}{suffix}"
        turns[2] += seconds(lambda part=part, results=results: inspect(detector, part, results))  # type: ignore[misc]
    for name, (wall, cpu) in zip((*FLOORS, "inspect"), turns, strict=True):
        rate = len(files) / wall
        print(f"{engine:9} {name:27} {wall:7.1f} s wall {cpu:7.1f} s CPU {rate:6.1f} images/s", flush=True)
    for name, used in zip(FLOORS, turns, strict=False):
        wall, cpu = turns[2] / used
        print(f"{engine:9} to {name}: {wall:.2f} of wall time, {cpu:.2f} of CPU time, {len(files)} images", flush=True)


def rows(options: Options) -> Iterator[Row]:
    """2,000 images of 900x900 with OpenVINO, which both sides take turns on."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        images = draw(out / "images", 96 if options.quick else 900, ".png")
        run = out / "run"
        AnomalyDetector.fit([str(path) for path in images[:GOOD]], model="padim", backbone=options.backbone).save(run)
        files = archive_of(images, out / "archive", 200 if options.quick else 2000)
        detector = AnomalyDetector.load(run, engine="openvino", timeout=60.0)
        floor(detector, files[:BATCH])
        sides: dict[str, list[Used]] = {"ours": [], **{name: [] for name in FLOORS}}
        for start in range(0, len(files), 128):
            part, results = files[start : start + 128], out / f"{start}.jsonl"
            for opencv, name in enumerate(FLOORS):
                wall, cpu = seconds(lambda part=part, opencv=opencv: floor(detector, part, bool(opencv)))  # type: ignore[misc]
                sides[name].append(Used(cpu / len(part), wall / len(part)))
            wall, cpu = seconds(lambda part=part, results=results: inspect(detector, part, results))  # type: ignore[misc]
            sides["ours"].append(Used(cpu / len(part), wall / len(part)))
    what = f"predict {len(files):,} images, OpenVINO"
    for name in FLOORS:
        ours, theirs = sides["ours"], sides[name]
        yield compared(what, name, ours, theirs, 1.25, take=lambda it: 1000 * it.cpu, unit="CPU ms")
        yield compared(what, name, ours, theirs, 1.25, take=lambda it: 1000 * it.wall, unit="ms of wall time")


def command(run: Path, folder: Path, results: Path, *more: str) -> list[str]:
    """`oddpatch predict`, of this Python."""
    return [
        sys.executable,
        "-m",
        "oddpatch.cli.main",
        "predict",
        str(run),
        str(folder),
        "--results",
        str(results),
        *more,
    ]


def memory(run: Path, images: list[Path], counts: list[int], out: Path, suffix: str) -> None:
    """Print the peak memory of inspecting so many images, each time by a process of its own."""
    for count in counts:
        archive_of(images, out / f"memory{count}", count)
        process = subprocess.Popen(command(run, out / f"memory{count}", out / f"memory{count}{suffix}"))
        _, _, usage = os.wait4(process.pid, 0)
        print(f"{count:6} images: peak {usage.ru_maxrss / 1024:7.1f} MiB", flush=True)


def cluster(run: Path, folder: Path, workers: list[int], out: Path) -> None:
    """Print images per second of clusters with so many nodes of one core, on this machine."""
    from ray.cluster_utils import Cluster

    for count in workers:
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            for _ in range(count - 1):
                found.add_node(num_cpus=1)
            rates = list(_rates(command(run, folder, out / f"ray{count}.jsonl", "--ray", found.address), out, count))
        finally:
            found.shutdown()
        print(f"{count} workers: {rates[0]:.1f} images/s once all have loaded the model", flush=True)


def _rates(call: list[str], out: Path, count: int) -> Iterator[float]:
    """Images per second between the first quarter of the results and the last."""
    results, seen = out / f"ray{count}.jsonl", []
    process = subprocess.Popen(call, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None:
        lines = results.read_bytes().count(b"\n") if results.exists() else 0
        seen.append((time.perf_counter(), lines))
        time.sleep(0.2)
    last = seen[-1][1]
    start = next(point for point in seen if point[1] >= last / 4)
    end = next(point for point in seen if point[1] == last)
    yield (end[1] - start[1]) / (end[0] - start[0])


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=900)
    parser.add_argument("--suffix", default=".png", help="of the images: .png, .jpg")
    parser.add_argument("--results", default=".jsonl", help="suffix of the results")
    parser.add_argument("--model", default="padim")
    parser.add_argument("--engines", nargs="+", default=["openvino"])
    parser.add_argument("--memory", type=int, nargs="+", metavar="N")
    parser.add_argument("--ray", type=int, nargs="+", metavar="WORKERS")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        images = draw(out / "images", 96 if args.memory else args.size, args.suffix)
        run = out / "run"
        good = [str(path) for path in images[:GOOD]]
        small = {"data.resize": 64} if args.memory else {}
        AnomalyDetector.fit(good, model=args.model, backbone="effnet_lite0", **small).save(run)
        if args.memory:
            return memory(run, images, args.memory, out, args.results)
        files = archive_of(images, out / "archive", args.images)
        if args.ray:
            return cluster(run, out / "archive", args.ray, out)
        for engine in args.engines:
            compare(run, files, engine, out, args.results)


if __name__ == "__main__":
    main()
